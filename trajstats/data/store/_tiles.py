"""Tiles: slabs of rows in, any range of rows and parameters out; a missing tile is an error, never a number."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import zarr

from trajstats.data._buffer_tensors import BufferTensor, tensors_from_json
from trajstats.data._buffers import TENSORS
from trajstats.data._digests import LayerFacts
from trajstats.data.safety._codecs import bounded
from trajstats.data.schema import LAYER, REPLICA, SKETCH, STEP, WEIGHTS
from trajstats.data.store._guard import FREE_TILES, check_claims, node_names, read_json
from trajstats.data.store._layout import (
    BUFFER_BYTES,
    COMMITTED,
    DIGEST,
    FINISHED,
    FLOOR,
    JOURNAL,
    STATE,
    WRITING,
    Layout,
    array_of,
    layout_of,
    put_array,
)
from trajstats.data.store._metadata_sums import (
    CONSOLIDATED,
    ROOT,
    array_sum,
    changed_metadata,
    committed_names,
    consolidated,
    rows_of,
    with_sums,
)
from trajstats.data.store._names import check_series_name
from trajstats.data.store.files._place import Place
from trajstats.errors import StoreError


@dataclass(frozen=True)
class Rows:
    """What is known of a stretch of rows besides their weights."""

    first: int  # Position of the first along `step`
    steps: Sequence[int]  # Optimiser steps
    series: Sequence[Mapping[str, float]]  # Scalars of each row
    floors: np.ndarray | None = None  # Rounding floor and digest of each layer; found while writing if not given
    digests: np.ndarray | None = None  # Rounding floor and digest of each layer; found while writing if not given

    @property
    def stop(self) -> int:
        """Position after the last row."""
        return self.first + len(self.steps)


MAX_RESIZED = 500_000  # files of an array; zarr lists all of them when its shape changes
Source = Callable[[int, int], np.ndarray]


class Tiles:
    """The tile part of one store."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self._known_sums: dict[str, int | None] = {}
        group = place.group()
        if group is None:
            msg = f"{place}: no trajectory store here (no zarr.json)"
            raise StoreError(msg)
        self.variable = SKETCH if place.get(f"{SKETCH}/zarr.json") is not None else WEIGHTS
        self.layout: Layout = layout_of(array_of(group, self.variable))
        self.tensors: list[BufferTensor] = []
        self.buffers: Layout | None = None  # of the bytes of the buffers, where there are any
        if place.get(f"{BUFFER_BYTES}/zarr.json") is not None:
            array = array_of(group, BUFFER_BYTES)
            self.tensors = tensors_from_json(array.attrs.get(TENSORS), f"{place}: {BUFFER_BYTES}")
            self.buffers = layout_of(array)
            if self.buffers.row_shape != (sum(tensor.nbytes for tensor in self.tensors),):
                msg = f"{place}: {BUFFER_BYTES} has rows of {self.buffers.row_shape} bytes; its tensors have others"
                raise StoreError(msg)

    @property
    def attrs(self) -> dict[str, Any]:
        """Attributes of the root, read now: the commit marker is among them."""
        group = self.place.group()
        return {} if group is None else group.attrs.asdict()

    @property
    def n_layers(self) -> int:
        """Number of layers."""
        group = self.place.group()
        assert group is not None
        return int(array_of(group, LAYER).size)

    @property
    def _tiled(self) -> list[str]:
        """Names of the arrays that are stored in tiles."""
        return [layout.variable for layout in (self.layout, self.buffers) if layout is not None]

    @property
    def buffer_bytes(self) -> list[int]:
        """Bytes of each buffer, as a journal asks for them."""
        return [tensor.nbytes for tensor in self.tensors]

    def array(self, rows: int | None = None, *, buffers: bool = False) -> zarr.Array:
        """Open the array of weights, or of bytes of buffers, as if it had at least `rows` rows; nothing is written."""
        group = self.place.group()
        if group is None:
            msg = f"{self.place}: the store is gone"
            raise StoreError(msg)
        array = array_of(group, BUFFER_BYTES if buffers else self.variable)
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

    def arrays(self, *, committed: bool = False) -> dict[str, zarr.Array]:
        """Open every array of the root, or those that were committed; what a killed writer left behind is not seen."""
        group = self.place.group()
        assert group is not None
        counted = committed_names(group.attrs.asdict()) if committed else None
        return {name: array_of(group, name) for name in self.names() if counted is None or name in counted}

    def names(self) -> list[str]:
        """List the arrays of the root, without opening one."""
        if self.place.local is None:
            named = [name for name in node_names(self.place) if name != JOURNAL]
            return [name for name in named if self.place.get(f"{name}/zarr.json") is not None]
        folder = self.place.folder
        return sorted(n for n in folder.names() if n != JOURNAL and folder.size(f"{n}/zarr.json") is not None)

    def write(
        self,
        rows: Rows,
        source: Source,
        *,
        buffers: Source | None = None,
        clocks: Sequence[str] = (),
        finish: Callable[[], Mapping[str, Any]] = dict,
    ) -> None:
        """Write rows as tiles and commit them.

        Any part of this may be done again from the start: a tile or array that was already written is written once
        more with the same values, and nothing counts before the last write, which replaces the root's metadata.
        """
        if (buffers is None) != (self.buffers is None):
            msg = (
                f"{self.place}: rows come {'without' if buffers is None else 'with'} buffers, unlike those of the store"
            )
            raise StoreError(msg)
        facts = self._facts(rows)
        self._write_tiles(self.layout, rows, source, facts)
        if buffers is not None and self.buffers is not None:
            self._write_tiles(self.buffers, rows, buffers, None)
        floors = facts.floors if rows.floors is None else rows.floors
        digests = facts.digests if rows.digests is None else rows.digests
        self._commit(replace(rows, floors=floors, digests=digests), clocks, finish())

    def _facts(self, rows: Rows) -> LayerFacts:
        group = self.place.group()
        assert group is not None
        stops = np.asarray(array_of(group, "layer_stop")[...])
        source_dtype = str(self.attrs.get("source_dtype", self.layout.dtype.name))
        plain = self.variable == WEIGHTS
        digests = plain and rows.digests is None and DIGEST in group
        return LayerFacts(len(rows.steps), stops, source_dtype, floors=plain and rows.floors is None, digests=digests)

    def _write_tiles(self, layout: Layout, rows: Rows, source: Source, facts: LayerFacts | None) -> None:
        array = self._whole(self.array(rows.stop, buffers=layout is self.buffers))
        for index, flat in layout.blocks():
            block = source(flat.start, flat.stop)
            if facts is not None:
                facts.add(block, flat.start)
            shape = (len(rows.steps), *(1 for _ in index[:-1]), flat.stop - flat.start)
            target = (slice(0, 1), slice(rows.first, rows.stop), *(slice(i, i + 1) for i in index[:-1]), index[-1])
            array[target] = block.reshape(1, *shape)
        if self.place.local is None:
            return
        first, last = rows.first // layout.rows, slabs(layout, rows.stop)
        keys = [key for slab in range(first, last) for key in keys_of_slab(layout, slab)] if layout.size else []
        keys += [key.rpartition("/")[0] for key in keys]
        self.place.make_durable(dict.fromkeys(keys), "tiles")

    def _commit(self, rows: Rows, clocks: Sequence[str], attrs: Mapping[str, Any]) -> None:
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
            if STEP not in dims or name in self._tiled:
                continue
            axis = dims.index(STEP)
            before = array.shape[axis]
            self._resize(array, axis, rows.stop)
            array = self._whole(array)
            if before < rows.first:  # a scalar that appears late
                array[(slice(None),) * axis + (slice(before, rows.first),)] = 0 if name == DIGEST else np.nan
            target = (slice(None),) * axis + (slice(rows.first, rows.stop),)
            if name == STEP:
                array[target] = np.asarray(rows.steps, dtype=np.int64)
            elif name in (FLOOR, DIGEST) and len(dims) == 3:
                values = rows.floors if name == FLOOR else rows.digests
                if values is not None:
                    array[target] = values[None]
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
        for name in self._tiled:
            self._resize(array_of(group, name), 1, rows.stop)
            touched.append(f"{name}/zarr.json")
        self.place.make_durable(touched, "series") if self.place.local is not None else None
        coordinates += [name for name in names if name in clocks and name not in coordinates]
        self.mark(coordinates=" ".join(coordinates), **{COMMITTED: rows.stop, STATE: WRITING, **attrs})

    @staticmethod
    def _resize(array: zarr.Array, axis: int, rows: int) -> None:
        if array.shape[axis] == rows:
            return
        files = math.prod(-(-n // c) for n, c in zip(array.shape, array.shards or array.chunks, strict=True))
        if files > MAX_RESIZED:
            msg = (
                f"{array.store_path}: the metadata claim {array.shape[axis]} rows in {files} files, where {rows} rows "
                "are written. They are damaged; restore zarr.json from a copy"
            )
            raise StoreError(msg)
        array.resize((*array.shape[:axis], rows, *array.shape[axis + 1 :]))

    def mark(self, **attrs: Any) -> None:
        """Replace the root's metadata in one atomic write: the commit of everything written before; None deletes."""
        group = self.place.group()
        assert group is not None
        new = {**group.attrs.asdict(), **attrs}
        new = {name: value for name, value in new.items() if value is not None}
        group.attrs.put(with_sums(new, self._sums(new)))
        self.place.make_durable(["zarr.json"], "commit")

    def _sums(self, attrs: Mapping[str, Any]) -> dict[str, int | None]:
        """Compute the checksums of the arrays that count; while a store grows they stay what they are."""
        state, rows = attrs.get(STATE), int(attrs.get(COMMITTED, 0))
        if state == FINISHED:
            return {name: array_sum(self.place, name, state) for name in self.names()}
        for name in self.names():
            if name not in self._known_sums and self._counts(name, rows):
                self._known_sums[name] = array_sum(self.place, name, state)
        return self._known_sums

    def _counts(self, name: str, rows: int) -> bool:
        along = rows_of(self.place, name)
        return along is None or along >= rows

    def truncate(self, rows: int) -> None:
        """Give up the rows from `rows` on: first the commit, then what it no longer covers."""
        self.mark(**{COMMITTED: rows, STATE: WRITING})
        for array in self.arrays().values():
            dims = dims_of(array)
            if STEP in dims:
                self._resize(array, dims.index(STEP), rows)

    def finish(self, **attrs: Any) -> None:
        """Mark the store as finished; arrays that were begun and never committed are deleted."""
        rows = int(self.attrs.get(COMMITTED, 0))
        for name in self.names():
            if not self._counts(name, rows):
                self.place.delete_under(name)
        self.mark(**{STATE: FINISHED, **attrs})
        if not self.place.transactional:  # a finished store can be opened from one document
            root = {**(read_json(self.place, ROOT) or {}), CONSOLIDATED: consolidated(self.place, self.names())}
            self.place.set(ROOT, json.dumps(root, indent=2).encode())
            self.place.make_durable([ROOT], "consolidate")

    def changed_metadata(self) -> list[str]:
        """List the metadata that differ from their checksums: ``name/zarr.json``."""
        return changed_metadata(self.place, self.attrs)

    def small_chunks(self, rows: int) -> dict[str, str]:
        """List the chunks that the arrays other than the weights must have: key -> name of the array."""
        grids: dict[str, list[int]] = {}
        for name, array in self.arrays(committed=True).items():
            if name not in self._tiled:
                dims = dims_of(array)
                shape = [rows if dim == STEP else n for dim, n in zip(dims, array.shape, strict=True)]
                grids[name] = [-(-n // c) for n, c in zip(shape, array.chunks, strict=True)]
        self._believe(rows, sum(map(math.prod, grids.values())))
        return {"/".join([n, "c", *map(str, i)]): n for n, grid in grids.items() for i in np.ndindex(*grid)}

    def _believe(self, rows: int, small: int) -> None:
        """Refuse more files than a place that is no folder can have, before one is named; folders were compared."""
        claimed = small + sum(
            slabs(layout, rows) * math.prod(layout.row_shape[:-1]) * -(-layout.row_shape[-1] // layout.shard)
            for layout in filter(None, (self.layout, self.buffers))
        )
        if self.place.local is None and claimed > FREE_TILES:
            there = sum(len(self.place.list_under(name)) for name in self.names())
            check_claims(self.place, claimed, there)

    def missing_in(self, bounds: Sequence[tuple[int, int]], *, buffers: bool = False) -> list[str]:
        """List the files missing from a range of rows and parameters, given as (start, stop) of each dimension."""
        layout = self.buffers if buffers and self.buffers is not None else self.layout
        first, stop = bounds[1]
        across = range(bounds[-1][0] // layout.shard, -(-bounds[-1][1] // layout.shard))
        leads = np.ndindex(*(b - a for a, b in bounds[2:-1]))
        leads_at = [tuple(i + a for i, (a, _) in zip(lead, bounds[2:-1], strict=True)) for lead in leads]
        rows = range(first // layout.rows, slabs(layout, stop))
        keys = [tile_key(layout, slab, *lead, at) for slab in rows for lead in leads_at for at in across]
        if self.place.local is not None:
            return [key for key in keys if self.place.folder.size(key) is None]
        return [key for key in keys if self.place.get(key, 0, 1) is None]

    def missing(self, rows: int) -> list[str]:
        """List the files that `rows` committed rows must have and that are not there."""
        small = self.small_chunks(rows)
        if self.place.local is not None:
            folder = self.place.folder
            lost = [key for key in small if folder.size(key) is None]
            for wanted in self._wanted(rows):
                folders = {key.rpartition("/")[0] for key in wanted}
                there = {f"{above}/{name}" for above in folders for name in folder.names(above)}
                lost += [key for key in wanted if key not in there]
            return lost
        lost = [key for key in small if self.place.get(key) is None]
        there = {key for name in self._tiled if rows for key in self.place.list_under(name)}
        return lost + [key for wanted in self._wanted(rows) for key in wanted if key not in there]

    def _wanted(self, rows: int) -> Iterator[list[str]]:
        for layout in filter(None, (self.layout, self.buffers)):
            for slab in range(slabs(layout, rows) if layout.size else 0):
                yield keys_of_slab(layout, slab)


def dims_of(array: zarr.Array) -> tuple[str, ...]:
    """Give the names of the dimensions of an array; an array that has none, or a wrong number, is refused."""
    names = getattr(array.metadata, "dimension_names", None) or ()
    if len(names) != array.ndim:
        msg = f"{array.store_path}: {array.ndim} dimensions have {len(names)} names; each needs one. Restore zarr.json"
        raise StoreError(msg)
    return tuple(str(name) for name in names)


def tile_key(layout: Layout, slab: int, *where: int) -> str:
    """Name the file of a tile: slab of rows, then its place across the row."""
    return "/".join([layout.variable, "c", "0", str(slab), *(str(index) for index in where)])


def keys_of_slab(layout: Layout, slab: int) -> list[str]:
    """List the files one slab of rows must have."""
    across = -(-layout.row_shape[-1] // layout.shard)
    return [tile_key(layout, slab, *index) for index in np.ndindex((*layout.row_shape[:-1], across))]


def slabs(layout: Layout, rows: int) -> int:
    """Count the slabs that `rows` rows take."""
    return -(-rows // layout.rows)


def layer_names(group: zarr.Group) -> list[str]:
    """Read the names of the layers of a store."""
    return [str(name) for name in np.asarray(array_of(group, LAYER)[...])]
