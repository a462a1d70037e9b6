"""One-time statistics: the length and shape of the path, and the regimes of the loss."""

from __future__ import annotations

import numpy as np
import xarray as xr

from trajstats.data._clocks import check_clock, choose_clock, unit_of
from trajstats.data._inputs import MATRIX, TRAJECTORY, accepts
from trajstats.data.schema import REPLICA, STEP, STEP_PRIME, annotate, check_trajectory, clock_values
from trajstats.errors import ArgumentError, unknown_name_message
from trajstats.estimators.two_time._dask_blocks import as_array, block_sums, delay, stack
from trajstats.estimators.two_time._groups import Per
from trajstats.estimators.two_time._measurement import prepare
from trajstats.estimators.two_time._sums import Request, Sums

COMPONENT = "component"
PATH = {
    "norm": ("norm of the weights", "weight"),
    "distance_from_start": ("distance from the first checkpoint", "weight"),
    "distance_from_end": ("distance from the last checkpoint", "weight"),
    "step_length": ("distance to the next checkpoint", "weight"),
    "turning_cosine": ("cosine between the displacements to and from a checkpoint", "1"),
}


@accepts(TRAJECTORY)
def path_statistics(trajectory: xr.Dataset, /, *, per: Per = "all", method: str = "direct") -> xr.Dataset:
    r"""Norms, distances from start and end, step lengths and turning angles along the saved path.

    Euclidean, summed over the parameters of a group and not divided by M: :math:`|w(t)|`, :math:`|w(t)-w(t_0)|`,
    :math:`|w(t)-w(t_\mathrm{end})|`, :math:`|w(t^+)-w(t)|` to the next checkpoint, and the cosine of the angle between
    :math:`w(t)-w(t^-)` and :math:`w(t^+)-w(t)`: 1 straight on, 0 a random walk in many dimensions, -1 back.

    Parameters
    ----------
    trajectory : xarray.Dataset
        A trajectory with at least 2 checkpoints.
    per, method
        As for `trajstats.msd`.

    Returns
    -------
    xarray.Dataset
        ``norm``, ``distance_from_start``, ``distance_from_end``, ``step_length``, ``turning_cosine`` (replica, step[,
        layer]), lazy, float64; NaN where there is no next or previous checkpoint, or a displacement is zero.

    Raises
    ------
    ArgumentError
        If there is one checkpoint only.

    Notes
    -----
    One pass, four pairs for each checkpoint. The cosine follows from three distances; its absolute error is about
    :math:`10^{-6}` times the ratio of the longer to the shorter displacement.

    References
    ----------
    Definitions are this toolkit's own.

    Examples
    --------
    >>> from trajstats.data.schema import trajectory_dataset
    >>> path = path_statistics(trajectory_dataset([[0.0, 0], [3, 0], [3, 4]], step=[0, 1, 2])).compute()
    >>> path.distance_from_start.values.tolist(), float(path.turning_cosine[0, 1])
    ([[0.0, 3.0, 5.0]], 0.0)
    """
    trajectory = check_trajectory(trajectory)
    n = trajectory.sizes[STEP]
    if n < 2:
        msg = f"the trajectory has {n} checkpoint(s); a path needs two. Record more, or open the whole run."
        raise ArgumentError(msg)
    row = np.arange(n)
    pairs = np.unique(
        np.concatenate(
            [np.stack([0 * row, row], 1), np.stack([row, 0 * row + n - 1], 1)]
            + [np.stack([row[:-k], row[k:]], 1) for k in (1, 2)]
        ),
        axis=0,
    )
    pairs = pairs[pairs[:, 0] < pairs[:, 1]]
    job = prepare(trajectory, pairs[:, 0], pairs[:, 1], observables="correlation", per=per, method=method)
    shape = (len(PATH), n, len(job.groups))
    sums = block_sums(trajectory, job.rows, job.request, job.plan)
    values = stack([as_array(delay(_path, s, job.request, shape), shape) for s in sums])
    clocks = {str(k): (STEP, c.values) for k, c in trajectory.coords.items() if c.dims == (STEP,)}
    out = xr.Dataset(coords={REPLICA: trajectory[REPLICA].values, **clocks, **job.groups.coords()})
    arguments = {"per": job.groups.argument, "method": method}
    source = str(trajectory.attrs["uid"])
    for k, (name, (long_name, units)) in enumerate(PATH.items()):
        if job.groups.dim is None:
            out[name] = ((REPLICA, STEP), values[:, k, :, 0])
        else:
            out[name] = ((REPLICA, STEP, job.groups.dim), values[:, k])
        out[name].attrs = {"long_name": long_name, "units": units}
    return annotate(
        out,
        name="",
        long_name="path of the weights",
        units="",
        estimator="path_statistics",
        arguments=arguments,
        source=source,
    )


