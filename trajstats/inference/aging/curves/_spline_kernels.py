"""Compiled sums over uniform cubic B-splines: a point lies in four of them only, so that no basis is ever filled in."""

from __future__ import annotations

import numpy as np
from numba import njit

ROUNDING = 1e-14


@njit(cache=True, nogil=True, fastmath={"contract", "reassoc"})
def _pieces(position: np.ndarray, intervals: int, cell: np.ndarray, piece: np.ndarray) -> None:
    for a in range(position.size):
        z = position[a]
        cell[a] = min(max(int(np.floor(z)), 0), intervals - 1)
        f = z - cell[a]
        piece[a, 0] = (1 - f) ** 3 / 6
        piece[a, 1] = (3 * f**3 - 6 * f**2 + 4) / 6
        piece[a, 2] = (-3 * f**3 + 3 * f**2 + 3 * f + 1) / 6
        piece[a, 3] = f**3 / 6


@njit(cache=True, nogil=True)
def filled_basis(position: np.ndarray, intervals: int) -> np.ndarray:
    """Evaluate all splines at each position."""
    basis = np.zeros((position.size, intervals + 3))
    cell, piece = np.empty(position.size, np.int64), np.empty((position.size, 4))
    _pieces(position, intervals, cell, piece)
    for a in range(position.size):
        basis[a, cell[a] : cell[a] + 4] = piece[a]
    return basis


@njit(cache=True, nogil=True)
def spline_values(position: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
    """Evaluate splines, each at its own positions."""
    n_splines, n = position.shape
    out = np.empty((n_splines, n))
    cell, piece = np.empty(n, np.int64), np.empty((n, 4))
    for v in range(n_splines):
        _pieces(position[v], coefficients.shape[1] - 3, cell, piece)
        for a in range(n):
            total = 0.0
            for i in range(4):
                total += piece[a, i] * coefficients[v, cell[a] + i]
            out[v, a] = total
    return out


@njit(cache=True, nogil=True, fastmath={"contract", "reassoc"})
def _equations(
    position: np.ndarray,
    precision: np.ndarray,
    product: np.ndarray,
    intervals: int,
    gram: np.ndarray,
    right: np.ndarray,
) -> None:
    # B'PB by rows of P: four contiguous axpys per point
    n, k = position.size, intervals + 3
    cell, piece = np.empty(n, np.int64), np.empty((n, 4))
    _pieces(position, intervals, cell, piece)
    rows = np.zeros((k, n))
    right[:] = 0.0
    gram[:] = 0.0
    for a in range(n):
        for i in range(4):
            c = piece[a, i]
            row = rows[cell[a] + i]
            for b in range(n):
                row[b] += c * precision[a, b]
            right[cell[a] + i] += c * product[a]
    for j in range(k):
        for a in range(n):
            for i in range(4):
                gram[j, cell[a] + i] += rows[j, a] * piece[a, i]


@njit(cache=True, nogil=True)
def normal_equations(
    position: np.ndarray, precision: np.ndarray, product: np.ndarray, intervals: int
) -> tuple[np.ndarray, np.ndarray]:
    """Sum the normal equations B'PB and B'Py of splines, B being their basis at each row of positions."""
    k = intervals + 3
    gram, right = np.empty((position.shape[0], k, k)), np.empty((position.shape[0], k))
    for v in range(position.shape[0]):
        _equations(position[v], precision, product, intervals, gram[v], right[v])
    return gram, right


@njit(cache=True, nogil=True, fastmath={"contract", "reassoc"})
def log_marginal(
    position: np.ndarray,
    widths: np.ndarray,
    log_smoothing: np.ndarray,
    precision: np.ndarray,
    product: np.ndarray,
    square: float,
    penalty: np.ndarray,
    intervals: int,
) -> np.ndarray:
    """Integrate coefficients and noise out, for several smoothings at each row of positions."""
    n_values, n = position.shape
    k = intervals + 3
    result = np.empty(log_smoothing.shape)
    gram, right = np.empty((k, k)), np.empty(k)
    factor, half = np.empty((k, k)), np.empty(k)
    for v in range(n_values):
        _equations(position[v], precision, product, intervals, gram, right)
        for m in range(log_smoothing.shape[1]):
            log_strength = log_smoothing[v, m] - 3 * np.log(widths[v])
            log_det, explained = 0.0, 0.0
            strength = np.exp(log_strength)
            for i in range(k):
                for j in range(i + 1):
                    total = gram[i, j] + strength * penalty[i, j]
                    for q in range(j):
                        total -= factor[i, q] * factor[j, q]
                    factor[i, j] = np.sqrt(max(total, 1e-300)) if i == j else total / factor[j, j]
                total = right[i]
                for q in range(i):
                    total -= factor[i, q] * half[q]
                half[i] = total / factor[i, i]
                explained += half[i] ** 2
                log_det += 2 * np.log(factor[i, i])
            misfit = max(square - explained, ROUNDING * square)
            result[v, m] = (
                0.5 * (k - 2) * log_strength - np.log(widths[v]) - 0.5 * log_det - 0.5 * (n - 2) * np.log(misfit)
            )
    return result
