"""The aging time at a threshold: t* solves MSD(t_w, t_w + t*) = threshold, and t* ~ t_w^mu."""

from __future__ import annotations

import numpy as np
import xarray as xr
from scipy.optimize import minimize
from scipy.special import log_ndtr

N_THRESHOLDS = 15


def crossing_times(
    waiting: np.ndarray, lag: np.ndarray, log_msd: np.ndarray, threshold: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logarithm of the first lag at which the MSD of each waiting time reaches a threshold.

    Parameters
    ----------
    waiting, lag : ndarray, (n,)
        Points.
    log_msd : ndarray, (..., n)
        ln MSD at the points; leading dims are other versions of the same points, such as draws of their noise.
    threshold : float
        ln of the threshold.

    Returns
    -------
    tuple of ndarray, (waiting time,), (..., waiting time), (..., waiting time)
        ln t_w, ln t* and state (0 reached, 1 not reached in the data, -1 passed before the first lag).
    """
    levels = np.unique(waiting)
    shape = (*log_msd.shape[:-1], levels.size)
    crossing, state = np.empty(shape), np.zeros(shape, dtype=int)
    for k, level in enumerate(levels):
        here = np.flatnonzero(waiting == level)
        here = here[np.argsort(lag[here], kind="stable")]
        x, y = np.log(lag[here]), log_msd[..., here]
        above = y >= threshold
        first, never = above.argmax(axis=-1), ~above.any(axis=-1)
        state[..., k] = np.where(never, 1, np.where(first == 0, -1, 0))
        j = np.maximum(first, 1) if x.size > 1 else first
        low, high = (np.take_along_axis(y, i[..., None], axis=-1)[..., 0] for i in (j - 1, j))
        with np.errstate(divide="ignore", invalid="ignore"):  # only where it was not crossed
            found = x[j - 1] + (threshold - low) / (high - low) * (x[j] - x[j - 1])
        crossing[..., k] = np.where(never, x[-1], np.where(first == 0, x[0], found))
    return np.log(levels), crossing, state


def threshold_slope(x: np.ndarray, y: np.ndarray, state: np.ndarray) -> float:
    """Slope of ln t* against ln t_w, waiting times that do not reach the threshold being censored, not dropped.

    Parameters
    ----------
    x, y : ndarray, (waiting time,)
        ln t_w and ln t* (or the last, or first, lag where censored).
    state : ndarray of int, (waiting time,)
        As `crossing_times` gives.

    Returns
    -------
    float
        NaN with fewer than two crossings.
    """
    reached = state == 0
    if reached.sum() < 2:
        return float("nan")
    slope, level = np.polyfit(x[reached], y[reached], 1)
    if reached.all() or reached.sum() < 3:
        return float(slope)
    scatter = np.log(max(float(np.std(y[reached] - slope * x[reached] - level)), 1e-2))

    def cost(c: np.ndarray) -> float:
        z = (y - c[0] * x - c[1]) / np.exp(c[2])
        log_like = np.where(state == 0, -0.5 * z**2 - c[2], log_ndtr(np.where(state > 0, -z, z)))
        return -float(log_like.sum()) + 0.5 * max(-6.0 - c[2], 0.0) ** 2

    found = minimize(cost, np.array([slope, level, scatter]), method="Nelder-Mead", options={"maxiter": 600})
    return float(found.x[0])


def threshold_levels(waiting: np.ndarray, log_msd: np.ndarray, n: int = N_THRESHOLDS) -> np.ndarray:
    """Thresholds to scan: those that at least two waiting times cross.

    Parameters
    ----------
    waiting, log_msd : ndarray, (n,)
        Points.
    n : int
        How many.

    Returns
    -------
    ndarray, (n,)
        ln of the thresholds.
    """
    levels = np.unique(waiting)
    lows = np.sort([log_msd[waiting == w].min() for w in levels])
    highs = np.sort([log_msd[waiting == w].max() for w in levels])
    return np.linspace(lows[1], highs[-2], n + 2)[1:-1]


def threshold_scan(waiting: np.ndarray, lag: np.ndarray, log_msd: np.ndarray, noise: np.ndarray) -> xr.Dataset:
    """Exponent from the aging time, for a scan of thresholds.

    Parameters
    ----------
    waiting, lag, log_msd : ndarray, (n,)
        Points.
    noise : ndarray, (draw, n)
        Draws of the noise of ln MSD (from the covariance of the fit): the error bars are the scatter of the slope
        under it.

    Returns
    -------
    xarray.Dataset
        Dim `threshold` (an MSD): ``mu``, ``stderr``, ``reached``, ``censored``.
    """
    logs = threshold_levels(waiting, log_msd)
    slopes, errors, reached = [], [], []
    for level in logs:
        x, y, state = crossing_times(waiting, lag, log_msd, level)
        slopes.append(threshold_slope(x, y, state))
        again = _reached_slopes(*crossing_times(waiting, lag, log_msd + noise, level))
        errors.append(float(np.nanstd(again)) if np.isfinite(again).sum() > 2 else float("nan"))
        reached.append(int((state == 0).sum()))
    n_waits = np.unique(waiting).size
    return xr.Dataset(
        {
            "mu": ("threshold", slopes),
            "stderr": ("threshold", errors),
            "reached": ("threshold", reached),
            "censored": ("threshold", [n_waits - r for r in reached]),
        },
        coords={"threshold": np.exp(logs)},
    )


def _reached_slopes(x: np.ndarray, y: np.ndarray, state: np.ndarray) -> np.ndarray:
    # the scatter needs many slopes: without the censored ones, which move it little
    reached = state == 0
    with np.errstate(divide="ignore", invalid="ignore"):  # no slope, NaN, where fewer than two were reached
        n = reached.sum(axis=-1, keepdims=True)
        off_x = np.where(reached, x - np.where(reached, x, 0).sum(axis=-1, keepdims=True) / n, 0)
        slopes = (off_x * np.where(reached, y, 0)).sum(axis=-1) / (off_x**2).sum(axis=-1)
    return np.where(n[..., 0] >= 2, slopes, np.nan)
