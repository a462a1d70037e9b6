"""The journal of a store that is not a local disk: one object per row."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import google_crc32c
import numpy as np
import zarr

from trajstats.data.store._layout import JOURNAL
from trajstats.data.store.files._place import Place
from trajstats.data.store.journal._records import (
    HEADER_BYTES,
    Damage,
    Record,
    body_bytes,
    byte_views,
    decode_header,
    decode_metadata,
    encode_header,
)

MAX_ROWS = 2**24  # of a journal at one time


class ObjectJournal:
    """Rows as objects ``journal/rows/c/<row>``, for stores that are not a local disk."""

    def __init__(self, place: Place, row_bytes: int, buffer_bytes: Sequence[int] = ()) -> None:
        self._place = place
        self._row_bytes = row_bytes
        self._buffer_bytes = tuple(buffer_bytes)

    def _rows(self) -> list[int]:
        if self._place.get(f"{JOURNAL}/rows/zarr.json") is None:
            return []
        # Transactional stores list nodes, not folders of chunks.
        names = (key.rpartition("/")[2] for key in self._place.list_under(f"{JOURNAL}/rows"))
        return sorted(int(name) for name in names if re.fullmatch("[0-9]{1,18}", name))

    def scan(self, first_row: int) -> tuple[list[Record], Damage | None]:
        """List the rows from `first_row` on whose checksums hold, up to the first that does not."""
        records: list[Record] = []
        rows = [row for row in self._rows() if row >= first_row]
        for number, row in enumerate(rows):
            key = f"{JOURNAL}/rows/c/{row}"
            raw = self._place.get(key)
            fields = None if raw is None else decode_header(raw[:HEADER_BYTES])
            start = HEADER_BYTES + (fields[2] if fields else 0)
            whole = (
                raw is not None
                and fields is not None
                and fields[0] == row == first_row + number
                and google_crc32c.value(raw[HEADER_BYTES:]) == fields[4]
            )
            metadata = decode_metadata(raw[HEADER_BYTES:start], key) if whole and raw is not None else {}
            size = body_bytes(metadata, self._row_bytes, self._buffer_bytes)
            if not whole or raw is None or fields is None or len(raw) != start + size:
                return records, Damage(key, 0, first_row + number, len(rows) - number - 1, torn=False)
            records.append(Record(row, fields[1], metadata, key, start, size))
        return records, None

    def continue_after(self, records: Sequence[Record]) -> None:
        """Cut off whatever follows the last of `records` and get ready to append."""
        # The keys are those of an array, since some stores accept nothing else.
        if self._place.get(f"{JOURNAL}/rows/zarr.json") is None:
            chunk = HEADER_BYTES + max(1, self._row_bytes + sum(self._buffer_bytes))
            shape = (MAX_ROWS * chunk,)
            zarr.create_array(
                self._place.path(),
                name=f"{JOURNAL}/rows",
                shape=shape,
                chunks=(chunk,),
                dtype="uint8",
                compressors=None,
            )
        keep = {record.row for record in records}
        for row in self._rows():
            if row not in keep:
                self._place.delete(f"{JOURNAL}/rows/c/{row}")

    def append(self, row: int, step: int, metadata: Mapping[str, Any], arrays: Iterable[np.ndarray]) -> Record:
        """Append a row; an object is written as a whole or not at all."""
        text = json.dumps(metadata).encode()
        views = byte_views(arrays)
        header = encode_header(row, step, text, views)
        key = f"{JOURNAL}/rows/c/{row}"
        self._place.set(key, b"".join([header, text, *(view.tobytes() for view in views)]))
        return Record(row, step, metadata, key, len(header) + len(text), sum(view.nbytes for view in views))

    def make_durable(self) -> None:
        """Commit the transaction, where the store has transactions."""
        self._place.make_durable((), "append")

    def read(self, record: Record, start: int, stop: int) -> bytes:
        """Read the bytes from `start` to `stop` of a row: its weights, then its buffers."""
        found = self._place.get(record.where, record.offset + start, record.offset + stop)
        if found is None:
            raise FileNotFoundError(record.where)
        return found

    def drop(self, before_row: int) -> None:
        """Delete whatever holds only rows before `before_row`."""
        for row in self._rows():
            if row < before_row:
                self._place.delete(f"{JOURNAL}/rows/c/{row}")

    def close(self) -> None:
        """Do nothing: no file is open."""
