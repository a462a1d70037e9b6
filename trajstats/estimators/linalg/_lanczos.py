"""Lanczos quadrature on plain arrays: batched probes, deflation, Gauss nodes and weights. No labels, no dask."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.linalg

from trajstats.errors import NonFiniteError
from trajstats.estimators.linalg._gram_schmidt import correct_and_measure, products_and_norms, take_out, three_terms
from trajstats.runtime._memory import large_array

# `rows -> rows`: applies a symmetric operator to each row of a (k, n) array.
Apply = Callable[[np.ndarray], np.ndarray]

# A second pass of Gram-Schmidt only where the first removed more than this share of the norm (Daniel et al. 1976).
SECOND_PASS = 0.7
# Below this many units of rounding, relative to the operator, a new direction is noise and the recurrence has ended.
BREAKDOWN = 64.0
# Residual, relative to its Ritz value, below which a pair counts as an eigenpair.
CONVERGED = 1e-2


@dataclass(frozen=True)
class Recurrence:
    """Coefficients of k Lanczos runs of at most m steps, zero after the end of each.

    ``beta[i, j]`` is the norm left after step j, so ``beta[i, length - 1]`` bounds every Ritz residual.
    """

    alpha: np.ndarray
    beta: np.ndarray
    length: np.ndarray
    basis: np.ndarray


@dataclass(frozen=True)
class Atoms:
    """Converged eigenpairs, ascending: values (a,), vectors (a, n), residual norms (a,)."""

    values: np.ndarray
    vectors: np.ndarray
    residuals: np.ndarray


def lanczos(apply: Apply, start: np.ndarray, order: int, *, within: np.ndarray | None = None) -> Recurrence:
    """Run Lanczos from each row of `start`, with full reorthogonalisation.

    Vectors keep the precision of `start`; coefficients are float64. The runs share nothing but the batched operator
    call, so a run's numbers do not depend on the others'.

    What a new vector has along all earlier ones is measured at once and taken out while its image is measured in turn,
    so that each step reads the earlier vectors once; a second pass only where little is left of a vector.

    Source: Daniel, Gragg, Kaufman, Stewart, Math. Comp. 30 (1976) 772 (second passes); Swirydowicz, Langou, Ananthan,
    Yang, Thomas, arXiv:1809.05805 (delayed corrections).
    """
    k, n = start.shape
    if within is not None and len(within):
        # Read-only wherever it comes from (what one worker sends to another is), so that one kernel is compiled.
        within = np.ascontiguousarray(within, dtype=start.dtype).view()
        within.flags.writeable = False
    else:
        within = None
    order = max(0, min(order, n if within is None else n - len(within)))
    eps = float(np.finfo(start.dtype).eps)
    alpha, beta = np.zeros((k, order)), np.zeros((k, order))
    basis = large_array((k, order, n), start.dtype)
    if order:
        basis[:, 0] = start
    left_over = np.empty_like(start)
    length, scale = np.zeros(k, int), np.zeros(k)
    alive = _norms(start) > 0
    # What the latest vector still has along its run's vectors, as measured when it was made.
    slips = [np.empty(0)] * k
    for j in range(order):
        images = np.ascontiguousarray(apply(basis[:, j]), dtype=start.dtype)
        products, norms = products_and_norms(basis, j, images)
        if not np.isfinite(norms).all():
            msg = "a product of the curvature with a vector is not finite"
            raise NonFiniteError(msg)
        scale = np.maximum(scale, norms)
        # The three-term part goes first: what is measured along all vectors is then rounding only. The complement
        # must be taken after it, or errors along `within` grow as in a recurrence outside its spectrum.
        alpha[:, j] = np.where(alive, products, 0.0)
        along, back = (c.astype(start.dtype) for c in (alpha[:, j], beta[:, j - 1]))
        three_terms(basis, j, images, along, back, left_over)
        if within is not None:
            take_out(within, left_over)
        for i in np.flatnonzero(alive):
            run = (basis[i, : j + 1], alpha[i, : j + 1], beta[i, :j])
            left, beta[i, j] = _orthogonalise(left_over[i], *run, slips[i], within)
            length[i] = j + 1
            alive[i] = beta[i, j] > BREAKDOWN * eps * scale[i]
            slips[i] = left / beta[i, j] if alive[i] else left
        if not alive.any():
            break
        if j + 1 < order:
            factor = np.divide(1.0, beta[:, j], out=np.zeros(k), where=alive)
            np.multiply(left_over, factor[:, None].astype(start.dtype), out=basis[:, j + 1])
    return Recurrence(alpha, beta, length, basis)


def _orthogonalise(
    w: np.ndarray,
    known: np.ndarray,
    alpha: np.ndarray,
    beta: np.ndarray,
    slip: np.ndarray,
    within: np.ndarray | None,
) -> tuple[np.ndarray, float]:
    # Takes `slip` out of the run's latest vector, and what it did to the image out of w; measures what w has along all
    # vectors and leaves it there for the next step to take out. Gives it, and the norm of w without it.
    # As A Q = Q T + beta q e^T, what `slip` did to the image is a combination of vectors that are there already.
    j = len(slip)
    change, last = (alpha[:j] - alpha[j]) * slip, 0.0
    if j:
        change[1:] += beta[:-1] * slip[:-1]
        change[:-1] += beta[:-1] * slip[1:]
        last = beta[-1] * slip[-1]
    left = np.empty(j + 1)
    dtype = w.dtype.type
    taken = (slip.astype(dtype), change.astype(dtype), dtype(last))
    before, square = correct_and_measure(known[:j], known[j], w, *taken, left)
    after = _rest(square, left)
    alpha[j] += left[j]
    if after <= SECOND_PASS * np.sqrt(max(before, square)):
        # Little is left, so what rounding left along everything known is large in proportion.
        if within is not None:
            _take(w, within @ w, within)
        _take(w, left, known)
        left = (known @ w).astype(np.float64)
        after = _rest(float(_norms(w[None])[0]) ** 2, left)
        alpha[j] += left[j]
    return left, after


def _rest(square: float, along: np.ndarray) -> float:
    return float(np.sqrt(max(square - along @ along, 0.0)))


def _take(w: np.ndarray, share: np.ndarray, rows: np.ndarray) -> None:
    # w -= share @ rows in place, without an array for the product: those of a network's size cost their page faults.
    gemv = scipy.linalg.blas.sgemv if w.dtype == np.float32 else scipy.linalg.blas.dgemv
    gemv(-1.0, rows.T, share, 1.0, w, overwrite_y=True)


def _norms(rows: np.ndarray) -> np.ndarray:
    return np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))


def _complement(rows: np.ndarray, within: np.ndarray) -> np.ndarray:
    return rows - (rows @ within.T) @ within


def ritz(alpha: np.ndarray, beta: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Diagonalise one run's tridiagonal matrix."""
    if length == 0:
        return np.empty(0), np.empty((0, 0)), np.empty(0)
    values, vectors = scipy.linalg.eigh_tridiagonal(alpha[:length], beta[: length - 1])
    return values, vectors, np.abs(beta[length - 1] * vectors[-1])


