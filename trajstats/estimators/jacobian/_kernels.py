"""Jacobians as products of factors, on plain arrays: products, singular values over hundreds of decades, operators."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import scipy.linalg
from scipy.linalg import lapack
from scipy.sparse.linalg import LinearOperator

# One factor: slopes (b, width) and matrix (width, width before).
Factor = tuple[np.ndarray, np.ndarray]
# A direction that QR leaves with less than this share of its length keeps fewer than three digits: it is not resolved.
_CANCELLED = 1e3 * float(np.finfo(np.float64).eps)
# Beyond this range (in natural logarithms) a scaled row would underflow.
_RANGE = 640.0


def jacobian_product(factors: Sequence[Factor], rows: slice) -> np.ndarray:
    """Multiply factors in float64, for several inputs at once."""
    slopes, matrix = factors[0]
    product = np.asarray(slopes[rows], dtype=np.float64)[:, :, None] * np.asarray(matrix, dtype=np.float64)
    for slopes, matrix in factors[1:]:
        product = np.asarray(slopes[rows], dtype=np.float64)[:, :, None] * (np.asarray(matrix, np.float64) @ product)
    return product


def plain_log_singular_values(matrices: np.ndarray, eps: float) -> tuple[np.ndarray, np.ndarray]:
    """Take singular values of formed matrices, marking those that rounding has buried."""
    values = np.linalg.svd(matrices, compute_uv=False)
    floor = eps * max(matrices.shape[-2:]) * values[:, :1]
    resolved = values > floor
    with np.errstate(divide="ignore"):
        # an all-zero matrix has no scale of its own: the smallest normal number bounds it
        log_floor = np.log(np.maximum(floor, np.finfo(np.float64).tiny))
        return np.where(resolved, np.log(values), log_floor), resolved


def graded_log_singular_values(factors: Sequence[Factor], row: int) -> tuple[np.ndarray, np.ndarray]:
    r"""Take the singular values of a long product, each to its own relative precision.

    With orthogonal :math:`Q_{l-1}` in hand, :math:`D_lW_lQ_{l-1}=Q_lR_l`, and the triangular factors are accumulated as
    :math:`\mathrm{diag}(e^{g})\,T` with rows of T of length one. What is left is a graded matrix, whose singular values
    the one-sided Jacobi method (LAPACK's ``gejsv``) finds to high relative accuracy.
    """
    layers = [np.asarray(d[row], np.float64)[:, None] * np.asarray(w, np.float64) for d, w in factors]
    norms = [float(np.linalg.norm(a)) for a in layers]
    count = min(layers[0].shape[1], layers[-1].shape[0])
    if min(norms) == 0.0:
        return np.full(count, math.log(np.finfo(np.float64).tiny)), np.zeros(count, bool)
    q = _first_basis(layers, norms)
    grade = np.zeros(q.shape[1])
    rows = np.eye(q.shape[1])
    lost: list[float] = []
    for index, layer in enumerate(layers):
        image = layer @ q
        length = np.linalg.norm(image, axis=0)
        q, r = scipy.linalg.qr(image, mode="economic", check_finite=False)
        k = r.shape[0]
        pivot = np.abs(np.diag(r))
        good = pivot > _CANCELLED * length[:k]
        later = sum(math.log(norm) for norm in norms[index + 1 :])
        noise = math.log(_CANCELLED) + np.log(np.maximum(length[:k], np.finfo(np.float64).tiny))
        lost += (grade[:k] + noise + later)[~good].tolist()
        with np.errstate(over="ignore", under="ignore"):
            # rows divided by their pivot and grade stay of order one because grades fall
            ratio = np.exp(np.minimum(grade[None, :] - grade[:k][good][:, None], 700.0))
            mixed = (r[good] / pivot[good][:, None] * ratio) @ rows
        size = np.linalg.norm(mixed, axis=1)
        grade = grade[:k][good] + np.log(pivot[good]) + np.log(size)
        rows = mixed / size[:, None]
        q = q[:, good]
    return _sorted(rows, grade, lost, count)


def _first_basis(layers: list[np.ndarray], norms: list[float]) -> np.ndarray:
    # Right singular vectors of the rounded product: large directions first, so that grades fall from the start.
    product = layers[0] / norms[0]
    for layer, norm in zip(layers[1:], norms[1:], strict=True):
        product = (layer / norm) @ product
        product /= max(float(np.abs(product).max()), np.finfo(np.float64).tiny)
    return np.linalg.svd(product, full_matrices=True)[2].T


def _sorted(rows: np.ndarray, grade: np.ndarray, lost: list[float], count: int) -> tuple[np.ndarray, np.ndarray]:
    top = float(grade.max()) if grade.size else 0.0
    keep = grade > top - _RANGE
    lost = sorted([*lost, *grade[~keep]], reverse=True)
    found = np.empty(0)
    if keep.any():
        graded = np.exp(grade[keep] - top)[:, None] * rows[keep]
        # joba=2: pivoted rows as well, jobp=0: no perturbation of denormals
        values, _, _, scale, _, info = lapack.dgejsv(graded.T, joba=2, jobu=3, jobv=3, jobr=0, jobt=0, jobp=0)
        if info != 0:
            values, scale = np.linalg.svd(graded, compute_uv=False), [1.0, 1.0]
        found = np.sort(np.log(values[values > 0] * (scale[0] / scale[1])) + top)[::-1][:count]
    missing = count - found.size
    lost = (lost + [math.log(_CANCELLED) + top] * missing)[:missing]
    resolved = np.arange(count) < found.size
    return np.concatenate([found, lost]), resolved


def factor_operator(factors: Sequence[Factor], row: int) -> LinearOperator:
    """Apply a Jacobian and its transpose factor by factor, without forming it."""
    layers = [(np.asarray(d[row], np.float64)[:, None], np.asarray(w, np.float64)) for d, w in factors]

    def forward(x: np.ndarray) -> np.ndarray:
        for slopes, matrix in layers:
            x = slopes * (matrix @ x)
        return x

    def backward(y: np.ndarray) -> np.ndarray:
        for slopes, matrix in reversed(layers):
            y = matrix.T @ (slopes * y)
        return y

    shape = (factors[-1][1].shape[0], factors[0][1].shape[1])
    return LinearOperator(
        shape,
        matvec=lambda x: forward(x.reshape(-1, 1))[:, 0],
        rmatvec=lambda y: backward(y.reshape(-1, 1))[:, 0],
        matmat=forward,
        rmatmat=backward,
        dtype=np.float64,
    )
