"""Buffers of the rows of a store, as bytes: from tiles, then from the journal, which leaves out what did not change."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from trajstats.data._buffer_tensors import BufferTensor, common_type, pack_buffers, unpack_buffer
from trajstats.data._buffers import BUFFERS, TENSORS
from trajstats.data.safety._budget import foreign
from trajstats.data.store._layout import COMMITTED
from trajstats.data.store._rows import StoredArray
from trajstats.data.store._tiles import Tiles
from trajstats.data.store.files._place import Place
from trajstats.data.store.journal._files import open_journal
from trajstats.data.store.journal._records import Journal, Record, stored_buffers
from trajstats.errors import ArgumentError, SchemaError, StoreError, UnsafeInputError


class BufferPacker:
    """Turn the buffers of each row into bytes, without those that are the same as in the row before."""

    def __init__(self, tensors: Sequence[BufferTensor], rows_per_file: int) -> None:
        self.tensors = list(tensors)
        self._rows_per_file = rows_per_file
        self._last: list[bytes] = []  # of the row before; empty before the first row since the store was opened

    def pack(self, row: int, buffers: Any) -> tuple[list[np.ndarray], dict[str, Any], list[bytes]]:
        """Give the bytes to write, what the record says about them, and the state for `accept`."""
        parts = pack_buffers(self.tensors, buffers)
        marks = [hashlib.blake2b(part.data, digest_size=16).digest() if part.size else b"" for part in parts]
        if not self._last or not row % self._rows_per_file:
            return parts, {}, marks
        changed = [k for k, (old, new) in enumerate(zip(self._last, marks, strict=True)) if old != new]
        if len(changed) == len(parts):
            return parts, {}, marks
        return [parts[k] for k in changed], {"buffers": changed}, marks

    def accept(self, marks: list[bytes]) -> None:
        """Remember a row that was written."""
        self._last = marks


class JournalBuffers:
    """The buffers of consecutive records of a journal, the first of which holds all of them."""

    def __init__(
        self, journal: Journal, records: Sequence[Record], tensors: Sequence[BufferTensor], row_bytes: int
    ) -> None:
        self._journal, self._records = journal, list(records)
        sizes = [tensor.nbytes for tensor in tensors]
        self._starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        # Of each record and buffer: which record holds its bytes, and where in it.
        self._holder = np.full((len(self._records), len(sizes)), -1, dtype=np.int64)
        self._offset = np.zeros_like(self._holder)
        holder, offset = np.full(len(sizes), -1, dtype=np.int64), np.zeros(len(sizes), dtype=np.int64)
        for k, record in enumerate(self._records):
            stored = stored_buffers(record.metadata, len(sizes)) or []
            if stored:
                held = np.array([sizes[i] for i in stored], dtype=np.int64)
                holder[stored] = k
                offset[stored] = row_bytes + np.cumsum(held) - held
            self._holder[k], self._offset[k] = holder, offset

    def read(self, out: np.ndarray, first: int, start: int, stop: int) -> None:
        """Fill `out` (row, byte) with the bytes from `start` to `stop` of the records from `first` on."""
        for k in range(len(out)):
            for low, high, at in self._runs(first + k, start, stop):
                here = slice(max(low, start) - start, min(high, stop) - start)
                source = int(self._holder[first + k, at])
                if source < 0:
                    record = self._records[first + k]
                    msg = (
                        f"{record.where}: row {record.row} says that a buffer is that of the row before, which the "
                        "journal does not hold; restore the journal from a copy"
                    )
                    raise StoreError(msg)
                if k and self._holder[first + k - 1, at] == source:
                    out[k, here] = out[k - 1, here]
                    continue
                begin = int(self._offset[first + k, at]) + max(low, start) - low
                raw = self._journal.read(self._records[source], begin, begin + here.stop - here.start)
                if len(raw) != here.stop - here.start:
                    msg = f"row {self._records[source].row} of the journal was cut short since the store was opened"
                    raise StoreError(msg)
                out[k, here] = np.frombuffer(raw, dtype=np.uint8)

    def _runs(self, k: int, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Group the buffers that touch a range and lie in one piece in one record: first byte, last byte, position."""
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        last = int(np.searchsorted(self._starts, stop, side="left"))
        at = first
        while at < last:
            end = at + 1
            while (
                end < last
                and self._holder[k, end] == self._holder[k, at]
                and self._offset[k, end] - self._offset[k, at] == self._starts[end] - self._starts[at]
            ):
                end += 1
            yield int(self._starts[at]), int(self._starts[end]), at
            at = end