def _path(sums: Sums, request: Request, shape: tuple[int, int, int]) -> np.ndarray:
    out = np.full(shape, np.nan)
    n = shape[1]
    for group, terms in sums.items():
        square = np.zeros((n, n))
        square[request.first, request.second] = square[request.second, request.first] = terms["pairs"][0]
        out[0, :, group] = np.sqrt(terms["rows"][1])
        out[1, :, group] = np.sqrt(square[0])
        out[2, :, group] = np.sqrt(square[-1])
        length = np.sqrt(np.diagonal(square, 1))
        out[3, :-1, group] = length
        product = 0.5 * (np.diagonal(square, 2) - length[:-1] ** 2 - length[1:] ** 2)
        norm = length[:-1] * length[1:]
        out[4, 1:-1, group] = np.where(norm > 0, product / np.where(norm > 0, norm, 1), np.nan)
    return out


@accepts(MATRIX)
def trajectory_pca(delta: xr.DataArray, /, *, components: int = 5) -> xr.Dataset:
    r"""Principal components and effective rank of the path, from all its pairs.

    The centred Gram matrix of the checkpoints is :math:`B=-\frac12J\,(M\Delta)\,J` with :math:`J=1-\frac1T`: its
    eigenvalues :math:`\lambda_k` are the squared extents of the path along its principal axes. Effective ranks:
    :math:`(\sum\lambda)^2/\sum\lambda^2` and :math:`\exp(-\sum p_k\ln p_k)`, :math:`p_k=\lambda_k/\sum\lambda`.

    Parameters
    ----------
    delta : xarray.DataArray, (replica, step, step_prime[, layer])
        ``msd`` of `trajstats.all_pairs`.
    components : int
        How many components to return, at most the number of checkpoints.

    Returns
    -------
    xarray.Dataset
        ``score`` (replica[, layer], step, component): coordinates of the checkpoints on the principal axes, in weight
        units; ``explained`` (component): :math:`p_k`; ``participation_rank``, ``entropy_rank``.

    Raises
    ------
    ArgumentError
        If `components` is out of range.

    Notes
    -----
    Values are computed. All checkpoints weigh the same, so uneven grids stress their dense part. A random walk in many
    dimensions has :math:`p_k=6/\pi^2k^2` and cosines as scores: such a picture is no sign of structure. Components
    below about :math:`10^{-6}` of the first are rounding of the MSD.

    References
    ----------
    Random walks: Antognini and Sohl-Dickstein 2018, arXiv:1806.08805.

    Examples
    --------
    >>> from trajstats.data.synthetic.processes import ballistic
    >>> from trajstats.estimators.two_time.measures import all_pairs
    >>> pca = trajectory_pca(all_pairs(ballistic(range(5), rng=0)).msd, components=1)
    >>> pca.explained.values.round(4).tolist(), pca.participation_rank.values.round(4).tolist()
    ([[1.0]], [1.0])
    """
    n = delta.sizes[STEP]
    if not 1 <= components <= n:
        msg = f"components={components}: give 1 to {n}, the number of checkpoints"
        raise ArgumentError(msg)
    square = (delta * delta["n_parameters"]).transpose(..., STEP, STEP_PRIME).compute()
    centring = np.eye(n) - 1 / n
    values, vectors = np.linalg.eigh(-0.5 * centring @ square.values @ centring)
    values, vectors = np.clip(values[..., ::-1], 0, None), vectors[..., ::-1]
    share = values / values.sum(axis=-1, keepdims=True)
    entropy = -np.sum(share * np.log(np.where(share > 0, share, 1)), axis=-1)
    # The sign of an axis is free: the path ends on its positive side.
    score = vectors * np.sqrt(values)[..., None, :]
    score = score * np.where(score[..., -1:, :] < 0, -1, 1)
    outer = tuple(d for d in square.dims if d not in {STEP, STEP_PRIME})
    out = xr.Dataset(
        {
            "score": ((*outer, STEP, COMPONENT), score[..., :components]),
            "explained": ((*outer, COMPONENT), share[..., :components]),
            "participation_rank": (outer, values.sum(axis=-1) ** 2 / (values**2).sum(axis=-1)),
            "entropy_rank": (outer, np.exp(entropy)),
        },
        coords={STEP: delta[STEP].values, COMPONENT: np.arange(1, components + 1)}
        | {str(d): delta[d].values for d in outer if d in delta.coords},
    )
    out["score"].attrs = {"long_name": "coordinate on the principal axis", "units": "weight"}
    return annotate(
        out,
        name="",
        long_name="principal components of the path",
        units="",
        estimator="trajectory_pca",
        arguments={"components": components},
        source=str(delta.attrs.get("source", "")),
    )


