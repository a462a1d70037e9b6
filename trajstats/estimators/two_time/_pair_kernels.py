r"""Pair kernels: sums over parameters for many pairs of rows at once, on plain arrays.

The work is done in register tiles: R x C pairs of rows share R + C loads of 16 parameters. The tile is written as LLVM
vector code, not left to the auto-vectoriser, for two reasons. A float reduction is only vectorised under licence to
reorder it, and then its rounding error depends on what the compiler chose; here the order is fixed, so that results are
the same to the bit in every run and the error has a proved bound. And it runs at the speed of the vector units.

Bound: each of 16 lanes adds at most `RUN` = 12 float32 terms, pairs of lanes are added, and everything after that is
float64. A float32 difference is correctly rounded and every term is positive, so with :math:`u=2^{-24}` the relative
error of :math:`\sum\delta^2` is at most :math:`(2+1+11+1)u=15u`, and of :math:`\sum\delta^4` at most
:math:`(4+2+1+11+1)u=19u`, whatever the path of the weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np

from trajstats.estimators.two_time._register_tiles import LANES, MODES, RUN, TERMS, magnitude, ones, tile_sums

STRIP = 768
# Tile shapes that keep all sums in the 32 vector registers of AVX-512: for all pairs, and for a list of pairs.
DENSE = {"square": (4, 4), "moments": (3, 3), "overlap": (2, 4), "product": (4, 4)}
SPARSE = {"square": (1, 8), "moments": (1, 8), "overlap": (1, 8), "product": (1, 8)}
PANEL = 256
UNIT_ROUNDOFF = 2.0**-24
BOUNDS = {
    "square": (RUN + 3) * UNIT_ROUNDOFF,
    "fourth": (RUN + 7) * UNIT_ROUNDOFF,
    "product": (RUN + 4) * UNIT_ROUNDOFF,
    "double": 1e-12,
}


@dataclass(frozen=True)
class PairPlan:
    """Pairs of rows, and how they are covered by register tiles."""

    first: np.ndarray  # Rows of each pair
    second: np.ndarray  # Rows of each pair
    row_index: np.ndarray  # First rows of each tile
    col_index: np.ndarray  # Second rows of each tile
    target: np.ndarray  # The pair that each cell of a tile is, -1 for cells that are not asked for


def plan_pairs(first: np.ndarray, second: np.ndarray, mode: str) -> PairPlan:
    """Cover pairs of rows with register tiles: squares where pairs are dense, else runs of equal first row."""
    first, second = np.asarray(first, dtype=np.int64), np.asarray(second, dtype=np.int64)
    last = int(max(first.max(), second.max()))
    rows, cols = DENSE[mode]
    order = np.lexsort((second // cols, first // rows, second // PANEL, first // PANEL))
    key = (first // rows)[order] * (last + 1) + (second // cols)[order]
    tile = np.cumsum(np.concatenate([[True], key[1:] != key[:-1]])) - 1
    if (tile[-1] + 1) * rows * cols <= 2 * first.size:
        i, j = first[order] % rows, second[order] % cols
        row0, col0 = first[order] - i, second[order] - j
    else:
        # Same first row: its second rows in order, eight at a time.
        rows, cols = SPARSE[mode]
        order = np.lexsort((second, first))
        start = np.concatenate([[True], np.diff(first[order]) != 0])
        run = np.maximum.accumulate(np.where(start, np.arange(first.size), 0))
        place = np.arange(first.size) - run
        i, j = np.zeros(first.size, dtype=np.int64), place % cols
        tile = np.cumsum(j == 0) - 1
        row0, col0 = first[order], None
    n = int(tile[-1]) + 1
    target = np.full((n, rows, cols), -1, dtype=np.int64)
    target[tile, i, j] = order
    row_index = np.empty((n, rows), dtype=np.int64)
    row_index[tile] = np.minimum(row0[:, None] + np.arange(rows), last)
    col_index = np.zeros((n, cols), dtype=np.int64)
    if col0 is None:
        col_index[tile, j] = second[order]
    else:
        col_index[tile] = np.minimum(col0[:, None] + np.arange(cols), last)
    return PairPlan(first, second, row_index, col_index, target)


def pair_sums(
    block: np.ndarray,
    start: int,
    stop: int,
    plan: PairPlan,
    mode: str,
    sums: np.ndarray,
    limits: np.ndarray | None = None,
) -> np.ndarray:
    """Add to `sums` what columns start:stop of a block contribute to each pair."""
    bad = np.zeros(block.shape[0], dtype=np.int64)
    single = block.dtype == np.float32
    bits = block.view(np.uint32 if single else np.uint64)
    limits = np.zeros(block.shape[0]) if limits is None else limits
    shape = plan.target.shape[1:]
    _pair_sums(
        (0,) * (MODES.index(mode) + 1),
        (0,) * shape[0],
        (0,) * shape[1],
        block,
        bits,
        start,
        stop,
        np.array([23, 127, 126] if single else [52, 1023, 250]),
        plan.row_index,
        plan.col_index,
        plan.target,
        limits,
        sums,
        bad,
    )
    return bad


def reference_sums(
    block: np.ndarray,
    start: int,
    stop: int,
    plan: PairPlan,
    mode: str,
    sums: np.ndarray,
    limits: np.ndarray | None = None,
) -> np.ndarray:
    """Do what `pair_sums` does by plain float64 NumPy, one first row at a time."""
    x = block[:, start:stop].astype(np.float64)
    for row in np.unique(plan.first):
        mine = np.flatnonzero(plan.first == row)
        if mode == "product":
            sums[0, mine] += (x[plan.second[mine]] * x[row]).sum(axis=1)
            continue
        square = (x[plan.second[mine]] - x[row]) ** 2
        sums[0, mine] += square.sum(axis=1)
        if TERMS[mode] > 1:
            sums[1, mine] += (square**2).sum(axis=1)
        if mode == "overlap" and limits is not None:
            sums[2, mine] += (square <= limits[row]).sum(axis=1)
    return np.asarray((~np.isfinite(x)).any(axis=1), dtype=np.int64)


def sign_flips(block: np.ndarray, start: int, stop: int, plan: PairPlan, sums: np.ndarray) -> None:
    """Add to `sums` the number of columns start:stop that are negative in exactly one row of each pair."""
    packed = np.packbits(block[:, start:stop] < 0, axis=1)
    words = np.zeros((block.shape[0], (packed.shape[1] + 7) // 8 * 8), dtype=np.uint8)
    words[:, : packed.shape[1]] = packed
    _count_flips(words.view(np.uint64), plan.first, plan.second, sums)


@numba.njit(nogil=True, cache=True)
def _count_flips(words, first, second, sums):  # type: ignore[no-untyped-def]
    for p in range(first.size):
        i, j, count = first[p], second[p], np.uint64(0)
        for k in range(words.shape[1]):
            count += ones(words[i, k] ^ words[j, k])
        sums[p] += count


@numba.njit(nogil=True, cache=True)
def cos_sin(block, start, stop, origin, wavenumber, out):  # type: ignore[no-untyped-def]
    """Write cos and sin of `wavenumber` times the displacement from row `origin`, side by side."""
    n = stop - start
    for t in range(block.shape[0]):
        for k in range(n):
            phase = wavenumber * (np.float64(block[t, start + k]) - np.float64(block[origin, start + k]))
            # Adding and taking away 1.5 * 2**52 rounds to the nearest whole number, and vectorises.
            turns = (phase * (1 / np.pi) + 6755399441055744.0) - 6755399441055744.0
            odd = turns - 2 * ((turns * 0.5 + 6755399441055744.0) - 6755399441055744.0)
            sign = 1 - 2 * odd * odd
            r = phase - turns * np.pi
            z = r * r
            s = 1 - z * (1 / 156) * (1 - z * (1 / 210))
            s = r * (
                1 - z * (1 / 6) * (1 - z * (1 / 20) * (1 - z * (1 / 42) * (1 - z * (1 / 72) * (1 - z * (1 / 110) * s))))
            )
            c = 1 - z * (1 / 132) * (1 - z * (1 / 182) * (1 - z * (1 / 240)))
            c = 1 - z * (1 / 2) * (1 - z * (1 / 12) * (1 - z * (1 / 30) * (1 - z * (1 / 56) * (1 - z * (1 / 90) * c))))
            out[t, k] = sign * c
            out[t, n + k] = sign * s


@numba.njit(nogil=True, cache=True)
def _pair_sums(  # type: ignore[no-untyped-def]
    mode, rows, cols, block, bits, start, stop, layout, row_index, col_index, target, limits, sums, bad
):
    n_rows, n_terms = block.shape[0], sums.shape[0]
    raw = np.empty(n_rows * STRIP + 64, dtype=block.dtype)
    offset = (64 - raw.ctypes.data % 64) % 64 // raw.itemsize
    strip = raw[offset : offset + n_rows * STRIP].reshape(n_rows, STRIP)
    out = np.empty(len(rows) * len(cols) * n_terms)
    row_base, col_base = row_index.ctypes.data, col_index.ctypes.data
    threshold = np.zeros(n_rows, dtype=block.dtype)
    row_limit = np.zeros(len(rows), dtype=block.dtype)
    for s in range(start, stop, STRIP):
        width = min(STRIP, stop - s)
        shift, n_vectors = _load_strip(block, bits, s, width, layout, strip, bad)
        n_padding = n_vectors * LANES - width
        unscale = 2.0 ** (-2 * shift)
        for t in range(n_rows):
            threshold[t] = limits[t] / unscale
        for tile in range(target.shape[0]):
            for r in range(len(rows)):
                row_limit[r] = threshold[row_index[tile, r]]
            tile_sums(
                mode,
                rows,
                cols,
                strip[0, 0],
                strip.ctypes.data,
                STRIP * strip.itemsize,
                row_base + tile * len(rows) * 8,
                col_base + tile * len(cols) * 8,
                row_limit.ctypes.data,
                n_vectors,
                out.ctypes.data,
            )
            for r in range(len(rows)):
                for c in range(len(cols)):
                    p = target[tile, r, c]
                    if p >= 0:
                        cell = (r * len(cols) + c) * n_terms
                        sums[0, p] += out[cell] * unscale
                        if n_terms > 1:
                            sums[1, p] += out[cell + 1] * unscale * unscale
                        if n_terms > 2:
                            # Padding columns are equal, so each was counted.
                            sums[2, p] += out[cell + 2] - n_padding


@numba.njit(nogil=True, cache=True)
def _load_strip(block, bits, start, width, layout, strip, bad):  # type: ignore[no-untyped-def]
    # Copies a strip contiguous, scaled by a power of two (exact) so that fourth powers neither overflow nor underflow.
    # Integer maxima of the bit patterns find the largest finite weight and NaN or infinity in one vectorised pass.
    fraction, bias, limit = layout
    largest = 0
    for t in range(block.shape[0]):
        word = bits[t, start : start + width]  # a loop over a slice is vectorised, one over an offset is not
        m = word[0] ^ word[0]
        for k in range(width):
            m = max(m, word[k] & magnitude(word[k]))
        exponent = np.int64(m) >> fraction
        if exponent > 2 * bias:
            bad[t] += 1
        elif exponent > largest:
            largest = exponent
    shift = min(max(25 - (largest - bias), -limit), limit) if largest > 0 else 0
    scale = strip.dtype.type(2.0**shift)
    padded = (width + LANES - 1) // LANES * LANES
    for t in range(block.shape[0]):
        source, target = block[t, start : start + width], strip[t]
        for k in range(width):
            target[k] = source[k] * scale
        target[width:padded] = 0
    return shift, padded // LANES
