"""The tensors among the buffers of a run: their names, shapes and types, and their bytes, exactly."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trajstats.data._arrays import to_numpy
from trajstats.errors import ArgumentError, SchemaError, unknown_name_message

BUFFER_TYPES = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "bfloat16", "float32", "float64"),
)
LARGEST_INTEGER = 2**53  # beyond it float64, in which mixed buffers are shown, has gaps
MAX_TENSORS = 1_000_000


@dataclass(frozen=True)
class BufferTensor:
    """One tensor among the buffers of a run."""

    name: str  # Name of the tensor
    shape: tuple[int, ...]  # Its shape
    dtype: str  # Its own type, one of `BUFFER_TYPES`

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def stored(self) -> np.dtype[Any]:
        """Type of its bytes, little-endian; bfloat16 as the upper half of a float32."""
        return np.dtype("<u2") if self.dtype == "bfloat16" else np.dtype(self.dtype).newbyteorder("<")

    @property
    def native(self) -> np.dtype[Any]:
        """Type in which NumPy holds its values: its own, but float32 for bfloat16."""
        return np.dtype("float32" if self.dtype == "bfloat16" else self.dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of its elements as stored."""
        return self.size * self.stored.itemsize


def type_name(dtype: Any) -> str:
    """Name a type of NumPy, torch or JAX: ``"float32"``, ``"bfloat16"``, ``"int64"``."""
    if isinstance(dtype, str):
        return dtype.rpartition(".")[2]
    return str(getattr(dtype, "name", None) or getattr(dtype, "__name__", None) or dtype).rpartition(".")[2]


def check_buffers(buffers: Any, layers: Mapping[str, Any] | None = None) -> list[BufferTensor]:
    """Check the buffers a run is opened with: name -> array, or name -> (shape, dtype)."""
    if buffers is None:
        return []
    if not isinstance(buffers, Mapping):
        msg = (
            f"buffers={type(buffers).__name__}: give a mapping name -> array, or name -> (shape, dtype), such as "
            "dict(module.named_buffers())"
        )
        raise ArgumentError(msg)
    tensors = []
    for name, value in buffers.items():
        if not isinstance(name, str):
            msg = f"buffer {name!r:.80}: names of buffers are text"
            raise ArgumentError(msg)
        clean = name.encode("utf-8", "backslashreplace").decode()  # a lone surrogate cannot be written as UTF-8
        if layers is not None and name in layers:
            msg = f"{name!r:.120} is a layer and a buffer; give trained tensors as layers, and all others as buffers"
            raise ArgumentError(msg)
        tensors.append(_described(clean, value))
    return tensors


def _described(name: str, value: Any) -> BufferTensor:
    """Take the shape and type of one buffer from an array or a pair (shape, dtype)."""
    pair = isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], Sequence | int | np.integer)
    if pair:
        shape, kind = ((value[0],) if isinstance(value[0], int | np.integer) else value[0]), type_name(value[1])
    elif hasattr(value, "dtype") and hasattr(value, "shape"):
        shape, kind = value.shape, type_name(value.dtype)
    else:
        array = np.asarray(value)
        shape, kind = array.shape, array.dtype.name
    if kind not in BUFFER_TYPES:
        do = "Convert it to a type that is kept exactly, or leave it out of buffers."
        raise ArgumentError(f"buffer {name!r:.120}: " + unknown_name_message("type", kind, BUFFER_TYPES, do=do))
    sizes = tuple(int(n) for n in shape)
    if any(n < 0 for n in sizes):
        msg = f"buffer {name!r:.120} of shape {sizes}: sizes are >= 0"
        raise ArgumentError(msg)
    return BufferTensor(name, sizes, kind)


def pack_buffer(tensor: BufferTensor, value: Any) -> np.ndarray:
    """Give the bytes of one buffer; a value of another type is taken where it converts exactly."""
    array = to_numpy(value)
    if array.dtype.name == "bfloat16":
        array = array.astype(np.float32)
    if array.shape != tensor.shape:
        msg = f"buffer {tensor.name!r:.120} has shape {array.shape}; the run was opened with {tensor.shape}"
        raise ArgumentError(msg)
    check_integers(tensor.name, array)
    native = array if array.dtype == tensor.native else _exactly(array, tensor, tensor.native)
    if tensor.dtype == "bfloat16":
        native = _bfloat16_bits(native, tensor)
    return np.ascontiguousarray(native, dtype=tensor.stored).reshape(-1).view(np.uint8)


