"""The tasks of a curvature spectrum, each for one checkpoint: plain arrays in, plain arrays out, one thread each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from trajstats.errors import ArgumentError, NonFiniteError
from trajstats.estimators.linalg._lanczos import (
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
from trajstats.runtime._memory import memory_kept

DENSE_BATCH = 16
# Vectors of work space per probe beside its Lanczos basis: current, image, operator's result, temporaries.
SPARE_VECTORS = 8


@dataclass(frozen=True)
class Plan:
    """What every task of one spectrum has in common; `chunk` probes always run together: batching is fixed."""

    kind: CurvatureKind
    exact: bool
    order: int
    atom_steps: int
    chunk: int
    entropy: int
    selection: np.ndarray | None


@dataclass(frozen=True)
class Checkpoint:
    """Which checkpoint: labels for the random keys, row for the data."""

    replica: int
    step: int
    row: tuple[int, int]


def probes_per_chunk(n: int, itemsize: int, order: int, atom_steps: int, memory: int, most: int) -> int:
    """Say how many probes fit in the byte budget together."""
    # While atoms are found: the basis and the Ritz vectors made of it. While probes run: the atoms and the bases.
    atoms = (2 * atom_steps + SPARE_VECTORS) * n * itemsize
    per_probe = (order + SPARE_VECTORS) * n * itemsize
    fit = (memory - atom_steps * n * itemsize) // per_probe
    if fit < 1 or atoms > memory:
        need = max(atoms, atom_steps * n * itemsize + per_probe)
        msg = (
            f"memory={memory} bytes is too small: {order} Lanczos vectors of {n} weights need {need} bytes. "
            "Raise memory, lower order, restrict layers=, or give deflate=False."
        )
        raise ArgumentError(msg)
    return int(min(fit, most))


def loss_task(network: Network, weights: np.ndarray) -> float:
    """Evaluate the loss of one checkpoint."""
    return float(network.loss(weights))


def exact_task(network: Network, weights: np.ndarray, plan: Plan, where: Checkpoint) -> dict[str, np.ndarray]:
    """Diagonalise the dense curvature of one checkpoint."""
    with _task(where):
        apply, n, dtype = operator(network, weights, plan)
        nodes = np.linalg.eigvalsh(dense_matrix(apply, n, dtype, DENSE_BATCH))[None]
        equal = np.full((1, n), 1 / n)
        return {"nodes": nodes, "weights": equal, "residual": np.zeros((1, n)), "exact": np.ones((1, n), bool)}


def atoms_task(
    network: Network, weights: np.ndarray, plan: Plan, where: Checkpoint, previous: dict[str, np.ndarray] | None
) -> dict[str, np.ndarray]:
    """Find the converged eigenpairs of one checkpoint, starting near those of the one before."""
    with _task(where):
        apply, n, dtype = operator(network, weights, plan)
        start = unit_probes([_key(plan, where)], n, dtype)[0]
        if previous is not None and len(previous["values"]):
            # Half of the start's weight in the old eigenvectors, all signs alike by chance, the rest everywhere.
            signs = np.random.default_rng(_key(plan, where)).choice([-1.0, 1.0], len(previous["values"]))
            start = start + ((signs / np.sqrt(len(signs))) @ previous["vectors"]).astype(dtype)
            start /= np.linalg.norm(start)
        found = converged_atoms(apply, start, plan.atom_steps)
        return {"values": found.values, "vectors": found.vectors, "residuals": found.residuals}


def probes_task(
    network: Network,
    weights: np.ndarray,
    plan: Plan,
    where: Checkpoint,
    first: int,
    found: dict[str, np.ndarray] | None,
) -> dict[str, np.ndarray]:
    """Run one chunk of probes at one checkpoint."""
    with _task(where):
        apply, n, dtype = operator(network, weights, plan)
        atoms = Atoms(np.empty(0), np.empty((0, n), dtype), np.empty(0)) if found is None else Atoms(**found)
        count = len(atoms.values)
        start = unit_probes([_key(plan, where, first + i) for i in range(plan.chunk)], n, dtype)
        within = atoms.vectors if count else None
        run = lanczos(apply, start if within is None else project_out(start, within), plan.order, within=within)
        shape = (plan.chunk, count + plan.order)
        out = {name: np.zeros(shape) for name in ("nodes", "weights", "residual")} | {"exact": np.zeros(shape, bool)}
        for i in range(plan.chunk):
            nodes, share, residual = gauss_rule(run, i)
            nodes = np.concatenate([atoms.values, nodes])
            rank = np.argsort(nodes, kind="stable")
            m = len(nodes)
            out["nodes"][i, :m], out["nodes"][i, m:] = nodes[rank], nodes[rank[-1]]
            out["weights"][i, :m] = np.concatenate([np.full(count, 1 / n), share * (n - count) / n])[rank]
            out["residual"][i, :m] = np.concatenate([atoms.residuals, residual])[rank]
            out["exact"][i, :m] = (np.arange(m) < count)[rank]
        pad = ((0, 0), (0, plan.order - run.alpha.shape[1]))
        return out | {"alpha": np.pad(run.alpha, pad), "beta": np.pad(run.beta, pad)}


def pairs_task(network: Network, weights: np.ndarray, where: Checkpoint, plan: Plan, ends: tuple[int, int]) -> Any:
    """Give the eigenpairs at both ends of one checkpoint's spectrum."""
    with _task(where):
        apply, n, dtype = operator(network, weights, plan)
        found = converged_atoms(apply, unit_probes([_key(plan, where)], n, dtype)[0], plan.order, tolerance=np.inf)
        top, bottom = min(ends[0], len(found.values)), min(ends[1], len(found.values))
        chosen = np.concatenate([np.arange(len(found.values))[::-1][:top], np.arange(bottom)]).astype(int)
        places = np.concatenate([np.arange(top), ends[0] + np.arange(bottom)]).astype(int)
        rows = found.vectors[chosen]
        image = np.concatenate([apply(rows[i : i + DENSE_BATCH]) for i in range(0, len(rows), DENSE_BATCH)])
        values = np.full(sum(ends), np.nan)
        residuals, vectors = values.copy(), np.full((sum(ends), n), np.nan, dtype)
        values[places], vectors[places] = found.values[chosen], rows
        residuals[places] = np.linalg.norm(image.astype(np.float64) - values[places][:, None] * rows, axis=1)
        return values, residuals, vectors


