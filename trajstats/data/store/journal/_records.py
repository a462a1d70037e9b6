"""Records: one row each, with its own checksum; and what a journal of them must be able to do."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import google_crc32c
import numpy as np

from trajstats.data.safety._budget import PROMISED_SIZE, Budget, foreign, json_object
from trajstats.data.store._layout import RESERVED, SERIES_NAME
from trajstats.errors import StoreError

MAGIC = b"TRAJROW1"
# magic, row, step, bytes of metadata, bytes of weights, crc32c of metadata and weights; then crc32c of these
_FIELDS = struct.Struct("<8sQqQQI")
_CHECK = struct.Struct("<I")
HEADER_BYTES = _FIELDS.size + _CHECK.size
MAX_METADATA = 2**24
COUNT = "count"  # the file of a journal that says how many rows were safe
MAX_ROWS = 2**24  # of an object journal at one time


_OF_LAYERS: dict[str, Any] = {"floor": np.float64, "digest": np.uint64}
_DO = "This journal was not written by trajstats, or is damaged; trajstats.delete_after gives it up"


@dataclass(frozen=True, slots=True)
class Record:
    """One row of the journal."""

    row: int  # Position along `step`, and the optimiser step
    step: int  # Position along `step`, and the optimiser step
    # Scalars (``series``), rounding floor (``floor``) and digest (``digest``) of each layer, and the positions of
    # the buffers that follow the weights (``buffers``; all of them where it is absent)
    metadata: Mapping[str, Any]
    where: str  # File or key that holds the weights
    offset: int  # Position of the first weight in it
    size: int  # Bytes from there on: the weights, then the buffers that are not those of the row before


@dataclass(frozen=True)
class Damage:
    """A record that fails its checksum."""

    where: str  # File or key
    offset: int  # Where the record begins
    row: int | None  # Its row, where known
    after: int  # How many whole records follow it
    torn: bool  # Whether it is the end of an interrupted write, which is not a row; otherwise it was complete once
    lost: int = 0  # How many rows were safe on the disk and are not there any more

    def __str__(self) -> str:
        if self.where == COUNT:
            return f"{self.lost} rows from row {self.row} on were safe in the journal and are not there any more"
        return f"row {self.row} in the journal ({self.where}) fails its checksum; {self.after} whole rows follow"


class Journal(Protocol):
    """What the writer, the reader and the compaction ask of a journal."""

    def scan(self, first_row: int) -> tuple[list[Record], Damage | None]:
        """List the rows from `first_row` on whose checksums hold, up to the first that does not."""
        ...

    def continue_after(self, records: Sequence[Record]) -> None:
        """Cut off whatever follows the last of `records` and get ready to append."""
        ...

    def append(self, row: int, step: int, metadata: Mapping[str, Any], arrays: Iterable[np.ndarray]) -> Record:
        """Append a row; on any error the journal is as it was before."""
        ...

    def make_durable(self) -> None:
        """Make the rows appended so far survive a power cut."""
        ...

    def read(self, record: Record, start: int, stop: int) -> bytes:
        """Read the bytes from `start` to `stop` of a row: its weights, then its buffers."""
        ...

    def drop(self, before_row: int) -> None:
        """Delete whatever holds only rows before `before_row`."""
        ...

    def close(self) -> None:
        """Let go of open files."""
        ...


def encode_header(row: int, step: int, text: bytes, views: Sequence[np.ndarray]) -> bytes:
    """Make the header of a record: where it belongs, how long it is, and its checksum."""
    crc = google_crc32c.value(text)
    for view in views:
        crc = google_crc32c.extend(crc, view)
    fields = _FIELDS.pack(MAGIC, row, step, len(text), sum(view.nbytes for view in views), crc)
    return fields + _CHECK.pack(google_crc32c.value(fields))


def decode_header(header: bytes) -> tuple[int, int, int, int, int] | None:
    """Read row, step, lengths of metadata and weights, and checksum; None if the header is not whole."""
    if (
        len(header) < HEADER_BYTES
        or google_crc32c.value(header[: _FIELDS.size]) != _CHECK.unpack_from(header, _FIELDS.size)[0]
    ):
        return None
    magic, row, step, n_text, n_body, crc = _FIELDS.unpack_from(header)
    return (row, step, n_text, n_body, crc) if magic == MAGIC and n_text <= MAX_METADATA else None


def decode_metadata(text: bytes, where: str) -> dict[str, Any]:
    """Read and check the metadata of a record: a valid checksum does not say who wrote it."""
    found = json_object(text, f"{where}: the metadata of a row", Budget.for_size(PROMISED_SIZE))
    series = found.get("series", {})
    good = isinstance(series, dict) and all(
        SERIES_NAME.fullmatch(name)
        and name not in RESERVED
        and (type(value) is float or (type(value) is int and abs(value) < 2**1023))
        for name, value in series.items()
    )
    for name, kind in _OF_LAYERS.items():
        if name in found:
            good = good and isinstance(found[name], list) and all(type(value) in (int, float) for value in found[name])
            with foreign(f"{where}: {name} of a row", _DO):
                found[name] = np.array(found[name] if good else [], dtype=kind)
    if not good:
        msg = f"{where}: the metadata of a row are not series, floors and digests as trajstats writes them. {_DO}"
        raise StoreError(msg)
    return found


def check_records(records: Sequence[Record], n_layers: int, where: str) -> None:
    """Check that steps increase and that what is known of layers is known of all of them."""
    for before, record in zip([None, *records], records, strict=False):
        lengths = {len(record.metadata[name]) for name in _OF_LAYERS if name in record.metadata}
        if lengths - {n_layers} or (before is not None and record.step <= before.step):
            msg = f"{where}: row {record.row} of the journal (step {record.step}) does not belong to this run. {_DO}"
            raise StoreError(msg)


def stored_buffers(metadata: Mapping[str, Any], n_buffers: int) -> list[int] | None:
    """List the buffers whose bytes follow the weights of a row, by position; None if the metadata cannot be right."""
    found = metadata.get("buffers")
    if found is None:
        return list(range(n_buffers))
    good = isinstance(found, list) and all(type(k) is int and 0 <= k < n_buffers for k in found)
    return found if good and all(a < b for a, b in zip(found, found[1:], strict=False)) else None


def body_bytes(metadata: Mapping[str, Any], row_bytes: int, buffer_bytes: Sequence[int]) -> int:
    """Compute the bytes that follow the metadata of a record; -1 if the metadata cannot be right."""
    stored = stored_buffers(metadata, len(buffer_bytes))
    return -1 if stored is None else row_bytes + sum(buffer_bytes[k] for k in stored)


def byte_views(arrays: Iterable[np.ndarray]) -> list[np.ndarray]:
    """See arrays as bytes, without a copy where they are contiguous."""
    return [np.ascontiguousarray(a).reshape(-1).view(np.uint8) for a in arrays if a.size]
