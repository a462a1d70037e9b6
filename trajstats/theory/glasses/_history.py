"""Step the Cugliandolo-Kurchan equations on a history that thins with age (numba; no labels, no checks).

The current row C(t, .), R(t, .) lives on nodes whose spacing grows with their distance from t and from 0. Every cell
between two nodes keeps the first three Legendre moments of the stored functions over it, and two cells merge exactly
in these moments; so a fast decay that a coarse cell no longer resolves still counts with its true weight. Rows advance
with the implicit Adams-Moulton rule of fourth order.
"""

from __future__ import annotations

from typing import NamedTuple

import numba as nb
import numpy as np

CONVERGED, NOT_CONVERGED, ABOVE_ONE, NO_ROOM = 0, 1, 2, 3
_NEAR = 3.0  # lag within which the fixed-point iteration of a step recomputes the memory kernel
_STENCIL = 5


class History(NamedTuple):
    """All arrays of a solution in progress; C has index 0, R index 1; `rates` holds the last three."""

    time: np.ndarray  # (node,)
    kept: np.ndarray  # (node,) output column number, -1 for a node that may be thinned away
    value: np.ndarray  # (2, node)
    rates: np.ndarray  # (3, 2, node)
    new_value: np.ndarray  # (2, node)
    new_rate: np.ndarray  # (2, node)
    slope: np.ndarray  # (2, node): d/dt' along the current row
    stencil: np.ndarray  # (node, 5)
    stencil_from: np.ndarray  # (node,)
    cells: np.ndarray  # (2, 3, node, node): moments of [j, l], l-th cell; over rows for l > j, over columns for l <= j
    memory: np.ndarray  # (3, node): moments of f''(C) R of the current row, times width
    vertex: np.ndarray  # (3, node): moments of f'(C) of the current row, times width
    far: np.ndarray  # (2, node)
    total: np.ndarray  # (2, node)
    birth: np.ndarray  # (2, 2): second and third time derivative of the rates of a column just born
    steps: np.ndarray  # (3,): the last step sizes


def history(capacity: int, temperature: float) -> History:
    """Allocate a history that holds the single time 0."""
    n = capacity
    state = History(
        time=np.zeros(n),
        kept=np.full(n, -1, dtype=np.int64),
        value=np.zeros((2, n)),
        rates=np.zeros((3, 2, n)),
        new_value=np.zeros((2, n)),
        new_rate=np.zeros((2, n)),
        slope=np.zeros((2, n)),
        stencil=np.zeros((n, _STENCIL)),
        stencil_from=np.zeros(n, dtype=np.int64),
        cells=np.zeros((2, 3, n, n)),
        memory=np.zeros((3, n)),
        vertex=np.zeros((3, n)),
        far=np.zeros((2, n)),
        total=np.zeros((2, n)),
        birth=np.zeros((2, 2)),
        steps=np.ones(3),
    )
    state.value[:, 0] = 1.0
    state.rates[0, :, 0] = -temperature
    state.kept[0] = 0
    return state


@nb.njit(cache=True)
def _moments(width: float, a: float, b: float, da: float, db: float) -> tuple[float, float, float]:
    # Legendre coefficients 0, 1, 2 of the cubic Hermite interpolant over one cell.
    return (
        0.5 * (a + b) + width / 12 * (da - db),
        (3.0 * (b - a) - 0.25 * width * (da + db)) / 5,
        width / 12 * (db - da),
    )


@nb.njit(cache=True)
def _merge(
    w: float, a: tuple[float, float, float], v: float, b: tuple[float, float, float]
) -> tuple[float, float, float]:
    # Exact moments of two neighbouring cells, widths w and v, taken as one.
    if w == 0.0:
        return b
    m0 = m1 = m2 = 0.0
    for share, shift, (c0, c1, c2) in ((w / (w + v), -v / (w + v), a), (v / (w + v), w / (w + v), b)):
        m0 += share * c0
        m1 += share * (shift * c0 + share * c1 / 3)
        m2 += share * (shift * shift * c0 + 2 * shift * share * c1 / 3 + share * share * (c0 / 3 + 2 * c2 / 15))
    return m0, 3 * m1, 5 * (1.5 * m2 - 0.5 * m0)


