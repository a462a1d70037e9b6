"""Formats whose tensors lie in one piece: safetensors, npy and npz, flax msgpack."""

from __future__ import annotations

import io
import math
import struct
import threading
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from trajstats.data.formats._byte_cache import SHARED
from trajstats.data.formats._tensor import RAW, Checkpoint, Tensor, check_shape, file_tensor
from trajstats.data.safety._budget import BYTES, Budget, foreign, json_object, shorten
from trajstats.errors import StoreError, UnsafeInputError, UnsupportedError

SAFETENSORS_TYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64", "BOOL": "bool"}
SAFETENSORS_TYPES |= {
    f"{kind}{n}": f"{name}{n}" for kind, name in (("I", "int"), ("U", "uint")) for n in (8, 16, 32, 64)
}
SAFETENSORS_BYTES = {
    **{"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2},
    **{"U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "C64": 8},
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
        if not isinstance(kind, str) or kind not in SAFETENSORS_BYTES:
            msg = f"{where}: type {shorten(kind, 20)} is not a type of safetensors"
            raise UnsafeInputError(msg)
        if not isinstance(offsets, list) or len(offsets) != 2:
            msg = f"{where}: offsets {shorten(offsets)} are not two numbers"
            raise UnsafeInputError(msg)
        start, stop = check_shape(where, offsets)
        if stop - start != math.prod(shape) * SAFETENSORS_BYTES[kind] or 8 + length + stop > size:
            msg = (
                f"{where}: shape {shorten(shape)} of {kind} does not fit bytes {start} to {stop} of {size - 8 - length}"
            )
            raise UnsafeInputError(msg)
        ranges.append((start, stop, name))
        if kind in SAFETENSORS_TYPES:
            found.tensors[name] = file_tensor(path, 8 + length + start, shape, SAFETENSORS_TYPES[kind])
        else:
            found.passed_over[name] = f"type {kind}"
    ranges.sort()
    for (_, stop, name), (start, _, other) in zip(ranges, ranges[1:], strict=False):
        if start < stop:
            msg = f"{path}: tensors {shorten(name)} and {shorten(other)} overlap"
            raise UnsafeInputError(msg)
    return found


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
    stream = _Stream(path, info)

    def read(start: int, stop: int) -> np.ndarray:
        if fortran and len(shape) > 1:
            raw = SHARED.get(stream, lambda: stream.read(offset, info.file_size))
            whole = np.frombuffer(raw, dtype=dtype).reshape(shape, order="F")
            return np.asarray(whole[np.unravel_index(np.arange(start, stop), shape)]).astype(RAW[kind])
        raw = stream.read(offset + start * dtype.itemsize, offset + stop * dtype.itemsize)
        return np.frombuffer(raw, dtype=dtype).astype(RAW[kind], copy=False)

    return Tensor(shape, kind, read)


class _Stream:
    """A compressed member, unpacked from front to back as ranges are read."""

    def __init__(self, path: Path, info: zipfile.ZipInfo) -> None:
        self._path, self._info = path, info
        self._stream: Any = None
        self._lock = threading.Lock()

    def read(self, start: int, stop: int) -> bytes:
        """Read bytes of the unpacked member."""
        where = f"{self._path}: {shorten(self._info.filename)}"
        with self._lock, foreign(where):
            if self._stream is None or self._stream.tell() > start:
                self.close()
                self._archive = zipfile.ZipFile(self._path)
                self._stream = self._archive.open(self._info)
            while self._stream.tell() < start:
                if not self._stream.read(min(2**20, start - self._stream.tell())):
                    break
            raw: bytes = self._stream.read(stop - start)
            if stop >= self._info.file_size:
                self.close()
        if len(raw) != stop - start:
            msg = f"{where} ends early; it is truncated"
            raise StoreError(msg)
        return raw

    def close(self) -> None:
        """Let go of the file."""
        if self._stream is not None:
            self._stream.close()
            self._archive.close()
            self._stream = None


class Span(io.RawIOBase):
    """A range of bytes of a file, as a file of its own."""

    def __init__(self, path: Path, start: int, length: int) -> None:
        super().__init__()
        self._file = path.open("rb", buffering=0)
        self._start, self._length, self._at = start, length, 0

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move to a place in the range."""
        self._at = max(0, offset + (0, self._at, self._length)[whence])
        return self._at

    def tell(self) -> int:
        """Return the place in the range."""
        return self._at

    def seekable(self) -> bool:
        """Allow reading from any place."""
        return True

    def readable(self) -> bool:
        """Allow reading."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read bytes, none beyond the range."""
        view = memoryview(buffer)[: max(0, self._length - self._at)]
        self._file.seek(self._start + self._at)
        done: int = self._file.readinto(view) or 0
        self._at += done
        return done

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()


def open_zip(path: Path, budget: Budget, span: tuple[int, int] | None = None) -> zipfile.ZipFile:
    """Open a zip archive, or one in a range of a file, whose members are plain: no way out, no overlap, no bomb."""
    size = path.stat().st_size if span is None else span[1]
    with path.open("rb") if span is None else Span(path, *span) as stream, foreign(str(path)):
        # The directory is read whole; an entry takes 46 bytes there and several hundred in memory.
        end = zipfile._EndRecData(stream) if hasattr(zipfile, "_EndRecData") else None
    if end is not None:
        _check_begin(path, end)
        budget.spend_objects(6 * (end[zipfile._ECD_SIZE] // 46), f"{path}: its directory")  # type: ignore[attr-defined]
    with foreign(str(path)):
        archive = zipfile.ZipFile(path if span is None else io.BufferedReader(Span(path, *span)))
    infos = archive.infolist()
    try:
        for info in infos:
            _check_member(path, info, budget)
        if end is not None and end[zipfile._ECD_ENTRIES_TOTAL] != len(infos):  # type: ignore[attr-defined]
            n = end[zipfile._ECD_ENTRIES_TOTAL]  # type: ignore[attr-defined]
            msg = f"{path}: its directory lists {len(infos)} members where there should be {n}; it is damaged"
            raise StoreError(msg)
        if sum(info.compress_size for info in infos) > size or len({i.filename for i in infos}) != len(infos):
            msg = f"{path}: members overlap or share a name; this looks like a bomb and is not read"
            raise UnsafeInputError(msg)
    except BaseException:
        archive.close()
        raise
    return archive


def _check_begin(path: Path, end: Any) -> None:
    """Check that an archive begins with the file, by the place and size of its directory."""
    begin = end[zipfile._ECD_LOCATION] - end[zipfile._ECD_SIZE] - end[zipfile._ECD_OFFSET]  # type: ignore[attr-defined]
    if end[zipfile._ECD_SIGNATURE] == zipfile.stringEndArchive64:  # type: ignore[attr-defined]
        begin -= zipfile.sizeEndCentDir64 + zipfile.sizeEndCentDir64Locator  # type: ignore[attr-defined]
    if begin != 0:
        msg = f"{path}: the directory of the archive is not where its last record says; the file is damaged"
        raise StoreError(msg)


def _check_member(path: Path, info: zipfile.ZipInfo, budget: Budget) -> None:
    name = info.filename
    where = f"{path}: member {shorten(name)}"
    if ".." in name.replace("\\", "/").split("/") or name.startswith(("/", "\\")) or "\0" in name or ":" in name[:3]:
        msg = f"{where} points out of its folder"
        raise UnsafeInputError(msg)
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or info.flag_bits & 1:
        msg = f"{where} is encrypted or packed in an unusual way"
        raise UnsafeInputError(msg)
    if info.compress_type == zipfile.ZIP_STORED and info.file_size != info.compress_size:
        msg = f"{where} is not compressed, yet has {info.compress_size} bytes for {info.file_size}; it is damaged"
        raise StoreError(msg)
    budget.spend_unpacked(info.file_size, info.compress_size, where)


def read_member(archive: zipfile.ZipFile, path: Path, name: str, most: int) -> bytes:
    """Unpack a member of at most `most` bytes."""
    info = archive.getinfo(name)
    if info.file_size > most:
        msg = f"{path}: {shorten(name)} takes {info.file_size} bytes; at most {most} are read"
        raise UnsafeInputError(msg)
    with foreign(f"{path}: {shorten(name)}"):
        return archive.read(info)


class Verified:
    """The checksum of an uncompressed member, compared with its bytes before the first of them is used."""

    def __init__(self, path: Path, info: zipfile.ZipInfo, span: tuple[int, int] | None = None) -> None:
        self.begin = member_offset(path, info, span)
        self._path, self._info = path, info
        self._lock, self._fine = threading.Lock(), False

    def check(self) -> None:
        """Read the member once from front to back."""
        with self._lock:
            if self._fine:
                return
            left, found = self._info.file_size, 0
            with self._path.open("rb", buffering=0) as stream:
                stream.seek(self.begin)
                while left > 0 and (part := stream.read(min(left, 2**20))):
                    found, left = zlib.crc32(part, found), left - len(part)
            if left or found != self._info.CRC:
                msg = (
                    f"{self._path}: {shorten(self._info.filename)} does not agree with its checksum; the file is "
                    "damaged, or was written without checksums"
                )
                raise StoreError(msg)
            self._fine = True

    def tensor(self, tensor: Tensor) -> Tensor:
        """Let a tensor of this member be read after the check."""

        def read(start: int, stop: int) -> np.ndarray:
            self.check()
            return tensor.read(start, stop)

        return replace(tensor, read=read)


def member_offset(path: Path, info: zipfile.ZipInfo, span: tuple[int, int] | None = None) -> int:
    """Find where the data of an uncompressed member begin."""
    base, length = span or (0, path.stat().st_size)
    with path.open("rb") as stream:
        stream.seek(base + info.header_offset)
        header = stream.read(30)
    if header[:4] != b"PK\x03\x04" or len(header) != 30:
        msg = f"{path}: member {shorten(info.filename)} is damaged"
        raise StoreError(msg)
    name, extra = struct.unpack("<HH", header[26:30])
    start = info.header_offset + 30 + name + extra
    if start + info.file_size > length:
        msg = f"{path}: member {shorten(info.filename)} ends beyond the file; it is truncated"
        raise StoreError(msg)
    return base + start
