"""The journal: rows in the order they were appended, each with its own checksum, until they are in tiles."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import google_crc32c
import numpy as np

from trajstats.data.store._layout import JOURNAL
from trajstats.data.store.files._folder import Folder
from trajstats.data.store.files._place import Place
from trajstats.data.store.journal._objects import ObjectJournal
from trajstats.data.store.journal._records import (
    COUNT,
    HEADER_BYTES,
    MAGIC,
    Damage,
    Journal,
    Record,
    body_bytes,
    byte_views,
    decode_header,
    decode_metadata,
    encode_header,
)
from trajstats.errors import StoreError

__all__ = ["Damage", "FileJournal", "Journal", "ObjectJournal", "Record", "open_journal"]

_COUNT_FIELDS = struct.Struct("<QI")
_IS_ROWS = re.compile(r"[0-9]{1,18}\.rows")


def open_journal(place: Place, row_bytes: int, rows_per_file: int, buffer_bytes: Sequence[int] = ()) -> Journal:
    """Choose the journal a place allows: files on a local disk, else one object per row."""
    if place.local is not None:
        return FileJournal(place.folder, row_bytes, rows_per_file, buffer_bytes)
    return ObjectJournal(place, row_bytes, buffer_bytes)


class FileJournal:
    """Rows in files ``journal/<first row>.rows``, appended and fsynced one at a time."""

    def __init__(self, folder: Folder, row_bytes: int, rows_per_file: int, buffer_bytes: Sequence[int] = ()) -> None:
        self._folder = folder
        self._row_bytes = row_bytes
        self._rows_per_file = rows_per_file
        self._buffer_bytes = tuple(buffer_bytes)
        self._most_bytes = row_bytes + sum(buffer_bytes)
        self._handle: int | None = None
        self._name = ""
        self._end = 0
        self._rows = 0
        self._count: int | None = None

    def files(self) -> list[str]:
        """List the names of the files in the order of their rows."""
        return sorted(filter(_IS_ROWS.fullmatch, self._folder.names(JOURNAL)), key=_first_row)

    def _end_row(self, file: str) -> int:
        return (_first_row(file) // self._rows_per_file + 1) * self._rows_per_file

    def scan(self, first_row: int) -> tuple[list[Record], Damage | None]:
        """List the rows from `first_row` on whose checksums hold, up to the first that does not."""
        expected = self._counted()
        records, damage = self._scan(first_row)
        lost = expected - first_row - len(records)
        if lost > 0 and (damage is None or damage.torn):  # a file that was cut ends like a write that was cut off
            damage = Damage(COUNT, 0, first_row + len(records), 0, torn=False, lost=lost)
        elif lost > 0 and damage is not None:
            damage = replace(damage, lost=lost)
        return records, damage

    def _counted(self) -> int:
        """Read how many rows were safe on the disk; 0 if that is not known."""
        raw = self._folder.read(f"{JOURNAL}/{COUNT}") or b""
        if len(raw) != _COUNT_FIELDS.size:
            return 0
        rows, crc = _COUNT_FIELDS.unpack(raw)
        return int(rows) if google_crc32c.value(raw[:8]) == crc else 0

    def _scan(self, first_row: int) -> tuple[list[Record], Damage | None]:
        records: list[Record] = []
        files = [file for file in self.files() if self._end_row(file) > first_row]
        for number, file in enumerate(files):
            try:
                found, damage = self._scan_file(file)
            except FileNotFoundError:  # compacted and dropped by the writer in the meantime
                continue
            for record in found:
                if record.row == first_row + len(records):
                    records.append(record)
                elif record.row > first_row + len(records):
                    return records, Damage(file, 0, first_row + len(records), len(found), torn=False)
            if damage is not None:
                later = sum(len(self._scan_file(f)[0]) for f in files[number + 1 :])
                row = first_row + len(records) if damage.row is None else damage.row
                torn = damage.torn and not later
                return records, Damage(damage.where, damage.offset, row, damage.after + later, torn)
        return records, None

    def _scan_file(self, file: str) -> tuple[list[Record], Damage | None]:
        records: list[Record] = []
        offset = 0
        with self._stream(file) as stream:
            size = os.fstat(stream.fileno()).st_size
            while offset < size:
                record, length, row = self._read_record(stream, file, offset, size)
                if record is None:
                    after = self._whole_after(stream, file, offset, length, size)
                    short = size < offset + (length or HEADER_BYTES + self._row_bytes)
                    return records, Damage(file, offset, row, after, torn=short and not after)
                records.append(record)
                offset += length
        return records, None

    def _read_record(self, stream: Any, file: str, offset: int, size: int) -> tuple[Record | None, int, int | None]:
        stream.seek(offset)
        header = stream.read(HEADER_BYTES)
        fields = decode_header(header)
        if fields is None:
            return None, 0, None
        row, step, n_text, n_body, crc = fields
        length = HEADER_BYTES + n_text + n_body
        if not self._row_bytes <= n_body <= self._most_bytes or offset + length > size:
            return None, length, row
        text = stream.read(n_text)
        got = google_crc32c.value(text)
        left = n_body
        while left:
            piece = stream.read(min(left, 2**22))
            if not piece:
                return None, length, row
            got = google_crc32c.extend(got, piece)
            left -= len(piece)
        if got != crc:
            return None, length, row
        metadata = decode_metadata(text, file)
        if body_bytes(metadata, self._row_bytes, self._buffer_bytes) != n_body:
            return None, length, row
        return Record(row, step, metadata, file, offset + HEADER_BYTES + n_text, n_body), length, row

    def _whole_after(self, stream: Any, file: str, offset: int, length: int, size: int) -> int:
        # How many whole records follow a bad one: none after a torn write, some after a change to the file.
        starts = [offset + length] if length else []
        if not starts:
            # The header itself is bad, so its length is unknown: look for the next header that is whole.
            starts = self._next_header(
                stream, offset + 1, min(size, offset + 2 * (self._most_bytes + HEADER_BYTES) + 2**20)
            )
        count = 0
        for position in starts:
            while position < size:
                record, length, _ = self._read_record(stream, file, position, size)
                if record is None:
                    break
                count += 1
                position += length
        return count

    @staticmethod
    def _next_header(stream: Any, offset: int, stop: int) -> list[int]:
        while offset < stop:
            stream.seek(offset)
            window = stream.read(min(2**22, stop - offset) + HEADER_BYTES)
            at = window.find(MAGIC)
            while at >= 0:
                if decode_header(window[at : at + HEADER_BYTES]) is not None:
                    return [offset + at]
                at = window.find(MAGIC, at + 1)
            offset += 2**22
        return []

    def continue_after(self, records: Sequence[Record]) -> None:
        """Cut off whatever follows the last of `records` and get ready to append."""
        self.close()
        self._folder.remove(f"{JOURNAL}/{COUNT}")
        last = records[-1] if records else None
        for file in self.files():
            if last is None or _first_row(file) > _first_row(last.where):
                self._folder.remove(f"{JOURNAL}/{file}")
        if last is not None:
            with self._stream(last.where, os.O_RDWR) as stream:
                stream.truncate(last.offset + last.size)
                os.fsync(stream.fileno())
        self._sync_folder()

    def _stream(self, file: str, flags: int = os.O_RDONLY) -> io.FileIO:
        handle = self._folder.open(f"{JOURNAL}/{file}", flags, alone=bool(flags & os.O_RDWR))
        return io.FileIO(handle, "r+" if flags & os.O_RDWR else "r")

    def _sync_folder(self) -> None:
        if os.name == "posix":  # so that the names in it survive a power cut; others have no handles of folders
            self._folder.sync(JOURNAL)

    def append(self, row: int, step: int, metadata: Mapping[str, Any], arrays: Iterable[np.ndarray]) -> Record:
        """Append a row; on any error the journal is as it was before."""
        text = json.dumps(metadata).encode()
        views = byte_views(arrays)
        header = encode_header(row, step, text, views)
        handle = self._open_for(row)
        try:
            _write_all(handle, [memoryview(header), memoryview(text), *(view.data for view in views)])
        except BaseException as error:
            os.ftruncate(handle, self._end)
            os.lseek(handle, self._end, os.SEEK_SET)
            if isinstance(error, OSError):
                msg = (
                    f"row {row} (step {step}) could not be written: {error}. The rows before it are safe; "
                    "free some space and open the store again to go on."
                )
                raise StoreError(msg) from error
            raise
        size = sum(view.nbytes for view in views)
        record = Record(row, step, metadata, self._name, self._end + len(header) + len(text), size)
        self._end += len(header) + len(text) + size
        self._rows = row + 1
        return record

    def _open_for(self, row: int) -> int:
        if self._handle is not None and row % self._rows_per_file:
            return self._handle
        if self._handle is not None:
            self.make_durable()
            self.close()
        existing = [f for f in self.files() if _first_row(f) // self._rows_per_file == row // self._rows_per_file]
        file = existing[-1] if existing else f"{row:012d}.rows"
        self._handle = self._folder.open(f"{JOURNAL}/{file}", os.O_RDWR | os.O_CREAT, alone=True)
        self._end = os.lseek(self._handle, 0, os.SEEK_END)
        self._name = file
        self._sync_folder()
        return self._handle

    def make_durable(self) -> None:
        """Make the rows appended so far survive a power cut."""
        if self._handle is not None:
            getattr(os, "fdatasync", os.fsync)(self._handle)
            self._write_count()

    def _write_count(self) -> None:
        # After the rows and without a flush of its own: after a power cut it says too little, never too much.
        if self._count is None:
            self._count = self._folder.open(f"{JOURNAL}/{COUNT}", os.O_RDWR | os.O_CREAT, alone=True)
        rows = struct.pack("<Q", self._rows)
        with contextlib.suppress(OSError):  # a full disk: the rows are safe, and that is what counts
            os.lseek(self._count, 0, os.SEEK_SET)
            os.write(self._count, rows + struct.pack("<I", google_crc32c.value(rows)))

    def read(self, record: Record, start: int, stop: int) -> bytes:
        """Read the bytes from `start` to `stop` of a row: its weights, then its buffers."""
        with self._stream(record.where) as stream:
            stream.seek(record.offset + start)
            return stream.read(stop - start)

    def drop(self, before_row: int) -> None:
        """Delete whatever holds only rows before `before_row`."""
        for file in self.files():
            if self._end_row(file) <= before_row and file != self._name:
                self._folder.remove(f"{JOURNAL}/{file}")

    def close(self) -> None:
        """Let go of open files."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None
            self._name = ""
        if self._count is not None:
            os.close(self._count)
            self._count = None


def _first_row(file: str) -> int:
    return int(file.removesuffix(".rows"))


def _write_all(handle: int, parts: list[memoryview]) -> None:
    # writev may write less than asked, and takes a limited number of parts.
    parts = [part for part in parts if part.nbytes]
    while parts:
        written = os.writev(handle, parts[:512]) if hasattr(os, "writev") else os.write(handle, parts[0])
        while written and parts:
            if written >= parts[0].nbytes:
                written -= parts.pop(0).nbytes
            else:
                parts[0] = parts[0][written:]
                written = 0