def check_integers(name: str, array: np.ndarray) -> None:
    """Refuse integers that float64, in which mixed buffers are shown, cannot hold."""
    if array.dtype.kind in "iu" and array.dtype.itemsize == 8 and array.size:
        large = max(abs(int(array.min())), abs(int(array.max())))
        if large > LARGEST_INTEGER:
            msg = f"buffer {name!r:.120} holds {large}; integers up to 2**53 are kept exactly: leave it out of buffers"
            raise ArgumentError(msg)


def _exactly(array: np.ndarray, tensor: BufferTensor, kind: np.dtype[Any]) -> np.ndarray:
    """Convert an array to another type, or refuse it where a value would change."""
    with np.errstate(invalid="ignore", over="ignore"):
        made = array.astype(kind)
        back = made.astype(array.dtype)
    same = (back == array) | ((array != array) & (back != back))  # NaN stays NaN
    if not same.all():
        first = array.reshape(-1)[int(np.argmin(same))]
        msg = (
            f"buffer {tensor.name!r:.120} holds {first.item()!r}, which {tensor.dtype} cannot hold exactly; open "
            f"the run with the type of the array, {array.dtype}"
        )
        raise ArgumentError(msg)
    return made


def _bfloat16_bits(values: np.ndarray, tensor: BufferTensor) -> np.ndarray:
    """Give the upper halves of numbers of float32 that are numbers of bfloat16."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    if ((bits & 0xFFFF != 0) & ~np.isnan(values)).any():
        msg = f"buffer {tensor.name!r:.120} holds numbers that bfloat16 cannot hold exactly; open the run with float32"
        raise ArgumentError(msg)
    return np.where(np.isnan(values), (bits >> 16) | 0x40, bits >> 16).astype(np.uint16)


def pack_buffers(tensors: Sequence[BufferTensor], buffers: Any) -> list[np.ndarray]:
    """Give the bytes of all buffers of one row, in the order of `tensors`; missing and extra ones are refused."""
    given = buffers or {}
    if not isinstance(given, Mapping):
        msg = f"buffers={type(given).__name__}: give a mapping name -> array, such as dict(module.named_buffers())"
        raise ArgumentError(msg)
    names = [tensor.name for tensor in tensors]
    if missing := [name for name in names if name not in given]:
        msg = f"{len(missing)} of {len(names)} buffers are not given: {_listed(missing)}; append with buffers="
        raise ArgumentError(msg)
    if extra := [str(name) for name in given if name not in names]:
        has = f"has {_listed(names)}" if names else "was opened without buffers"
        msg = f"{len(extra)} buffers are not among those of the run, which {has}: {_listed(extra)}"
        raise ArgumentError(msg)
    return [pack_buffer(tensor, given[tensor.name]) for tensor in tensors]


def _listed(names: Sequence[str]) -> str:
    """Shorten a list of names for a message."""
    return ", ".join(f"{name!r:.80}" for name in names[:4]) + (", ..." if len(names) > 4 else "")


def unpack_buffer(tensor: BufferTensor, raw: Any) -> np.ndarray:
    """Give the values of bytes of one buffer, flat; bfloat16 as the equal float32."""
    values = np.frombuffer(raw, dtype=tensor.stored)
    if tensor.dtype == "bfloat16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(tensor.native, copy=False)


def common_type(tensors: Sequence[BufferTensor]) -> np.dtype[Any]:
    """Choose the smallest type that holds the values of all buffers exactly."""
    return np.result_type(*(tensor.native for tensor in tensors)) if tensors else np.dtype("float32")


def tensors_to_json(tensors: Sequence[BufferTensor]) -> str:
    """Write names, shapes and types as the attribute ``tensors``."""
    return json.dumps([{"name": t.name, "shape": list(t.shape), "dtype": t.dtype} for t in tensors])


def tensors_from_json(text: Any, where: str = "buffers") -> list[BufferTensor]:
    """Read the attribute ``tensors``; one that is missing or damaged is an error."""
    try:
        entries = json.loads(text) if isinstance(text, str) else text
        if not isinstance(entries, list) or len(entries) > MAX_TENSORS:
            raise TypeError
        tensors = [BufferTensor(entry["name"], tuple(entry["shape"]), entry["dtype"]) for entry in entries]
        good = all(
            isinstance(t.name, str)
            and t.dtype in BUFFER_TYPES
            and all(type(n) is int and 0 <= n < 2**48 for n in t.shape)
            for t in tensors
        )
        if not good or len({t.name for t in tensors}) < len(tensors):
            raise ValueError
    except (TypeError, ValueError, KeyError, RecursionError) as error:
        msg = (
            f"{where}: the attribute 'tensors' must list the name, shape and dtype of each buffer, as JSON; it is "
            f"{text!r:.80}. Drop the buffers with .drop_vars('buffers') to go on without them."
        )
        raise SchemaError(msg) from error
    return tensors