@accepts(TRAJECTORY)
def loss_regimes(
    trajectory: xr.Dataset,
    /,
    *,
    rng: int | np.random.Generator,
    series: str = "loss",
    clock: str | None = None,
    bins: int = 60,
    resamples: int = 300,
) -> xr.Dataset:
    r"""Find t1, the end of the initial loss plateau, and t2, where the loss reaches its floor, with intervals.

    The loss, averaged in `bins` even bins of :math:`\ln t`, is fitted by a plateau, a straight fall in :math:`\ln t`
    and a floor; t1 and t2 are its corners. (The paper names the regimes; this definition of their ends is ours.)

    Parameters
    ----------
    trajectory : xarray.Dataset
        A trajectory with a scalar series.
    rng : int or numpy.random.Generator
        For the bootstrap.
    series : str
        The series, (replica, step).
    clock : str, optional
        Clock of the times, by default that of `time_pairs`: ``"step"``, or ``"proper_time"`` where it is stored and not
        proportional to the step. Times at or below 0 are left out.
    bins : int
        Bins in ln t; empty ones are dropped.
    resamples : int
        Bootstrap samples.

    Returns
    -------
    xarray.Dataset
        ``t1``, ``t2``, ``t1_low``, ``t1_high``, ``t2_low``, ``t2_high`` (95 %), ``plateau`` and ``floor`` (losses),
        ``plateau_seen``, ``floor_reached`` along `replica`. t1 is NaN where the record starts in the fall, t2 where it
        ends in it: then they are censored, not missing.

    Raises
    ------
    ArgumentError
        If the series does not exist, is not finite, or has fewer than 12 filled bins.

    Notes
    -----
    The interval is a bootstrap of the residuals in blocks of neighbouring bins (:math:`n^{1/3}` of them), so that noise
    which is correlated in ln t counts. A fall that is not straight in ln t (a long power law) puts t2 where it has
    flattened to within the noise: more averaging moves it later.

    References
    ----------
    Paper key *glassy*: Baity-Jesi et al. 2018, arXiv:1803.06969.

    Examples
    --------
    >>> from trajstats.data.schema import trajectory_dataset
    >>> t = np.unique(np.geomspace(1, 1e6, 400).astype(int))
    >>> loss = np.interp(np.log(t), np.log([1e2, 1e4]), [2.0, 0.5])
    >>> run = trajectory_dataset(np.zeros((t.size, 1)), step=t, series={"loss": loss})
    >>> found = loss_regimes(run, rng=0)
    >>> bool(abs(np.log(found.t1 / 1e2)) < 0.2), bool(abs(np.log(found.t2 / 1e4)) < 0.2)
    (True, True)
    """
    trajectory = check_trajectory(trajectory, sketched=True)
    known = [str(k) for k, v in trajectory.data_vars.items() if v.dims == (REPLICA, STEP)]
    if series not in known:
        raise ArgumentError(
            unknown_name_message("series", series, known, do="Record it with append(step, weights, loss=...).")
        )
    clock = choose_clock(trajectory, clock)
    times = clock_values(trajectory, clock).astype(np.float64)
    check_clock(times, trajectory[STEP].values, clock)
    values = trajectory[series].values[:, times > 0]
    if not np.isfinite(values).all():
        at = trajectory[STEP].values[times > 0][~np.isfinite(values).all(axis=0)]
        msg = f"{series} is not finite at step {at[:5].tolist()}; leave these steps out with .sel(step=...)"
        raise ArgumentError(msg)
    x = np.log(times[times > 0])
    edges = np.linspace(x[0], x[-1], bins + 1) if x.size else np.zeros(2)
    which = np.clip(np.searchsorted(edges, x, side="right") - 1, 0, bins - 1)
    filled, counts = np.unique(which, return_counts=True)
    if filled.size < 12:
        msg = f"{series} fills {filled.size} of {bins} bins in ln t; 12 are needed. Record it at more times."
        raise ArgumentError(msg)
    centre = np.bincount(which, x)[filled] / counts
    generator = np.random.default_rng(rng)
    columns: dict[str, list[float]] = {}
    for row in values:
        y = np.bincount(which, row)[filled] / counts
        for name, value in _corners(centre, y, generator, resamples).items():
            columns.setdefault(name, []).append(value)
    out = xr.Dataset({k: (REPLICA, np.array(v)) for k, v in columns.items()}, {REPLICA: trajectory[REPLICA].values})
    return annotate(
        out,
        name="",
        long_name=f"regimes of the {series}",
        units=unit_of(clock, trajectory),
        estimator="loss_regimes",
        arguments={"series": series, "clock": clock, "bins": bins, "resamples": resamples},
        source=str(trajectory.attrs["uid"]),
        clock=clock,
    )


