"""Records: one row each, with its own checksum; and what a journal of them must be able to do."""

# ruff: noqa: DOC201, DOC402, DOC501  # inside the package: one line says what a method gives and raises

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import google_crc32c
import numpy as np

from trajstats.errors import StoreError

MAGIC = b"TRAJROW1"
# magic, row, step, bytes of metadata, bytes of weights, crc32c of metadata and weights; then crc32c of these
_FIELDS = struct.Struct("<8sQqQQI")
_CHECK = struct.Struct("<I")
HEADER_BYTES = _FIELDS.size + _CHECK.size
MAX_METADATA = 2**28
MAX_ROWS = 2**24  # of an object journal at one time


@dataclass(frozen=True)
class Record:
    """One row of the journal.

    Parameters
    ----------
    row, step : int
        Position along `step`, and the optimiser step.
    metadata : mapping
        Scalars (``series``) and the rounding floor of each layer (``floor``).
    where : str
        File or key that holds the weights.
    offset : int
        Position of the first weight in it.
    """

    row: int
    step: int
    metadata: Mapping[str, Any]
    where: str
    offset: int


@dataclass(frozen=True)
class Damage:
    """A record that fails its checksum.

    Parameters
    ----------
    where : str
        File or key.
    offset : int
        Where the record begins.
    row : int or None
        Its row, where known.
    after : int
        How many whole records follow it.
    torn : bool
        Whether it is the end of a write that was cut off, which is no row at all; otherwise it was whole once.
    """

    where: str
    offset: int
    row: int | None
    after: int
    torn: bool


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
        """Read the bytes from `start` to `stop` of the weights of a row."""
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
    """Read the metadata of a record."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        msg = f"{where}: metadata with a valid checksum is no JSON ({error}); this journal was not written by trajstats"
        raise StoreError(msg) from error
    return found if isinstance(found, dict) else {}


def byte_views(arrays: Iterable[np.ndarray]) -> list[np.ndarray]:
    """See arrays as bytes, without a copy where they are contiguous."""
    return [np.ascontiguousarray(a).reshape(-1).view(np.uint8) for a in arrays if a.size]
