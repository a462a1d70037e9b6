"""A map on batches: iterate all starts at once until each comes back, or search its roots."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from trajstats.errors import ArgumentError, NonFiniteError

# `points (b, N) -> points (b, N)` and `points (b, N) -> Jacobians (b, N, N)`.
Map = Callable[[np.ndarray], np.ndarray]
Jacobian = Callable[[np.ndarray], np.ndarray]

UNCONVERGED, FIXED, CYCLE, DIVERGED = range(4)
STATUS = ("unconverged", "fixed_point", "cycle", "diverged")
_ESCAPED = 1e100
# From this iteration on, at every doubling, a sample of what still moves is asked whether it is chaotic: neighbours
# that
# grow apart by more than this rate per step, in every member of the sample, over this many steps.
_FIRST_LOOK, _RATE, _LOOK, _SAMPLE = 100, 0.05, 32, 64


@dataclass
class Iterated:
    """Where every start ended: points, status, period found by recurrence, last step and iterations used."""

    points: np.ndarray
    status: np.ndarray
    period: np.ndarray
    step: np.ndarray
    iterations: np.ndarray


def checked_map(map_: Map, dim: int) -> Map:
    """Wrap a map so that a wrong shape or a NaN is named at once."""

    def call(x: np.ndarray) -> np.ndarray:
        y = np.asarray(map_(x))
        if y.shape != x.shape:
            msg = f"the map sends {x.shape} to {y.shape}; fixed points need a map of (b, {dim}) to (b, {dim})"
            raise ArgumentError(msg)
        y = y.astype(np.float64, copy=False)
        if np.isnan(y).any():
            bad = int(np.flatnonzero(np.isnan(y).any(axis=1))[0])
            msg = f"the map gave NaN for a finite point (largest |x| {np.abs(x[bad]).max():.6g}); check the map there"
            raise NonFiniteError(msg)
        return y

    return call


def difference_jacobian(map_: Map, eps: float) -> Jacobian:
    """Differentiate a map by central differences, all directions of a point in one batch."""

    def jacobian(x: np.ndarray) -> np.ndarray:
        n = x.shape[1]
        out = np.empty((len(x), n, n))
        for i, point in enumerate(x):
            h = eps ** (1 / 3) * np.maximum(1.0, np.abs(point))
            shifted = np.concatenate([point + np.diag(h), point - np.diag(h)])
            values = map_(shifted)
            out[i] = ((values[:n] - values[n:]) / (2 * h[:, None])).T
        return out

    return jacobian


def iterate(map_: Map, starts: np.ndarray, *, tolerance: float, max_iterations: int, max_period: int) -> Iterated:
    """Iterate all starts until each returns to a point it has been at, within the tolerance.

    Brent's scheme: each start keeps one anchor, renewed at powers of two, and is done when it comes back to it; the
    time since the anchor is the period. Starts that are done leave the batch.
    """
    count = len(starts)
    out = Iterated(
        starts.astype(np.float64),
        np.full(count, UNCONVERGED),
        np.zeros(count, int),
        np.full(count, np.inf),
        np.full(count, max_iterations),
    )
    alive = np.arange(count)
    x = out.points.copy()
    anchor, age, renew, look = x.copy(), 0, 1, _FIRST_LOOK
    for iteration in range(1, max_iterations + 1):
        with np.errstate(over="ignore", invalid="ignore"):
            y = map_(x)
            age += 1
            scale = np.maximum(1.0, np.abs(y).max(axis=1))
            back = np.abs(y - anchor).max(axis=1) / scale
            step = np.abs(y - x).max(axis=1) / scale
        gone = ~(scale < _ESCAPED)
        settled = step <= tolerance
        done = (settled | (back <= tolerance)) & ~gone
        leave = done | gone
        if leave.any():
            where = alive[leave]
            out.points[where] = np.where(gone[leave][:, None], x[leave], y[leave])
            period = np.where(settled[leave], 1, age)
            out.status[where] = np.where(gone[leave], DIVERGED, np.where(period == 1, FIXED, CYCLE))
            out.period[where] = np.where(gone[leave], 0, period)
            out.step[where] = np.where(settled[leave], step[leave], back[leave])
            out.iterations[where] = iteration
            keep = ~leave
            alive, y, anchor, step = alive[keep], y[keep], anchor[keep], step[keep]
            if not alive.size:
                return out
        x = y
        out.step[alive] = step
        if iteration == look:
            look *= 2
            if is_chaotic(map_, x[:: max(1, len(x) // _SAMPLE)]):
                out.iterations[alive] = iteration
                break
        # anchors are renewed after 1, 2, 4, ..., max_period steps, then from 1 again
        if age >= renew:
            anchor, age = x.copy(), 0
            renew = min(2 * renew, max_period) if renew < max_period else 1
    out.points[alive] = x
    return out


def is_chaotic(map_: Map, x: np.ndarray) -> bool:
    """Tell whether every one of some points runs away from a neighbour, exponentially."""
    small = 1e-6 * np.maximum(1.0, np.abs(x).max(axis=1))
    direction = np.random.default_rng(0).standard_normal(x.shape)
    apart = direction * (small / np.linalg.norm(direction, axis=1))[:, None]
    growth = np.zeros(len(x))
    for _ in range(_LOOK):
        there, x = map_(x + apart), map_(x)
        apart = there - x
        length = np.linalg.norm(apart, axis=1)
        if not (length > 0).all():
            return False
        growth += np.log(length / small)
        apart *= (small / length)[:, None]
    return bool((growth > _RATE * _LOOK).all())


def root_search(
    map_: Map, jacobian: Jacobian, starts: np.ndarray, *, tolerance: float, max_iterations: int = 200
) -> Iterated:
    """Search roots of F(x) - x by Levenberg-Marquardt from every start: stable and unstable fixed points alike."""
    count, n = starts.shape
    out = Iterated(
        starts.astype(np.float64),
        np.full(count, UNCONVERGED),
        np.ones(count, int),
        np.full(count, np.inf),
        np.full(count, max_iterations),
    )
    alive, x = np.arange(count), out.points.copy()
    value = map_(x) - x
    damping = np.full(count, 1e-3)
    slope = jacobian(x) - np.eye(n)
    for iteration in range(1, max_iterations + 1):
        normal = np.swapaxes(slope, 1, 2) @ slope
        scale = np.trace(normal, axis1=1, axis2=2) / n
        normal[:, np.arange(n), np.arange(n)] += (damping * scale + 1e-300)[:, None]
        gradient = np.einsum("bji,bj->bi", slope, value)
        trial = x - np.linalg.solve(normal, gradient[:, :, None])[:, :, 0]
        new = map_(trial) - trial
        better = (new**2).sum(axis=1) < (value**2).sum(axis=1)
        damping = np.where(better, damping * 0.1, np.minimum(damping * 8, 1e12))
        x[better], value[better] = trial[better], new[better]
        residual = np.abs(value).max(axis=1) / np.maximum(1.0, np.abs(x).max(axis=1))
        done = residual <= tolerance
        # no descent left: a minimum of |F(x) - x| that is not a root
        stuck = (damping > 1e11) & ~done
        leave = done | stuck
        out.points[alive], out.step[alive] = x, residual
        out.status[alive[done]] = FIXED
        out.iterations[alive[leave]] = iteration
        if leave.any():
            keep = ~leave
            alive, x, value, damping, slope = alive[keep], x[keep], value[keep], damping[keep], slope[keep]
            better = better[keep]
        if not alive.size:
            break
        if better.any():
            slope[better] = jacobian(x[better]) - np.eye(n)
    return out