def operator(network: Network, weights: np.ndarray, plan: Plan) -> tuple[Apply, int, np.dtype]:
    """Linearise at one checkpoint, restricted to the plan's parameters."""
    full = network.curvature(weights, plan.kind)
    dtype = np.dtype(full.dtype)
    if plan.selection is None:
        return (lambda rows: full.matmat(rows.T).T), full.shape[0], dtype
    chosen = plan.selection

    def restricted(rows: np.ndarray) -> np.ndarray:
        padded = np.zeros((len(rows), full.shape[0]), dtype)
        padded[:, chosen] = rows
        return full.matmat(padded.T).T[:, chosen]

    return restricted, len(chosen), dtype


@contextmanager
def _task(where: Checkpoint) -> Iterator[None]:
    try:
        with memory_kept():
            yield
    except NonFiniteError as error:
        msg = (
            f"{error} at replica {where.replica}, step {where.step}, though the loss is finite there. Leave this "
            "step out with steps=..., or look for operations without a second derivative at these weights."
        )
        raise NonFiniteError(msg) from error


def _key(plan: Plan, where: Checkpoint, *probe: int) -> np.random.SeedSequence:
    return np.random.SeedSequence(plan.entropy, spawn_key=(where.replica, where.step, *probe))


def finite_losses(losses: np.ndarray, cells: list[list[Checkpoint]]) -> np.ndarray:
    """Check that the loss is finite at every checkpoint."""
    for line, row in zip(cells, losses, strict=True):
        for where, loss in zip(line, row, strict=True):
            if not np.isfinite(loss):
                msg = (
                    f"the loss is {loss} at replica {where.replica}, step {where.step}: there is no curvature there. "
                    "Leave this step out with steps=..., or check the weights and the data."
                )
                raise NonFiniteError(msg)
    return losses