@nb.njit(cache=True)
def _third_derivative(f0: float, f1: float, f2: float, f3: float, h: np.ndarray) -> float:
    # h[0] is the latest spacing.
    a, b, c = (f1 - f0) / h[2], (f2 - f1) / h[1], (f3 - f2) / h[0]
    return 6 * ((c - b) / (h[1] + h[0]) - (b - a) / (h[2] + h[1])) / (h[2] + h[1] + h[0])


@nb.njit(cache=True)
def _set_stencils(s: History, n: int, first: int) -> None:
    # Derivative weights of the five-point Lagrange interpolant through the nodes around each node.
    m = min(_STENCIL, n)
    t = s.time
    for i in range(max(first, 0), n):
        a = min(max(i - 2, 0), n - m)
        s.stencil_from[i] = a
        s.stencil[i, :] = 0.0
        for q in range(m):
            if a + q == i:
                continue
            ratio = 1.0
            for r in range(m):
                if r != q:
                    ratio /= t[a + q] - t[a + r]
                    if a + r != i:
                        ratio *= t[i] - t[a + r]
            s.stencil[i, q] = ratio
            s.stencil[i, i - a] -= ratio


@nb.njit(cache=True)
def _predict(s: History, n: int) -> int:
    # Old columns: extrapolate in t. Young ones, once t is large: the value the last row had at the same lag.
    h, h1 = s.steps[0], s.steps[1]
    for x in range(2):
        for j in range(n):
            change = h / h1 * (s.rates[0, x, j] - s.rates[1, x, j]) if j < n - 1 else 0.0
            s.new_value[x, j] = s.value[x, j] + h * (s.rates[0, x, j] + 0.5 * change)
            s.new_rate[x, j] = s.rates[0, x, j] + change
        s.new_value[x, n] = 1.0
    now, before = s.time[n], s.time[n - 1]
    near = n
    while near > 1 and now - s.time[near - 1] <= _NEAR:
        near -= 1
    if now > 20.0:
        for j in range(n - 1, near, -1):
            if abs((now - s.time[j]) - (before - s.time[j - 1])) > 1e-3 * h:
                break
            for x in range(2):
                s.new_value[x, j] = s.value[x, j - 1]
                s.new_rate[x, j] = s.rates[0, x, j - 1]
    return near


@nb.njit(cache=True)
def _fill_cells(s: History, n: int, p: int, temperature: float, mu: float) -> None:
    # Moments over the newest cell of every column, and over every cell of the newest row n.
    h = s.steps[0]
    m = min(_STENCIL, n + 1)
    for x in range(2):
        for j in range(n):
            mom = _moments(h, s.value[x, j], s.new_value[x, j], s.rates[0, x, j], s.new_rate[x, j])
            for i in range(3):
                s.cells[x, i, j, n] = mom[i]
            d = 0.0
            for q in range(m):
                d += s.stencil[j, q] * s.new_value[x, s.stencil_from[j] + q]
            s.slope[x, j] = d
    s.slope[0, n], s.slope[1, n] = temperature, mu  # exact at t' = t: both functions are 1 all along the diagonal
    va = dva = ma = dma = 0.0
    for l in range(n + 1):  # noqa: E741
        c, r = s.new_value[0, l], s.new_value[1, l]
        f2 = 0.5 * p * (p - 1) * c ** (p - 2)
        f3 = 0.5 * p * (p - 1) * (p - 2) * c ** (p - 3) if p > 2 else 0.0
        vb, dvb = 0.5 * p * c ** (p - 1), f2 * s.slope[0, l]
        mb, dmb = f2 * r, f3 * s.slope[0, l] * r + f2 * s.slope[1, l]
        if l > 0:
            w = s.time[l] - s.time[l - 1]
            mem, ver = _moments(w, ma, mb, dma, dmb), _moments(w, va, vb, dva, dvb)
            for i in range(3):
                s.memory[i, l] = mem[i] * w / (2 * i + 1)
                s.vertex[i, l] = ver[i] * w / (2 * i + 1)
            for x in range(2):
                mom = _moments(w, s.new_value[x, l - 1], s.new_value[x, l], s.slope[x, l - 1], s.slope[x, l])
                for i in range(3):
                    s.cells[x, i, n, l] = mom[i]
        va, dva, ma, dma = vb, dvb, mb, dmb


