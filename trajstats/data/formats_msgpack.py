"""flax msgpack checkpoints: walked for where the arrays lie; nothing but lengths is unpacked."""

# ruff: noqa: DOC201, DOC402, DOC501  # inside the package: one line says what a method gives and raises

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any

import numpy as np

from trajstats.data.formats import RAW, Checkpoint, Tensor, check_shape, file_tensor, flatten
from trajstats.errors import StoreError, UnsafeInputError


def read_msgpack(path: Path) -> Checkpoint:
    """Walk over a flax msgpack file and note where its arrays lie; nothing but lengths is unpacked."""
    with path.open("rb") as stream:
        walker = _MsgpackWalker(path, stream)
        tree = walker.value(0)
    if walker.position != walker.size:
        msg = f"{path}: {walker.size - walker.position} bytes follow the end of the tree"
        raise StoreError(msg)
    found = Checkpoint(str(path), {})
    for name, leaf in flatten(_unchunk(tree)).items():
        if isinstance(leaf, Tensor):
            found.tensors[name] = leaf
        else:
            found.passed_over[name] = "not a floating array"
    return found


def _unchunk(tree: Any) -> Any:
    # flax splits arrays above 1 GiB.
    if not isinstance(tree, dict):
        return tree
    if "__msgpack_chunked_array__" not in tree:
        return {key: _unchunk(value) for key, value in tree.items()}
    shape = tuple(int(n) for n in tree["shape"].values()) if isinstance(tree["shape"], dict) else tuple(tree["shape"])
    parts = list(tree["chunks"].values()) if isinstance(tree["chunks"], dict) else list(tree["chunks"])
    ends = np.cumsum([part.size for part in parts])
    if not parts or int(ends[-1]) != math.prod(shape):
        msg = "the pieces of a split array do not make up its shape"
        raise StoreError(msg)

    def read(start: int, stop: int) -> np.ndarray:
        pieces = []
        for part, end in zip(parts, ends.tolist(), strict=True):
            first = end - part.size
            if first < stop and end > start:
                pieces.append(part.read(max(start, first) - first, min(stop, end) - first))
        return np.concatenate(pieces)

    return Tensor(check_shape("split array", shape), parts[0].dtype, read)


class _MsgpackWalker:
    """Just enough msgpack to find arrays: maps, lists, text, numbers, and flax's array extension."""

    def __init__(self, path: Path, stream: Any) -> None:
        self.path, self.size, self.position = path, path.stat().st_size, 0
        self._stream = stream
        self._count = 0

    def _take(self, n: int) -> bytes:
        if n > 2**16 or self.position + n > self.size:
            msg = f"{self.path}: {n} bytes at {self.position} of {self.size}; truncated or no flax checkpoint"
            raise StoreError(msg)
        self._stream.seek(self.position)
        self.position += n
        return self._stream.read(n)

    def _uint(self, n: int) -> int:
        return int.from_bytes(self._take(n), "big")

    def value(self, depth: int) -> Any:
        """Read the next value."""
        self._count += 1
        if depth > 64 or self._count > 4_000_000:
            msg = f"{self.path}: nested too deep or too many values"
            raise UnsafeInputError(msg)
        code = self._take(1)[0]
        if code < 0x80 or code >= 0xE0:
            return code if code < 0x80 else code - 256
        if code <= 0x8F or code in (0xDE, 0xDF):
            n = code & 15 if code <= 0x8F else self._uint(2 if code == 0xDE else 4)
            return {str(self.value(depth + 1)): self.value(depth + 1) for _ in range(self._believe(n))}
        if code <= 0x9F or code in (0xDC, 0xDD):
            n = code & 15 if code <= 0x9F else self._uint(2 if code == 0xDC else 4)
            return [self.value(depth + 1) for _ in range(self._believe(n))]
        if code <= 0xBF or code in (0xD9, 0xDA, 0xDB):
            n = code & 31 if code <= 0xBF else self._uint(1 << (code - 0xD9))
            return self._take(n).decode("utf-8", "replace")
        if code in (0xC0, 0xC2, 0xC3):
            return {0xC0: None, 0xC2: False, 0xC3: True}[code]
        if code in (0xC4, 0xC5, 0xC6):
            return self._skip(self._uint(1 << (code - 0xC4)))
        if code in (0xCA, 0xCB):
            return struct.unpack(">f" if code == 0xCA else ">d", self._take(4 if code == 0xCA else 8))[0]
        if 0xCC <= code <= 0xD3:
            n = 1 << ((code - 0xCC) % 4)
            return int.from_bytes(self._take(n), "big", signed=code >= 0xD0)
        if code in (0xC7, 0xC8, 0xC9) or 0xD4 <= code <= 0xD8:
            n = 1 << (code - 0xD4) if code >= 0xD4 else self._uint(1 << (code - 0xC7))
            return self._extension(self._uint(1), n, depth)
        msg = f"{self.path}: byte {code:#x} is not msgpack"
        raise StoreError(msg)

    def _believe(self, n: int) -> int:
        if n > self.size - self.position:
            msg = f"{self.path}: claims {n} entries in {self.size - self.position} bytes"
            raise UnsafeInputError(msg)
        return n

    def _skip(self, n: int) -> tuple[int, int]:
        if self.position + n > self.size:
            msg = f"{self.path} is truncated: {n} bytes at {self.position} of {self.size}"
            raise StoreError(msg)
        start = self.position
        self.position += n
        return start, n

    def _extension(self, kind: int, n: int, depth: int) -> Any:
        start, n = self._skip(n)
        if kind not in (1, 3):  # 1 array, 3 scalar; both are (shape, type, bytes)
            return None
        end, self.position = self.position, start
        content = self.value(depth + 1)
        if self.position != end or not isinstance(content, list) or len(content) != 3:
            msg = f"{self.path}: an array at {start} does not fill its place"
            raise StoreError(msg)
        shape, dtype, where = content
        if dtype not in RAW:
            return None
        shape = check_shape(f"{self.path}: array at {start}", shape)
        if not isinstance(where, tuple) or math.prod(shape) * RAW[dtype].itemsize != where[1]:
            msg = f"{self.path}: array at {start} of shape {shape} does not fit its bytes"
            raise UnsafeInputError(msg)
        return file_tensor(self.path, where[0], shape, dtype)
