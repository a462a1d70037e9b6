"""Digests of tensors: equal values have equal digests, so checkpoints can be compared without reading them twice."""

from __future__ import annotations

import sys
import zlib
from collections.abc import Sequence
from typing import Any

import google_crc32c
import numpy as np

from trajstats.errors import ArgumentError

BLOCK = 2**16  # elements that are normalised at a time; small enough to stay in the processor's cache
NO_DIGEST = 0  # no tensor has this digest: in a store it marks a missing one


class TensorDigest:
    """A digest that is fed a tensor range by range, in C order.

    The result does not depend on how the tensor is cut into ranges.
    """

    def __init__(self) -> None:
        self._crc32c, self._crc32 = 0, 0

    def update(self, values: Any) -> None:
        """Take in the next range of the tensor."""
        flat = np.asarray(values).reshape(-1)
        if flat.dtype.hasobject:
            msg = f"a tensor of type {flat.dtype} has no digest; give numbers"
            raise ArgumentError(msg)
        for start in range(0, flat.size, BLOCK):
            raw = _normalised(flat[start : start + BLOCK])
            self._crc32c = google_crc32c.extend(self._crc32c, raw)
            self._crc32 = zlib.crc32(raw.data, self._crc32)

    @property
    def state(self) -> int:
        """The two checksums so far, as one number; :meth:`resumed` continues from it."""
        return self._crc32c << 32 | self._crc32

    @classmethod
    def resumed(cls, state: int) -> TensorDigest:
        """Continue a digest from its saved state."""
        digest = cls()
        digest._crc32c, digest._crc32 = state >> 32, state & 0xFFFFFFFF
        return digest

    @property
    def value(self) -> int:
        """The digest of everything taken in so far, from 1 to 2**64 - 1."""
        return self.state if self.state != NO_DIGEST else 2**64 - 1


def tensor_digest(values: Any) -> int:
    """Compute the digest of a tensor: a number of 64 bits that equal tensors share.

    Values are compared as numbers: ``-0.0`` equals ``0.0``, and all NaN are equal. The shape is not part of it.
    Two tensors that differ by chance have the same digest with probability 2**-64; it does not protect against forgery.
    """
    digest = TensorDigest()
    digest.update(values)
    return digest.value


def _normalised(values: np.ndarray) -> np.ndarray:
    """Return the bytes of a block of numbers: little-endian, one zero, one NaN."""
    values = np.ascontiguousarray(values)
    if values.dtype.name == "bfloat16":
        values = (values.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    if values.dtype.kind == "c":
        values = values.view(values.real.dtype)
    if values.dtype.kind == "f" and values.dtype.itemsize in {2, 4, 8}:
        # On the bits, so that neither the rounding mode nor flushing of subnormals plays a part.
        info = np.finfo(values.dtype)
        native = values.astype(values.dtype.newbyteorder("="), copy=False)
        bits = native.view(f"u{native.dtype.itemsize}")
        kind = bits.dtype.type
        infinity = kind(np.array(np.inf, native.dtype).view(bits.dtype))
        sign = kind(2 ** (info.bits - 1))
        not_a_number = (bits & ~sign) > infinity
        odd = (bits == sign) | not_a_number
        if odd.any():
            bits = np.where(odd, np.where(not_a_number, infinity + kind(1), kind(0)), bits)
        values = bits
    if (values.dtype.byteorder == "=" and sys.byteorder == "big") or values.dtype.byteorder == ">":
        values = values.astype(values.dtype.newbyteorder("<"))
    return values.view(np.uint8)


class LayerFacts:
    """Rounding floors and digests of rows that come in blocks of columns, from left to right."""

    def __init__(self, n_rows: int, stops: np.ndarray, source_dtype: str, *, floors: bool, digests: bool) -> None:
        self._stops, self._source_dtype = stops, source_dtype
        self._sums = np.zeros((n_rows, stops.size)) if floors else None
        self._digests = [[TensorDigest() for _ in range(stops.size)] for _ in range(n_rows)] if digests else None

    def add(self, block: np.ndarray, start: int) -> None:
        """Take in the columns of all rows from `start` on."""
        if self._sums is not None:
            from trajstats.data._rounding import rounding_floor  # numba is imported only where a floor is needed

            for k, row in enumerate(block):
                self._sums[k] += rounding_floor(row, self._stops, self._source_dtype, start=start)
        if self._digests is None:
            return
        stop = start + block.shape[1]
        first, last = np.searchsorted(self._stops, [start, stop - 1], side="right").tolist()
        for layer in range(first, min(last + 1, self._stops.size)):
            begin = int(self._stops[layer - 1]) if layer else 0
            within = slice(max(start, begin) - start, min(stop, int(self._stops[layer])) - start)
            for k, row in enumerate(block):
                self._digests[k][layer].update(row[within])

    @property
    def floors(self) -> np.ndarray | None:
        """Mean over the weights of a layer, (row, layer)."""
        return None if self._sums is None else self._sums / np.maximum(np.diff(self._stops, prepend=0), 1)

    @property
    def digests(self) -> np.ndarray | None:
        """Digests (row, layer)."""
        if self._digests is None:
            return None
        values = [digest.value for row in self._digests for digest in row]
        return np.array(values, dtype=np.uint64).reshape(len(self._digests), self._stops.size)


def layer_digests(arrays: Sequence[np.ndarray], stops: np.ndarray) -> list[int]:
    """Compute the digest of each layer of one row, which comes as one array a layer, or as one flat array."""
    if len(arrays) != stops.size:
        arrays = np.split(arrays[0].reshape(-1), stops[:-1])
    return [tensor_digest(array) for array in arrays]
