"""Tiles: slabs of rows in, any range of rows and parameters out; a missing tile is an error, never a number."""

# ruff: noqa: DOC201, DOC402, DOC501  # inside the package: one line says what a method gives and raises

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import google_crc32c
import numpy as np
import zarr

from trajstats.data.checks import check_series_name
from trajstats.data.guard import node_names
from trajstats.data.layout import (
    CHECKSUMS,
    COMMITTED,
    FINISHED,
    FLOOR,
    JOURNAL,
    STATE,
    STRUCTURAL,
    WRITING,
    Layout,
    array_of,
    layout_of,
    put_array,
)
from trajstats.data.place import Place
from trajstats.data.schema import LAYER, REPLICA, SKETCH, STEP, WEIGHTS
from trajstats.data.unpacking import bounded
from trajstats.errors import StoreError

CONSOLIDATED = "consolidated_metadata"


@dataclass(frozen=True)
class Rows:
    """What is known of a stretch of rows besides their weights.

    Parameters
    ----------
    first : int
        Position of the first along `step`.
    steps : sequence of int
        Optimiser steps.
    series : sequence of mapping
        Scalars of each row.
    floors : ndarray, (row, layer), optional
        Rounding floor of each layer; found while writing if not given.
    """

    first: int
    steps: Sequence[int]
    series: Sequence[Mapping[str, float]]
    floors: np.ndarray | None = None

    @property
    def stop(self) -> int:
        """Position after the last row."""
        return self.first + len(self.steps)


Source = Callable[[int, int], np.ndarray]


