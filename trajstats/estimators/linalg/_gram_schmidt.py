"""Full reorthogonalisation of a Lanczos run in one reading of its vectors per step."""

from __future__ import annotations

import numba
import numpy as np

# Weights per block: its parts of three vectors stay in cache while those of all others pass by once.
BLOCK = 16384
# Of this many, the parts of all vectors that several runs stay orthogonal to stay in cache from one run to the next.
SHARED_BLOCK = 1024
# Each kernel is one piece of machine code: functions that are called would be put together in one way by the process
# that compiles them and in another by those that load them, with other last bits.
FAST = {"cache": True, "nogil": True, "fastmath": {"reassoc", "contract", "nsz"}}


@numba.njit(inline="always")
def _four(known: np.ndarray, i: int, start: int, stop: int) -> tuple[np.ndarray, ...]:
    # Parts of four rows; the last row stands for those that are missing. Put into a kernel before that is compiled.
    last = len(known) - 1
    return (
        known[min(i, last), start:stop],
        known[min(i + 1, last), start:stop],
        known[min(i + 2, last), start:stop],
        known[min(i + 3, last), start:stop],
    )


@numba.njit(**FAST)
def products_and_norms(bases: np.ndarray, j: int, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Multiply the latest vector of each run with its image, and take the images' norms."""
    k, n = images.shape
    products, norms = np.zeros(k), np.zeros(k)
    for r in range(k):
        row, image = bases[r, j], images[r]
        product, square = 0.0, 0.0
        for i in range(n):
            value = np.float64(image[i])
            product += np.float64(row[i]) * value
            square += value * value
        products[r], norms[r] = product, np.sqrt(square)
    return products, norms


@numba.njit(**FAST)
def three_terms(
    bases: np.ndarray, j: int, images: np.ndarray, along: np.ndarray, before: np.ndarray, out: np.ndarray
) -> None:
    """Take out of each image what it has along the two latest vectors of its run."""
    k, n = images.shape
    for r in range(k):
        q, p, image, w = bases[r, j], bases[r, max(j - 1, 0)], images[r], out[r]
        a, b = along[r], before[r] if j else along.dtype.type(0)
        for i in range(n):
            w[i] = image[i] - a * q[i] - b * p[i]


@numba.njit(**FAST)
def correct_and_measure(
    known: np.ndarray,
    latest: np.ndarray,
    image: np.ndarray,
    slip: np.ndarray,
    share: np.ndarray,
    along: float,
    found: np.ndarray,
) -> tuple[float, float]:
    r"""Apply the correction measured at the step before and measure this step's, block by block of weights.

    With the rows :math:`q_i` of `known`, ``latest`` becomes :math:`q=\tilde q-\sum_is_iq_i`, ``image`` becomes
    :math:`w=\tilde w-\sum_ic_iq_i-a\,q`, and ``found`` the products of all :math:`q_i` and of :math:`q` with w.

    Three plain matrix-vector products read all vectors from memory three times. Here each part of a vector passes once:
    its product is taken with :math:`\tilde w` while it is subtracted, and :math:`q_iw=q_i\tilde w-c_i`, as the rows
    are orthonormal. So `found` is as good as the norm of :math:`\tilde w` allows, not that of w. Sums are taken within
    blocks in the precision of the rows and over blocks in float64.
    """
    j, n = known.shape
    zero = image.dtype.type(0)
    # Eight rows at a time, so that the parts of the three vectors are loaded an eighth as often. The last row stands
    # for those that are missing, at coefficients of zero.
    full = -(-j // 8) * 8
    s, c, sums = np.zeros(full, image.dtype), np.zeros(full, image.dtype), np.zeros(full)
    s[:j], c[:j] = slip, share
    given = np.empty(min(BLOCK, n), image.dtype)
    own, before, after = 0.0, 0.0, 0.0
    for start in range(0, n, BLOCK):
        stop = min(start + BLOCK, n)
        q, w = latest[start:stop], image[start:stop]
        product, norm = zero, zero
        for k in range(stop - start):
            given[k] = w[k]
            norm += w[k] * w[k]
        before += norm
        for i in range(0, full, 8):
            r0, r1, r2, r3 = _four(known, i, start, stop)
            r4, r5, r6, r7 = _four(known, i + 4, start, stop)
            # Coefficients are named, so that the compiler knows that storing into q and w does not change them.
            s0, s1, s2, s3, s4, s5, s6, s7 = s[i], s[i + 1], s[i + 2], s[i + 3], s[i + 4], s[i + 5], s[i + 6], s[i + 7]
            c0, c1, c2, c3, c4, c5, c6, c7 = c[i], c[i + 1], c[i + 2], c[i + 3], c[i + 4], c[i + 5], c[i + 6], c[i + 7]
            t0, t1, t2, t3, t4, t5, t6, t7 = zero, zero, zero, zero, zero, zero, zero, zero
            for k in range(stop - start):
                v = given[k]
                x0, x1, x2, x3, x4, x5, x6, x7 = r0[k], r1[k], r2[k], r3[k], r4[k], r5[k], r6[k], r7[k]
                t0 += x0 * v
                t1 += x1 * v
                t2 += x2 * v
                t3 += x3 * v
                t4 += x4 * v
                t5 += x5 * v
                t6 += x6 * v
                t7 += x7 * v
                q[k] -= s0 * x0 + s1 * x1 + s2 * x2 + s3 * x3 + s4 * x4 + s5 * x5 + s6 * x6 + s7 * x7
                w[k] -= c0 * x0 + c1 * x1 + c2 * x2 + c3 * x3 + c4 * x4 + c5 * x5 + c6 * x6 + c7 * x7
            sums[i] += t0
            sums[i + 1] += t1
            sums[i + 2] += t2
            sums[i + 3] += t3
            sums[i + 4] += t4
            sums[i + 5] += t5
            sums[i + 6] += t6
            sums[i + 7] += t7
        norm = zero
        for k in range(stop - start):
            w[k] -= along * q[k]
            product += q[k] * w[k]
            norm += w[k] * w[k]
        own += product
        after += norm
    for i in range(j):
        found[i] = sums[i] - share[i]
    found[j] = own
    return before, after


@numba.njit(**FAST)
def take_out(known: np.ndarray, images: np.ndarray) -> None:
    r"""Project several vectors on the complement of the same rows: each :math:`w` becomes :math:`w-\sum_i(q_iw)q_i`."""
    (a, n), k = known.shape, len(images)
    zero = images.dtype.type(0)
    # Four rows and two vectors at a time: a row is loaded for two. The last row, and the last vector, stand for those
    # that are missing.
    found = np.zeros((k + 1, a + 3))
    for start in range(0, n, SHARED_BLOCK):
        stop = min(start + SHARED_BLOCK, n)
        for r in range(0, k, 2):
            u, w = images[r, start:stop], images[min(r + 1, k - 1), start:stop]
            for i in range(0, a, 4):
                r0, r1, r2, r3 = _four(known, i, start, stop)
                s0, s1, s2, s3, t0, t1, t2, t3 = zero, zero, zero, zero, zero, zero, zero, zero
                for x in range(stop - start):
                    v, z = u[x], w[x]
                    s0 += r0[x] * v
                    s1 += r1[x] * v
                    s2 += r2[x] * v
                    s3 += r3[x] * v
                    t0 += r0[x] * z
                    t1 += r1[x] * z
                    t2 += r2[x] * z
                    t3 += r3[x] * z
                found[r, i] += s0
                found[r, i + 1] += s1
                found[r, i + 2] += s2
                found[r, i + 3] += s3
                found[r + 1, i] += t0
                found[r + 1, i + 1] += t1
                found[r + 1, i + 2] += t2
                found[r + 1, i + 3] += t3
    found[:, a:] = 0
    c = found.astype(images.dtype)
    unused = np.empty(min(SHARED_BLOCK, n), images.dtype)
    for start in range(0, n, SHARED_BLOCK):
        stop = min(start + SHARED_BLOCK, n)
        for r in range(0, k, 2):
            u, w = images[r, start:stop], images[r + 1, start:stop] if r + 1 < k else unused[: stop - start]
            for i in range(0, a, 4):
                r0, r1, r2, r3 = _four(known, i, start, stop)
                c0, c1, c2, c3 = c[r, i], c[r, i + 1], c[r, i + 2], c[r, i + 3]
                d0, d1, d2, d3 = c[r + 1, i], c[r + 1, i + 1], c[r + 1, i + 2], c[r + 1, i + 3]
                for x in range(stop - start):
                    x0, x1, x2, x3 = r0[x], r1[x], r2[x], r3[x]
                    u[x] -= c0 * x0 + c1 * x1 + c2 * x2 + c3 * x3
                    w[x] -= d0 * x0 + d1 * x1 + d2 * x2 + d3 * x3