def unit_probes(keys: list[np.random.SeedSequence], n: int, dtype: np.dtype) -> np.ndarray:
    """Draw one probe per key, uniform on the unit sphere."""
    probes = np.empty((len(keys), n), dtype)
    for row, key in zip(probes, keys, strict=True):
        draw = np.random.default_rng(key).standard_normal(n)
        row[:] = draw / np.linalg.norm(draw)
    return probes


def project_out(rows: np.ndarray, within: np.ndarray) -> np.ndarray:
    """Project rows on the complement of `within` and normalise them; twice, for rounding."""
    for _ in range(2):
        rows = _complement(rows, within)
        norms = _norms(rows)[:, None]
        rows = np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0, casting="same_kind")
    return rows


def converged_atoms(apply: Apply, start: np.ndarray, steps: int, tolerance: float = CONVERGED) -> Atoms:
    """Run one longer Lanczos and keep the converged Ritz pairs."""
    run = lanczos(apply, start[None], steps)
    length = int(run.length[0])
    values, vectors, residuals = ritz(run.alpha[0], run.beta[0], length)
    # An exact zero is converged when the residual is rounding of the operator's norm.
    floor = BREAKDOWN * float(np.finfo(start.dtype).eps) * np.abs(values).max(initial=0.0)
    keep = residuals <= np.maximum(tolerance * np.abs(values), floor)
    found = vectors[:, keep].T.astype(start.dtype) @ run.basis[0, :length]
    return Atoms(values[keep], found, residuals[keep])


def gauss_rule(run: Recurrence, i: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Give the Gauss quadrature of run `i`: its spectral measure seen from the start vector."""
    values, vectors, residuals = ritz(run.alpha[i], run.beta[i], int(run.length[i]))
    weights = vectors[0] ** 2 if len(values) else np.empty(0)
    return values, weights / weights.sum() if len(values) else weights, residuals


def radau_bounds(
    nodes: np.ndarray, weights: np.ndarray, residuals: np.ndarray, threshold: float
) -> tuple[float, float]:
    """Bound the share of a probe's spectral measure below a threshold, by the Gauss-Radau rule with a node there.

    In the basis of Ritz vectors one more Lanczos step borders the diagonal of nodes with the residuals, whose signs
    alternate; the corner is chosen so that the threshold is an eigenvalue.
    """
    if not np.isfinite(threshold):
        return (0.0, 0.0) if threshold < 0 else (1.0, 1.0)
    m = len(nodes)
    border = residuals * (-1.0) ** np.arange(m, 0, -1)
    gap = nodes - threshold
    # A node on the threshold: move it by rounding, so that the corner stays finite.
    gap[gap == 0] = np.spacing(max(abs(threshold), np.abs(nodes).max()))
    arrow = np.diag(np.append(nodes, threshold + np.sum(border**2 / gap)))
    arrow[m, :m] = arrow[:m, m] = border
    values, vectors = np.linalg.eigh(arrow)
    shares = (np.sqrt(weights) @ vectors[:m]) ** 2
    at = int(np.abs(values - threshold).argmin())
    low = float(shares[:at].sum())
    return low, min(low + float(shares[at]), 1.0)


def dense_matrix(apply: Apply, n: int, dtype: np.dtype, batch: int) -> np.ndarray:
    """Form the operator by batches of unit vectors."""
    matrix = np.empty((n, n))
    for first in range(0, n, batch):
        units = np.zeros((batch, n), dtype)
        width = min(batch, n - first)
        units[np.arange(width), first + np.arange(width)] = 1
        matrix[first : first + width] = apply(units)[:width]
    if not np.isfinite(matrix).all():
        msg = "the matrix of the curvature is not finite"
        raise NonFiniteError(msg)
    return (matrix + matrix.T) / 2
