"""Operations on whole stores: finish a run, append rows to it, delete its last rows."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import xarray as xr

from trajstats.data._buffers import buffers_at, tensors_of
from trajstats.data.safety._budget import read_attribute, shorten
from trajstats.data.safety._credentials import without_credentials
from trajstats.data.schema import PARAMETER, REPLICA, STEP, WEIGHTS, check_trajectory, layer_shapes
from trajstats.data.sketch import Sketch
from trajstats.data.store._buffer_rows import as_given
from trajstats.data.store._guard import check_zarr
from trajstats.data.store._layout import COMMITTED, FINISHED, STATE, array_of
from trajstats.data.store._recovery import check_store, clean
from trajstats.data.store._tiles import Tiles
from trajstats.data.store.files._lock import WriterLock
from trajstats.data.store.files._place import Place
from trajstats.data.store.journal._files import open_journal
from trajstats.data.store.open import open_trajectory
from trajstats.data.store.writer import TrajectoryWriter
from trajstats.errors import ArgumentError, StoreError

ROW_BLOCK_BYTES = 2**28
_OWN_ATTRS = {"schema_version", "store_format", "uid", STATE, COMMITTED, "checksums", "coordinates"}


def compact(path: Any, /, *, take_over: bool = False) -> None:
    """Gather the journal of a run that ended early into tiles and finish the store.

    Parameters
    ----------
    path : path, URL, zarr store or repository
        The store; nothing happens if it is finished.
    take_over : bool
        Go on although a writer on another host left its lock behind.

    Raises
    ------
    StoreError
        If a writer has the store open, or its journal is damaged in the middle.
    """
    if check_zarr(Place(path)).get(STATE) == FINISHED:
        return
    run = open_trajectory(path, damaged="raise")
    layers, sketch = layer_shapes(run), _sketch_of(path, run.attrs)
    _check_sketch(path, sketch, layers, Tiles(Place(path)).layout.row_shape)
    TrajectoryWriter(path, layers, buffers=as_given(tensors_of(run)), sketch=sketch, take_over=take_over).close()


def append_from(path: Any, trajectory: Any, /, *, attrs: Mapping[str, Any] | None = None) -> None:
    """Append the rows of another trajectory, as far as they come after the last step that is stored.

    Parameters
    ----------
    path : path, URL, zarr store or repository
        The store to extend; made if it does not exist.
    trajectory : xarray.Dataset, or path
        Where the rows come from: one replica, the same layers and buffers.
    attrs : mapping, optional
        Attributes of a new store; those of `trajectory` if not given.

    Raises
    ------
    ArgumentError
        If `trajectory` has several replicas, or other layers or buffers.
    """
    source = trajectory if isinstance(trajectory, xr.Dataset) else open_trajectory(trajectory)
    source = check_trajectory(source)
    if source.sizes[REPLICA] != 1:
        msg = f"{source.sizes[REPLICA]} replicas; a store holds one run. Use .isel(replica=[0])"
        raise ArgumentError(msg)
    clocks = [str(n) for n, c in source.coords.items() if c.dims == (STEP,) and n != STEP]
    series = [str(n) for n, v in source.data_vars.items() if v.dims == (REPLICA, STEP)]
    scalars = {**{n: source[n].values for n in clocks}, **{n: source[n].values[0] for n in series}}
    kept = {str(k): v for k, v in (attrs or source.attrs).items() if k not in _OWN_ATTRS}
    weights = source[WEIGHTS]
    with TrajectoryWriter(
        path,
        layer_shapes(source),
        replica=int(source[REPLICA].values[0]),
        buffers=as_given(tensors_of(source)),
        attrs=kept,
        clocks=clocks,
        dtype=weights.dtype.name,
        source_dtype=kept.get("source_dtype"),
    ) as writer:
        steps = source[STEP].values
        first = int(np.searchsorted(steps, -1 if writer.last_step is None else writer.last_step, side="right"))
        height = max(1, ROW_BLOCK_BYTES // max(1, weights.sizes[PARAMETER] * weights.dtype.itemsize))
        for start in range(first, steps.size, height):
            block = weights.isel({REPLICA: 0, STEP: slice(start, start + height)}).values
            for k, row in enumerate(block, start=start):
                given = {n: float(v[k]) for n, v in scalars.items() if not np.isnan(v[k])}
                writer.append(int(steps[k]), row, buffers=buffers_at(source, 0, k), **given)


def delete_after(path: Any, /, step: int | None = None, *, row: int | None = None) -> None:
    """Delete the rows after a step permanently: to go back before a run went wrong, or to give up a damaged journal.

    Parameters
    ----------
    path : path, URL, zarr store or repository
        The store.
    step : int, optional
        The last step to keep.
    row : int, optional
        Instead of `step`, how many rows to keep.

    Raises
    ------
    ArgumentError
        If neither or both are given.
    StoreError
        If a writer has the store open.
    """
    if (step is None) == (row is None):
        msg = "give the last step to keep, or row=, the number of rows to keep"
        raise ArgumentError(msg)
    check_zarr(Place(path))
    place = Place(path, write=True)
    lock = WriterLock(place)
    finished = False
    try:
        clean(place)
        tiles = Tiles(place)
        known = check_store(tiles)
        done = int(known[COMMITTED])
        journal = open_journal(place, tiles.layout.row_bytes, tiles.layout.rows, tiles.buffer_bytes)
        records = journal.scan(done)[0]
        group = place.group()
        assert group is not None
        steps = [*np.asarray(array_of(group, STEP)[:done]).tolist(), *(record.step for record in records)]
        keep = sum(s <= step for s in steps) if step is not None else min(len(steps), row or 0)
        if keep < 0:
            msg = f"row={row}: the number of rows to keep is at least 0"
            raise ArgumentError(msg)
        if place.local is not None or records:
            journal.continue_after([record for record in records if record.row < keep])
        if keep < done:
            tiles.truncate(keep)
        if known.get(STATE) == FINISHED:
            tiles.finish()
            finished = True
    finally:
        lock.release(remove_journal=finished)


def _sketch_of(path: Any, attrs: Mapping[str, Any]) -> Sketch | None:
    if "sketch_kind" not in attrs:
        return None
    read = partial(read_attribute, without_credentials(path), attrs)
    numbers = {name: read(f"sketch_{name}", int) for name in ("buckets", "hashes", "seed")}
    kind = read("sketch_kind", str)
    return Sketch(**numbers, kind=kind)


def _check_sketch(path: Any, sketch: Sketch | None, layers: Mapping[str, tuple[int, ...]], row: Any) -> None:
    """Refuse attributes that describe other sketches than are stored, before anything of their size is made."""
    if sketch is not None and sketch.shape(layers) != tuple(row):
        msg = (
            f"{without_credentials(path)}/zarr.json: sketch_hashes and sketch_buckets give rows of shape "
            f"{shorten(sketch.shape(layers))}; the stored ones have {shorten(tuple(row))}. Restore it from a copy"
        )
        raise StoreError(msg)
