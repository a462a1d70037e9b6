"""What is read off displacements and their MSD: chi_4, local exponents, epoch echoes."""

from __future__ import annotations

import numpy as np
import xarray as xr

from trajstats.data._clocks import REASON, carried_clock, clock_attrs, clock_of, on_steps, unit_of
from trajstats.data._inputs import DELTA, OVERLAP, accepts
from trajstats.data._replicas import copied_rows, copies_message
from trajstats.data.schema import LAG, PAIR, REPLICA, STEP, WAITING_TIME, annotate
from trajstats.errors import ArgumentError, FitError, TooFewReplicasError


@accepts(OVERLAP)
def dynamic_susceptibility(overlap: xr.DataArray, /) -> xr.Dataset:
    r"""Dynamic susceptibility :math:`\chi_4=M\,\mathrm{Var}_\mathrm{replicas}(Q)`: how cooperative the motion is.

    Parameters
    ----------
    overlap : xarray.DataArray
        ``overlap`` of `trajstats.two_time` or `trajstats.all_pairs`, with 3 or more replicas.

    Returns
    -------
    xarray.Dataset
        ``chi4`` and its jackknife standard error ``stderr``, without `replica`. If weights move independently,
        :math:`\chi_4=Q(1-Q)`, given as ``null``.

    Raises
    ------
    TooFewReplicasError
        With fewer than 3 replicas.

    Notes
    -----
    The variance over R replicas (divided by R - 1: unbiased) has a relative error of about :math:`\sqrt{2/(R-1)}`.

    References
    ----------
    Paper key *glass_net*: Kerr Winter and Janssen 2025, arXiv:2405.13098.

    Examples
    --------
    >>> q = xr.DataArray([0.4, 0.5, 0.6], dims="replica", coords={"n_parameters": 100})
    >>> round(float(dynamic_susceptibility(q).chi4), 6)
    1.0
    """
    n = overlap.sizes[REPLICA]
    if n < 3:
        msg = f"chi_4 is a variance over replicas and its error needs 3 or more; there are {n}. Train more seeds."
        raise TooFewReplicasError(msg)
    overlap = _distinct_replicas(overlap)
    size = overlap["n_parameters"]
    chi = size * overlap.var(REPLICA, ddof=1)
    # The variance without one replica, in closed form: n-fold resampling of a lazy array would blow up its graph.
    mean = overlap.mean(REPLICA)
    left_out = ((n - 1) * chi - size * n / (n - 1) * (overlap - mean) ** 2) / (n - 2)
    stderr = np.sqrt((n - 1) * left_out.var(REPLICA, ddof=0))
    out = xr.Dataset({"chi4": chi, "stderr": stderr, "null": mean * (1 - mean)})
    return annotate(
        out,
        name="",
        long_name=r"dynamic susceptibility $\chi_4$",
        units="1",
        estimator="dynamic_susceptibility",
        arguments={},
        source=str(overlap.attrs.get("source", "")),
    )


def _distinct_replicas(values: xr.DataArray) -> xr.DataArray:
    # copies would give a variance of 0; lazy values are looked at when they are computed
    if REPLICA not in values.dims or values.sizes[REPLICA] < 2:
        return values
    labels = values[REPLICA].values if REPLICA in values.coords else np.arange(values.sizes[REPLICA])

    def checked(block: np.ndarray) -> np.ndarray:
        if block.size and (copies := copied_rows(np.moveaxis(block, -1, 0))):
            raise FitError(copies_message(copies, list(labels)))
        return block

    looked = xr.apply_ufunc(
        checked,
        values,
        input_core_dims=[[REPLICA]],
        output_core_dims=[[REPLICA]],
        dask="parallelized",
        output_dtypes=[values.dtype],
        dask_gufunc_kwargs={"allow_rechunk": True},
        keep_attrs=True,
    )
    return looked.transpose(*values.dims).rename(values.name)


