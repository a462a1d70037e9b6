"""Attractors of a map on batches: iterate all starts at once, polish with Newton, merge what is one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from trajstats.errors import ArgumentError, NonFiniteError

# `points (b, N) -> points (b, N)` and `points (b, N) -> Jacobians (b, N, N)`.
Map = Callable[[np.ndarray], np.ndarray]
Jacobian = Callable[[np.ndarray], np.ndarray]

UNCONVERGED, FIXED, CYCLE, DIVERGED = range(4)
STATUS = ("unconverged", "fixed_point", "cycle", "diverged")
_ESCAPED = 1e100
# A start counts as arrived when it lies within this many of its own error estimates of a polished point.
_SAFETY = 100.0
# Units of rounding within which a start counts as exactly back.
_EXACT = 64.0
# From this iteration on, at every doubling, a sample of what still moves is asked whether it is chaotic: neighbours
# that
# grow apart by more than this rate per step, in every member of the sample, over this many steps.
_FIRST_LOOK, _RATE, _LOOK, _SAMPLE = 100, 0.05, 32, 64
# 1 - |eigenvalue| below this: the map neither contracts nor expands there, and nothing can be said about stability.
_MARGINAL = 1e-6


@dataclass
class Iterated:
    """Where every start ended: points, status, period found by recurrence, last step and iterations used."""

    points: np.ndarray
    status: np.ndarray
    period: np.ndarray
    step: np.ndarray
    iterations: np.ndarray


@dataclass
class Attractors:
    """Distinct attractors: one point of each, period, residual, spectral radius of the turn, error of the point."""

    points: list[np.ndarray] = field(default_factory=list)
    period: list[int] = field(default_factory=list)
    residual: list[float] = field(default_factory=list)
    radius: list[float] = field(default_factory=list)
    error: list[float] = field(default_factory=list)


def checked_map(map_: Map, dim: int) -> Map:
    """Wrap a map so that a wrong shape or a NaN is named at once.

    Parameters
    ----------
    map_ : callable
        Batches to batches.
    dim : int
        Dimension of the space.

    Returns
    -------
    callable
    """

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
    """Differentiate a map by central differences, all directions of a point in one batch.

    Parameters
    ----------
    map_ : callable
        Batches to batches.
    eps : float
        Relative precision of its values.

    Returns
    -------
    callable
        (b, N) to (b, N, N).
    """

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

    Parameters
    ----------
    map_ : callable
        Batches to batches.
    starts : ndarray, (S, N)
        Starting points.
    tolerance : float
        Largest change in any coordinate that counts as a return, relative to max(1, |x|).
    max_iterations : int
        When to give up.
    max_period : int
        Longest cycle looked for; must be below the last anchor's age to be seen.

    Returns
    -------
    Iterated
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
    """Tell whether every one of some points runs away from a neighbour, exponentially.

    Parameters
    ----------
    map_ : callable
        The map.
    x : ndarray, (b, N)
        Points on their way.

    Returns
    -------
    bool
        Whether the growth rate of a separation of 1e-6, brought back to that length at each step, is positive for all.
    """
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


def orbit(map_: Map, jacobian: Jacobian, x: np.ndarray, period: int) -> tuple[np.ndarray, np.ndarray]:
    """Follow points through a cycle with the Jacobian of the whole turn.

    Parameters
    ----------
    map_, jacobian : callable
        The map and its derivative.
    x : ndarray, (b, N)
        Points.
    period : int
        Steps.

    Returns
    -------
    (ndarray (b, N), ndarray (b, N, N))
        The points after `period` steps and the product of Jacobians.
    """
    product = jacobian(x)
    y = map_(x)
    for _ in range(period - 1):
        product = jacobian(y) @ product
        y = map_(y)
    return y, product


def polish(
    map_: Map, jacobian: Jacobian, x: np.ndarray, period: int, *, eps: float, steps: int = 30
) -> tuple[np.ndarray, float, float, float]:
    """Solve F^p(x) = x by Newton from a point close to it.

    Parameters
    ----------
    map_, jacobian : callable
        The map and its derivative.
    x : ndarray, (N,)
        A point near the solution.
    period : int
        The p.
    eps : float
        Relative precision of the map.
    steps : int
        Most Newton steps.

    Returns
    -------
    (ndarray, float, float, float)
        The point, its residual, the spectral radius of the turn's Jacobian, and the norm of :math:`(1-J)^{-1}`, which
        turns a residual into a distance.
    """
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
    """Tell whether a point can neither be called stable nor located.

    Parameters
    ----------
    radius : float
        Spectral radius of the turn's Jacobian.
    amplification : float
        Norm of :math:`(1-J)^{-1}`.

    Returns
    -------
    bool
    """
    return abs(radius - 1.0) < _MARGINAL or amplification > 1.0 / _MARGINAL


def minimal_period(map_: Map, x: np.ndarray, period: int, distance: float) -> int:
    """Find the smallest divisor of a period after which a point is back.

    Parameters
    ----------
    map_ : callable
        The map.
    x : ndarray, (N,)
        A polished point.
    period : int
        A multiple of its period.
    distance : float
        How close counts as back.

    Returns
    -------
    int
    """
    y = x[None]
    for time in range(1, period):
        y = map_(y)
        if period % time == 0 and np.abs(y[0] - x).max() <= distance:
            return time
    return period


def root_search(
    map_: Map, jacobian: Jacobian, starts: np.ndarray, *, tolerance: float, max_iterations: int = 200
) -> Iterated:
    """Search roots of F(x) - x by Levenberg-Marquardt from every start: stable and unstable fixed points alike.

    Parameters
    ----------
    map_, jacobian : callable
        The map and its derivative.
    starts : ndarray, (S, N)
        Starting points.
    tolerance : float
        Largest residual in any coordinate, relative to max(1, |x|).
    max_iterations : int
        Most steps.

    Returns
    -------
    Iterated
        ``step`` is the residual.
    """
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


def gather(map_: Map, jacobian: Jacobian, ends: Iterated, *, eps: float) -> tuple[Attractors, np.ndarray, np.ndarray]:
    """Merge end points into distinct attractors, each polished and verified.

    A point joins an attractor when it lies within 100 of its own error estimates (last step times the norm of
    :math:`(1-J)^{-1}`) of one of its points. An attractor whose linearisation cannot locate it is not counted; its
    starts become unconverged.

    Parameters
    ----------
    map_, jacobian : callable
        The map and its derivative.
    ends : Iterated
        What `iterate` or `root_search` gave.
    eps : float
        Relative precision of the map.

    Returns
    -------
    (Attractors, ndarray, ndarray)
        The attractors, and per start its status and the index of its attractor (-1: none).
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
