"""Averages over the waiting time, and whether they may be taken."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from scipy import stats

from trajstats.data.schema import LAG, STEP, STEP_PRIME, annotate
from trajstats.errors import ArgumentError


def time_averaged_msd(delta: xr.DataArray, /, *, clock: str = "step") -> xr.DataArray:
    r"""MSD averaged over the waiting time, :math:`\overline\Delta(t)=\langle\Delta(t_w,t_w+t)\rangle_{t_w}`.

    For stationary runs only: the average erases aging. `stationarity_test` says whether it may be taken.

    Parameters
    ----------
    delta : xarray.DataArray, (replica, step, step_prime)
        ``msd`` of `trajstats.all_pairs`.
    clock : str
        Clock of the lags, a coordinate along `step`.

    Returns
    -------
    xarray.DataArray, (replica, lag)
        Float64; coordinate ``n_pairs``, how many pairs each lag has (all pairs of checkpoints with that lag, which on
        an uneven grid are few). Lazy.

    References
    ----------
    Differs from the FFT identity of molecular-dynamics packages only in the order of the sums.

    Examples
    --------
    >>> from trajstats.data.schema import trajectory_dataset
    >>> from trajstats.estimators.two_time import all_pairs
    >>> run = trajectory_dataset(np.outer([0, 1, 3], np.ones(4)), step=[0, 1, 2])
    >>> time_averaged_msd(all_pairs(run).msd).values.tolist()
    [[2.5, 9.0]]
    """
    times = delta[clock].values
    first, second = np.triu_indices(times.size, 1)
    lags, which, counts = np.unique(times[second] - times[first], return_inverse=True, return_counts=True)
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
    out = out.assign_coords({LAG: lags, "n_pairs": (LAG, counts)})
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


def stationarity_test(delta: xr.DataArray, /, *, clock: str = "step", windows: int = 6) -> xr.Dataset:
    r"""Test whether the MSD depends on the lag alone (time-translation invariance).

    For each lag, the MSD over windows :math:`(t_w,t_w+t)` that do not overlap is ranked against :math:`t_w` (Kendall's
    tau, all replicas together): in a stationary run there is no trend. The smallest p-value times the number of lags is
    the p-value of the run (Bonferroni; this toolkit's own test).

    Parameters
    ----------
    delta : xarray.DataArray, (replica, step, step_prime)
        ``msd`` of `trajstats.all_pairs` with ``per="all"`` or one layer selected.
    clock : str
        Clock of the lags.
    windows : int
        Windows that a lag must have to be tested.

    Returns
    -------
    xarray.Dataset
        ``p_value`` and ``tau`` (lag); ``p_value_of_run``; ``stationary``, whether that is above 0.01.

    Raises
    ------
    ArgumentError
        If no lag has enough windows.

    Notes
    -----
    Values are computed. It sees a steady change of mobility with age, not an oscillation. Windows next to each other
    are taken as independent; with slow collective motion the test rejects too often.

    References
    ----------
    Kendall's tau: `scipy.stats.kendalltau`.

    Examples
    --------
    >>> from trajstats.data.synthetic import brownian
    >>> from trajstats.estimators.two_time import all_pairs
    >>> bool(stationarity_test(all_pairs(brownian(range(40), rng=0)).msd).stationary)
    True
    """
    data = delta.transpose(..., STEP, STEP_PRIME).values
    data = data if data.ndim == 3 else data[None]
    times = delta[clock].values
    found = []
    for lag in np.unique(times[:, None] - times)[::-1]:
        if lag <= 0:
            break
        first, second = np.nonzero(times - times[:, None] == lag)
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
        coords={LAG: lags, "n_windows": (LAG, counts.astype(int))},
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
    )
