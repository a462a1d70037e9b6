"""Zip archives whose members are read as data: bounded, checked against their sums, also inside a larger file."""

from __future__ import annotations

import io
import struct
import threading
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from trajstats.data.formats._tensor import Tensor
from trajstats.data.safety._budget import Budget, foreign, shorten
from trajstats.errors import StoreError, UnsafeInputError


class Stream:
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
