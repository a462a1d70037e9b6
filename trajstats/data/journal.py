"""The journal: rows in the order they were appended, each with its own checksum, until they are in tiles."""

# ruff: noqa: DOC201, DOC402, DOC501  # inside the package: one line says what a method gives and raises

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from trajstats.data.layout import JOURNAL
from trajstats.data.object_journal import ObjectJournal
from trajstats.data.place import Place, sync_folder
from trajstats.data.records import (
    HEADER_BYTES,
    MAGIC,
    Damage,
    Journal,
    Record,
    byte_views,
    decode_header,
    decode_metadata,
    encode_header,
)
from trajstats.errors import StoreError

__all__ = ["Damage", "FileJournal", "Journal", "ObjectJournal", "Record", "open_journal"]


def open_journal(place: Place, row_bytes: int, rows_per_file: int) -> Journal:
    """Choose the journal a place allows: files on a local disk, else one object per row.

    Parameters
    ----------
    place : Place
        The store.
    row_bytes : int
        Bytes of one row.
    rows_per_file : int
        Rows after which a new file begins.

    Returns
    -------
    Journal
        The journal.
    """
    if place.local is not None:
        return FileJournal(place.local / JOURNAL, row_bytes, rows_per_file)
    return ObjectJournal(place, row_bytes)


class FileJournal:
    """Rows in files ``journal/<first row>.rows``, appended and fsynced one at a time.

    Parameters
    ----------
    folder : Path
        The folder ``journal`` of the store.
    row_bytes : int
        Bytes of one row.
    rows_per_file : int
        A new file begins at every multiple of this row.
    """

    def __init__(self, folder: Path, row_bytes: int, rows_per_file: int) -> None:
        self._folder = folder
        self._row_bytes = row_bytes
        self._rows_per_file = rows_per_file
        self._handle: int | None = None
        self._name = ""
        self._end = 0

    def files(self) -> list[Path]:
        """List the files in the order of their rows."""
        found = [f for f in self._folder.glob("*.rows") if f.stem.isdigit() and not f.is_symlink()]
        return sorted(found, key=lambda f: int(f.stem))

    def scan(self, first_row: int) -> tuple[list[Record], Damage | None]:
        """List the rows from `first_row` on whose checksums hold, up to the first that does not."""
        records: list[Record] = []
        files = [f for f in self.files() if (int(f.stem) // self._rows_per_file + 1) * self._rows_per_file > first_row]
        for number, file in enumerate(files):
            try:
                found, damage = self._scan_file(file)
            except FileNotFoundError:  # compacted and dropped by the writer in the meantime
                continue
            for record in found:
                if record.row == first_row + len(records):
                    records.append(record)
                elif record.row > first_row + len(records):
                    return records, Damage(file.name, 0, first_row + len(records), len(found), torn=False)
            if damage is not None:
                later = sum(len(self._scan_file(f)[0]) for f in files[number + 1 :])
                row = first_row + len(records) if damage.row is None else damage.row
                torn = damage.torn and not later
                return records, Damage(damage.where, damage.offset, row, damage.after + later, torn)
        return records, None

    def _scan_file(self, file: Path) -> tuple[list[Record], Damage | None]:
        records: list[Record] = []
        size = file.stat().st_size
        offset = 0
        with file.open("rb", buffering=0) as stream:
            while offset < size:
                record, length, row = self._read_record(stream, file, offset, size)
                if record is None:
                    after = self._whole_after(stream, file, offset, length, size)
                    short = size < offset + (length or HEADER_BYTES + self._row_bytes)
                    return records, Damage(file.name, offset, row, after, torn=short and not after)
                records.append(record)
                offset += length
        return records, None

    def _read_record(self, stream: Any, file: Path, offset: int, size: int) -> tuple[Record | None, int, int | None]:
        stream.seek(offset)
        header = stream.read(HEADER_BYTES)
        fields = decode_header(header)
        if fields is None:
            return None, 0, None
        row, step, n_text, n_body, crc = fields
        length = HEADER_BYTES + n_text + n_body
        if n_body != self._row_bytes or offset + length > size:
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
        return (
            Record(row, step, decode_metadata(text, file.name), file.name, offset + HEADER_BYTES + n_text),
            length,
            row,
        )

    def _whole_after(self, stream: Any, file: Path, offset: int, length: int, size: int) -> int:
        # How many whole records follow a bad one: none after a torn write, some after a change to the file.
        starts = [offset + length] if length else []
        if not starts:
            # The header itself is bad, so its length is unknown: look for the next header that is whole.
            stream.seek(offset)
            window = stream.read(2 * (self._row_bytes + HEADER_BYTES) + 2**20)
            at = window.find(MAGIC, 1)
            while at >= 0:
                if decode_header(window[at : at + HEADER_BYTES]) is not None:
                    starts.append(offset + at)
                    break
                at = window.find(MAGIC, at + 1)
        count = 0
        for position in starts:
            while position < size:
                record, length, _ = self._read_record(stream, file, position, size)
                if record is None:
                    break
                count += 1
                position += length
        return count

    def continue_after(self, records: Sequence[Record]) -> None:
        """Cut off whatever follows the last of `records` and get ready to append."""
        self.close()
        self._folder.mkdir(parents=True, exist_ok=True)
        last = records[-1] if records else None
        for file in self.files():
            if last is None or int(file.stem) > int(Path(last.where).stem):
                file.unlink()
        if last is not None:
            with (self._folder / last.where).open("r+b") as stream:
                stream.truncate(last.offset + self._row_bytes)
                os.fsync(stream.fileno())
        sync_folder(self._folder)

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
        record = Record(row, step, metadata, self._name, self._end + len(header) + len(text))
        self._end += len(header) + len(text) + self._row_bytes
        return record

    def _open_for(self, row: int) -> int:
        if self._handle is not None and row % self._rows_per_file:
            return self._handle
        if self._handle is not None:
            self.make_durable()
            self.close()
        existing = [f for f in self.files() if int(f.stem) // self._rows_per_file == row // self._rows_per_file]
        file = existing[-1] if existing else self._folder / f"{row:012d}.rows"
        self._handle = os.open(file, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o644)
        self._end = os.lseek(self._handle, 0, os.SEEK_END)
        self._name = file.name
        sync_folder(self._folder)
        return self._handle

    def make_durable(self) -> None:
        """Make the rows appended so far survive a power cut."""
        if self._handle is not None:
            getattr(os, "fdatasync", os.fsync)(self._handle)

    def read(self, record: Record, start: int, stop: int) -> bytes:
        """Read the bytes from `start` to `stop` of the weights of a row."""
        with (self._folder / record.where).open("rb", buffering=0) as stream:
            stream.seek(record.offset + start)
            return stream.read(stop - start)

    def drop(self, before_row: int) -> None:
        """Delete whatever holds only rows before `before_row`."""
        for file in self.files():
            first = int(file.stem)
            end = (first // self._rows_per_file + 1) * self._rows_per_file
            if end <= before_row and file.name != self._name:
                file.unlink()

    def close(self) -> None:
        """Let go of open files."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None
            self._name = ""


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
