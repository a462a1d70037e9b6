"""Basin shares with intervals, and how many attractors remain unseen."""

from __future__ import annotations

import numpy as np
import xarray as xr
from scipy import special, stats

from trajstats.estimators.fixed_points._attractors import Attractors
from trajstats.estimators.fixed_points._iteration import (
    STATUS,
    UNCONVERGED,
    Iterated,
)


def _dataset(found: Attractors, status: np.ndarray, label: np.ndarray, ends: Iterated, level: float) -> xr.Dataset:
    n_starts, dim = ends.points.shape
    count = np.bincount(label[label >= 0], minlength=len(found.points)) if found.points else np.zeros(0, int)
    order = np.argsort(-count, kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(order.size)
    label = np.where(label >= 0, rank[np.maximum(label, 0)] if order.size else -1, -1)
    count = count[order]
    low, high = _wilson(count, n_starts, level)
    period = np.array(found.period, dtype=np.float64)[order] if found.period else np.zeros(0)
    radius = np.array(found.radius)[order] if found.radius else np.zeros(0)
    points = np.array(found.points)[order] if found.points else np.zeros((0, dim))
    size, distinct, error = _saturation(count, n_starts)
    singles, doubles = int((count == 1).sum()), int((count == 2).sum())
    unseen = singles**2 / (2 * doubles) if doubles else singles * (singles - 1) / 2
    data = {
        "point": (("attractor", "dim"), points),
        "period": ("attractor", period),
        "spectral_radius": ("attractor", radius),
        # a neutral multiplier, such as a permutation's, is one up to rounding and no more stable for it
        "stable": ("attractor", radius < 1 - 1e-9),
        "residual": ("attractor", np.array(found.residual)[order] if found.residual else np.zeros(0)),
        "count": ("attractor", count.astype(np.float64)),
        "share": ("attractor", count / n_starts),
        "share_low": ("attractor", low),
        "share_high": ("attractor", high),
        "status": ("start", np.array(STATUS, dtype=object)[status]),
        "label": ("start", label),
        "iterations": ("start", ends.iterations.astype(np.float64)),
        "distinct": ("sample_size", distinct),
        "distinct_stderr": ("sample_size", error),
        "n_fixed_points": float((period == 1).sum()),
        "n_stable_fixed_points": float(((period == 1) & (radius < 1 - 1e-9)).sum()),
        "n_cycles": float((period > 1).sum()),
        "unconverged_share": float((status == UNCONVERGED).mean()),
        "missed": unseen * (n_starts - 1) / n_starts,
        "missed_share": singles / n_starts,
        # Clopper-Pearson of the share of starts seen once, which with none is -ln(1 - level)/n
        "missed_share_high": float(stats.beta.ppf(level, singles + 1, max(n_starts - singles, 1e-9))),
    }
    return xr.Dataset(data, coords={"sample_size": size})


def _wilson(count: np.ndarray, total: int, level: float) -> tuple[np.ndarray, np.ndarray]:
    z = float(stats.norm.ppf((1 + level) / 2))
    p = count / total
    centre = (p + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z * np.sqrt(p * (1 - p) / total + z**2 / (4 * total**2)) / (1 + z**2 / total)
    return np.maximum(centre - half, 0.0), np.minimum(centre + half, 1.0)


def _saturation(count: np.ndarray, total: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    # Rarefaction: an attractor of count c is missed by a random subset of size m with probability C(S-c, m)/C(S, m).
    size = np.unique(np.geomspace(1, total, 40).astype(int))
    m = size[:, None].astype(np.float64)
    with np.errstate(invalid="ignore"):
        log_missed = (
            special.gammaln(total - count + 1.0)
            - special.gammaln(total - count - m + 1.0)
            + special.gammaln(total - m + 1.0)
            - special.gammaln(total + 1.0)
        )
    missed = np.where(m > total - count, 0.0, np.exp(np.minimum(log_missed, 0.0)))
    variance = (missed * (1 - missed)).sum(axis=1)
    return size, (1 - missed).sum(axis=1), np.sqrt(variance)
