"""The aging time at a threshold: t* solves MSD(t_w, t_w + t*) = threshold, and t* ~ t_w^mu."""

from __future__ import annotations

import numpy as np
import xarray as xr
from scipy.special import log_ndtr

from trajstats.inference._uncertainty import half_interval

N_THRESHOLDS = 15
_STEPS, _HALVINGS, _NEAR = 50, 30, 1e-12
# ln of the inverse scatter beyond which the likelihood is not followed: crossings on a line have none
_FINEST = 6.0


def crossing_times(
    waiting: np.ndarray, lag: np.ndarray, log_msd: np.ndarray, threshold: np.ndarray | float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logarithm of the first lag at which the MSD of each waiting time reaches each threshold."""
    levels, wanted = np.unique(waiting), np.asarray(threshold, dtype=float)
    wanted = wanted.reshape((*wanted.shape, *(1 for _ in log_msd.shape[:-1])))
    shape = (*np.broadcast_shapes(wanted.shape, log_msd.shape[:-1]), levels.size)
    crossing, state = np.empty(shape), np.zeros(shape, dtype=int)
    for k, level in enumerate(levels):
        here = np.flatnonzero(waiting == level)
        here = here[np.argsort(lag[here], kind="stable")]
        x, y = np.log(lag[here]), log_msd[..., here]
        above = y >= wanted[..., None]
        first, never = above.argmax(axis=-1), ~above.any(axis=-1)
        state[..., k] = np.where(never, 1, np.where(first == 0, -1, 0))
        j = np.maximum(first, 1) if x.size > 1 else first
        whole = np.broadcast_to(y, above.shape)
        low, high = (np.take_along_axis(whole, i[..., None], axis=-1)[..., 0] for i in (j - 1, j))
        with np.errstate(divide="ignore", invalid="ignore"):  # only where it was not crossed
            found = x[j - 1] + (wanted - low) / (high - low) * (x[j] - x[j - 1])
        crossing[..., k] = np.where(never, x[-1], np.where(first == 0, x[0], found))
    return np.log(levels), crossing, state


def threshold_slopes(x: np.ndarray, y: np.ndarray, state: np.ndarray) -> np.ndarray:
    r"""Slopes of ln t* against ln t_w, waiting times that do not reach a threshold being censored, not dropped.

    Maximum likelihood of :math:`y=ax+b+\sigma z`: concave in :math:`(a,b,1)/\sigma`, so that Newton's steps find the
    one maximum, those of all thresholds at once.

    Source: Olsen 1978, doi:10.2307/1913784.
    """
    reached = state == 0
    n = reached.sum(axis=-1)
    slopes = _reached_slopes(x, y, state)
    some = (n >= 3) & (n < x.size)
    if not some.any():
        return slopes
    y, state, reached, slope = y[some], state[some], reached[some], slopes[some]
    # least squares of the crossings to begin with
    rest = np.where(reached, y - slope[:, None] * x, 0.0)
    level = rest.sum(axis=-1) / n[some]
    spread = np.sqrt(np.where(reached, (rest - level[:, None]) ** 2, 0.0).sum(axis=-1) / n[some])
    grain = 1 / np.maximum(spread, 1e-2)
    at = np.stack([slope * grain, level * grain, grain], axis=-1)
    rows = np.stack([np.broadcast_to(-x, y.shape), np.full(y.shape, -1.0), y], axis=-1)
    sign = np.where(state > 0, -1.0, 1.0)

    def value(at: np.ndarray) -> np.ndarray:
        u = (rows @ at[..., None])[..., 0]
        with np.errstate(invalid="ignore", divide="ignore"):
            log_grain = np.log(at[:, 2])
        each = np.where(reached, log_grain[:, None] - 0.5 * u**2, log_ndtr(sign * u))
        found = each.sum(axis=-1) - 0.5 * np.maximum(log_grain - _FINEST, 0) ** 2
        return np.where(at[:, 2] > 0, found, -np.inf)

    best = value(at)
    for _ in range(_STEPS):
        u = (rows @ at[..., None])[..., 0]
        ratio = np.exp(-0.5 * u**2 - 0.5 * np.log(2 * np.pi) - log_ndtr(sign * u))
        first = np.where(reached, -u, sign * ratio)
        second = np.where(reached, 1.0, ratio * (ratio + sign * u))
        past = np.maximum(np.log(at[:, 2]) - _FINEST, 0)
        gradient = (first[..., None] * rows).sum(axis=1)
        gradient[:, 2] += (n[some] - past) / at[:, 2]
        curvature = np.swapaxes(rows, 1, 2) @ (second[..., None] * rows)
        curvature[:, 2, 2] += (n[some] - past + (past > 0)) / at[:, 2] ** 2
        step = np.linalg.solve(curvature, gradient[..., None])[..., 0]
        size = np.ones(len(at))
        for _ in range(_HALVINGS):
            trial = at + size[:, None] * step
            there = value(trial)
            worse = ~(there >= best)
            if not worse.any():
                break
            size[worse] /= 2
        at, best = np.where(worse[:, None], at, trial), np.where(worse, best, there)
        if (np.abs(gradient * step).sum(axis=-1) < _NEAR).all():
            break
    slopes[some] = at[:, 0] / at[:, 2]
    return slopes


def threshold_levels(waiting: np.ndarray, log_msd: np.ndarray, n: int = N_THRESHOLDS) -> np.ndarray:
    """Thresholds to scan: those that at least two waiting times cross."""
    levels = np.unique(waiting)
    lows = np.sort([log_msd[waiting == w].min() for w in levels])
    highs = np.sort([log_msd[waiting == w].max() for w in levels])
    return np.linspace(lows[1], highs[-2], n + 2)[1:-1]


def threshold_scan(waiting: np.ndarray, lag: np.ndarray, log_msd: np.ndarray, noise: np.ndarray) -> xr.Dataset:
    """Exponent from the aging time, for a scan of thresholds."""
    logs = threshold_levels(waiting, log_msd)
    # all thresholds at once: a fit of few points is mostly calls from Python
    x, crossing, states = crossing_times(waiting, lag, log_msd, logs)
    scattered = _reached_slopes(*crossing_times(waiting, lag, log_msd + noise, logs))
    errors = [
        float(half_interval(one[np.isfinite(one)])) if np.isfinite(one).sum() > 2 else float("nan") for one in scattered
    ]
    reached = (states == 0).sum(axis=-1)
    return xr.Dataset(
        {
            "mu": ("threshold", threshold_slopes(x, crossing, states)),
            "stderr": ("threshold", errors),
            "reached": ("threshold", reached),
            "censored": ("threshold", x.size - reached),
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