@nb.njit(cache=True, fastmath=True)
def _integrate(s: History, n: int, start: int, stop: int, out: np.ndarray) -> None:
    # Contribution of cells start <= l < stop to the memory integrals of every column; the hot loop.
    m0, m1, m2 = s.memory
    v0, v1, v2 = s.vertex
    for j in range(n + 1):
        c0, c1, c2 = s.cells[0, 0, j], s.cells[0, 1, j], s.cells[0, 2, j]
        r0, r1, r2 = s.cells[1, 0, j], s.cells[1, 1, j], s.cells[1, 2, j]
        a = b = d = 0.0
        for l in range(start, stop):  # noqa: E741
            a += m0[l] * c0[l] + m1[l] * c1[l] + m2[l] * c2[l]
        for l in range(start, min(stop, j + 1)):  # noqa: E741
            b += v0[l] * r0[l] + v1[l] * r1[l] + v2[l] * r2[l]
        for l in range(max(start, j + 1), stop):  # noqa: E741
            d += m0[l] * r0[l] + m1[l] * r1[l] + m2[l] * r2[l]
        out[0, j] = a + b
        out[1, j] = d


@nb.njit(cache=True)
def _correct(s: History, n: int, mu: float) -> float:
    # One sweep of the implicit rule; returns the largest change.
    h, h1 = s.steps[0], s.steps[1]
    ahead = h * h / (6 * (h + h1))
    behind = ahead * h / h1
    cubic = -(h**4 / 12 + h**3 * h1 / 6) / 6
    largest = 0.0
    for x in range(2):
        for j in range(n):
            f = s.rates[0, x, j]
            if j < n - 1:
                third = s.birth[1, x]
                if j < n - 2:
                    third = _third_derivative(s.rates[2, x, j], s.rates[1, x, j], f, s.new_rate[x, j], s.steps)
                w = 0.5 * h - ahead
                known = s.value[x, j] + (0.5 * h + ahead + behind) * f - behind * s.rates[1, x, j] + cubic * third
            else:
                w = 0.5 * h
                known = s.value[x, j] + w * f - h**3 / 12 * s.birth[0, x] + h**4 / 24 * s.birth[1, x]
            y = (known + w * s.total[x, j]) / (1 + w * mu)
            largest = max(largest, abs(y - s.new_value[x, j]))
            s.new_value[x, j] = y
            s.new_rate[x, j] = -mu * y + s.total[x, j]
    return largest


@nb.njit(cache=True)
def _accept(s: History, n: int, temperature: float, mu: float) -> bool:
    # Turn the new row into the current one; remember how the youngest columns curve, for the next one to be born.
    for x in range(2):
        if n >= 2:
            j = n - 2
            late = (s.new_rate[x, j] - s.rates[0, x, j]) / s.steps[0]
            early = (s.rates[0, x, j] - s.rates[1, x, j]) / s.steps[1]
            s.birth[0, x] = 2 * (late - early) / (s.steps[0] + s.steps[1])
        if n >= 3:
            j = n - 3
            s.birth[1, x] = _third_derivative(
                s.rates[2, x, j], s.rates[1, x, j], s.rates[0, x, j], s.new_rate[x, j], s.steps
            )
    bounded = True
    for x in range(2):
        for j in range(n):
            s.rates[2, x, j] = s.rates[1, x, j]
            s.rates[1, x, j] = s.rates[0, x, j]
            s.rates[0, x, j] = s.new_rate[x, j]
            s.value[x, j] = s.new_value[x, j]
    for j in range(n):
        # At T = 0 the plateau is at 1, and 1 - C falls below the error of C: project, refuse what is larger.
        bounded = bounded and abs(s.value[0, j]) <= 1.0 + 1e-3
        s.value[0, j] = min(s.value[0, j], 1.0)
    s.value[0, n] = s.value[1, n] = 1.0
    s.rates[0, 0, n], s.rates[0, 1, n] = -temperature, -mu
    s.steps[2], s.steps[1] = s.steps[1], s.steps[0]
    return bounded


