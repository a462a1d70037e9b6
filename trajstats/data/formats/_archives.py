"""Formats whose tensors lie in one piece: safetensors, npy and npz, flax msgpack."""

from __future__ import annotations

import math
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from trajstats.data.formats._byte_cache import SHARED
from trajstats.data.formats._tensor import RAW, Checkpoint, Tensor, check_shape, file_tensor
from trajstats.data.formats._zip_files import Stream, Verified, open_zip
from trajstats.data.safety._budget import BYTES, Budget, foreign, json_object, shorten
from trajstats.errors import UnsafeInputError, UnsupportedError

SAFETENSORS_TYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64", "BOOL": "bool"}
SAFETENSORS_TYPES |= {
    f"{kind}{n}": f"{name}{n}" for kind, name in (("I", "int"), ("U", "uint")) for n in (8, 16, 32, 64)
}
SAFETENSORS_BITS = {
    **{"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U64": 64, "U32": 32},
    **{"U16": 16, "U8": 8, "BOOL": 8, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6},
    **{f"F8_{kind}": 8 for kind in ("E4M3", "E5M2", "E8M0", "E4M3FNUZ", "E5M2FNUZ")},
}
MAX_HEADER = 100 * 2**20
MAX_JSON = 64 * 2**20


def read_safetensors(path: Path, budget: Budget) -> Checkpoint:
    """Read the header of a safetensors file, and check that its tensors fit the file without overlap."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        head = stream.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else size + 1
        if length > MAX_HEADER or length + 8 > size:
            msg = f"{path}: a header of {length} bytes in a file of {size}; it is damaged or made to exhaust memory"
            raise UnsafeInputError(msg)
        header = json_object(stream.read(length), str(path), budget)
    found = Checkpoint(str(path), {})
    ranges = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        where = f"{path}: tensor {shorten(name)}"
        budget.spend_objects(4, where)
        if not isinstance(entry, dict):
            msg = f"{where} is described by {shorten(entry)}, not by a JSON object; this is not safetensors"
            raise UnsafeInputError(msg)
        shape = check_shape(where, entry.get("shape"))
        kind, offsets = entry.get("dtype"), entry.get("data_offsets")
        if not isinstance(kind, str) or not kind.isidentifier() or len(kind) > 20:
            msg = f"{where}: type {shorten(kind, 20)} is not the name of a type"
            raise UnsafeInputError(msg)
        if not isinstance(offsets, list) or len(offsets) != 2:
            msg = f"{where}: offsets {shorten(offsets)} are not two numbers"
            raise UnsafeInputError(msg)
        start, stop = check_shape(where, offsets)
        bits = math.prod(shape) * SAFETENSORS_BITS.get(kind, 0)
        misfit = kind in SAFETENSORS_BITS and 8 * (stop - start) != bits + -bits % 8
        if misfit or start > stop or 8 + length + stop > size:
            msg = (
                f"{where}: shape {shorten(shape)} of {kind} does not fit bytes {start} to {stop} of {size - 8 - length}"
            )
            raise UnsafeInputError(msg)
        ranges.append((start, stop, name))
        if kind in SAFETENSORS_TYPES:
            found.tensors[name] = file_tensor(path, 8 + length + start, shape, SAFETENSORS_TYPES[kind])
        else:
            found.passed_over[name] = _why_not_read(kind)
    ranges.sort()
    for (_, stop, name), (start, _, other) in zip(ranges, ranges[1:], strict=False):
        if start < stop:
            msg = f"{path}: tensors {shorten(name)} and {shorten(other)} overlap"
            raise UnsafeInputError(msg)
    return found


def _why_not_read(kind: str) -> str:
    """Say why a type of safetensors is no weight here."""
    if kind in {"F4", "F6_E2M3", "F6_E3M2"} or kind.startswith("F8_"):
        return f"type {kind}: so few bits have a scale beside them, which is not applied; save the weights as bfloat16"
    return f"type {kind}" if kind in SAFETENSORS_BITS else f"type {kind}, which is not known here"


def _npy_header(stream: Any, where: str) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    with foreign(where):
        version = np.lib.format.read_magic(stream)
        reader = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
        shape, fortran, dtype = reader(stream, max_header_size=10_000) if reader else ((), False, None)
        offset = stream.tell()
    if dtype is None:
        msg = f"{where}: npy version {version} is not read"
        raise UnsafeInputError(msg)
    return check_shape(where, shape), fortran, dtype, offset


def _numpy_type(dtype: np.dtype[Any]) -> str | None:
    little = dtype.newbyteorder("<")
    return next((name for name, raw in RAW.items() if raw == little and name != "bfloat16"), None)


def read_npy(path: Path, budget: Budget) -> Checkpoint:
    """Read the header of one array; a name is made up from the file."""
    budget.spend_objects(1, str(path))
    with path.open("rb") as stream:
        shape, fortran, dtype, offset = _npy_header(stream, str(path))
    if dtype.hasobject:
        msg = f"{path} holds Python objects, that is a pickle, which can run code; it is not read"
        raise UnsafeInputError(msg)
    size = path.stat().st_size - offset
    if math.prod(shape) * dtype.itemsize > size:
        msg = (
            f"{path}: shape {shorten(shape)} of {dtype!s:.40} takes {math.prod(shape) * dtype.itemsize} bytes; {size} "
            "are there"
        )
        raise UnsafeInputError(msg)
    kind = _numpy_type(dtype)
    if kind is None:
        return Checkpoint(str(path), {}, {"array": f"type {dtype!s:.40}"})
    if fortran or dtype.byteorder == ">":
        return Checkpoint(str(path), {"array": _mapped_tensor(path, offset, shape, kind, fortran, dtype)})
    return Checkpoint(str(path), {"array": file_tensor(path, offset, shape, kind)})


def _mapped_tensor(
    path: Path, offset: int, shape: tuple[int, ...], kind: str, fortran: bool, dtype: np.dtype[Any]
) -> Tensor:
    """Read an array of other order or byte order that lies in one piece in a file."""

    def read(start: int, stop: int) -> np.ndarray:
        if stop <= start:
            return np.zeros(0, RAW[kind])
        with foreign(str(path)):
            values = np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=shape, order="F" if fortran else "C")
        if not shape:  # one number, which has no index
            return np.asarray(values).reshape(1).astype(RAW[kind])
        index = np.unravel_index(np.arange(start, stop), shape)
        return np.asarray(values[index]).astype(RAW[kind])

    return Tensor(shape, kind, read)


def read_npz(path: Path, budget: Budget) -> Checkpoint:
    """Read the headers of the members of an npz archive."""
    found = Checkpoint(str(path), {})
    with open_zip(path, budget) as archive:
        for info in archive.infolist():
            name = info.filename.removesuffix(".npy")
            where = f"{path}: {shorten(info.filename)}"
            budget.spend_objects(100, where)  # NumPy parses a header as Python
            with foreign(where):
                stream = archive.open(info)
            with stream:
                shape, fortran, dtype, offset = _npy_header(stream, where)
            if dtype.hasobject:
                found.passed_over[name] = "Python objects: a pickle, which can run code and is not read"
                continue
            if math.prod(shape) * dtype.itemsize != info.file_size - offset:
                msg = (
                    f"{where}: shape {shorten(shape)} of {dtype!s:.40} does not fit its {info.file_size - offset} bytes"
                )
                raise UnsafeInputError(msg)
            kind = _numpy_type(dtype)
            if kind is None:
                found.passed_over[name] = f"type {dtype!s:.40}"
            elif name in found.tensors:
                msg = f"{path}: two arrays are called {shorten(name)}"
                raise UnsafeInputError(msg)
            else:
                found.tensors[name] = _member_tensor(path, info, offset, shape, kind, fortran, dtype)
    if found.passed_over and not found.tensors and any("pickle" in why for why in found.passed_over.values()):
        msg = f"{path} holds Python objects, that is a pickle, which can run code; it is not read"
        raise UnsafeInputError(msg)
    return found


def _member_tensor(
    path: Path,
    info: zipfile.ZipInfo,
    offset: int,
    shape: tuple[int, ...],
    kind: str,
    fortran: bool,
    dtype: np.dtype[Any],
) -> Tensor:
    plain = dtype.byteorder != ">" and (not fortran or len(shape) < 2)
    if info.compress_type == zipfile.ZIP_STORED:
        verified = Verified(path, info)
        begin = verified.begin + offset
        if plain:
            return verified.tensor(file_tensor(path, begin, shape, kind))
        return verified.tensor(_mapped_tensor(path, begin, shape, kind, fortran, dtype))
    if fortran and len(shape) > 1 and info.file_size > BYTES:
        msg = (
            f"{path}: {shorten(info.filename)} is compressed and in Fortran order, and takes {info.file_size} bytes; "
            "save it with numpy.savez, or in C order"
        )
        raise UnsupportedError(msg)
    stream = Stream(path, info)

    def read(start: int, stop: int) -> np.ndarray:
        if fortran and len(shape) > 1:
            raw = SHARED.get(stream, lambda: stream.read(offset, info.file_size))
            whole = np.frombuffer(raw, dtype=dtype).reshape(shape, order="F")
            return np.asarray(whole[np.unravel_index(np.arange(start, stop), shape)]).astype(RAW[kind])
        raw = stream.read(offset + start * dtype.itemsize, offset + stop * dtype.itemsize)
        return np.frombuffer(raw, dtype=dtype).astype(RAW[kind], copy=False)

    return Tensor(shape, kind, read)
