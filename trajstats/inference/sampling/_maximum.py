"""Maximum likelihood by lmfit: start values, bounds, curvature and profile intervals."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import minimize
from scipy.stats import chi2, qmc

from trajstats.errors import FitError

_RESTARTS, _GAIN = 10, 1e-3
# Of a climb in shares of the bounds: the step of its differences, how near two tops are one, how high a rival counts.
_STEP, _SAME, _NEARLY = 1e-6, 0.02, 5.0

Bounds = Mapping[str, tuple[float, float, float]]


@dataclass(frozen=True)
class Maximum:
    """Where a likelihood is largest, and how sharply."""

    values: dict[str, float]  # Coefficients at the maximum
    covariance: np.ndarray  # Inverse curvature there (a diagonal stand-in where the curvature is not positive)
    log_likelihood: float  # Value there
    at_bound: tuple[str, ...] = ()  # Coefficients that ended on a bound
    # Profile-likelihood intervals, where asked for; a bound of the search where the profile does not fall
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def vector(self) -> np.ndarray:
        """The values in order, (coefficient,)."""
        return np.array(list(self.values.values()))

    @property
    def stderr(self) -> dict[str, float]:
        """Standard errors from the curvature."""
        return dict(zip(self.values, np.sqrt(np.diagonal(self.covariance)).tolist(), strict=True))


def maximise(
    log_likelihood: Callable[[np.ndarray], float],
    start: Bounds,
    /,
    *,
    profile: tuple[str, ...] = (),
    level: float = 0.95,
) -> Maximum:
    """Find the maximum of a log likelihood within bounds."""
    names = list(start)
    first = np.array([start[name][0] for name in names])
    if not np.isfinite(log_likelihood(first)):
        msg = f"the likelihood is not finite at the start values {dict(zip(names, first.tolist(), strict=True))}"
        raise FitError(msg)
    lower, upper = np.array([start[n][1] for n in names]), np.array([start[n][2] for n in names])
    # a maximum on a bound is given just inside it, where a prior that ends there is not zero
    hair = 1e-6 * (upper - lower)
    best = np.clip(_search(log_likelihood, start, {}), lower + hair, upper - hair)
    top = float(log_likelihood(best))
    edge = (best - lower < 1e-4 * (upper - lower)) | (upper - best < 1e-4 * (upper - lower))
    covariance = _curvature(log_likelihood, best, lower, upper)
    result = Maximum(
        dict(zip(names, best.tolist(), strict=True)),
        covariance,
        top,
        tuple(n for n, hit in zip(names, edge, strict=True) if hit),
    )
    drop = 0.5 * float(chi2.ppf(level, 1))
    for name in profile:
        result.intervals[name] = _profile_interval(log_likelihood, start, result, name, drop)
    return result


def best_maximum(
    log_likelihood: Callable[[np.ndarray], np.ndarray],
    start: Bounds,
    wide: Mapping[str, tuple[float, float]],
    /,
    *,
    trials: int = 512,
    climbs: int = 3,
) -> Maximum:
    """Find the highest of several maxima.

    The start given and the best of a Sobol set of trial points are each climbed by gradients; the highest top, and any
    other within a few units of it, is then searched by lmfit. The highest found is returned.
    """

    def one(vector: np.ndarray) -> float:
        with np.errstate(all="ignore"):
            return float(log_likelihood(vector[None])[0])

    edges = {n: wide.get(n, (at, at)) for n, (at, _, _) in start.items()}
    bounds = np.array([(a, b) for _, a, b in start.values()])
    low = np.array([max(edges[n][0], a) for n, (_, a, _) in start.items()])
    high = np.array([min(edges[n][1], b) for n, (_, _, b) in start.items()])
    points = low + (high - low) * qmc.Sobol(len(start), scramble=False).random(trials)
    with np.errstate(all="ignore"):
        values = log_likelihood(points)
    order = np.argsort(-np.where(np.isfinite(values), values, -np.inf))[:climbs]
    given = np.array([at for at, _, _ in start.values()])
    if not np.isfinite(one(given)):
        return maximise(one, start)  # which says so
    tops = [_climb(log_likelihood, at, bounds) for at in (given, *points[order]) if np.isfinite(one(at))]
    best = max(value for _, value in tops)
    apart: list[np.ndarray] = []
    for at, value in sorted(tops, key=lambda top: -top[1]):
        share = (at - bounds[:, 0]) / (bounds[:, 1] - bounds[:, 0])
        if value > best - _NEARLY and all(np.abs(share - other).max() > _SAME for other in apart):
            apart.append(share)
    found = [
        maximise(one, {n: (a + (b - a) * s, a, b) for s, (n, (_, a, b)) in zip(share, start.items(), strict=True)})
        for share in apart
    ]
    return max(found, key=lambda top: top.log_likelihood)


def _climb(
    log_likelihood: Callable[[np.ndarray], np.ndarray], at: np.ndarray, bounds: np.ndarray
) -> tuple[np.ndarray, float]:
    """Climb from a point by L-BFGS within bounds; all points of a central difference are evaluated in one call."""
    low, width = bounds[:, 0], bounds[:, 1] - bounds[:, 0]

    def cost(share: np.ndarray) -> tuple[float, np.ndarray]:
        ahead, behind = (np.clip(share + sign * _STEP * np.eye(share.size), 0.0, 1.0) for sign in (1, -1))
        with np.errstate(all="ignore"):
            values = log_likelihood(low + width * np.concatenate([share[None], ahead, behind]))
            slope = (values[1 : 1 + share.size] - values[1 + share.size :]) / np.diagonal(ahead - behind)
        if not np.isfinite(values[0]):
            return 1e25, np.zeros(share.size)
        return -float(values[0]), -np.where(np.isfinite(slope), slope, 0.0)

    first = np.clip((at - low) / width, 0.0, 1.0)
    found = minimize(cost, first, jac=True, method="L-BFGS-B", bounds=[(0.0, 1.0)] * at.size)
    return low + width * found.x, -float(found.fun)


def _search(log_likelihood: Callable[[np.ndarray], float], start: Bounds, fixed: Mapping[str, float]) -> np.ndarray:
    import lmfit

    # in shares of the bounds: lmfit takes bounds that are less than 1e-13 apart for equal
    coefficients = lmfit.Parameters()
    for name, (value, low, high) in start.items():
        share = (fixed[name] - low) / (high - low) if name in fixed else (value - low) / (high - low)
        at = share if name in fixed else min(max(share, 1e-6), 1 - 1e-6)
        coefficients.add(name, value=at, min=0.0, max=1.0, vary=name not in fixed)

    def vector(trial: lmfit.Parameters) -> np.ndarray:
        return np.array(
            [fixed.get(name, low + (high - low) * trial[name].value) for name, (_, low, high) in start.items()]
        )

    def cost(trial: lmfit.Parameters) -> float:
        value = log_likelihood(vector(trial))
        return -float(value) if np.isfinite(value) else 1e25

    if len(fixed) == len(start):
        return np.array([fixed[name] for name in start])
    # lmfit's transforms of bounds can divide by zero at an edge; the value is checked by the caller
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        # a simplex collapses in long bent valleys: begin again from where it stopped until that gains nothing
        best = np.inf
        for _ in range(_RESTARTS):
            found = lmfit.minimize(cost, coefficients, method="nelder", calc_covar=False, max_nfev=400 * len(start))
            coefficients = found.params
            gain, best = best - cost(coefficients), cost(coefficients)
            if gain < _GAIN:
                break
    return vector(found.params)


def _curvature(
    log_likelihood: Callable[[np.ndarray], float], best: np.ndarray, lower: np.ndarray, upper: np.ndarray
) -> np.ndarray:
    size = best.size
    wide = (upper - lower) / np.sqrt(12)
    top = log_likelihood(best)
    steps = np.array([_step(log_likelihood, best, k, top, lower, upper) for k in range(size)])
    centre = np.clip(best, lower + 2 * steps, upper - 2 * steps)
    hessian = np.empty((size, size))
    for i in range(size):
        for j in range(i + 1):
            value = 0.0
            for a in (1, -1):
                for b in (1, -1):
                    at = centre.copy()
                    at[i] += a * steps[i]
                    at[j] += b * steps[j]
                    value += a * b * log_likelihood(at)
            hessian[i, j] = hessian[j, i] = -value / (4 * steps[i] * steps[j])
    if not np.isfinite(hessian).all():
        return np.diag((0.1 * wide) ** 2)
    # directions in which the likelihood does not fall get the width of the search box
    eigen, vectors = np.linalg.eigh(hessian * np.outer(wide, wide))
    inverse = (vectors / np.maximum(eigen, 1.0)) @ vectors.T
    return inverse * np.outer(wide, wide)


def _step(
    log_likelihood: Callable[[np.ndarray], float],
    best: np.ndarray,
    k: int,
    top: float,
    lower: np.ndarray,
    upper: np.ndarray,
) -> float:
    # a step over which the log likelihood falls by about 0.02 on the gentler side
    size = 1e-6 * (upper[k] - lower[k])
    for _ in range(18):
        drops = []
        for sign in (1, -1):
            at = best.copy()
            at[k] = min(max(at[k] + sign * size, lower[k]), upper[k])
            drops.append(top - log_likelihood(at))
        if min(drops) > 0.02 or size > 0.1 * (upper[k] - lower[k]):
            break
        size *= 2
    return size


def _profile_interval(
    log_likelihood: Callable[[np.ndarray], float], start: Bounds, best: Maximum, name: str, drop: float
) -> tuple[float, float]:
    warm = {k: (best.values[k], start[k][1], start[k][2]) for k in start}

    def deficit(value: float) -> float:
        return best.log_likelihood - float(log_likelihood(_search(log_likelihood, warm, {name: value}))) - drop

    ends = []
    for sign, limit in ((-1, start[name][1]), (1, start[name][2])):
        inside, outside = best.values[name], limit
        step = max(best.stderr[name], 1e-9 * (start[name][2] - start[name][1]))
        while True:
            trial = inside + sign * step
            if sign * (trial - limit) >= 0:
                trial = limit
            if deficit(trial) > 0:
                outside = trial
                break
            inside = trial
            if trial == limit:
                break
            step *= 2
        for _ in range(14):
            if inside == outside:
                break
            middle = 0.5 * (inside + outside)
            if deficit(middle) > 0:
                outside = middle
            else:
                inside = middle
        ends.append(0.5 * (inside + outside))
    return ends[0], ends[1]
