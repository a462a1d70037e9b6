"""Fixed points and cycles of a network seen as a map of a space to itself: how many, how stable, whose basins."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import xarray as xr

from trajstats.data.schema import annotate
from trajstats.errors import ArgumentError, unknown_name_message
from trajstats.estimators.fixed_points._attractors import gather
from trajstats.estimators.fixed_points._basins import _dataset
from trajstats.estimators.fixed_points._iteration import (
    Iterated,
    checked_map,
    difference_jacobian,
    iterate,
    root_search,
)
from trajstats.estimators.fixed_points._map_checks import check_map, check_starts, check_tolerance, value_precision
from trajstats.network import Network

METHODS = ("iterate", "newton")
_BYTES = 512 * 2**20


def fixed_point_census(
    map: Callable[[np.ndarray], np.ndarray] | Network,
    dim: int,
    *,
    starts: int | np.ndarray = 1_000,
    tolerance: float | None = None,
    rng: int | np.random.Generator,
    weights: xr.Dataset | Mapping[str, np.ndarray] | np.ndarray | None = None,
    jacobian: Callable[[np.ndarray], np.ndarray] | None = None,
    method: str = "iterate",
    start_scale: float = 1.0,
    max_iterations: int = 1_000,
    max_period: int = 64,
    level: float = 0.95,
    workers: int = 1,
) -> xr.Dataset:
    r"""Census of the attractors of a map F from R^N to itself.

    Every start is iterated, :math:`x_{t+1}=F(x_t)`, all in one batch, until for some p up to `max_period`
    :math:`\max_i|x_{t+p}-x_t|_i\le\epsilon\max(1,|x|)`. End points are polished by Newton on :math:`F^p(x)=x` and
    merged; each start is then a ``fixed_point``, a ``cycle`` (with its smallest period), ``unconverged`` (slow,
    chaotic, or a longer cycle) or ``diverged``. A point is stable if the spectral radius of the
    Jacobian of :math:`F^p` there is below one.

    Parameters
    ----------
    map : callable or Network
        Batches (b, N) to (b, N); or a network with as many outputs as inputs, at `weights`.
    dim : int
        The N.
    starts : int or array (start, dim)
        Number of Gaussian starts of standard deviation `start_scale`, or the starts themselves. Basin shares are
        shares of this distribution.
    tolerance : float, optional
        The :math:`\epsilon`; 1e-10 for a float64 map, 1e-5 for a float32 one.
    rng : int or numpy.random.Generator
        Seed of the starts.
    weights : xarray.Dataset, mapping name -> array, or array (n_parameters,), optional
        A checkpoint, for a Network: one of a run, ``run.sel(replica=..., step=...)``, or its weights by name. A plain
        array has no names: it is taken in the order of ``network.layers``, with a warning where there are several.
    jacobian : callable, optional
        (b, N) to (b, N, N). A Network's own, the map's ``jacobian`` method, or central differences if not given.
    method : str
        ``"iterate"`` finds attractors and their basins. ``"newton"`` searches roots of F(x) - x from every start,
        unstable ones included; shares then have no meaning as basins.
    start_scale : float
        Standard deviation of the starts in each coordinate.
    max_iterations : int
        Most iterations of a start.
    max_period : int
        Longest cycle that is searched for.
    level : float
        Level of the intervals.
    workers : int
        Threads that iterate parts of the starts in parallel; the map must then be safe to call from threads. The
        numbers do not depend on it.

    Returns
    -------
    xarray.Dataset
        Per attractor: ``point`` (attractor, dim), ``period``, ``spectral_radius``, ``stable``, ``residual``, ``count``,
        ``share`` with ``share_low`` and ``share_high`` (Wilson), by falling share. Per start: ``status``, ``label``
        (index of the attractor, -1 for none), ``iterations``. ``distinct`` and ``distinct_stderr`` (sample_size):
        attractors expected among that many of the starts (the saturation curve). ``n_fixed_points`` (the paper's Q),
        ``n_cycles``, ``missed`` (Chao's lower bound of attractors not seen), ``missed_share`` and
        ``missed_share_high`` (Good-Turing: the share of starts that lead to them).

    Raises
    ------
    ArgumentError
        If the map is not square, the tolerance is below the map's precision, or an argument is out of range.
    NonFiniteError
        If the map gives NaN, or a start is not finite.

    Notes
    -----
    Cost: one batched call of the map per iteration on the starts still moving, plus one Newton polish per distinct
    attractor (2N calls if the Jacobian is by differences). A start that is only slow (edge of chaos) is never counted
    as having no fixed point: it is unconverged. Neutral points (a multiplier of modulus one, such as permutations) are
    counted where a start returns to the last digit, and are not stable.

    References
    ----------
    fixedpoints (arXiv:2501.04182); Brent 1980, doi:10.1007/BF01933190; Chao 1984 (number unseen); Good 1953.

    Examples
    --------
    >>> import numpy as np
    >>> census = fixed_point_census(lambda x: np.tanh(2 * x), 2, starts=200, rng=0)
    >>> int(census.n_fixed_points), bool(census.stable.all())
    (4, True)
    """
    function, derivative = check_map(map, dim, weights, jacobian)
    if method not in METHODS:
        raise ArgumentError(unknown_name_message("method", method, METHODS))
    entropy = int(rng.integers(2**63)) if isinstance(rng, np.random.Generator) else int(rng)
    points = check_starts(starts, dim, start_scale, entropy)
    if min(max_iterations, max_period, workers) < 1 or not 0 < level < 1:
        msg = f"{max_iterations=}, {max_period=} and {workers=} must be at least 1, {level=} between 0 and 1"
        raise ArgumentError(msg)
    eps = value_precision(function, points)
    call = checked_map(function, dim)
    tolerance = check_tolerance(tolerance, eps)
    slope = derivative if derivative is not None else difference_jacobian(call, eps)
    ends = _ends(call, slope, points, method, tolerance, max_iterations, max_period, workers)
    found, status, label = gather(call, slope, ends, eps=eps)
    result = _dataset(found, status, label, ends, level)
    return annotate(
        result,
        name="fixed_point_census",
        long_name="attractors of a map",
        units="1",
        estimator="fixed_point_census",
        arguments={
            "dim": dim,
            "starts": len(points),
            "tolerance": tolerance,
            "method": method,
            "start_scale": start_scale,
            "max_iterations": max_iterations,
            "max_period": max_period,
            "level": level,
            "rng": entropy,
        },
        source="",
        n_starts=len(points),
        tolerance=tolerance,
    )


def _ends(
    call: Any,
    slope: Any,
    points: np.ndarray,
    method: str,
    tolerance: float,
    max_iterations: int,
    max_period: int,
    workers: int,
) -> Iterated:
    # Chunks of starts bounded by bytes: Jacobians for the root search, a dozen copies of the points otherwise. Chunks
    # of at most 1,000 keep the batch in cache and share the work among the threads.
    each = 8 * points.shape[1] * (12 if method == "iterate" else 6 * points.shape[1])
    chunk = min(1_000, max(1, _BYTES // each))

    def one(part: np.ndarray) -> Iterated:
        if method == "iterate":
            return iterate(call, part, tolerance=tolerance, max_iterations=max_iterations, max_period=max_period)
        return root_search(call, slope, part, tolerance=tolerance, max_iterations=min(max_iterations, 500))

    chunks = [points[start : start + chunk] for start in range(0, len(points), chunk)]
    if workers > 1:
        with ThreadPoolExecutor(workers) as pool:
            parts = list(pool.map(one, chunks))
    else:
        parts = [one(part) for part in chunks]
    names = ("points", "status", "period", "step", "iterations")
    return Iterated(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def attractor_slice(
    map: Callable[[np.ndarray], np.ndarray] | Network,
    census: xr.Dataset,
    /,
    *,
    origin: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    extent: float = 3.0,
    points: int = 101,
    max_iterations: int = 1_000,
    weights: xr.Dataset | Mapping[str, np.ndarray] | np.ndarray | None = None,
) -> xr.Dataset:
    r"""Attractors reached from the points of a plane :math:`o+ua+vb`, with labels of a census.

    Parameters
    ----------
    map : callable or Network
        Batches (b, N) to (b, N), or a network at `weights`.
    census : xarray.Dataset
        The result of `fixed_point_census` for this map.
    origin, first, second : array (dim,)
        The plane's o, a and b.
    extent : float
        u and v run from minus this to this.
    points : int
        Points along each axis.
    max_iterations : int
        Most iterations of a start.
    weights
        A checkpoint, for a Network; as in `fixed_point_census`.

    Returns
    -------
    xarray.Dataset
        ``label`` (v, u): index of the census's attractor, -1 unconverged or diverged, -2 an attractor that is not
        in the census.

    Raises
    ------
    ArgumentError
        If a vector does not have the map's dimension.

    Notes
    -----
    Cost: ``points ** 2`` starts of a census.

    References
    ----------
    fixedpoints (arXiv:2501.04182): basins partition the inputs.

    Examples
    --------
    The two attractors of tanh(2 x), one on each side of zero:

    >>> census = fixed_point_census(lambda x: np.tanh(2 * x), 1, starts=50, rng=0)
    >>> plane = attractor_slice(
    ...     lambda x: np.tanh(2 * x), census, origin=[0.0], first=[1.0], second=[0.0], extent=1.0, points=4
    ... )
    >>> row = plane.label.values[0]
    >>> bool(row[0] == row[1] != row[2] == row[3])
    True
    """
    dim = census.sizes["dim"]
    function, _ = check_map(map, dim, weights, None)
    vectors = [np.asarray(v, dtype=np.float64) for v in (origin, first, second)]
    if any(v.shape != (dim,) for v in vectors):
        msg = f"origin, first and second have shapes {[v.shape for v in vectors]}; each must be ({dim},)"
        raise ArgumentError(msg)
    axis = np.linspace(-extent, extent, points)
    v, u = np.meshgrid(axis, axis, indexing="ij")
    starts = vectors[0] + u.reshape(-1, 1) * vectors[1] + v.reshape(-1, 1) * vectors[2]
    there = fixed_point_census(
        function, dim, starts=starts, tolerance=float(census.attrs["tolerance"]), rng=0, max_iterations=max_iterations
    )
    call = checked_map(function, dim)
    names = np.full(there.sizes["attractor"] + 1, -2)
    names[-1] = -1
    for index, (point, period) in enumerate(zip(there["point"].values, there["period"].values, strict=True)):
        turn = point[None]
        for _ in range(int(period)):
            near = np.abs(census["point"].values - turn).max(axis=1)
            if near.size and near.min() <= 1e-6 * max(1.0, float(np.abs(point).max())):
                names[index] = int(near.argmin())
            turn = call(turn)
    label = names[there["label"].values].reshape(points, points)
    result = xr.Dataset({"label": (("v", "u"), label)}, coords={"u": axis, "v": axis})
    return annotate(
        result,
        name="attractor_slice",
        long_name="attractor reached",
        units="1",
        estimator="attractor_slice",
        arguments={"extent": extent, "points": points},
        source="",
    )