@accepts(DELTA)
def local_exponent(delta: xr.DataArray, /, *, points: int = 3) -> xr.Dataset:
    r"""Local exponent :math:`d\ln\Delta/d\ln t` at fixed waiting time: 2 is drift, 1 diffusion, 0 a plateau.

    The slope of a straight line through `points` neighbouring lags on log-log axes.

    Parameters
    ----------
    delta : xarray.DataArray, (replica, pair[, layer][, block])
        `trajstats.msd`.
    points : int
        Neighbouring lags in each slope, 2 or more.

    Returns
    -------
    xarray.Dataset
        ``exponent`` as `delta`, without `replica` and `block`, which are averaged, and ``stderr``: from the scatter
        over replicas if there are 2 or more, else over random blocks of parameters if `delta` has them, else NaN.
        Attribute ``error_from`` says which. NaN where a waiting time has fewer than `points` lags.

    Raises
    ------
    ArgumentError
        If `points` is below 2.

    Notes
    -----
    Values are computed. Blocks of one run share its collective motion: an error over blocks is a lower bound. The
    slopes of neighbouring lags share points and are correlated.

    References
    ----------
    Paper key *glassy*: Baity-Jesi et al. 2018, arXiv:1803.06969.

    Examples
    --------
    >>> from trajstats.data.schedules import time_pairs
    >>> from trajstats.data.synthetic.processes import ballistic
    >>> from trajstats.estimators.two_time.measures import msd
    >>> run = ballistic([0, 1, 10, 100], rng=0, dtype="float64")
    >>> local_exponent(msd(run, time_pairs(run, waiting_time=[0]))).exponent.values.round(6).ravel().tolist()
    [2.0, 2.0, 2.0]
    """
    if points < 2:
        msg = f"points={points}: a slope needs 2 or more"
        raise ArgumentError(msg)
    y = _distinct_replicas(delta.compute())
    with np.errstate(divide="ignore"):
        y = y.copy(data=np.log(y.values))
    waiting, lag = delta[WAITING_TIME].values, delta[LAG].values.astype(np.float64)
    axis = y.get_axis_num(PAIR)
    values = np.moveaxis(y.values, axis, 0)
    slope = np.full(values.shape, np.nan)
    for t in np.unique(waiting):
        mine = np.flatnonzero(waiting == t)
        mine = mine[np.argsort(lag[mine], kind="stable")]
        if mine.size < points:
            continue
        for k in range(mine.size):
            low = min(max(0, k - points // 2), mine.size - points)
            window = mine[low : low + points]
            x = np.log(lag[window]) - np.log(lag[window]).mean()
            slope[mine[k]] = np.tensordot(x, values[window], axes=1) / (x @ x)
    slopes = y.copy(data=np.moveaxis(slope, 0, axis))
    over = [d for d in (REPLICA, "block") if d in slopes.dims]
    source = next((d for d in over if slopes.sizes[d] > 1), None)
    mean = slopes.mean(over)
    if source is None:
        stderr = xr.full_like(mean, np.nan)
    else:
        rest = [d for d in over if d != source]
        stderr = slopes.mean(rest).std(source, ddof=1) / np.sqrt(slopes.sizes[source])
    return annotate(
        xr.Dataset({"exponent": mean, "stderr": stderr}),
        name="",
        long_name=r"local exponent $d\ln\Delta/d\ln t$",
        units="1",
        estimator="local_exponent",
        arguments={"points": points},
        source=str(delta.attrs.get("source", "")),
        error_from="none: one replica" if source is None else str(source),
        **(carried_clock(delta) or clock_attrs(STEP)),
    )


@accepts(DELTA)
def epoch_echo(
    delta: xr.DataArray, /, *, epoch: float, clock: str | None = None, tolerance: float = 0.02
) -> xr.Dataset:
    r"""Find dips of the MSD at lags of whole epochs, the echo of a batch order that repeats.

    The depth of the echo at :math:`t=kE` is :math:`1-\Delta(t_w,t)/\Delta_\mathrm{base}`, the base interpolated on
    log-log axes between the nearest saved lags at least a tenth of an epoch away on either side (this toolkit's own
    definition).

    Parameters
    ----------
    delta : xarray.DataArray, (replica, pair)
        `trajstats.msd` with ``per="all"`` or one layer selected, lags dense enough to see an epoch.
    epoch : float
        E, on `clock`.
    clock : str, optional
        That of `delta` if not given, or ``"step"``. Required where `delta` is in proper time because no clock was
        given: there E could also mean optimiser steps.
    tolerance : float
        Part of an epoch by which a lag may miss a whole number of epochs.

    Returns
    -------
    xarray.Dataset
        ``depth`` (echo) with coords waiting_time, lag and multiple; ``mean_depth``, its standard error over waiting
        times and multiples ``stderr``, and ``detected``: whether it exceeds three standard errors.

    Raises
    ------
    ArgumentError
        If no saved lag is a whole number of epochs with neighbours on both sides, or E could be on either of two
        clocks.

    Notes
    -----
    Values are computed. Points of one run are correlated, so the standard error is a guide, not a test.

    References
    ----------
    Paper key *subaging*: Herrera Segura, Montoya and Tapias 2022, arXiv:2209.02517 (cyclic batches).

    Examples
    --------
    >>> lag = np.arange(1.0, 31)
    >>> coords = {"waiting_time": ("pair", 0 * lag), "lag": ("pair", lag)}
    >>> curve = lag * np.where(lag % 10 == 0, 0.5, 1)
    >>> delta = xr.DataArray(curve[None], dims=("replica", "pair"), coords=coords)
    >>> round(float(epoch_echo(delta, epoch=10).mean_depth), 3)
    0.5
    """
    delta = _on_clock(delta, clock, epoch)
    waiting, lag = delta[WAITING_TIME].values, delta[LAG].values.astype(np.float64)
    values = delta.mean(REPLICA).values if REPLICA in delta.dims else delta.values
    if values.ndim != 1:
        msg = f"delta has dims {delta.dims}; take per='all' or select one layer"
        raise ArgumentError(msg)
    found = []
    for t in np.unique(waiting):
        mine = np.flatnonzero(waiting == t)
        for p in mine:
            multiple = round(lag[p] / epoch)
            if multiple < 1 or abs(lag[p] - multiple * epoch) > tolerance * epoch:
                continue
            left = mine[(lag[mine] <= lag[p] - 0.1 * epoch) & (lag[mine] > lag[p] - epoch)]
            right = mine[(lag[mine] >= lag[p] + 0.1 * epoch) & (lag[mine] < lag[p] + epoch)]
            if left.size and right.size:
                a, b = left[np.argmax(lag[left])], right[np.argmin(lag[right])]
                base = np.exp(np.interp(np.log(lag[p]), np.log(lag[[a, b]]), np.log(values[[a, b]])))
                found.append((t, lag[p], multiple, 1 - values[p] / base))
    if not found:
        msg = (
            f"no saved lag is a whole number of epochs ({epoch:g}) with saved lags on both sides within one epoch; "
            "record lags k*E and (k +- 1/2)*E, see aging_schedule"
        )
        raise ArgumentError(msg)
    times, lags, multiples, depths = map(np.array, zip(*found, strict=True))
    stderr = depths.std(ddof=1) / np.sqrt(depths.size) if depths.size > 1 else np.nan
    out = xr.Dataset(
        {"depth": ("echo", depths), "mean_depth": depths.mean(), "stderr": stderr},
        coords={WAITING_TIME: ("echo", times), LAG: ("echo", lags), "multiple": ("echo", multiples.astype(int))},
    )
    out["detected"] = bool(depths.mean() > 3 * stderr)
    return annotate(
        out,
        name="",
        long_name="depth of the epoch echo",
        units="1",
        estimator="epoch_echo",
        arguments={"epoch": epoch, "clock": clock_of(delta), "tolerance": tolerance},
        source=str(delta.attrs.get("source", "")),
        **(carried_clock(delta) or clock_attrs(STEP)),
    )


def _on_clock(delta: xr.DataArray, clock: str | None, epoch: float) -> xr.DataArray:
    own = clock_of(delta)
    if clock is None and carried_clock(delta).get(REASON):
        msg = (
            f"epoch={epoch:g} could mean {epoch:g} optimiser steps or {epoch:g} on the clock of delta, {own} "
            f"({unit_of(own)}), which was chosen because no clock was given. Give clock='step' or clock={own!r}."
        )
        raise ArgumentError(msg)
    if clock is None or clock == own:
        return delta
    steps = on_steps(delta) if clock == STEP else None
    if steps is None:
        msg = f"clock={clock!r}, but delta is in {own!r}; measure with msd(run, pairs, clock={clock!r})"
        raise ArgumentError(msg)
    return steps
