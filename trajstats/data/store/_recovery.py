"""What a writer does around its rows: look at what is there, recover it, gather it, take arrays of any framework."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from itertools import pairwise
from threading import Event
from typing import Any

import numpy as np

from trajstats.data._rounding import rounding_floor
from trajstats.data.safety._budget import foreign
from trajstats.data.schema import SCHEMA_VERSION, STEP
from trajstats.data.store._buffer_rows import JournalBuffers
from trajstats.data.store._layout import (
    COMMITTED,
    FINISHED,
    INITIAL,
    JOURNAL,
    READ_FORMATS,
    STATE,
    STORE_FORMAT,
    array_of,
)
from trajstats.data.store._names import check_series_name
from trajstats.data.store._tiles import Rows, Tiles
from trajstats.data.store.files._folder import PARTIAL
from trajstats.data.store.files._place import Place
from trajstats.data.store.journal._records import Journal, Record
from trajstats.errors import ArgumentError, SchemaError, StoreError


def compact_records(
    tiles: Tiles, journal: Journal, records: Sequence[Record], clocks: Sequence[str], stopped: Event
) -> None:
    """Gather rows of the journal into tiles and commit them; the journal is left as it is."""
    if not records:
        return
    item = tiles.layout.dtype.itemsize

    def source(start: int, stop: int) -> np.ndarray:
        if stopped.is_set():
            msg = f"{tiles.place}: stopped while rows were gathered into tiles; they are safe in the journal"
            raise StoreError(msg)
        block = np.empty((len(records), stop - start), dtype=tiles.layout.dtype)
        for k, record in enumerate(records):
            block[k] = np.frombuffer(journal.read(record, start * item, stop * item), dtype=tiles.layout.dtype)
        return block

    held = JournalBuffers(journal, records, tiles.tensors, tiles.layout.row_bytes)

    def buffers(start: int, stop: int) -> np.ndarray:
        block = np.empty((len(records), stop - start), dtype=np.uint8)
        held.read(block, 0, start, stop)
        return block

    series = [dict(record.metadata.get("series", {})) for record in records]
    floors, digests = (_of_layers(records, name, kind) for name, kind in (("floor", np.float64), ("digest", np.uint64)))
    rows = Rows(records[0].row, [record.step for record in records], series, floors, digests)
    tiles.write(rows, source, buffers=None if tiles.buffers is None else buffers, clocks=clocks)


def _of_layers(records: Sequence[Record], name: str, kind: Any) -> np.ndarray | None:
    # What records say of each layer, (row, layer); None where one of them says nothing.
    if not all(name in record.metadata for record in records):
        return None
    return np.array([record.metadata[name] for record in records], dtype=kind).reshape(len(records), -1)


def recover(journal: Journal, first_row: int, place: Place) -> list[Record]:
    """List the rows of a journal that are whole, and say so where a row that was whole once no longer is."""
    records, damage = journal.scan(first_row)
    if damage is None or damage.torn:
        return records
    if damage.after or damage.lost:
        msg = (
            f"{place}: {damage}. Nothing was changed. Restore the file, or give these rows up with "
            f"trajstats.delete_after(path, row={damage.row})."
        )
        raise StoreError(msg)
    warnings.warn(
        f"{place}: the last row, {damage.row}, fails its checksum (a power cut while it was written, or a change since "
        "then) and is left out",
        stacklevel=5,
    )
    return records


def to_scalars(series: Mapping[str, Any]) -> dict[str, float]:
    """Take the scalars of a row as numbers."""
    scalars = {}
    for name, value in series.items():
        check_series_name(name)
        try:
            scalars[name] = float(value)
        except (TypeError, ValueError) as error:
            msg = f"{name}={value!r:.60}: a series is one number a step. Other data belong into attrs."
            raise ArgumentError(msg) from error
    return scalars


def layer_floors(payload: Sequence[np.ndarray], stops: np.ndarray, source_dtype: str) -> np.ndarray:
    """Give the rounding floor of each layer of one row."""
    total = np.zeros(stops.size)
    if len(payload) == 1:
        total += rounding_floor(payload[0].reshape(-1), stops, source_dtype)
    else:
        for k, array in enumerate(payload):
            total[k] = rounding_floor(array.reshape(-1), np.array([array.size]), source_dtype)[0]
    return total / np.maximum(np.diff(stops, prepend=0), 1)


def check_sync(sync: str | float) -> float:
    """Turn the flush policy into seconds between flushes."""
    if sync == "row":
        return 0.0
    if isinstance(sync, str) or not sync >= 0 or math.isinf(sync):
        msg = f"sync={sync!r}: give 'row' to flush every row, or the number of seconds between flushes"
        raise ArgumentError(msg)
    return float(sync)


def check_store(tiles: Tiles) -> dict[str, Any]:
    """Check that a store was written by a TrajectoryWriter of this version."""
    known = tiles.attrs
    if known.get("schema_version") != SCHEMA_VERSION:
        msg = (
            f"{tiles.place} has schema_version {known.get('schema_version')!r}; this trajstats writes {SCHEMA_VERSION}"
        )
        raise SchemaError(msg)
    if known.get("store_format") not in READ_FORMATS or COMMITTED not in known:
        msg = (
            f"{tiles.place} is zarr, but was not written by TrajectoryWriter (store_format "
            f"{known.get('store_format')!r}, this trajstats writes {STORE_FORMAT}). Copy it with append_from first."
        )
        raise StoreError(msg)
    return known


def refuse_changed(tiles: Tiles) -> None:
    """Refuse to write into a store whose metadata changed or whose small arrays are not whole."""
    if changed := tiles.changed_metadata():
        msg = f"{tiles.place}: {', '.join(changed[:5])} changed since the store was written; restore it from a copy"
        raise StoreError(msg)


def refuse_missing(tiles: Tiles, rows: int) -> None:
    """Refuse to write into a store that lost files of the arrays other than the weights."""
    if lost := [key for key in tiles.small_chunks(rows) if tiles.place.get(key, 0, 1) is None]:
        msg = f"{tiles.place}: {', '.join(lost[:3])} missing ({len(lost)} files); restore the store from a copy"
        raise StoreError(msg)


def put_journal_node(place: Place) -> None:
    """Make the journal a node of the hierarchy, so that zarr does not wonder what it is."""
    key, node = f"{JOURNAL}/zarr.json", {"attributes": {}, "zarr_format": 3, "node_type": "group"}
    if place.get(key) != (wanted := json.dumps(node).encode()):
        place.set(key, wanted)


def stored_steps(tiles: Tiles, rows: int) -> list[int]:
    """Read the steps of the rows in tiles."""
    group = tiles.place.group()
    assert group is not None
    with foreign(f"{tiles.place}: the array {STEP!r}", "Restore it from a copy"):
        steps = np.asarray(array_of(group, STEP)[:rows])
    if steps.dtype.kind != "i" or steps.shape != (rows,) or (np.diff(steps) <= 0).any():
        msg = f"{tiles.place}: the stored steps are not {rows} increasing integers; restore the store from a copy"
        raise StoreError(msg)
    return [int(step) for step in steps]


def check_next_steps(steps: Sequence[int], place: Place) -> None:
    """Check that the rows of the journal come after those in tiles."""
    if any(after <= before for before, after in pairwise(steps)):
        msg = f"{place}: the steps of the journal do not follow those in tiles; restore the store from a copy"
        raise StoreError(msg)


def stored_reference(place: Place) -> np.ndarray | None:
    """Read w(0) of a sketched run."""
    group = place.group()
    assert group is not None
    return np.asarray(array_of(group, INITIAL)[...]) if place.get(f"{INITIAL}/zarr.json") is not None else None


def state_of(place: Place) -> str | None:
    """Read the state of a store."""
    group = place.group()
    return None if group is None else str(group.attrs.get(STATE, FINISHED))


def check_vacant(place: Place) -> None:
    """Check that a place holds a store or nothing: nothing else is ever written into."""
    if place.local is None or not place.local.is_dir() or place.folder.size("zarr.json") is not None:
        return
    others = [e.name for e in place.local.iterdir() if e.name != JOURNAL and not e.name.endswith(PARTIAL)]
    if any(name.endswith(".rows") for name in place.folder.names(JOURNAL)):
        msg = f"{place} has a journal with rows and no zarr.json, which was lost; restore it from a copy"
        raise StoreError(msg)
    if others:
        msg = f"{place} is a folder that holds other things ({', '.join(sorted(others)[:3])}); choose a new path"
        raise StoreError(msg)


def clean(place: Place) -> None:
    """Delete the files that a killed writer had not yet renamed into place."""
    if place.local is not None:
        for key in [key for key in place.folder.files() if key.endswith(PARTIAL)]:
            place.folder.remove(key)
