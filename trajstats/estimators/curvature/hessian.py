"""Spectra of the loss curvature at the checkpoints of a trajectory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from trajstats.data._inputs import NETWORK, TRAJECTORY, accepts
from trajstats.data.schema import REPLICA, STEP, annotate
from trajstats.errors import ArgumentError, StoreError, resumable, unknown_name_message
from trajstats.estimators._checkpoints import MEMORY, UNITS, at_least_one, checked
from trajstats.estimators.curvature._dask_tasks import at_workers, checkpoints, run_losses, run_spectra
from trajstats.estimators.curvature._task_store import TaskStore
from trajstats.estimators.curvature._tasks import Checkpoint, Plan, finite_losses, probes_per_chunk
from trajstats.network import CurvatureKind, Network
from trajstats.runtime._cluster import cluster_errors

METHODS = ("auto", "exact", "lanczos")
# Up to this many parameters `auto` diagonalises the dense matrix: as cheap as ten probes of eighty steps.
EXACT_UP_TO = 1_000
# Probes of one task; it does not depend on `probes`, so that adding probes repeats the same batched calls.
PROBES_PER_TASK = 5
# With deflation each probe gives up an eighth of its steps, and ten probes' eighths make the run that finds the atoms.
SHARE, POOL = 8, 10


@accepts(NETWORK, TRAJECTORY)
def hessian_spectrum(
    network: Network,
    trajectory: xr.Dataset,
    /,
    *,
    steps: Sequence[int] | None = None,
    kind: CurvatureKind = "hessian",
    method: str = "auto",
    probes: int = 10,
    order: int = 80,
    deflate: bool = True,
    layers: Sequence[str] | None = None,
    store: str | os.PathLike[str] | None = None,
    memory: int = MEMORY,
    rng: int | np.random.Generator,
) -> xr.Dataset:
    r"""Estimate the spectrum of the loss curvature at saved checkpoints.

    Nodes :math:`\theta_k` and weights :math:`\omega_k` of each probe :math:`q`, such that for the eigenvalues
    :math:`\lambda_i` of the curvature :math:`A` at :math:`w(t)`

    .. math:: \frac1P\sum_{i=1}^Pf(\lambda_i)\approx\Bigl\langle\sum_k\omega_kf(\theta_k)\Bigr\rangle_q .

    Stochastic Lanczos quadrature with deflation: one longer Lanczos run finds converged eigenpairs, kept as exact atoms
    of weight :math:`1/P`; probes uniform on the sphere of their complement measure the rest. `spectral_density` and
    `spectral_summary` derive densities, traces and fractions, with intervals, without another product.

    Parameters
    ----------
    network : Network
        The network, its loss and its data; with the trajectory's layers, in any order.
    trajectory : xarray.Dataset
        Its trajectory, weights (replica, step, parameter).
    steps : sequence of int, optional
        Saved steps (optimiser steps) to look at; all if not given.
    kind : str
        ``"hessian"``; ``"gauss_newton"``: :math:`J^T\nabla^2_f\ell\,J`, both with the L2 term; ``"fisher"``: the
        empirical Fisher matrix, the mean of :math:`gg^T` over example gradients without the L2 term.
    method : str
        ``"exact"``: all eigenvalues of the dense matrix; ``"lanczos"``; ``"auto"``: exact up to 1,000 parameters.
    probes : int
        Random probes per checkpoint. More probes never change the earlier ones.
    order : int
        Curvature products per probe for ten probes. With deflation a probe takes 7/8 of `order` Lanczos steps and one
        run of 10/8 of `order` finds the atoms.
    deflate : bool
        Whether to count converged eigenvalues exactly.
    layers : sequence of str, optional
        Restrict to the diagonal block of these layers.
    store : path, optional
        A folder that keeps every finished task. After a kill the same call does only what is missing, bitwise equal.
    memory : int
        Budget in bytes for the Lanczos vectors of one task. What the network needs for a product is beside it
        (``network.memory`` of the adapters).
    rng : int or numpy.random.Generator
        Seed; probe k at step t of replica r depends on (seed, r, t, k) alone.

    Returns
    -------
    xarray.Dataset
        In memory, float64, with coordinates replica, step, probe: ``nodes``, ``weights`` (sum 1), ``residual`` (bound
        on the distance to an eigenvalue) and ``exact`` (node is a whole eigenvalue of weight 1/P), all (replica, step,
        probe, node) with nodes ascending and padded by their last one at weight 0; ``alpha``, ``beta`` (replica, step,
        probe, lanczos), zero after the end of the recurrence; ``loss`` (replica, step).

    Raises
    ------
    ArgumentError
        If an argument is not allowed, a step is not saved or `memory` does not hold one probe.
    SchemaError
        If the layers of network and trajectory differ by name or shape.
    NonFiniteError
        If the loss or a curvature product is not finite at a checkpoint.
    StoreError
        If `store` holds tasks of other settings or of another loss.

    Notes
    -----
    Cost: ``probes * order`` curvature products per checkpoint (with ten probes), a product costing about one gradient;
    full reorthogonalisation adds ``4 order^2 P`` operations per probe. Exact: P products and :math:`O(P^3)`. Computed
    on the dask scheduler in force, or in this thread if none is set: use ``dask.config.set(scheduler="processes")`` or
    a ``distributed.Client`` for tasks over checkpoints and probe chunks, one thread each. Each checkpoint's run for
    atoms starts near the atoms of the one before, in the order of `steps`, and anew at every fourth.

    Bias: none from the probes (the trace is unbiased); the quadrature of order m resolves no finer than the range of
    the Lanczos part over m. Atoms have residuals below 1 % of their value, errors of about its square.

    References
    ----------
    Ghorbani, Krishnan, Xiao, arXiv:1901.10159 (stochastic Lanczos quadrature); glassy, arXiv:1803.06969 (the question).

    Examples
    --------
    >>> from trajstats.data.schema import trajectory_dataset
    >>> from scipy.sparse.linalg import aslinearoperator
    >>> class Quadratic:
    ...     n_parameters = 3
    ...     def loss(self, weights): return float(weights @ (np.diag([1.0, 2.0, 6.0]) @ weights)) / 2
    ...     def curvature(self, weights, kind="hessian"): return aslinearoperator(np.diag([1.0, 2.0, 6.0]))
    >>> run = trajectory_dataset(np.ones((1, 3)), step=[0])
    >>> hessian_spectrum(Quadratic(), run, rng=0).nodes.values.round(6).ravel().tolist()
    [1.0, 2.0, 6.0]
    """
    network, trajectory, rows, selection, entropy = checked(network, trajectory, steps, kind, layers, rng)
    if method not in METHODS:
        raise ArgumentError(unknown_name_message("method", method, METHODS))
    at_least_one(probes=probes, order=order)
    size = network.n_parameters if selection is None else len(selection)
    exact = method == "exact" or (method == "auto" and size <= EXACT_UP_TO)
    share = order // SHARE if deflate else 0
    lengths = (order - share, min(POOL * share, size))
    # float64 whatever the network's type: the budget then holds for both.
    chunk = 1 if exact else probes_per_chunk(size, 8, *lengths, memory, PROBES_PER_TASK)
    plan = Plan(kind, exact, *lengths, chunk, entropy, selection)
    source = str(trajectory.attrs.get("uid", ""))
    cells = checkpoints(trajectory, rows)
    kept_at = "Nothing is kept; give store= a path." if store is None else f"Finished tasks are kept in {store}."

    how = f"{kept_at} The same call again does the missing tasks."
    with resumable(how), cluster_errors(how):
        shared = at_workers(network)
        losses = finite_losses(run_losses(shared, trajectory, cells), cells)
        kept = None if store is None else _opened(store, plan, layers, source, losses, cells)
        results = run_spectra(shared, trajectory, cells, probes, plan, kept)

    spectrum = _dataset(results, 1 if exact else probes)
    coords = {REPLICA: trajectory[REPLICA], STEP: trajectory[STEP][rows]}
    spectrum = spectrum.assign(loss=((REPLICA, STEP), losses)).assign_coords(coords)
    arguments = {
        "steps": spectrum[STEP].values,
        "kind": kind,
        "method": "exact" if exact else "lanczos",
        "probes": probes,
        "order": order,
        "deflate": deflate,
        "layers": layers,
        "rng": entropy,
    }
    return annotate(
        spectrum,
        name="hessian_spectrum",
        long_name=f"spectrum of the {kind.replace('_', '-')}",
        units=UNITS,
        estimator="hessian_spectrum",
        arguments=arguments,
        source=source,
        n_parameters=size,
        kind=kind,
    )


def _opened(
    path: str | os.PathLike[str],
    plan: Plan,
    layers: Sequence[str] | None,
    source: str,
    losses: np.ndarray,
    cells: list[list[Checkpoint]],
) -> TaskStore:
    settings = {name: getattr(plan, name) for name in ("kind", "exact", "order", "atom_steps", "chunk", "entropy")}
    layers = [layers] if isinstance(layers, str) else layers
    kept = TaskStore(path, {**settings, "layers": None if layers is None else list(layers), "source": source})
    # The loss stands for the network and its data: tasks of another network must not be mixed in.
    for line, row in zip(cells, losses, strict=True):
        for where, loss in zip(line, row, strict=True):
            name = f"replica{where.replica}-step{where.step}-loss"
            if not kept.has(name):
                kept.write(name, {"loss": np.array([loss])})
            before = float(kept.read(name)["loss"][0])
            if not np.isclose(before, loss, rtol=1e-5, atol=0):
                msg = (
                    f"{path} was made where the loss at replica {where.replica}, step {where.step} is {before}; now it "
                    f"is {loss}. Give the same network and data, or another path."
                )
                raise StoreError(msg)
    return kept


def _dataset(results: list[Any], probes: int) -> xr.Dataset:
    # Shorter node lists are padded by their last node at weight zero: harmless in any sum, maximum or plot.
    data = {}
    for name in results[0][0][0]:
        cells = [[np.concatenate([chunk[name] for chunk in cell])[:probes] for cell in line] for line in results]
        width = max(cell.shape[-1] for line in cells for cell in line)
        full = np.zeros((len(cells), len(cells[0]), probes, width), cells[0][0].dtype)
        for r, line in enumerate(cells):
            for k, cell in enumerate(line):
                full[r, k, :, : cell.shape[-1]] = cell
                if name == "nodes":
                    full[r, k, :, cell.shape[-1] :] = cell[:, -1:]
        data[name] = ((REPLICA, STEP, "probe", "lanczos" if name in ("alpha", "beta") else "node"), full)
    return xr.Dataset(data, coords={"probe": np.arange(probes)})