@nb.njit(cache=True)
def _thin(s: History, n: int, ratio: float) -> int:
    # Drop nodes whose two cells together are still narrow against their distance from t and from 0. A sliver beside a
    # wide cell goes even if that makes a cell half as wide again: a slope taken across it magnifies rounding and, fed
    # back through the memory, makes late rows unstable.
    keep = np.ones(n, np.bool_)
    left = s.time[0]
    for i in range(1, n - 1):
        room = ratio * min(s.time[n - 1] - s.time[i + 1], s.time[i])
        width = s.time[i + 1] - left
        sliver = min(s.time[i] - left, s.time[i + 1] - s.time[i]) < 0.25 * width and width <= 1.5 * room
        if s.kept[i] < 0 and (width <= room or sliver):
            keep[i] = False
        else:
            left = s.time[i]
    row = 0
    for j in range(n):
        if not keep[j]:
            continue
        for x in range(2):
            column, width, mom = 1, 0.0, (0.0, 0.0, 0.0)
            for l in range(1, n):  # noqa: E741
                w = s.time[l] - s.time[l - 1]
                cell = (s.cells[x, 0, j, l], s.cells[x, 1, j, l], s.cells[x, 2, j, l])
                mom = _merge(width, mom, w, cell)
                width += w
                if keep[l]:
                    for i in range(3):
                        s.cells[x, i, row, column] = mom[i]
                    column, width, mom = column + 1, 0.0, (0.0, 0.0, 0.0)
        row += 1
    q = 0
    for j in range(n):
        if keep[j]:
            s.time[q], s.kept[q] = s.time[j], s.kept[j]
            s.value[:, q], s.rates[:, :, q] = s.value[:, j], s.rates[:, :, j]
            q += 1
    _set_stencils(s, q, 0)
    return q


@nb.njit(cache=True)
def _record(s: History, n: int, table: np.ndarray) -> None:
    # C, R and the integrated response of the current row at the output columns.
    chi = 0.0
    for j in range(n - 1, -1, -1):
        if s.kept[j] >= 0:
            table[0, s.kept[j]] = s.value[0, j]
            table[1, s.kept[j]] = s.value[1, j]
            table[2, s.kept[j]] = chi
        if j > 0:
            chi += s.cells[1, 0, n - 1, j] * (s.time[j] - s.time[j - 1])


@nb.njit(cache=True)
def march(
    s: History,
    p: int,
    temperature: float,
    times: np.ndarray,
    column_at: np.ndarray,
    row_at: np.ndarray,
    ratio: float,
    tables: np.ndarray,
    multiplier: np.ndarray,
    tolerance: float,
) -> tuple[int, int]:
    """Advance through all `times`, recording the rows asked for."""
    n, mu = 1, temperature
    multiplier[0] = mu
    _record(s, n, tables[0])
    for k in range(1, times.size):
        if n + 1 >= s.time.size:
            return NO_ROOM, k
        s.steps[0] = times[k] - times[k - 1]
        s.time[n], s.kept[n] = times[k], column_at[k]
        _set_stencils(s, n + 1, n - 5)
        near = _predict(s, n)
        for iteration in range(60):
            _fill_cells(s, n, p, temperature, mu)
            if iteration == 0:
                _integrate(s, n, 1, near, s.far)
            _integrate(s, n, near, n + 1, s.total)
            s.total[:, : n + 1] += s.far[:, : n + 1]
            mu = temperature + s.total[0, n]
            change = _correct(s, n, mu)
            if not change < 1e3:
                return NOT_CONVERGED, k
            if change < tolerance:
                break
        else:
            return NOT_CONVERGED, k
        if not _accept(s, n, temperature, mu):
            return ABOVE_ONE, k
        n += 1
        if row_at[k] >= 0:
            multiplier[row_at[k]] = mu
            _record(s, n, tables[row_at[k]])
        if k % 10 == 0:
            n = _thin(s, n, ratio)
    return CONVERGED, times.size - 1
