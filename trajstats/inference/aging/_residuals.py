"""What a subaging fit says about itself: residual tests, posterior predictive check, locality, fit windows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import xarray as xr

from trajstats.inference.aging._grid import grid_posterior
from trajstats.inference.aging.curves._spline import FreeCurve

STRUCTURED_P = 0.01
STRUCTURED_SIZE = 0.01
LOCALITY_LIMIT = 1.5
_LEADING = 0.2


def smoother(curve: FreeCurve, mu: float, log_smoothing: float) -> tuple[np.ndarray, np.ndarray]:
    """Linearise the fit at (mu, smoothing)."""
    point, smooth = np.array([mu]), np.array([log_smoothing])
    design, width = curve.white_design(point)
    matrix = design[0].T @ design[0] + np.exp(log_smoothing) / width[0] ** 3 * curve.penalty
    keep = np.eye(curve.log_msd.size) - design[0] @ np.linalg.solve(matrix, design[0].T)
    coefficients = curve.best_coefficients(point, smooth)
    step = 1e-4
    sides = [curve.fitted(point + s * step, point, coefficients) for s in (1, -1)]
    tangent = curve.whiten @ ((sides[0] - sides[1])[0] / (2 * step))
    seen = keep @ tangent
    power = float(tangent @ seen)
    if power <= 0:
        return keep, np.zeros(curve.log_msd.size)
    return keep - np.outer(seen, seen) / power, (seen / power) @ curve.whiten


def residual_check(
    curve: FreeCurve,
    mu: float,
    log_smoothing: float,
    waiting: np.ndarray,
    lag: np.ndarray,
    rng: np.random.Generator,
    draws: int = 400,
) -> xr.Dataset:
    """Posterior predictive check of the residuals with two statistics.

    ``leading_modes``: mean power of the whitened residual in the fifth of the covariance modes with most variance,
    over that in the rest (are the correlations those of Wick?). ``collapse``: F ratio of what a level, a slope and a
    curvature for each waiting time would still explain (is there one curve and one exponent?). p from replicated
    residuals that went through the same fit.
    """
    project, _ = smoother(curve, mu, log_smoothing)
    sample = np.vstack(
        [project @ (curve.whiten @ curve.log_msd), rng.standard_normal((draws, waiting.size)) @ project.T]
    )
    # modes of R seen from the whitened space: L^T v / sqrt(eigenvalue)
    values, vectors = np.linalg.eigh(curve.covariance)
    modes = np.linalg.solve(curve.whiten.T, vectors) / np.sqrt(values)
    power = (sample @ modes) ** 2
    cut = waiting.size - max(int(_LEADING * waiting.size), 2)
    leading = power[:, cut:].mean(axis=1) / power[:, :cut].mean(axis=1)
    extra = project @ (curve.whiten @ _own_curves(waiting, lag))
    basis, sizes, _ = np.linalg.svd(extra, full_matrices=False)
    basis = basis[:, sizes > 1e-6 * sizes.max()]
    explained = ((sample @ basis) ** 2).sum(axis=1)
    total = (sample**2).sum(axis=1)
    n_free = max(waiting.size - basis.shape[1] - 12, 1)
    ratio = (explained / basis.shape[1]) / (np.maximum(total - explained, 1e-300) / n_free)
    tests = {"leading_modes": leading, "collapse": ratio}
    misfit = np.linalg.solve(curve.whiten, basis @ (basis.T @ sample[0]))
    return xr.Dataset(
        {
            "observed": ("statistic", [float(t[0]) for t in tests.values()]),
            "p_value": ("statistic", [float((1 + (t[1:] >= t[0]).sum()) / t.size) for t in tests.values()]),
            "misfit": float(np.sqrt((misfit**2).mean())),
        },
        coords={"statistic": list(tests)},
    )


def _own_curves(waiting: np.ndarray, lag: np.ndarray) -> np.ndarray:
    columns = []
    for level in np.unique(waiting):
        here = waiting == level
        x = np.log(lag[here])
        x = (x - x.mean()) / (np.std(x) + 1e-12)
        for power in range(min(3, int(here.sum()) - 1)):
            column = np.zeros(waiting.size)
            column[here] = x**power
            columns.append(column)
    return np.stack(columns, axis=1)


def structured(check: xr.Dataset) -> str:
    """Word what the residual check found."""
    p = {str(k): float(v) for k, v in zip(check["statistic"].values, check["p_value"].values, strict=True)}
    size = float(check["misfit"])
    if p["collapse"] < STRUCTURED_P and size > STRUCTURED_SIZE:
        return (
            f"residuals are structured by waiting time (p = {p['collapse']:.2g}, {100 * size:.0f} % rms): "
            "one curve with one exponent does not describe these data, mu is an average over the window"
        )
    if p["leading_modes"] < STRUCTURED_P and size > STRUCTURED_SIZE:
        return (
            "residuals have more power in the leading modes than Wick's covariance allows "
            f"(p = {p['leading_modes']:.2g}): intervals may be too narrow"
        )
    return ""


def overlap_gap(curve: FreeCurve, mu: float) -> str:
    """Word it when early and late waiting times do not share any value of the scaling variable."""
    x = curve.variable(np.array([mu]))[0]
    groups = [x[curve.waiting_time == w] for w in np.unique(curve.waiting_time)]
    ranges = sorted((float(group.min()), float(group.max())) for group in groups)
    reach = ranges[0][1]
    for low, high in ranges[1:]:
        if low > reach:
            return (
                "mu is not identified: waiting times do not overlap in the scaling variable, so only the smoothness of "
                "the curve ties them together; ask for lags that overlap in t / t_w"
            )
        reach = max(reach, high)
    return ""


def window_scan(curve: FreeCurve, bounds: Mapping[str, tuple[float, float]]) -> xr.Dataset:
    """Exponent for narrower choices of lags and waiting times."""
    ratio, waits = curve.lag / curve.waiting_time, np.unique(curve.waiting_time)
    third = max(waits.size // 3, 1)
    windows = {
        "all": np.ones(ratio.size, dtype=bool),
        "t < 10 t_w": ratio < 10,
        "t < t_w": ratio < 1,
        "t < t_w / 10": ratio < 0.1,
        "t > t_w": ratio > 1,
        "late t_w": curve.waiting_time >= waits[third],
        "early t_w": curve.waiting_time <= waits[-1 - third],
    }
    values = []
    for keep in windows.values():
        if keep.sum() < 8 or np.unique(curve.waiting_time[keep]).size < 2:
            values.append((np.nan, np.nan, int(keep.sum())))
            continue
        part = replace(
            curve,
            log_msd=curve.log_msd[keep],
            waiting_time=curve.waiting_time[keep],
            lag=curve.lag[keep],
            covariance=curve.covariance[np.ix_(keep, keep)],
            fixed=None if curve.fixed is None else curve.fixed[keep],
        )
        grid = grid_posterior(part, bounds)
        values.append((grid.mean, grid.half_interval, int(keep.sum())))
    table = np.array(values)
    return xr.Dataset(
        {
            "mu": ("window", table[:, 0]),
            "stderr": ("window", table[:, 1]),
            "n_points": ("window", table[:, 2].astype(int)),
        },
        coords={"window": list(windows)},
    )
