"""The rounding floor: how much of a displacement is the rounding of the numbers it was computed from."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numba
import numpy as np

from trajstats.errors import ArgumentError, unknown_name_message

# name -> (explicit mantissa bits, smallest normal exponent)
FORMATS = {"float16": (10, -14), "bfloat16": (7, -126), "float32": (23, -126), "float64": (52, -1022)}


def rounding_floor(values: np.ndarray, stops: np.ndarray, source_dtype: str, *, start: int = 0) -> np.ndarray:
    r"""Sum the variance of rounding over the weights of each layer.

    A number rounded to nearest carries an error of variance :math:`u^2/12`, with :math:`u` its unit in the last place.
    The floor of the mean squared displacement of a layer between two rows is the sum of the two rows' means,
    about :math:`\langle u^2\rangle/6`.
    """
    if source_dtype not in FORMATS:
        raise ArgumentError(unknown_name_message("source type", source_dtype, FORMATS))
    if values.dtype == np.float16:
        values = values.astype(np.float32)
    wide = values.dtype == np.float64
    bits = np.ascontiguousarray(values).view(np.uint64 if wide else np.uint32)
    ends = np.clip(np.asarray(stops, dtype=np.int64) - start, 0, bits.size)
    total = np.zeros(ends.size)
    if bits.size:
        _sum_by_layer(bits, 52 if wide else 23, _table(source_dtype, wide), ends, total)
    return total


@lru_cache
def _table(source_dtype: str, wide: bool) -> np.ndarray:
    # Variance of rounding by stored exponent. Not-a-number and infinity (the last entry) count as nothing.
    mantissa, lowest = FORMATS[source_dtype]
    n, bias = (2048, 1023) if wide else (256, 127)
    exponent = np.maximum(np.arange(n) - bias, lowest)
    with np.errstate(over="ignore"):
        table = np.ldexp(1.0, 2 * (exponent - mantissa)) / 12
    table[-1] = 0.0
    return table


@numba.njit(cache=True, nogil=True)
def _sum_by_layer(bits: Any, shift: int, table: Any, ends: Any, total: Any) -> None:
    mask = table.size - 1
    begin = 0
    for layer in range(ends.size):
        a = b = c = d = 0.0
        end = ends[layer]
        i = begin
        while i + 4 <= end:
            a += table[(bits[i] >> shift) & mask]
            b += table[(bits[i + 1] >> shift) & mask]
            c += table[(bits[i + 2] >> shift) & mask]
            d += table[(bits[i + 3] >> shift) & mask]
            i += 4
        while i < end:
            a += table[(bits[i] >> shift) & mask]
            i += 1
        total[layer] += a + b + c + d
        begin = max(begin, end)


def source_type(arrays: list[Any]) -> str:
    """Name the coarsest floating type among arrays, as it was before any conversion."""
    names = {str(getattr(array, "dtype", "float64")).rpartition(".")[2] for array in arrays}
    return next((name for name in ("bfloat16", "float16", "float32") if name in names), "float64")