def _corners(x: np.ndarray, y: np.ndarray, rng: np.random.Generator, resamples: int) -> dict[str, float]:
    # All corner pairs at once: for given corners the fit is linear in plateau and floor.
    a, b = np.triu_indices(x.size, 1)
    ramp = np.clip((x - x[a][:, None]) / (x[b] - x[a])[:, None], 0, 1)
    flat = 1 - ramp
    gram = np.stack([(flat * flat).sum(1), (flat * ramp).sum(1), (ramp * ramp).sum(1)])
    det = gram[0] * gram[2] - gram[1] ** 2

    def fit(target: np.ndarray) -> tuple[int, float, float]:
        u, v = flat @ target, ramp @ target
        high, low = (gram[2] * u - gram[1] * v) / det, (gram[0] * v - gram[1] * u) / det
        best = int(np.argmin(-high * u - low * v))
        return best, high[best], low[best]

    best, plateau, floor = fit(y)
    model = plateau * flat[best] + floor * ramp[best]
    residual, width = y - model, max(2, round(x.size ** (1 / 3)))
    starts = rng.integers(0, x.size - width + 1, (resamples, -(-x.size // width)))
    picks = (starts[..., None] + np.arange(width)).reshape(resamples, -1)[:, : x.size]
    tries = np.array([fit(model + residual[p])[0] for p in picks])
    seen, reached = bool(a[best] > 1), bool(b[best] < x.size - 2)
    out = {"t1": np.exp(x[a[best]]) if seen else np.nan, "t2": np.exp(x[b[best]]) if reached else np.nan}
    for name, corner, known in (("t1", a, seen), ("t2", b, reached)):
        # Corners sit on bins: half a bin either way is part of the interval.
        half = 0.5 * (x[-1] - x[0]) / (x.size - 1)
        low, high = np.quantile(x[corner[tries]], [0.025, 0.975])
        out[f"{name}_low"], out[f"{name}_high"] = (
            (float(np.exp(low - half)), float(np.exp(high + half))) if known else (np.nan, np.nan)
        )
    return {**out, "plateau": plateau, "floor": floor, "plateau_seen": seen, "floor_reached": reached}
