"""Moments of the gradient of a minibatch whose loss is divided by what its own examples count."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import gammaln

# Values of the counts that are told apart; more are interpolated, at Chebyshev points of their logarithm.
MOST_VALUES = 32
# 1/S and 1/S^2 as sums of exponentials exp(-s S), s on a geometric grid: relative error exp(-pi^2 / STEP).
STEP = 0.3
DIGITS = 27.0
# Values whose product of generating functions is taken exactly; more are interpolated too.
MOST_FACTORS = 256


@dataclass(frozen=True)
class RatioMoments:
    r"""Coefficients of the moments of :math:`x_{\mathcal B}=\sum_{a\in\mathcal B}u_a/\sum_{a\in\mathcal B}r_a`.

    The mean over all minibatches is :math:`\sum_am_au_a`, and the mean of the square
    :math:`\sum_aq_a|u_a|^2+\sum_{a\ne b}\sum_k\sigma_k\phi_{ak}\phi_{bk}\,u_a\cdot u_b`; with replacement
    the second sum is over all pairs.
    """

    mean: np.ndarray  # (n,)
    square: np.ndarray  # (n,)
    factors: np.ndarray  # (n, k)
    signs: np.ndarray  # (k,)


def ratio_moments(counts: np.ndarray, size: int, *, replacement: bool = False) -> RatioMoments:
    r"""Average over all minibatches of a size, exactly.

    With :math:`1/S=\int_0^\infty e^{-sS}ds` the mean over minibatches drawn without replacement is a coefficient of
    :math:`\prod_a(1+xe^{-sr_a})`, found by a sum over a circle; with replacement, of :math:`e^{x\sum_ae^{-sr_a}}`.
    """
    counts = np.asarray(counts, dtype=np.float64)
    values, which = np.unique(counts, return_inverse=True)
    if size == len(counts) and not replacement:
        total = counts.sum()
        ones = np.ones(len(counts))
        return RatioMoments(ones / total, ones / total**2, ones[:, None] / total, np.ones(1))
    basis = np.eye(len(values))
    points = values
    if len(values) > MOST_VALUES:
        points, basis = _interpolation(values, MOST_VALUES)
    numbers = np.bincount(which).astype(np.float64)
    nodes = values
    if len(values) > MOST_FACTORS:
        nodes, spread = _interpolation(values, MOST_FACTORS)
        nodes, numbers = nodes[::-1], (numbers @ spread)[::-1]
    first, square, pairs = _tables(points, nodes, numbers, size, replacement)
    # The table of pairs is smooth in both counts: few factors make it.
    strength, vectors = np.linalg.eigh(pairs)
    kept = np.abs(strength) > 1e-14 * max(np.abs(strength).max(), np.finfo(float).tiny)
    factors = vectors[:, kept] * np.sqrt(np.abs(strength[kept]))
    mean, squares, factors = ((basis @ table)[which] for table in (first, square, factors))
    return RatioMoments(mean, squares, factors, np.sign(strength[kept]))


def _interpolation(values: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    # Chebyshev points in the logarithm, and the barycentric basis at the values.
    low, high = np.log(values[0]), np.log(values[-1])
    angle = np.pi * np.arange(count) / (count - 1)
    nodes = (low + high) / 2 + (high - low) / 2 * np.cos(angle)
    signs = (-1.0) ** np.arange(count)
    signs[[0, -1]] /= 2
    apart = np.log(values)[:, None] - nodes
    exact = np.abs(apart) < 1e-14
    terms = signs / np.where(exact, 1.0, apart)
    basis = terms / terms.sum(axis=1, keepdims=True)
    hit = exact.any(axis=1)
    basis[hit] = exact[hit]
    return np.exp(nodes), basis


def _tables(
    points: np.ndarray, values: np.ndarray, numbers: np.ndarray, size: int, replacement: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    # The integrals over s of <y_a>, s <y_a> and s <y_a y_b> at the points; `values` occur `numbers` times.
    n = round(numbers.sum())
    grid = np.arange(-DIGITS - np.log(size * values[-1]), np.log(DIGITS + 10) - np.log(size * values[0]), STEP)
    first, square, pairs = np.zeros(len(points)), np.zeros(len(points)), np.zeros((len(points), len(points)))
    for s in np.exp(grid):
        if replacement:
            mean = float(numbers @ np.exp(-s * (values - values[0]))) / n
            decay = np.exp(-s * (points - values[0]))
            scale = np.exp(-s * size * values[0])
            one = scale * size / n * decay * mean ** (size - 1)
            both = scale * size * (size - 1) / n**2 * np.outer(decay, decay) * (mean ** (size - 2) if size > 1 else 0.0)
        else:
            one, both = _without_replacement(s, points, values, numbers, size)
        first += STEP * s * one
        square += STEP * s**2 * one
        pairs += STEP * s**2 * both
        if s**2 * np.abs(one).max() < 1e-17 * square.max():
            break
    return first, square, pairs


def _without_replacement(
    s: float, points: np.ndarray, values: np.ndarray, numbers: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray]:
    # <f> = [x^B] f(x) prod_a (1 + x t_a) / C(n, B) with t = exp(-s r), on the circle where the product is largest at
    # the front: there the terms are those of independent draws whose expected number is B.
    n = round(numbers.sum())
    exponent = _tilt(s * values, numbers, size)
    chance = 1 / (1 + np.exp(s * values - exponent))
    spread = np.sqrt(float(numbers @ (chance * (1 - chance))))
    turns = np.exp(2j * np.pi * np.arange(m := min(n + 1, int(14 * spread) + 40)) / m)
    product = np.exp(numbers @ np.log(1 + chance[:, None] * (turns - 1)))
    size_of_front = float(numbers @ np.logaddexp(0, exponent - s * values)) - size * exponent
    choose = gammaln(n + 1) - gammaln(size + 1) - gammaln(n - size + 1)
    front = product * turns**-size * np.exp(size_of_front - choose) / m
    at_points = 1 / (1 + np.exp(s * points - exponent))
    y = at_points[:, None] * turns / (1 + at_points[:, None] * (turns - 1))
    return (y @ front).real, ((y * front) @ y.T).real


def _tilt(energies: np.ndarray, numbers: np.ndarray, size: int) -> float:
    # The mu at which sum_a 1 / (1 + exp(energy_a - mu)) = size, by bisection.
    low, high = energies[0] - 60.0, energies[-1] + 60.0
    for _ in range(100):
        middle = (low + high) / 2
        if float(numbers @ (1 / (1 + np.exp(np.clip(energies - middle, -700, 700))))) < size:
            low = middle
        else:
            high = middle
    return (low + high) / 2
