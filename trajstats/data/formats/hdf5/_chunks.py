"""Chunks of HDF5, decoded here: a chunk must give exactly the bytes that its dataset declares, no more and no less."""

from __future__ import annotations

import zlib

import numpy as np

from trajstats.data.safety._budget import foreign
from trajstats.errors import StoreError, UnsafeInputError

DEFLATE, SHUFFLE, FLETCHER32, LZF = 1, 2, 3, 32000
FILTERS = {DEFLATE: "gzip", SHUFFLE: "shuffle", FLETCHER32: "fletcher32", LZF: "lzf"}
COMPRESSORS = {DEFLATE, LZF}
_CHECKSUM_BYTES = 4


def decode_chunk(raw: bytes, filters: list[int], left_out: int, n_bytes: int, itemsize: int, where: str) -> bytes:
    """Undo the filters of a chunk."""
    most = n_bytes + _CHECKSUM_BYTES * filters.count(FLETCHER32)
    for k in reversed(range(len(filters))):
        if left_out >> k & 1:
            continue
        if filters[k] == DEFLATE:
            raw = _inflate(raw, most, where)
        elif filters[k] == LZF:
            raw = lzf_decompress(raw, most, where)
        elif filters[k] == SHUFFLE:
            raw = _unshuffle(raw, itemsize)
        else:
            raw = _verified(raw, where)
    if len(raw) != n_bytes:
        msg = f"{where}: a chunk holds {len(raw)} bytes where its shape needs {n_bytes}; it is damaged"
        raise StoreError(msg)
    return raw


def _too_much(where: str, most: int) -> UnsafeInputError:
    return UnsafeInputError(f"{where}: a chunk unpacks to more than the {most} bytes that its shape needs")


def _inflate(raw: bytes, most: int, where: str) -> bytes:
    stream = zlib.decompressobj()
    with foreign(f"{where}: a chunk"):
        out = stream.decompress(raw, most + 1)
    if len(out) > most:
        raise _too_much(where, most)
    if not stream.eof:
        msg = f"{where}: a compressed chunk is cut short"
        raise StoreError(msg)
    return out


def _unshuffle(raw: bytes, itemsize: int) -> bytes:
    # All first bytes, then all second bytes; what does not fill an item stays at the end.
    n = len(raw) // itemsize
    planes = np.frombuffer(raw, np.uint8, n * itemsize).reshape(itemsize, n)
    return planes.T.tobytes() + raw[n * itemsize :]


def fletcher32(raw: bytes) -> int:
    """Compute the checksum of HDF5: two sums of big-endian words of 16 bits, with end-around carry."""
    even = raw + b"\0" if len(raw) % 2 else raw
    words = np.frombuffer(even, ">u2").astype(np.uint64)
    block = 2**16
    first = second = 0
    for at in range(0, len(words), block):
        part = words[at : at + block]
        total = int(part.sum())
        ramp = np.arange(len(part), 0, -1, dtype=np.uint64)
        second = (second + len(part) * first + int((part * ramp).sum())) % 65535
        first = (first + total) % 65535
    return second << 16 | first


def _verified(raw: bytes, where: str) -> bytes:
    if len(raw) < _CHECKSUM_BYTES:
        msg = f"{where}: a chunk of {len(raw)} bytes has no room for its checksum; it is damaged or made to do harm"
        raise UnsafeInputError(msg)
    data, stored = raw[:-_CHECKSUM_BYTES], int.from_bytes(raw[-_CHECKSUM_BYTES:], "little")
    found = fletcher32(data)
    # Sums that carry at the end show zero as 0 or as 65535; HDF5 1.6 wrote the bytes of each sum in the other order.
    halves = (found >> 16, found & 0xFFFF)
    turned = tuple((half & 0xFF) << 8 | half >> 8 for half in (stored >> 16, stored & 0xFFFF))
    if not any(
        all(a % 65535 == b % 65535 for a, b in zip(halves, other, strict=True))
        for other in ((stored >> 16, stored & 0xFFFF), turned)
    ):
        msg = f"{where}: the checksum of a chunk does not agree with its bytes; the file is damaged"
        raise StoreError(msg)
    return data


def lzf_decompress(raw: bytes, most: int, where: str) -> bytes:
    """Unpack LZF: runs of literal bytes, and copies of earlier output."""
    out, at, end = bytearray(), 0, len(raw)
    while at < end:
        control = raw[at]
        at += 1
        if control < 32:
            out += raw[at : at + control + 1]
            at += control + 1
        else:
            length = control >> 5
            if length == 7 and at < end:
                length += raw[at]
                at += 1
            distance = (control & 31) << 8 | (raw[at] if at < end else 0)
            at += 1
            begin, length = len(out) - distance - 1, length + 2
            if begin < 0:
                at = end + 1
                break
            while length > 0:  # a copy may overlap with what it writes
                part = out[begin : begin + length]
                out += part
                length -= len(part)
        if len(out) > most:
            raise _too_much(where, most)
    if at > end:
        msg = f"{where}: a chunk compressed with lzf is damaged"
        raise StoreError(msg)
    return bytes(out)
