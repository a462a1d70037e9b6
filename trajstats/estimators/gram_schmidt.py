"""Full reorthogonalisation of a Lanczos run in one reading of its vectors per step."""

from __future__ import annotations

import numba
import numpy as np

# Weights per block: with 80 vectors in float32 a block stays in the second-level cache until it is used again.
BLOCK = 4096
# Inlined, so that one piece of machine code holds a whole sum: functions that are called would be put together in one
# way by the process that compiles them and in another by those that load them, with other last bits.
INLINED = {"inline": "always"}
FAST = {"cache": True, "nogil": True, "fastmath": {"reassoc", "contract", "nsz"}}


@numba.njit(**FAST)
def products_and_norms(rows: np.ndarray, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Multiply each row with its image, and take the images' norms.

    Parameters
    ----------
    rows, images : ndarray, (k, n)
        Vectors.

    Returns
    -------
    products, norms : ndarray, (k,)
        Summed in float64.
    """
    k, n = rows.shape
    products, norms = np.zeros(k), np.zeros(k)
    for r in range(k):
        row, image = rows[r], images[r]
        product, square = 0.0, 0.0
        for i in range(n):
            value = np.float64(image[i])
            product += np.float64(row[i]) * value
            square += value * value
        products[r], norms[r] = product, np.sqrt(square)
    return products, norms


@numba.njit(**FAST)
def correct_and_measure(
    known: np.ndarray,
    latest: np.ndarray,
    image: np.ndarray,
    slip: np.ndarray,
    share: np.ndarray,
    along: float,
    found: np.ndarray,
) -> float:
    r"""Apply the correction measured at the step before and measure this step's, block by block of weights.

    With the rows :math:`q_i` of `known`, ``latest`` becomes :math:`q=\tilde q-\sum_is_iq_i`, ``image`` becomes
    :math:`w=\tilde w-\sum_ic_iq_i-a\,q`, and ``found`` the products of all :math:`q_i` and of :math:`q` with w.

    Parameters
    ----------
    known : ndarray, (j, n)
        Orthonormal rows.
    latest, image : ndarray, (n,)
        Changed in place.
    slip, share : ndarray, (j,)
        The coefficients s and c, in the precision of the rows.
    along : float
        The coefficient a.
    found : ndarray, (j + 1,)
        Filled, float64.

    Returns
    -------
    float
        The square of the norm of w.

    Notes
    -----
    Two plain matrix-vector products read all vectors from memory twice. Sums are taken within blocks in the precision
    of the rows and over blocks in float64.
    """
    j, n = known.shape
    found[:] = 0
    square = 0.0
    for start in range(0, n, BLOCK):
        stop = min(start + BLOCK, n)
        q, w = latest[start:stop], image[start:stop]
        _subtract(known, start, q, w, slip, share)
        for k in range(stop - start):
            w[k] -= along * q[k]
        _measure(known, start, w, found)
        own, norm = q.dtype.type(0), q.dtype.type(0)
        for k in range(stop - start):
            own += q[k] * w[k]
            norm += w[k] * w[k]
        found[j] += own
        square += norm
    return square


@numba.njit(**INLINED, **FAST)
def _subtract(known: np.ndarray, start: int, q: np.ndarray, w: np.ndarray, slip: np.ndarray, share: np.ndarray) -> None:
    # Four rows at a time: q and w are then loaded and stored a quarter as often. Coefficients are named, so that the
    # compiler knows that storing into q and w does not change them.
    j, n = len(known), len(q)
    stop = start + n
    i = 0
    while i + 4 <= j:
        a, b = known[i, start:stop], known[i + 1, start:stop]
        c, d = known[i + 2, start:stop], known[i + 3, start:stop]
        s0, s1, s2, s3 = slip[i], slip[i + 1], slip[i + 2], slip[i + 3]
        c0, c1, c2, c3 = share[i], share[i + 1], share[i + 2], share[i + 3]
        for k in range(n):
            q[k] -= s0 * a[k] + s1 * b[k] + s2 * c[k] + s3 * d[k]
            w[k] -= c0 * a[k] + c1 * b[k] + c2 * c[k] + c3 * d[k]
        i += 4
    while i < j:
        a = known[i, start:stop]
        s0, c0 = slip[i], share[i]
        for k in range(n):
            q[k] -= s0 * a[k]
            w[k] -= c0 * a[k]
        i += 1


@numba.njit(**INLINED, **FAST)
def _measure(known: np.ndarray, start: int, w: np.ndarray, found: np.ndarray) -> None:
    # From the last row to the first: the rows that were subtracted last are the nearest in cache.
    j, n = len(known), len(w)
    stop = start + n
    zero = w.dtype.type(0)
    i = j
    while i >= 4:
        i -= 4
        a, b = known[i, start:stop], known[i + 1, start:stop]
        c, d = known[i + 2, start:stop], known[i + 3, start:stop]
        t0, t1, t2, t3 = zero, zero, zero, zero
        for k in range(n):
            v = w[k]
            t0 += a[k] * v
            t1 += b[k] * v
            t2 += c[k] * v
            t3 += d[k] * v
        found[i] += t0
        found[i + 1] += t1
        found[i + 2] += t2
        found[i + 3] += t3
    while i > 0:
        i -= 1
        a = known[i, start:stop]
        t0 = zero
        for k in range(n):
            t0 += a[k] * w[k]
        found[i] += t0