class Tiles:
    """The tile part of one store.

    Parameters
    ----------
    place : Place
        An existing store.

    Raises
    ------
    StoreError
        If there is no store.
    """

    def __init__(self, place: Place) -> None:
        self.place = place
        group = place.group()
        if group is None:
            msg = f"{place}: no trajectory store here (no zarr.json)"
            raise StoreError(msg)
        self.variable = SKETCH if place.get(f"{SKETCH}/zarr.json") is not None else WEIGHTS
        self.layout: Layout = layout_of(array_of(group, self.variable))

    @property
    def attrs(self) -> dict[str, Any]:
        """Attributes of the root, read now: the commit marker is among them."""
        group = self.place.group()
        return {} if group is None else group.attrs.asdict()

    def array(self, rows: int | None = None) -> zarr.Array:
        """Open the array of weights, as if it had at least `rows` rows; nothing is written."""
        group = self.place.group()
        if group is None:
            msg = f"{self.place}: the store is gone"
            raise StoreError(msg)
        array = array_of(group, self.variable)
        if rows is None or array.shape[1] >= rows:
            return array
        # Tiles beyond the shape in the metadata are written first; the shape follows with the commit.
        metadata = array.metadata.to_dict() | {"shape": (1, rows, *array.shape[2:])}
        return bounded(zarr.Array(zarr.AsyncArray.from_dict(array.store_path, metadata)))

    def _whole(self, array: zarr.Array) -> zarr.Array:
        # A chunk that holds only the fill value is written all the same: a chunk that is not there is a lost one.
        config = {"order": "C", "write_empty_chunks": True}
        made: Any = zarr.AsyncArray(metadata=array.metadata, store_path=array.store_path, config=config)  # type: ignore[call-overload]
        return zarr.Array(made)

    def arrays(self) -> dict[str, zarr.Array]:
        """Open every array of the root; files that a killed writer left behind are passed over in silence."""
        group = self.place.group()
        assert group is not None
        if self.place.local is None:
            named = [name for name in node_names(self.place) if name != JOURNAL]
            return {n: array_of(group, n) for n in named if self.place.get(f"{n}/zarr.json") is not None}
        folder = self.place.folder
        names = sorted(n for n in folder.names() if n != JOURNAL and folder.size(f"{n}/zarr.json") is not None)
        return {name: array_of(group, name) for name in names}

    def tile_key(self, slab: int, *where: int) -> str:
        """Name the file of a tile: slab of rows, then its place across the row."""
        return "/".join([self.variable, "c", "0", str(slab), *(str(index) for index in where)])

    def keys_of_slab(self, slab: int) -> list[str]:
        """List the files one slab of rows must have."""
        lead = self.layout.row_shape[:-1]
        across = -(-self.layout.row_shape[-1] // self.layout.shard)
        return [self.tile_key(slab, *index) for index in np.ndindex((*lead, across))]

    def slabs(self, rows: int) -> int:
        """Count the slabs that `rows` rows take."""
        return -(-rows // self.layout.rows)

    def write(
        self,
        rows: Rows,
        source: Source,
        *,
        clocks: Sequence[str] = (),
        finish: Callable[[], Mapping[str, Any]] = dict,
    ) -> None:
        """Write rows as tiles and commit them.

        Any part of this may be done again from the start: a tile or array that was already written is written once
        more with the same values, and nothing counts before the last write, which replaces the root's metadata.

        Parameters
        ----------
        rows : Rows
            Steps and scalars.
        source : callable (start, stop) -> ndarray (row, stop - start)
            Gives a range of the flat rows.
        clocks : sequence of str
            Names of scalars that are clocks.
        finish : callable -> mapping
            Called when all tiles are written; gives attributes to set with the commit.
        """
        array = self._whole(self.array(rows.stop))
        floors = rows.floors
        stops: np.ndarray | None = None
        source_dtype = str(self.attrs.get("source_dtype", self.layout.dtype.name))
        if floors is None and self.variable == WEIGHTS:
            group = self.place.group()
            assert group is not None
            stops = np.asarray(array_of(group, "layer_stop")[...])
            floors = np.zeros((len(rows.steps), stops.size))
        for index, flat in self.layout.blocks():
            block = source(flat.start, flat.stop)
            if stops is not None and floors is not None:
                for k, row in enumerate(block):
                    floors[k] += _floor(row, stops, source_dtype, flat.start)
            shape = (len(rows.steps), *(1 for _ in index[:-1]), flat.stop - flat.start)
            target = (slice(0, 1), slice(rows.first, rows.stop), *(slice(i, i + 1) for i in index[:-1]), index[-1])
            array[target] = block.reshape(1, *shape)
        if stops is not None and floors is not None:
            floors /= np.maximum(np.diff(stops, prepend=0), 1)
        first, last = rows.first // self.layout.rows, self.slabs(rows.stop)
        keys = [key for slab in range(first, last) for key in self.keys_of_slab(slab)]
        if self.place.local is not None:
            keys += [key.rpartition("/")[0] for key in keys]
        self.place.make_durable(dict.fromkeys(keys), "tiles") if self.place.local is not None else None
        self._commit(rows, floors, clocks, finish())

    def _commit(self, rows: Rows, floors: np.ndarray | None, clocks: Sequence[str], attrs: Mapping[str, Any]) -> None:
        group = self.place.group()
        assert group is not None
        known = group.attrs.asdict()
        coordinates = str(known.get("coordinates", "")).split()
        names = dict.fromkeys(name for series in rows.series for name in series)
        for name in names:
            check_series_name(name)
            if self.place.get(f"{name}/zarr.json") is None:
                clock = name in clocks
                put_array(self.place, name, np.zeros((0,) if clock else (1, 0)), (STEP,) if clock else (REPLICA, STEP))
                group = self.place.group()
                assert group is not None
        touched = []
        for name, array in self.arrays().items():
            dims = dims_of(array)
            if STEP not in dims or name == self.variable:
                continue
            axis = dims.index(STEP)
            before = array.shape[axis]
            self._resize(array, axis, rows.stop)
            array = self._whole(array)
            if before < rows.first:  # a scalar that appears late
                array[(slice(None),) * axis + (slice(before, rows.first),)] = np.nan
            target = (slice(None),) * axis + (slice(rows.first, rows.stop),)
            if name == STEP:
                array[target] = np.asarray(rows.steps, dtype=np.int64)
            elif name == FLOOR:
                if floors is not None:
                    array[target] = floors[None]
            else:
                values = np.array([series.get(name, np.nan) for series in rows.series])
                array[target] = values.reshape((1,) * axis + values.shape)
            chunk = array.chunks[axis]
            lead, tail = ["0"] * axis, ["0"] * (len(dims) - axis - 1)
            touched += [
                "/".join([name, "c", *lead, str(k), *tail])
                for k in range(min(before, rows.first) // chunk, -(-rows.stop // chunk) if array.size else 0)
            ]
            touched.append(f"{name}/zarr.json")
        self._resize(array_of(group, self.variable), 1, rows.stop)
        touched.append(f"{self.variable}/zarr.json")
        self.place.make_durable(touched, "series") if self.place.local is not None else None
        coordinates += [name for name in names if name in clocks and name not in coordinates]
        self.mark(coordinates=" ".join(coordinates), **{COMMITTED: rows.stop, STATE: WRITING, CHECKSUMS: None, **attrs})

    @staticmethod
    def _resize(array: zarr.Array, axis: int, rows: int) -> None:
        if array.shape[axis] != rows:
            array.resize((*array.shape[:axis], rows, *array.shape[axis + 1 :]))

    def mark(self, **attrs: Any) -> None:
        """Replace the root's metadata in one atomic write: the commit of everything written before; None deletes."""
        group = self.place.group()
        assert group is not None
        new = {**group.attrs.asdict(), **attrs}
        group.attrs.put({name: value for name, value in new.items() if value is not None})
        self.place.make_durable(["zarr.json"], "commit")

    def truncate(self, rows: int) -> None:
        """Give up the rows from `rows` on: first the commit, then what it no longer covers."""
        self.mark(**{COMMITTED: rows, STATE: WRITING, CHECKSUMS: None})
        for array in self.arrays().values():
            dims = dims_of(array)
            if STEP in dims:
                self._resize(array, dims.index(STEP), rows)

    def finish(self, **attrs: Any) -> None:
        """Mark the store as finished, with checksums of the metadata, which carry none of their own."""
        self.mark(**{STATE: FINISHED, CHECKSUMS: None, **attrs})
        checksums = {name: self._metadata_crc(name) for name in self.arrays()}
        known = self.attrs
        checksums["."] = _crc({name: known.get(name) for name in STRUCTURAL})
        checksums["*"] = _crc({name: value for name, value in known.items() if name != CHECKSUMS})
        self.mark(**{CHECKSUMS: checksums})
        if not self.place.transactional:  # a finished store can be opened from one document
            root = json.loads(self.place.get("zarr.json") or b"{}")
            root[CONSOLIDATED] = self._consolidated()
            self.place.set("zarr.json", json.dumps(root, indent=2).encode())
            self.place.make_durable(["zarr.json"], "consolidate")

    def _consolidated(self) -> dict[str, Any]:
        nodes = {name: json.loads(self.place.get(f"{name}/zarr.json") or b"null") for name in self.arrays()}
        return {"kind": "inline", "must_understand": False, "metadata": nodes}

    def _metadata_crc(self, name: str) -> int:
        return int(google_crc32c.value(self.place.get(f"{name}/zarr.json") or b""))

    def changed_metadata(self, *, every: bool = False) -> list[str]:
        """List the metadata of a finished store that differ from its checksums: ``name/zarr.json``."""
        known = self.attrs
        checksums = known.get(CHECKSUMS)
        if known.get(STATE) != FINISHED or not isinstance(checksums, dict):
            return []
        bad = [
            f"{name}/zarr.json"
            for name in checksums
            if name not in ".*" and self._metadata_crc(name) != checksums[name]
        ]
        structural = _crc({name: known.get(name) for name in STRUCTURAL}) != checksums.get(".")
        root = json.loads(self.place.get("zarr.json") or b"{}")
        structural = structural or (CONSOLIDATED in root and not bad and root[CONSOLIDATED] != self._consolidated())
        whole = _crc({name: value for name, value in known.items() if name != CHECKSUMS}) != checksums.get("*")
        return [*bad, "zarr.json"] if structural or (every and whole) else bad

    def small_chunks(self, rows: int) -> dict[str, str]:
        """List the chunks that the arrays beside the weights must have: key -> name of the array."""
        keys: dict[str, str] = {}
        for name, array in self.arrays().items():
            if name == self.variable:
                continue
            dims = dims_of(array)
            shape = [rows if dim == STEP else n for dim, n in zip(dims, array.shape, strict=True)]
            grid = [-(-n // c) for n, c in zip(shape, array.chunks, strict=True)]
            keys |= {"/".join([name, "c", *map(str, index)]): name for index in np.ndindex(*grid)}
        return keys

    def missing_in(self, bounds: Sequence[tuple[int, int]]) -> list[str]:
        """List the files missing from a range of rows and parameters, given as (start, stop) of each dimension."""
        first, stop = bounds[1]
        slabs = range(first // self.layout.rows, -(-stop // self.layout.rows))
        across = range(bounds[-1][0] // self.layout.shard, -(-bounds[-1][1] // self.layout.shard))
        leads = np.ndindex(*(b - a for a, b in bounds[2:-1]))
        leads_at = [tuple(i + a for i, (a, _) in zip(lead, bounds[2:-1], strict=True)) for lead in leads]
        keys = [self.tile_key(slab, *lead, at) for slab in slabs for lead in leads_at for at in across]
        if self.place.local is not None:
            return [key for key in keys if self.place.folder.size(key) is None]
        return [key for key in keys if self.place.get(key, 0, 1) is None]

    def missing(self, rows: int) -> list[str]:
        """List the files that `rows` committed rows must have and that are not there."""
        small = self.small_chunks(rows)
        if self.place.local is not None:
            folder = self.place.folder
            lost = [key for key in small if folder.size(key) is None]
            if not rows or not self.layout.size:
                return lost
            for slab in range(self.slabs(rows)):
                wanted = self.keys_of_slab(slab)
                folders = {key.rpartition("/")[0] for key in wanted}
                there = {f"{above}/{name}" for above in folders for name in folder.names(above)}
                lost += [key for key in wanted if key not in there]
            return lost
        lost = [key for key in small if self.place.get(key) is None]
        if not rows or not self.layout.size:
            return lost
        there = set(self.place.list_under(self.variable))
        return lost + [key for slab in range(self.slabs(rows)) for key in self.keys_of_slab(slab) if key not in there]


def dims_of(array: zarr.Array) -> tuple[str, ...]:
    """Give the names of the dimensions of an array.

    Parameters
    ----------
    array : zarr.Array
        An array of zarr format 3.

    Returns
    -------
    tuple of str
        Its ``dimension_names``; empty if it has none.
    """
    return tuple(str(name) for name in getattr(array.metadata, "dimension_names", None) or ())


def _crc(values: Mapping[str, Any]) -> int:
    return int(google_crc32c.value(json.dumps(values, sort_keys=True).encode()))


def _floor(row: np.ndarray, stops: np.ndarray, source_dtype: str, start: int) -> np.ndarray:
    from trajstats.data.rounding import rounding_floor  # numba is imported only where a floor is needed

    return rounding_floor(row, stops, source_dtype, start=start)


def layer_names(group: zarr.Group) -> list[str]:
    """Read the names of the layers of a store.

    Parameters
    ----------
    group : zarr.Group
        Root of the store.

    Returns
    -------
    list of str
        In the order of `parameter`.
    """
    return [str(name) for name in np.asarray(array_of(group, LAYER)[...])]
