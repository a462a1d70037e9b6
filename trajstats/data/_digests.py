"""Digests of tensors: equal values have equal digests, so checkpoints can be compared without reading them twice."""

from __future__ import annotations

import sys
import zlib
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
    Two tensors that differ by chance have the same digest with probability 2**-64; it is no protection against forgery.
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
