"""Eigenpairs at the ends of the loss curvature's spectrum."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from trajstats.data._inputs import NETWORK, TRAJECTORY, accepts
from trajstats.data.schema import PARAMETER, REPLICA, STEP, annotate
from trajstats.errors import ArgumentError
from trajstats.estimators._checkpoints import MEMORY, UNITS, at_least_one, checked
from trajstats.estimators.curvature._dask_tasks import ANEW, at_workers, checkpoints, run_checkpoints, run_losses
from trajstats.estimators.curvature._tasks import Plan, finite_losses, pairs_task, probes_per_chunk
from trajstats.network import CurvatureKind, Network
from trajstats.runtime._cluster import cluster_errors


@accepts(NETWORK, TRAJECTORY)
def extreme_eigenpairs(
    network: Network,
    trajectory: xr.Dataset,
    /,
    *,
    steps: Sequence[int] | None = None,
    kind: CurvatureKind = "hessian",
    top: int = 5,
    bottom: int = 0,
    order: int = 100,
    layers: Sequence[str] | None = None,
    memory: int = MEMORY,
    rng: int | np.random.Generator,
) -> xr.Dataset:
    r"""Find eigenpairs at the ends of the curvature's spectrum by Lanczos, with their residuals.

    Parameters
    ----------
    network, trajectory, steps, kind, layers, memory, rng
        As in `hessian_spectrum`.
    top, bottom : int
        How many of the largest and of the smallest eigenvalues.
    order : int
        Lanczos steps; raise it where ``residual`` is too large.

    Returns
    -------
    xarray.Dataset
        ``eigenvalue``, ``residual`` :math:`\lVert Av-\lambda v\rVert` (replica, step, rank) and ``vector`` (replica,
        step, rank, parameter), unit. Rank 1, 2, ... counts from the top, -1, -2, ... from the bottom. NaN where the
        Krylov space ends before.

    Raises
    ------
    ArgumentError
        If an argument is not allowed, or `memory` does not hold the Lanczos vectors.
    SchemaError
        If the layers of network and trajectory differ by name or shape.
    NonFiniteError
        If the loss or a curvature product is not finite at a checkpoint.

    Notes
    -----
    A multiple eigenvalue appears once: a Krylov space holds one vector of each eigenspace. Within ``residual`` of each
    value there is an eigenvalue; that none was missed above it is likely, not certain.

    References
    ----------
    Golub, Van Loan, Matrix Computations, chapter 10.

    Examples
    --------
    >>> from trajstats.data.schema import trajectory_dataset
    >>> from scipy.sparse.linalg import aslinearoperator
    >>> class Quadratic:
    ...     n_parameters = 3
    ...     def loss(self, weights): return 0.0
    ...     def curvature(self, weights, kind="hessian"): return aslinearoperator(np.diag([1.0, 2.0, 6.0]))
    >>> pairs = extreme_eigenpairs(Quadratic(), trajectory_dataset(np.ones((1, 3)), step=[0]), top=1, bottom=1, rng=0)
    >>> pairs.eigenvalue.values.round(6).ravel().tolist()
    [6.0, 1.0]
    """
    network, trajectory, rows, selection, entropy = checked(network, trajectory, steps, kind, layers, rng)
    at_least_one(order=order)
    if min(top, bottom) < 0 or top + bottom < 1 or top + bottom > order:
        msg = f"top={top}, bottom={bottom}: give counts of at least 0, together between 1 and order={order}"
        raise ArgumentError(msg)
    size = network.n_parameters if selection is None else len(selection)
    order = min(order, size)
    probes_per_chunk(size, 8, order, order, memory, 1)
    plan = Plan(kind, False, order, 0, 1, entropy, selection)
    cells = checkpoints(trajectory, rows)

    with cluster_errors(ANEW):
        shared = at_workers(network)
        finite_losses(run_losses(shared, trajectory, cells), cells)
        results = run_checkpoints(pairs_task, shared, trajectory, cells, plan, (top, bottom))

    values, residuals, vectors = (np.array([[cell[k] for cell in line] for line in results]) for k in range(3))
    dims = (REPLICA, STEP, "rank")
    pairs = xr.Dataset(
        {"eigenvalue": (dims, values), "residual": (dims, residuals), "vector": ((*dims, PARAMETER), vectors)},
        coords={
            REPLICA: trajectory[REPLICA],
            STEP: trajectory[STEP][rows],
            "rank": [*range(1, top + 1), *range(-1, -bottom - 1, -1)],
            PARAMETER: np.arange(network.n_parameters) if selection is None else selection,
        },
    )
    return annotate(
        pairs,
        name="extreme_eigenpairs",
        long_name=f"extreme eigenpairs of the {kind.replace('_', '-')}",
        units=UNITS,
        estimator="extreme_eigenpairs",
        arguments={"kind": kind, "top": top, "bottom": bottom, "order": order, "layers": layers, "rng": entropy},
        source=str(trajectory.attrs.get("uid", "")),
    )
