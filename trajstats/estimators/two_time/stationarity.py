"""Averages over the waiting time, and whether they may be taken."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from scipy import stats

from trajstats.data._clocks import default_clock, unit_of
from trajstats.data._inputs import MATRIX, accepts
from trajstats.data.schedules import ROUNDING
from trajstats.data.schema import LAG, STEP, STEP_PRIME, annotate, clock_values
from trajstats.errors import ArgumentError


@accepts(MATRIX)
def time_averaged_msd(delta: xr.DataArray, /, *, clock: str | None = None) -> xr.DataArray:
    r"""MSD averaged over the waiting time, :math:`\overline\Delta(t)=\langle\Delta(t_w,t_w+t)\rangle_{t_w}`.

    For stationary runs only: the average erases aging. `stationarity_test` says whether it may be taken.

    Parameters
    ----------
    delta : xarray.DataArray, (replica, step, step_prime)
        ``msd`` of `trajstats.all_pairs`.
    clock : str, optional
        Clock of the lags, a coordinate along `step`; ``"step"`` if not given. Required where `delta` holds a proper
        time that is not proportional to the step.

    Returns
    -------
    xarray.DataArray, (replica, lag)
        Float64; coordinate ``n_pairs``, how many pairs each lag has (all pairs of checkpoints with that lag, which on
        an uneven grid are few). Lags that differ by rounding alone count as one. Lazy.

    Raises
    ------
    ArgumentError
        If there is no such clock, or it is not given and could be either of two.

    References
    ----------
    Differs from the FFT identity of molecular-dynamics packages only in the order of the sums.

    Examples
    --------
    >>> from trajstats.data.schema import trajectory_dataset
    >>> from trajstats.estimators.two_time.measures import all_pairs
    >>> run = trajectory_dataset(np.outer([0, 1, 3], np.ones(4)), step=[0, 1, 2])
    >>> time_averaged_msd(all_pairs(run).msd).values.tolist()
    [[2.5, 9.0]]
    """
    clock, times = _clock(delta, clock)
    first, second = np.triu_indices(times.size, 1)
    lags, which = _distinct(times[second] - times[first])
    counts = np.bincount(which)
    # One matrix of weights (pair -> lag) does the average for all replicas at once, and stays lazy.
    data = delta.transpose(..., STEP, STEP_PRIME)
    out = xr.apply_ufunc(
        _average_lags,
        data,
        kwargs={"first": first, "second": second, "which": which, "counts": counts},
        input_core_dims=[[STEP, STEP_PRIME]],
        output_core_dims=[[LAG]],
        dask="parallelized",
        output_dtypes=[np.float64],
        dask_gufunc_kwargs={"output_sizes": {LAG: lags.size}},
    )
    about = {"long_name": "lag", "units": unit_of(clock, delta), "clock": clock}
    out = out.assign_coords({LAG: (LAG, lags, about), "n_pairs": (LAG, counts)})
    return annotate(
        out,
        name="time_averaged_msd",
        long_name="time-averaged mean squared displacement",
        units="weight^2",
        estimator="time_averaged_msd",
        arguments={"clock": clock},
        source=str(delta.attrs.get("source", "")),
        clock=clock,
    )


def _average_lags(
    values: np.ndarray, *, first: np.ndarray, second: np.ndarray, which: np.ndarray, counts: np.ndarray
) -> np.ndarray:
    picked = values[..., first, second].reshape(-1, first.size)
    out = np.stack([np.bincount(which, row, minlength=counts.size) for row in picked]) / counts
    return np.asarray(out.reshape((*values.shape[:-2], counts.size)))


@accepts(MATRIX)
def stationarity_test(delta: xr.DataArray, /, *, clock: str | None = None, windows: int = 6) -> xr.Dataset:
    r"""Test whether the MSD depends on the lag alone (time-translation invariance).

    For each lag, the MSD over windows :math:`(t_w,t_w+t)` that do not overlap is ranked against :math:`t_w` (Kendall's
    tau, all replicas together): in a stationary run there is no trend. The smallest p-value times the number of lags is
    the p-value of the run (Bonferroni; this toolkit's own test).

    Parameters
    ----------
    delta : xarray.DataArray, (replica, step, step_prime)
        ``msd`` of `trajstats.all_pairs` with ``per="all"`` or one layer selected.
    clock : str, optional
        Clock of the lags, as for `time_averaged_msd`.
    windows : int
        Windows that a lag must have to be tested.

    Returns
    -------
    xarray.Dataset
        ``p_value`` and ``tau`` (lag); ``p_value_of_run``; ``stationary``, whether that is above 0.01.

    Raises
    ------
    ArgumentError
        If no lag has enough windows, or the clock is not given and could be either of two.

    Notes
    -----
    Values are computed. It sees a steady change of mobility with age, not an oscillation. Windows next to each other
    are taken as independent; with slow collective motion the test rejects too often.

    References
    ----------
    Kendall's tau: `scipy.stats.kendalltau`.

    Examples
    --------
    >>> from trajstats.data.synthetic.processes import brownian
    >>> from trajstats.estimators.two_time.measures import all_pairs
    >>> bool(stationarity_test(all_pairs(brownian(range(40), rng=0)).msd).stationary)
    True
    """
    data = delta.transpose(..., STEP, STEP_PRIME).values
    data = data if data.ndim == 3 else data[None]
    clock, times = _clock(delta, clock)
    earlier, later = np.triu_indices(times.size, 1)
    lags, which = _distinct(times[later] - times[earlier])
    found = []
    for k in np.flatnonzero(lags > 0)[::-1]:
        lag, first, second = lags[k], earlier[which == k], later[which == k]
        chosen, free = [], -np.inf
        for i, j in zip(first, second, strict=True):
            if times[i] >= free:
                chosen.append((i, j))
                free = times[j]
        if len(chosen) >= windows:
            i, j = np.array(chosen).T
            tau = stats.kendalltau(np.tile(times[i], data.shape[0]), data[:, i, j].ravel())
            found.append((lag, len(chosen), tau.statistic, tau.pvalue))
    if not found:
        msg = f"no lag has {windows} windows that do not overlap; record evenly spaced checkpoints, or lower windows"
        raise ArgumentError(msg)
    lags, counts, tau, p = (np.array(x) for x in zip(*found[::-1], strict=True))
    of_run = min(1.0, float(p.min()) * p.size)
    out = xr.Dataset(
        {"p_value": (LAG, p), "tau": (LAG, tau), "p_value_of_run": of_run, "stationary": of_run > 0.01},
        coords={
            LAG: (LAG, lags, {"long_name": "lag", "units": unit_of(clock, delta), "clock": clock}),
            "n_windows": (LAG, counts.astype(int)),
        },
    )
    arguments: dict[str, Any] = {"clock": clock, "windows": windows}
    return annotate(
        out,
        name="",
        long_name="test of time-translation invariance",
        units="1",
        estimator="stationarity_test",
        arguments=arguments,
        source=str(delta.attrs.get("source", "")),
        clock=clock,
    )


def _clock(delta: xr.DataArray, clock: str | None) -> tuple[str, np.ndarray]:
    run = delta.coords.to_dataset()
    chosen = default_clock(run) if clock is None else clock
    if clock is None and chosen != STEP:
        msg = (
            "equal lags could be in optimiser steps or in proper time (sum of learning rates), which this run stores "
            "and which is not proportional to the step. Give clock='step' or clock='proper_time'."
        )
        raise ArgumentError(msg)
    return chosen, clock_values(run, chosen)


def _distinct(lags: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    # Distinct lags, increasing, and which of them each is; differences of real times are rounded.
    values, which = np.unique(lags, return_inverse=True)
    size = np.abs(values).max(initial=0)
    new = np.diff(values, prepend=-np.inf) > ROUNDING * np.abs(values) + 8 * np.finfo(np.float64).eps * size
    group = np.cumsum(new) - 1
    return values[new], group[which]
