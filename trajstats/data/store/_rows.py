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


class StoredRows:
    """The rows of one store as an array that reads what is asked for: tiles first, then the journal."""

    def __init__(self, target: Any, rows: int, records: Sequence[Record] = ()) -> None:
        self._target = target
        self._records = {record.row: record for record in records}
        self._tiles: Tiles | None = None
        layout = self._open().layout
        self.shape = (1, rows, *layout.row_shape)
        self.dtype = layout.dtype
        self.ndim = len(self.shape)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tiles": None}

    def _open(self) -> Tiles:
        if self._tiles is None:
            self._tiles = Tiles(Place(self._target))
        return self._tiles

    def __getitem__(self, key: Any) -> np.ndarray:
        wanted = key if isinstance(key, tuple) else (key,)
        wanted = tuple(k if isinstance(k, slice) else slice(int(k), int(k) + 1) for k in wanted)
        wanted += (slice(None),) * (self.ndim - len(wanted))
        ranges = [range(*k.indices(n)) for k, n in zip(wanted, self.shape, strict=True)]
        bounds = [(r[0], r[-1] + 1) if len(r) and r.step > 0 else (0, 0) for r in ranges]
        block = self._read(bounds)
        within = tuple(slice(None, None, r.step) if r.step > 0 else slice(0, 0) for r in ranges)
        keep = tuple(i for i, k in enumerate(key if isinstance(key, tuple) else (key,)) if not isinstance(k, slice))
        block = block[within]
        return block.reshape([n for i, n in enumerate(block.shape) if i not in keep])

    def _read(self, bounds: list[tuple[int, int]]) -> np.ndarray:
        first, stop = bounds[1]
        out = np.empty([b - a for a, b in bounds], dtype=self.dtype)
        if not out.size:
            return out
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
            raise StoreError(missing_tiles(tiles.place, lost))

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


def missing_tiles(place: Place, keys: Sequence[str]) -> str:
    """Word the error about tiles that are not there."""
    shown = ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
    return (
        f"{place}: {len(keys)} tiles are missing: {shown}. trajstats.verify(path) tells which layers they "
        "belong to; open_trajectory(path, damaged='drop') opens the layers that are whole."
    )


def stored_rows(variable: xr.Variable) -> StoredRows | None:
    """Find the store behind a lazy variable, where it is the whole of one run as `open_trajectory` gave it."""
    found = stored_source(variable)
    return found if isinstance(found, StoredRows) else None


def stored_source(variable: xr.Variable) -> Any:
    """Find the array-like of a store behind a lazy variable of one run; None if there is none."""
    if variable.chunks is None:
        return None
    source = f"original-{variable.data.name}"
    layer = variable.data.dask.layers.get(source)
    found = None if layer is None else layer.get(source)
    found = getattr(found, "value", found)
    return found if getattr(found, "shape", None) == variable.shape else None
