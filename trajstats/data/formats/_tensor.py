"""Checkpoints of other people: what a file holds, from its header alone, and any range of any of its tensors."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from trajstats.data.formats.torch_files._names import ClassName, Opaque
from trajstats.data.safety._budget import Budget, shorten
from trajstats.data.safety._links import cache_of
from trajstats.errors import StoreError, UnsafeInputError

# name -> type in which the bytes are read; bfloat16 has no NumPy type and is widened to float32, exactly
RAW: dict[str, np.dtype[Any]] = {
    "bfloat16": np.dtype("<u2"),
    "float16": np.dtype("<f2"),
    "float32": np.dtype("<f4"),
    "float64": np.dtype("<f8"),
    **{name: np.dtype(name).newbyteorder("<") for name in ("int8", "int16", "int32", "int64")},
    **{name: np.dtype(name).newbyteorder("<") for name in ("uint8", "uint16", "uint32", "uint64", "bool")},
}
FLOATING = frozenset(["bfloat16", "float16", "float32", "float64"])
MAX_TENSORS = 1_000_000
MAX_NAME = 1000


@dataclass(frozen=True)
class Tensor:
    """One array of a checkpoint."""

    shape: tuple[int, ...]  # Its shape
    dtype: str  # The type in the file, one of `RAW`; those in `FLOATING` may be weights
    # Gives a range of the array flattened in C order; bfloat16 as the equal float32
    read: Callable[[int, int], np.ndarray]
    storage: Any = None  # Equal for two names of one tensor

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass
class Checkpoint:
    """The tensors of one checkpoint, unread."""

    path: str  # Where it is
    tensors: dict[str, Tensor]  # Parameters by name, in the order of the file. Readers put all tensors here
    # What else is in there: optimizer state, second names of a tensor, types that are not numbers
    passed_over: dict[str, str] = field(default_factory=dict)
    buffers: dict[str, Tensor] = field(default_factory=dict)  # State that is not trained
    # Outermost mappings in the file: a name that begins with one and a dot lies in it
    containers: frozenset[str] = frozenset()
    twins: dict[str, str] = field(default_factory=dict)  # Second names of tensors -> the names they are kept under


def input_size(path: Path) -> int:
    """Add up the bytes of a file, or of what a folder holds; links count for nothing, but in a hub cache."""
    if not path.is_dir():
        return path.stat().st_size
    total, todo = 0, [str(path)]
    cached = cache_of(path) is not None
    while todo:
        with os.scandir(todo.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    todo.append(entry.path)
                elif entry.is_file(follow_symlinks=cached):
                    total += entry.stat(follow_symlinks=cached).st_size
    return total


def decode(raw: bytes, dtype: str) -> np.ndarray:
    """Turn little-endian bytes into numbers."""
    values = np.frombuffer(raw, dtype=RAW[dtype])
    if dtype == "bfloat16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values


def file_tensor(path: Path, offset: int, shape: tuple[int, ...], dtype: str) -> Tensor:
    """Describe a tensor that lies in one piece in a file."""
    item = RAW[dtype].itemsize

    def read(start: int, stop: int) -> np.ndarray:
        with path.open("rb", buffering=0) as stream:
            stream.seek(offset + start * item)
            raw = stream.read((stop - start) * item)
            while len(raw) < (stop - start) * item:
                more = stream.read((stop - start) * item - len(raw))
                if not more:
                    msg = f"{path} ends before tensor element {stop}; it is truncated"
                    raise StoreError(msg)
                raw += more
        return decode(raw, dtype)

    return Tensor(shape, dtype, read)


def check_shape(where: str, shape: Any) -> tuple[int, ...]:
    """Check a shape that a file claims."""
    sizes = tuple(shape) if isinstance(shape, list | tuple) and len(shape) <= 64 else (None,)
    if any(isinstance(n, bool) or not isinstance(n, int) or not 0 <= n < 2**60 for n in sizes):
        msg = f"{where}: {shorten(shape)} is not a shape"
        raise UnsafeInputError(msg)
    # An empty tensor may have any other sizes; their product must still be a number that arrays can count to.
    if math.prod(max(n, 1) for n in sizes if n is not None) >= 2**60:
        msg = f"{where}: {shorten(shape)} is larger than any array"
        raise UnsafeInputError(msg)
    return sizes


def leaves(tree: Any, where: str, budget: Budget) -> Iterator[tuple[str, Any]]:
    """Walk over nested mappings and lists, in their order."""
    todo: list[tuple[str, Iterator[tuple[Any, Any]]]] = [("", iter([("", tree)]))]
    while todo:
        prefix, items = todo[-1]
        for key, value in items:
            budget.spend_objects(1, where)
            text = _key_text(key, where)
            name = f"{prefix}.{text}" if prefix else text
            if isinstance(value, Mapping | list | tuple):
                if len(todo) > 64 or len(name) > MAX_NAME:
                    msg = f"{where}: {shorten(name)} is nested more than 64 deep, or its name is too long"
                    raise UnsafeInputError(msg)
                todo.append((name, iter(value.items() if isinstance(value, Mapping) else enumerate(value))))
                break
            yield name, value
        else:
            todo.pop()


def _key_text(key: Any, where: str) -> str:
    if isinstance(key, str) and len(key) <= MAX_NAME:
        return key
    if isinstance(key, int | float | bool | bytes | tuple | Opaque | ClassName | None):
        text = str(key) if isinstance(key, Opaque | ClassName) else shorten(key, MAX_NAME)
        if not text.endswith("..."):
            return text
    msg = f"{where}: a key {shorten(key)} is not a name"
    raise UnsafeInputError(msg)


def outer_mappings(tree: Any) -> frozenset[str]:
    """List the dotted names of the mappings in the two outermost levels of a tree."""
    found: set[str] = set()
    if isinstance(tree, Mapping):
        for key, value in list(tree.items())[:1000]:
            if isinstance(value, Mapping | list | tuple):
                found.add(str(key)[:MAX_NAME])
            if isinstance(value, Mapping):
                inner = list(value.items())[:1000]
                found |= {f"{key}.{k}"[:MAX_NAME] for k, v in inner if isinstance(v, Mapping) and isinstance(k, str)}
    return frozenset(found)
