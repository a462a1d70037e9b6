"""Curvature tasks on dask: one per checkpoint for its atoms, one per chunk of probes; one thread each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import dask
import numpy as np
import xarray as xr
from dask.base import get_scheduler
from threadpoolctl import threadpool_limits

from trajstats.data.schema import REPLICA, STEP, WEIGHTS
from trajstats.errors import NonFiniteError
from trajstats.estimators.lanczos import (
    Apply,
    Atoms,
    converged_atoms,
    dense_matrix,
    gauss_rule,
    lanczos,
    project_out,
    unit_probes,
)
from trajstats.network import CurvatureKind, Network

# Residual, relative to the largest eigenvalue, below which a Ritz pair counts as converged.
CONVERGED = 1e-3
DENSE_BATCH = 16


@dataclass(frozen=True)
class Plan:
    """What every task of one spectrum has in common."""

    kind: CurvatureKind
    exact: bool
    order: int
    atom_steps: int
    chunk: int
    entropy: int
    selection: np.ndarray | None


def run_spectra(
    network: Network, trajectory: xr.Dataset, rows: Sequence[int], probes: int, plan: Plan
) -> list[list[list[dict[str, Any]]]]:
    """Compute the spectra of some checkpoints.

    Parameters
    ----------
    network : Network
        The network.
    trajectory : xarray.Dataset
        A checked trajectory.
    rows : sequence of int
        Checkpoints, by position.
    probes : int
        Probes per checkpoint.
    plan : Plan
        Settings of the tasks.

    Returns
    -------
    list
        By replica, checkpoint and chunk of probes: the arrays of the task.
    """
    weights = trajectory[WEIGHTS].data
    shared = dask.delayed(network, pure=False)
    firsts = [0] if plan.exact else list(range(0, probes, plan.chunk))
    out = []
    for r, replica in enumerate(trajectory[REPLICA].values):
        spectra = []
        previous = None
        for row in rows:
            where = (int(replica), int(trajectory[STEP].values[row]))
            flat = dask.delayed(weights[r, row])
            if plan.exact:
                spectra.append([dask.delayed(exact_task)(shared, flat, plan, where)])
                continue
            previous = dask.delayed(atoms_task)(shared, flat, plan, where, previous)
            chunks = [dask.delayed(probes_task)(shared, flat, plan, where, first, previous) for first in firsts]
            spectra.append(chunks)
        out.append(spectra)
    # Threads gain nothing here (the framework holds them up); processes or a cluster are the user's choice.
    chosen = {} if get_scheduler() is not None else {"scheduler": "synchronous"}
    return dask.compute(out, **chosen)[0]


def exact_task(network: Network, weights: np.ndarray, plan: Plan, where: tuple[int, int]) -> dict[str, Any]:
    """Diagonalise the dense curvature of one checkpoint.

    Parameters
    ----------
    network, weights, plan, where
        The network, its flat weights, the settings, and (replica, step).

    Returns
    -------
    dict
        ``nodes`` (1, n) and the rest of what a task gives.
    """
    with threadpool_limits(1):
        loss, apply, n, dtype = _operator(network, weights, plan, where)
        nodes = np.linalg.eigvalsh(dense_matrix(apply, n, dtype, DENSE_BATCH))[None]
        return {
            "loss": loss,
            "nodes": nodes,
            "weights": np.full((1, n), 1 / n),
            "residual": np.zeros((1, n)),
            "exact": np.ones((1, n), bool),
        }


def atoms_task(
    network: Network, weights: np.ndarray, plan: Plan, where: tuple[int, int], previous: Atoms | None
) -> Atoms | None:
    """Find the converged eigenpairs of one checkpoint, starting near those of the one before.

    Parameters
    ----------
    network, weights, plan, where
        As in `exact_task`.
    previous : Atoms, optional
        Those of the checkpoint before.

    Returns
    -------
    Atoms or None
        None where deflation is off.
    """
    if plan.atom_steps == 0:
        return None
    with threadpool_limits(1):
        _, apply, n, dtype = _operator(network, weights, plan, where)
        start = unit_probes([_key(plan, where)], n, dtype)[0]
        return converged_atoms(apply, start, plan.atom_steps, CONVERGED)


def probes_task(
    network: Network, weights: np.ndarray, plan: Plan, where: tuple[int, int], first: int, atoms: Atoms | None
) -> dict[str, Any]:
    """Run one chunk of probes at one checkpoint.

    Parameters
    ----------
    network, weights, plan, where
        As in `exact_task`.
    first : int
        The chunk's first probe.
    atoms : Atoms, optional
        Eigenpairs counted exactly; the probes stay in their complement.

    Returns
    -------
    dict
        ``nodes``, ``weights``, ``residual``, ``exact`` (probe, node), ``alpha``, ``beta`` (probe, lanczos).
    """
    with threadpool_limits(1):
        loss, apply, n, dtype = _operator(network, weights, plan, where)
        start = unit_probes([_key(plan, where, first + i) for i in range(plan.chunk)], n, dtype)
        within = None if atoms is None else atoms.vectors
        if within is not None:
            start = project_out(start, within)
        run = lanczos(apply, start, plan.order, within=within)
        count = 0 if atoms is None else len(atoms.values)
        out: dict[str, Any] = {
            "loss": loss,
            "nodes": np.zeros((plan.chunk, count + plan.order)),
            "weights": np.zeros((plan.chunk, count + plan.order)),
            "residual": np.zeros((plan.chunk, count + plan.order)),
            "exact": np.zeros((plan.chunk, count + plan.order), bool),
            "alpha": run.alpha,
            "beta": run.beta,
        }
        for i in range(plan.chunk):
            nodes, share, residual = gauss_rule(run, i)
            if atoms is not None:
                nodes = np.concatenate([atoms.values, nodes])
                share = np.concatenate([np.full(count, 1 / n), share * (n - count) / n])
                residual = np.concatenate([atoms.residuals, residual])
            rank = np.argsort(nodes, kind="stable")
            m = len(nodes)
            out["nodes"][i, :m], out["nodes"][i, m:] = nodes[rank], nodes[rank[-1]]
            out["weights"][i, :m] = share[rank]
            out["residual"][i, :m] = residual[rank]
            out["exact"][i, :m] = (np.arange(m) < count)[rank]
        return out


def _key(plan: Plan, where: tuple[int, int], *probe: int) -> np.random.SeedSequence:
    return np.random.SeedSequence(plan.entropy, spawn_key=(*where, *probe))


def _operator(
    network: Network, weights: np.ndarray, plan: Plan, where: tuple[int, int]
) -> tuple[float, Apply, int, np.dtype]:
    # Linearised at one checkpoint, restricted to the plan's parameters, on rows.
    loss = float(network.loss(weights))
    if not np.isfinite(loss):
        msg = (
            f"the loss is {loss} at replica {where[0]}, step {where[1]}: the curvature is not defined there. "
            "Leave this step out with steps=..., or check the data and the weights."
        )
        raise NonFiniteError(msg)
    operator = network.curvature(weights, plan.kind)
    dtype = np.dtype(operator.dtype)
    if plan.selection is None:
        return loss, lambda rows: operator.matmat(rows.T).T, operator.shape[0], dtype
    chosen = plan.selection

    def restricted(rows: np.ndarray) -> np.ndarray:
        full = np.zeros((len(rows), operator.shape[0]), dtype)
        full[:, chosen] = rows
        return operator.matmat(full.T).T[:, chosen]

    return loss, restricted, len(chosen), dtype
