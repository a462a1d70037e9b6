"""Attractors from the ends of iterations: polished with Newton, verified, and merged where they are one."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from trajstats.estimators.fixed_points._iteration import CYCLE, FIXED, UNCONVERGED, Iterated, Jacobian, Map

# A start counts as arrived when it lies within this many of its own error estimates of a polished point.
_SAFETY = 100.0
# Units of rounding within which a start counts as exactly back.
_EXACT = 64.0
# 1 - |eigenvalue| below this: the map neither contracts nor expands there, and nothing can be said about stability.
_MARGINAL = 1e-6


@dataclass
class Attractors:
    """Distinct attractors: one point of each, period, residual, spectral radius of the turn, error of the point."""

    points: list[np.ndarray] = field(default_factory=list)
    period: list[int] = field(default_factory=list)
    residual: list[float] = field(default_factory=list)
    radius: list[float] = field(default_factory=list)
    error: list[float] = field(default_factory=list)


def orbit(map_: Map, jacobian: Jacobian, x: np.ndarray, period: int) -> tuple[np.ndarray, np.ndarray]:
    """Follow points through a cycle with the Jacobian of the whole turn."""
    product = jacobian(x)
    y = map_(x)
    for _ in range(period - 1):
        product = jacobian(y) @ product
        y = map_(y)
    return y, product


def polish(
    map_: Map, jacobian: Jacobian, x: np.ndarray, period: int, *, eps: float, steps: int = 30
) -> tuple[np.ndarray, float, float, float]:
    """Solve F^p(x) = x by Newton from a point close to it."""
    best, best_residual = x, math.inf
    for _ in range(steps):
        y, product = orbit(map_, jacobian, x[None], period)
        residual = float(np.abs(y[0] - x).max())
        if residual >= 0.5 * best_residual:
            if residual < best_residual:
                best, best_residual = x, residual
            break
        best, best_residual = x, residual
        if residual <= 4 * eps * max(1.0, float(np.abs(x).max())):
            break
        matrix = np.eye(x.size) - product[0]
        try:
            x = x + np.linalg.solve(matrix, y[0] - x)
        except np.linalg.LinAlgError:
            break
    _, product = orbit(map_, jacobian, best[None], period)
    smallest = float(np.linalg.svd(np.eye(best.size) - product[0], compute_uv=False)[-1])
    radius = float(np.abs(np.linalg.eigvals(product[0])).max())
    return best, best_residual, radius, 1.0 / max(smallest, 1e-300)


def is_marginal(radius: float, amplification: float) -> bool:
    """Tell whether a point can neither be called stable nor located."""
    return abs(radius - 1.0) < _MARGINAL or amplification > 1.0 / _MARGINAL


def minimal_period(map_: Map, x: np.ndarray, period: int, distance: float) -> int:
    """Find the smallest divisor of a period after which a point is back."""
    y = x[None]
    for time in range(1, period):
        y = map_(y)
        if period % time == 0 and np.abs(y[0] - x).max() <= distance:
            return time
    return period


def gather(map_: Map, jacobian: Jacobian, ends: Iterated, *, eps: float) -> tuple[Attractors, np.ndarray, np.ndarray]:
    """Merge end points into distinct attractors, each polished and verified.

    A point joins an attractor when it lies within 100 of its own error estimates (last step times the norm of
    :math:`(1-J)^{-1}`) of one of its points. An attractor whose linearisation cannot locate it is not counted; its
    starts become unconverged.
    """
    found = Attractors()
    status = ends.status.copy()
    label = np.full(len(status), -1)
    left = np.flatnonzero((status == FIXED) | (status == CYCLE))
    while left.size:
        first = left[np.argmin(ends.step[left])]
        period = int(ends.period[first])
        point, residual, radius, gain = polish(map_, jacobian, ends.points[first], period, eps=eps)
        end, step = ends.points[first], float(ends.step[first])
        scale = max(1.0, float(np.abs(point).max()))
        moved = float(np.abs(point - end).max())
        marginal = is_marginal(radius, gain)
        if marginal and step <= _EXACT * eps:
            # back to the last digit: a neutral point or cycle, one of a continuum, exactly where the start ended
            point, residual, gain = end, step * scale, 1.0
        elif marginal or moved > _SAFETY * gain * max(step, 4 * eps) * scale or residual > 1e3 * eps * scale * period:
            # slow convergence: whatever is near here, these iterates do not say; neighbours of the same kind go with it
            alike = np.abs(ends.points[left] - end).max(axis=1) <= 10 * max(moved, step * scale)
            status[left[alike]] = UNCONVERGED
            left = left[~alike]
            continue
        period = minimal_period(map_, point, period, max(1e-9 * scale, _SAFETY * gain * residual))
        turn = [point]
        for _ in range(period - 1):
            turn.append(map_(turn[-1][None])[0])
        near = np.full(left.size, np.inf)
        for member in turn:
            near = np.minimum(near, np.abs(ends.points[left] - member).max(axis=1))
        mine = near <= _SAFETY * gain * np.maximum(ends.step[left], 4 * eps) * scale
        mine |= left == first
        index = _known(found, turn, period, gain, eps)
        if index < 0:
            index = len(found.points)
            found.points.append(point)
            found.period.append(period)
            found.residual.append(residual)
            found.radius.append(radius)
            found.error.append(gain * max(residual, eps))
        label[left[mine]] = index
        status[left[mine]] = FIXED if period == 1 else CYCLE
        left = left[~mine]
    return found, status, label


def _known(found: Attractors, turn: list[np.ndarray], period: int, gain: float, eps: float) -> int:
    # The same attractor again: some point of the turn is a known one's within both errors.
    for index, known in enumerate(found.points):
        scale = max(1.0, float(np.abs(known).max()))
        reach = max(1e-9 * scale, _SAFETY * (found.error[index] + gain * eps * scale))
        if period == found.period[index] and any(np.abs(member - known).max() <= reach for member in turn):
            return index
    return -1
