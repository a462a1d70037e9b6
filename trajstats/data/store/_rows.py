"""The rows of one store as a lazy array: tiles first, then the journal; a missing tile is an error, never a number."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import xarray as xr

from trajstats.data.safety._budget import foreign
from trajstats.data.store._layout import COMMITTED
from trajstats.data.store._tiles import Tiles
from trajstats.data.store.files._place import Place
from trajstats.data.store.journal._files import open_journal
from trajstats.data.store.journal._records import Record
from trajstats.errors import StoreError, UnsafeInputError


class StoredArray:
    """An array of one store that reads only the ranges an index needs; subclasses say how a block is read."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def __init__(self, target: Any) -> None:
        self._target = target
        self._tiles: Tiles | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tiles": None}

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    def _open(self) -> Tiles:
        if self._tiles is None:
            self._tiles = Tiles(Place(self._target))
        return self._tiles

    def __getitem__(self, key: Any) -> np.ndarray:
        wanted = key if isinstance(key, tuple) else (key,)
        wanted += (slice(None),) * (self.ndim - len(wanted))
        ranges = [
            range(n)[k] if isinstance(k, slice) else range(n)[range(n)[int(k)] :][:1]
            for k, n in zip(wanted, self.shape, strict=True)
        ]
        if all(ranges):
            block = self._read([(min(r[0], r[-1]), max(r[0], r[-1]) + 1) for r in ranges])
            block = block[tuple(slice(None, None, r.step) for r in ranges)]
        else:
            block = np.empty([len(r) for r in ranges], dtype=self.dtype)
        return block.reshape([n for n, k in zip(block.shape, wanted, strict=True) if isinstance(k, slice)])

    def _read(self, bounds: list[tuple[int, int]]) -> np.ndarray:
        raise NotImplementedError


class StoredRows(StoredArray):
    """The rows of one store as a lazy array: tiles first, then the journal."""

    def __init__(self, target: Any, rows: int, records: Sequence[Record] = ()) -> None:
        super().__init__(target)
        self._records = {record.row: record for record in records}
        layout = self._open().layout
        self.shape = (1, rows, *layout.row_shape)
        self.dtype = layout.dtype

    def _read(self, bounds: list[tuple[int, int]]) -> np.ndarray:
        first, stop = bounds[1]
        out = np.empty([b - a for a, b in bounds], dtype=self.dtype)
        in_journal = min((row for row in self._records if row >= first), default=stop)
        split = min(max(first, in_journal), stop)
        if split > first:
            self._read_tiles(out[:, : split - first], [bounds[0], (first, split), *bounds[2:]])
        row = split
        while row < stop:
            try:
                self._read_row(out[:, row - first : row - first + 1], row, bounds)
                row += 1
            except FileNotFoundError:
                # The writer has gathered this row, and others with it, into tiles since the store was opened.
                tiled = min(stop, int(self._open().attrs.get(COMMITTED, 0)))
                if tiled <= row:
                    raise
                self._read_tiles(out[:, row - first : tiled - first], [bounds[0], (row, tiled), *bounds[2:]])
                self._records = {k: record for k, record in self._records.items() if k >= tiled}
                row = tiled
        return out

    def _read_tiles(self, out: np.ndarray, bounds: list[tuple[int, int]]) -> None:
        tiles = self._open()
        try:
            array = tiles.array(bounds[1][1])
            with foreign("it", "Restore it from a copy"):
                out[...] = np.asarray(array[tuple(slice(a, b) for a, b in bounds)])
        except UnsafeInputError as error:
            msg = f"{tiles.place}: a tile of {tiles.variable} {bounds[-1]}: {error}"
            raise UnsafeInputError(msg) from error
        except StoreError as error:
            msg = (
                f"{tiles.place}: a tile of rows {bounds[1][0]} to {bounds[1][1]}, {tiles.variable} {bounds[-1]} cannot "
                f"be read ({error}). trajstats.verify(path) names the damaged tiles."
            )
            raise StoreError(msg) from error
        # zarr gives the fill value, NaN, for a file that is not there, so only NaN needs a closer look.
        if np.isnan(out[..., ::1]).any() and (lost := tiles.missing_in(bounds)):
            raise StoreError(missing_tiles_message(tiles.place, lost))

    def _read_row(self, out: np.ndarray, row: int, bounds: list[tuple[int, int]]) -> None:
        tiles = self._open()
        layout = tiles.layout
        journal = open_journal(tiles.place, layout.row_bytes, layout.rows)
        item = layout.dtype.itemsize
        flat = out.reshape(-1, bounds[-1][1] - bounds[-1][0])
        leads = (
            [int(np.ravel_multi_index(i, layout.row_shape[:-1])) for i in _grid(bounds[2:-1])]
            if len(bounds) > 3
            else [0]
        )
        for k, lead in enumerate(leads):
            offset = lead * layout.row_shape[-1]
            start, stop = (offset + bounds[-1][0]) * item, (offset + bounds[-1][1]) * item
            if (record := self._records.get(row)) is None:  # dropped by another thread, which found it in tiles
                raise FileNotFoundError(row)
            raw = journal.read(record, start, stop)
            if len(raw) != stop - start:
                msg = f"{tiles.place}: row {row} of the journal was cut short since the store was opened"
                raise StoreError(msg)
            flat[k] = np.frombuffer(raw, dtype=layout.dtype)


def _grid(bounds: Sequence[tuple[int, int]]) -> Iterator[tuple[int, ...]]:
    lengths = [b - a for a, b in bounds]
    return (tuple(i + a for i, (a, _) in zip(index, bounds, strict=True)) for index in np.ndindex(*lengths))


def missing_tiles_message(place: Place, keys: Sequence[str]) -> str:
    """Format the error message for missing tiles."""
    shown = ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
    return (
        f"{place}: {len(keys)} tiles are missing: {shown}. trajstats.verify(path) lists the layers they "
        "belong to; open_trajectory(path, damaged='drop') opens the layers that are whole."
    )


def stored_rows(variable: xr.Variable) -> StoredRows | None:
    """Find the store behind a lazy variable, where it is the whole of one run as `open_trajectory` gave it."""
    if variable.chunks is None:
        return None
    source = f"original-{variable.data.name}"
    layer = variable.data.dask.layers.get(source)
    found = None if layer is None else layer.get(source)
    found = getattr(found, "value", found)
    return found if isinstance(found, StoredRows) and found.shape == variable.shape else None