class StoredBuffers(StoredArray):
    """The buffers of one store as a lazy array (replica, step, buffer)."""

    def __init__(self, target: Any, rows: int, records: Sequence[Record] = ()) -> None:
        super().__init__(target)
        self._records = list(records)
        self.tensors = self._open().tensors
        self.shape = (1, rows, sum(tensor.size for tensor in self.tensors))
        self.dtype = common_type(self.tensors)

    def _read(self, bounds: list[tuple[int, int]]) -> np.ndarray:
        _, (first, stop), (start, end) = bounds
        out = np.empty((1, stop - first, end - start), dtype=self.dtype)
        element = byte = 0
        for tensor in self.tensors:
            low, high = max(start, element), min(end, element + tensor.size)
            if low < high:
                item = tensor.stored.itemsize
                raw = self._raw(first, stop, byte + (low - element) * item, byte + (high - element) * item)
                values = unpack_buffer(tensor, raw.tobytes()).reshape(stop - first, high - low)
                out[0, :, low - start : high - start] = values
            element, byte = element + tensor.size, byte + tensor.nbytes
        return out

    def _raw(self, first: int, stop: int, start: int, end: int) -> np.ndarray:
        """Read the bytes from `start` to `end` of rows, (row, byte) of uint8."""
        out = np.empty((stop - first, end - start), dtype=np.uint8)
        records = self._records
        in_journal = records[0].row if records else self.shape[1]
        split = min(max(first, in_journal), stop)
        if split > first:
            self._read_tiles(out[: split - first], first, start)
        if split < stop:
            try:
                self._read_journal(out[split - first :], split, start, records)
            except FileNotFoundError:
                # The writer has gathered these rows into tiles since the store was opened.
                tiled = min(self.shape[1], int(self._open().attrs.get(COMMITTED, 0)))
                if tiled <= in_journal:
                    raise
                self._records = [record for record in records if record.row >= tiled]
                out[split - first :] = self._raw(split, stop, start, end)
        return out

    def _read_tiles(self, out: np.ndarray, first: int, start: int) -> None:
        tiles = self._open()
        rows, end = (first, first + out.shape[0]), start + out.shape[1]
        if lost := tiles.missing_in([(0, 1), rows, (start, end)], buffers=True):
            msg = f"{tiles.place}: {len(lost)} tiles of buffers are missing: {lost[0]}; restore them from a copy"
            raise StoreError(msg)
        try:
            array = tiles.array(rows[1], buffers=True)
            with foreign("it", "Restore it from a copy"):
                out[...] = np.asarray(array[0, slice(*rows), start:end])
        except UnsafeInputError as error:
            msg = f"{tiles.place}: a tile of buffers, bytes {start} to {end}: {error}"
            raise UnsafeInputError(msg) from error
        except StoreError as error:
            msg = (
                f"{tiles.place}: a tile of buffers, rows {rows[0]} to {rows[1]}, cannot be read ({error}). "
                "trajstats.verify(path) names the damaged tiles."
            )
            raise StoreError(msg) from error

    def _read_journal(self, out: np.ndarray, first: int, start: int, records: Sequence[Record]) -> None:
        tiles = self._open()
        layout = tiles.layout
        journal = open_journal(tiles.place, layout.row_bytes, layout.rows, [t.nbytes for t in self.tensors])
        found = JournalBuffers(journal, records, self.tensors, layout.row_bytes)
        found.read(out, first - records[0].row, start, start + out.shape[1])


def check_same_buffers(runs: Sequence[xr.Dataset], paths: Sequence[Any]) -> None:
    """Check that runs to be joined along `replica` have the same buffers, or all of them none."""
    listed = [run[BUFFERS].attrs.get(TENSORS) if BUFFERS in run.variables else None for run in runs]
    for text, path in zip(listed, paths, strict=True):
        if text == listed[0]:
            continue
        if text is None or listed[0] is None:
            with_them, without = (paths[0], path) if text is None else (path, paths[0])
            what = f"{Place(with_them)} has buffers (running statistics, ...) and {Place(without)} has none"
        else:
            what = f"{Place(path)} and {Place(paths[0])} have different buffers"
        msg = (
            f"{what}; only runs with the same buffers are joined along replica. Open them one by one, or leave the "
            "buffers out: xarray.concat([open_trajectory(p).drop_vars('buffers', errors='ignore') for p in paths], "
            "'replica', data_vars='all', join='inner')"
        )
        raise SchemaError(msg)


def check_stored_buffers(tiles: Tiles, tensors: Sequence[BufferTensor]) -> None:
    """Check that a store holds the buffers a writer is about to append."""
    if list(tensors) == tiles.tensors:
        return
    if not tiles.tensors:
        msg = (
            f"{tiles.place} was recorded without buffers; open it without buffers=, or record to another path to keep "
            "them"
        )
    elif not tensors:
        names = ", ".join(f"{t.name!r:.80}" for t in tiles.tensors[:4]) + (", ..." if len(tiles.tensors) > 4 else "")
        msg = f"{tiles.place} holds {len(tiles.tensors)} buffers ({names}); give them with buffers= to continue it"
    else:
        pairs = zip([*tiles.tensors, None], [*tensors, None], strict=False)
        old, new = next((a, b) for a, b in pairs if a != b)
        msg = f"{tiles.place} holds other buffers: {_shown(old)} where the writer was given {_shown(new)}"
    raise ArgumentError(msg)


def _shown(tensor: BufferTensor | None) -> str:
    return "nothing" if tensor is None else f"{tensor.name!r:.120} {tensor.shape} {tensor.dtype}"


def as_given(tensors: Sequence[BufferTensor]) -> Mapping[str, Any] | None:
    """Describe buffers as a writer takes them: name -> (shape, dtype)."""
    return {tensor.name: (tensor.shape, tensor.dtype) for tensor in tensors} or None
