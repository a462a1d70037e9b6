r"""Path tracking of the equation that fixes the Jacobian law, compiled.

With :math:`m(z)=E[\lambda/(z-\lambda)]` normalised to the smallest effective width, :math:`q=(1+m)/m` and
:math:`u_g` the solution of :math:`E[u/(u-K_g)]/E[K_g/(u-K_g)]=1+r_g(q-1)` for each distinct slope law g,

.. math:: \log z = c+\sum_je_j\log(1+r_j(q-1))-E\log(q-1)+\sum_gn_g\log u_g .

All of q and u are unknowns, tracked along a path of log z: down the negative real axis, where everything is real and
unique, then at fixed modulus by turning the argument from pi to zero. Working in logarithms keeps 1e-200 as exact as 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

_FIRST = 0.1
_DONE = 3e-14
_SMALLEST_STEP = 1e-11


@njit(cache=True, fastmath={"reassoc", "contract", "arcp", "nsz"})
def _averages(u: Any, kappa: Any, weight: Any) -> Any:
    # E[K/(u-K)], E[u/(u-K)] and E[uK/(u-K)^2], in real arithmetic so that the loop is vectorised.
    a = u.real
    b = u.imag
    size = abs(u)
    ar = ai = br = bi = cr = ci = 0.0
    for i in range(kappa.size):
        # every quotient in units of |u| + K: values from 1e-300 to 1e300 neither overflow nor vanish
        unit = 1.0 / (size + kappa[i])
        dr = (a - kappa[i]) * unit
        di = b * unit
        inverse = 1.0 / (dr * dr + di * di)
        xr = dr * inverse
        xi = -di * inverse
        w = weight[i]
        k = w * kappa[i] * unit
        v = w * size * unit
        ar += k * xr
        ai += k * xi
        br += v * xr
        bi += v * xi
        k *= size * unit
        cr += k * (xr * xr - xi * xi)
        ci += 2.0 * k * xr * xi
    direction = u / size
    return complex(ar, ai), complex(br, bi) * direction, complex(cr, ci) * direction


@njit(cache=True)
def _system(
    q: Any,
    u: Any,
    log_z: Any,
    kappa: Any,
    weight: Any,
    start: Any,
    ratio: Any,
    count: Any,
    term_r: Any,
    term_e: Any,
    power: Any,
    constant: Any,
    gain: Any,
    shift: Any,
) -> Any:
    # Residual of log z, its total derivative in log q, and per group the shift -R/T and gain D/T of log u.
    total = constant + 0j
    rate = 0j
    for j in range(term_r.size):
        value = 1.0 + term_r[j] * (q - 1.0) if term_r[j] != 1.0 else q
        total += term_e[j] * np.log(value)
        rate += term_e[j] * term_r[j] * q / value
    total -= power * np.log(q - 1.0)
    rate -= power * q / (q - 1.0)
    for g in range(u.size):
        a, b, c = _averages(u[g], kappa[start[g] : start[g + 1]], weight[start[g] : start[g + 1]])
        target = 1.0 + ratio[g] * (q - 1.0) if ratio[g] != 1.0 else q
        slope = c / (a * b)
        gain[g] = ratio[g] * q / (target * slope)
        shift[g] = -np.log(b / (a * target)) / slope
        total += count[g] * np.log(u[g])
        rate += count[g] * gain[g]
    residual = total - log_z
    turns = np.round(residual.imag / (2 * np.pi))
    return complex(residual.real, residual.imag - 2 * np.pi * turns), rate


@njit(cache=True)
def _newton(q: Any, u: Any, log_z: Any, first: Any, problem: Any, gain: Any, shift: Any, new_u: Any) -> Any:
    # Correct (q, new_u) at log z; the first correction must be below `first`. Returns q and the number of steps, or
    # 0.
    kappa, weight, start, ratio, count, term_r, term_e, power, constant = problem
    last = np.inf
    for iteration in range(40):
        residual, rate = _system(
            q, new_u, log_z, kappa, weight, start, ratio, count, term_r, term_e, power, constant, gain, shift
        )
        for g in range(new_u.size):
            residual += count[g] * shift[g]
        step = -residual / rate
        size = abs(step)
        for g in range(new_u.size):
            shift[g] += gain[g] * step
            size = max(size, abs(shift[g]))
        if not size < (first if iteration == 0 else 2 * max(last, 1e-8)):
            return q, 0
        q *= np.exp(step)
        for g in range(new_u.size):
            new_u[g] *= np.exp(shift[g])
        # near a square-root edge the last digits cannot be reached: stop when corrections stop shrinking
        if size < _DONE or (size < 1e-7 and size > 0.5 * last):
            return q, iteration + 1
        last = size
    return q, 0


@njit(cache=True)
def _in_plane(q: Any, u: Any) -> Any:
    # Branch test off the real axis: Im m < 0 (that is Im q > 0) and every u in the upper half-plane.
    if not q.imag >= -1e-12 * abs(q):
        return False
    for g in range(u.size):  # noqa: SIM110
        if not u[g].imag >= -1e-12 * abs(u[g]):
            return False
    return True


@njit(cache=True)
def track(q: Any, u: Any, log_from: Any, log_to: Any, problem: Any) -> Any:
    # Follow the solution from one log z to another along the straight line; u is updated in place. Returns q and
    # the fraction of the path that was covered (1.0 on success).
    kappa, weight, start, ratio, count, term_r, term_e, power, constant = problem
    gain = np.empty(u.size, np.complex128)
    shift = np.empty(u.size, np.complex128)
    new_u = np.empty_like(u)
    done = 0.0
    step = 0.25
    whole = log_to - log_from
    turning = log_from.imag != log_to.imag
    while done < 1.0:
        step = min(step, 1.0 - done)
        here = log_from + done * whole
        _, rate = _system(q, u, here, kappa, weight, start, ratio, count, term_r, term_e, power, constant, gain, shift)
        predictor = step * whole / rate
        move = abs(predictor)
        for g in range(u.size):
            move = max(move, abs(gain[g] * predictor))
        if move > 0.7:
            step *= 0.6 / move
            continue
        for g in range(u.size):
            new_u[g] = u[g] * np.exp(gain[g] * predictor)
        new_q, steps = _newton(q * np.exp(predictor), u, here + step * whole, _FIRST, problem, gain, shift, new_u)
        if steps == 0 or (turning and not _in_plane(new_q, new_u)):
            step *= 0.5
            if step < _SMALLEST_STEP:
                return q, done
            continue
        q = new_q
        u[:] = new_u
        done += step
        if steps <= 4:
            step *= 1.8
    return q, 1.0


@njit(cache=True)
def solve_points(log_x: Any, angle: Any, q0: Any, u0: Any, log_z0: Any, coarse: Any, fine: Any) -> Any:
    # Solve at the points exp(log_x + i angle), log_x descending, from a solution on the negative axis at log_z0.
    # The path is tracked with the coarse nodes; the end point is corrected with the fine ones. Returns q, the
    # groups' u, and how far each path got.
    n = log_x.size
    q_all = np.empty(n, np.complex128)
    u_all = np.empty((n, u0.size), np.complex128)
    reached = np.ones(n)
    q = q0
    u = u0.copy()
    log_z = log_z0
    gain = np.empty(u.size, np.complex128)
    shift = np.empty(u.size, np.complex128)
    for i in range(n):
        target = complex(log_x[i], np.pi)
        q, part = track(q, u, log_z, target, coarse)
        log_z = target
        if part < 1.0:
            reached[i:] = -1.0
            break
        turned_u = u.copy()
        goal = complex(log_x[i], angle[i])
        turned_q, reached[i] = track(q, turned_u, target, goal, coarse)
        if reached[i] == 1.0:
            polished = turned_u.copy()
            new_q, steps = _newton(turned_q, turned_u, goal, 0.3, fine, gain, shift, polished)
            if steps > 0 and _in_plane(new_q, polished):
                turned_q = new_q
                turned_u[:] = polished
        q_all[i] = turned_q
        u_all[i] = turned_u
    return q_all, u_all, reached


@njit(cache=True)
def _real_u(target: Any, kappa: Any, weight: Any) -> Any:
    # Real u with E[u/(u-K)]/E[K/(u-K)] = target, outside the range of K: bisection in the logarithm.
    low_k = kappa[0]
    high_k = kappa[-1]
    if target > 1.0:
        low, high = np.log(1e-15), np.log(1e300)
    elif target < 0.0:
        low, high = np.log(1e-300), np.log(1e300)
    else:
        low, high = -690.0, 0.0
    for _ in range(90):
        middle = 0.5 * (low + high)
        if target > 1.0:
            u = high_k * (1.0 + np.exp(middle))
        elif target < 0.0:
            u = -high_k * np.exp(middle)
        else:
            u = low_k * np.exp(middle) * (1.0 - 1e-15)
        a = 0.0
        b = 0.0
        for i in range(kappa.size):
            inverse = weight[i] / (u / high_k - kappa[i] / high_k)
            a += inverse * (kappa[i] / high_k)
            b += inverse * (u / high_k)
        # |b/a| grows with |u| on each of the three pieces
        if abs(b / a) < abs(target):
            low = middle
        else:
            high = middle
    return u


@njit(cache=True)
def real_point(q: Any, problem: Any) -> Any:
    # On the real axis outside the support: log|z|, d log z / d log q, and the u of each group.
    kappa, weight, start, ratio, count, term_r, term_e, power, constant = problem
    n = start.size - 1
    u = np.empty(n, np.complex128)
    for g in range(n):
        target = 1.0 + ratio[g] * (q - 1.0) if ratio[g] != 1.0 else q
        u[g] = _real_u(target, kappa[start[g] : start[g + 1]], weight[start[g] : start[g + 1]])
    gain = np.empty(n, np.complex128)
    shift = np.empty(n, np.complex128)
    residual, rate = _system(
        q + 0j, u, 0j, kappa, weight, start, ratio, count, term_r, term_e, power, constant, gain, shift
    )
    return residual.real, rate.real, u
