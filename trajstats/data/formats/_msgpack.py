"""flax msgpack checkpoints: walked for where the arrays lie; nothing but lengths is unpacked."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trajstats.data.formats._tensor import RAW, Checkpoint, Tensor, check_shape, file_tensor, leaves, outer_mappings
from trajstats.data.safety._budget import Budget, shorten
from trajstats.errors import StoreError, UnsafeInputError

MAX_DEPTH = 64


def read_msgpack(path: Path, budget: Budget) -> Checkpoint:
    """Walk over a flax msgpack file and note where its arrays lie; nothing but lengths is unpacked."""
    with path.open("rb") as stream:
        walker = _MsgpackWalker(path, stream, budget)
        tree = walker.value(0)
    if walker.position != walker.size:
        msg = f"{path}: {walker.size - walker.position} bytes follow the end of the tree"
        raise StoreError(msg)
    tree = _unchunk(tree, str(path))
    found = Checkpoint(str(path), {}, containers=outer_mappings(tree))
    for name, leaf in leaves(tree, str(path), budget):
        if name in found.tensors or name in found.passed_over:
            msg = f"{path}: two arrays are called {shorten(name)}"
            raise UnsafeInputError(msg)
        if isinstance(leaf, Tensor):
            found.tensors[name] = leaf
        else:
            found.passed_over[name] = "not a floating array"
    return found


def _unchunk(tree: Any, where: str) -> Any:
    # flax splits arrays above 1 GiB.
    if not isinstance(tree, dict):
        return tree
    if "__msgpack_chunked_array__" not in tree:
        return {key: _unchunk(value, where) for key, value in tree.items()}
    shape = check_shape(f"{where}: split array", _entries(tree.get("shape")))
    parts = _entries(tree.get("chunks"))
    if not parts or not all(isinstance(part, Tensor) for part in parts) or len({part.dtype for part in parts}) != 1:
        msg = f"{where}: the pieces of a split array are not arrays of one type"
        raise StoreError(msg)
    ends = [int(end) for end in np.cumsum([part.size for part in parts])]
    if ends[-1] != math.prod(shape):
        msg = f"{where}: the pieces of a split array do not make up its shape {shorten(shape)}"
        raise StoreError(msg)

    def read(start: int, stop: int) -> np.ndarray:
        pieces = [np.zeros(0, RAW[parts[0].dtype] if parts[0].dtype != "bfloat16" else np.float32)]
        for part, end in zip(parts, ends, strict=True):
            first = end - part.size
            if first < stop and end > start:
                pieces.append(part.read(max(start, first) - first, min(stop, end) - first))
        return np.concatenate(pieces)

    return Tensor(shape, parts[0].dtype, read)


def _entries(tree: Any) -> list[Any]:
    return list(tree.values()) if isinstance(tree, dict) else list(tree) if isinstance(tree, list) else []


@dataclass(frozen=True, slots=True)
class _Bytes:
    """Where a byte string lies in the file."""

    start: int
    length: int


class _MsgpackWalker:
    """Just enough msgpack to find arrays: maps, lists, text, numbers, and flax's array extension."""

    def __init__(self, path: Path, stream: Any, budget: Budget) -> None:
        self.path, self.size, self.position = path, path.stat().st_size, 0
        self._stream, self._budget = stream, budget

    def _take(self, n: int) -> bytes:
        if n > 2**16 or self.position + n > self.size:
            msg = f"{self.path}: {n} bytes at {self.position} of {self.size}; truncated or no flax checkpoint"
            raise StoreError(msg)
        self._stream.seek(self.position)
        self.position += n
        raw: bytes = self._stream.read(n)
        return raw

    def _uint(self, n: int) -> int:
        return int.from_bytes(self._take(n), "big")

    def value(self, depth: int) -> Any:
        """Read the next value."""
        self._budget.spend_objects(4, str(self.path))  # reading one takes longer than most other steps
        if depth > MAX_DEPTH:
            msg = f"{self.path}: nested more than {MAX_DEPTH} deep; it is not read"
            raise UnsafeInputError(msg)
        code = self._take(1)[0]
        if code < 0x80 or code >= 0xE0:
            return code if code < 0x80 else code - 256
        if code <= 0x8F or code in (0xDE, 0xDF):
            n = code & 15 if code <= 0x8F else self._uint(2 if code == 0xDE else 4)
            return self._mapping(self._believe(n), depth + 1)
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

    def _mapping(self, n: int, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for _ in range(n):
            key = self.value(depth)
            if not isinstance(key, str | int | float | bool | None):
                msg = f"{self.path}: a key at byte {self.position} is neither text nor a number; no flax checkpoint"
                raise StoreError(msg)
            if str(key) in found:
                msg = f"{self.path}: the key {shorten(key)} occurs twice in one mapping"
                raise UnsafeInputError(msg)
            found[str(key)] = self.value(depth)
        return found

    def _believe(self, n: int) -> int:
        if n > self.size - self.position:
            msg = f"{self.path}: claims {n} entries in {self.size - self.position} bytes"
            raise UnsafeInputError(msg)
        return n

    def _skip(self, n: int) -> _Bytes:
        if self.position + n > self.size:
            msg = f"{self.path} is truncated: {n} bytes at {self.position} of {self.size}"
            raise StoreError(msg)
        start = self.position
        self.position += n
        return _Bytes(start, n)

    def _extension(self, kind: int, n: int, depth: int) -> Any:
        start = self._skip(n).start
        if kind not in (1, 3):  # 1 array, 3 scalar; both are (shape, type, bytes)
            return None
        end, self.position = self.position, start
        content = self.value(depth + 1)
        if self.position != end or not isinstance(content, list) or len(content) != 3:
            msg = f"{self.path}: an array at {start} does not fill its place"
            raise StoreError(msg)
        shape, dtype, where = content
        if not isinstance(dtype, str) or dtype not in RAW:
            return None
        shape = check_shape(f"{self.path}: array at {start}", shape)
        if not isinstance(where, _Bytes) or math.prod(shape) * RAW[dtype].itemsize != where.length:
            msg = f"{self.path}: array at {start} of shape {shorten(shape)} does not fit its bytes"
            raise UnsafeInputError(msg)
        return file_tensor(self.path, where.start, shape, dtype)
