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
    waiting, lag, log_msd : ndarray, (n,)
        Points.
    threshold : float
        ln of the threshold.

    Returns
    -------
    tuple of ndarray
        ln t_w, ln t* and state (0 reached, 1 not reached in the data, -1 passed before the first lag), one per waiting
        time.
    """
    levels = np.unique(waiting)
    crossing, state = np.empty(levels.size), np.zeros(levels.size, dtype=int)
    for k, level in enumerate(levels):
        here = np.flatnonzero(waiting == level)
        here = here[np.argsort(lag[here], kind="stable")]
        x, y = np.log(lag[here]), log_msd[here]
        above = np.flatnonzero(y >= threshold)
        if above.size == 0:
            crossing[k], state[k] = x[-1], 1
        elif above[0] == 0:
            crossing[k], state[k] = x[0], -1
        else:
            j = above[0]
            share = (threshold - y[j - 1]) / (y[j] - y[j - 1])
            crossing[k] = x[j - 1] + share * (x[j] - x[j - 1])
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
        again = [_reached_slope(*crossing_times(waiting, lag, log_msd + e, level)) for e in noise]
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


def _reached_slope(x: np.ndarray, y: np.ndarray, state: np.ndarray) -> float:
    # the scatter needs many slopes: without the censored ones, which move it little
    reached = state == 0
    return float(np.polyfit(x[reached], y[reached], 1)[0]) if reached.sum() >= 2 else float("nan")
