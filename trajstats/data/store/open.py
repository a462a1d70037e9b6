"""The trajectory store: record weights while a network trains, open what was recorded."""

from __future__ import annotations

import glob
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from trajstats.data._buffers import BUFFER_NAME, BUFFERS
from trajstats.data._labels import label
from trajstats.data.safety._budget import foreign
from trajstats.data.safety._codecs import bounded_codecs
from trajstats.data.safety._credentials import without_credentials
from trajstats.data.schema import (
    CLOCKS,
    LAYER,
    PARAMETER,
    REPLICA,
    SCHEMA_VERSION,
    SKETCH,
    SKETCH_DIMS,
    STEP,
    WEIGHT_DIMS,
    check_trajectory,
)
from trajstats.data.store._dask_buffers import lazy_buffers
from trajstats.data.store._guard import check_zarr
from trajstats.data.store._joined import _join
from trajstats.data.store._layout import (
    BUFFER_BYTES,
    COMMITTED,
    CREATING,
    DIGEST,
    FINISHED,
    FLOOR,
    INITIAL,
    STATE,
    array_of,
)
from trajstats.data.store._metadata_sums import ATTRIBUTES
from trajstats.data.store._rows import StoredRows, missing_tiles_message
from trajstats.data.store._tiles import Tiles, dims_of, layer_names
from trajstats.data.store.files._place import Place
from trajstats.data.store.journal._files import open_journal
from trajstats.data.store.journal._records import Record, check_records
from trajstats.data.store.writer import TrajectoryWriter
from trajstats.errors import (
    ArgumentError,
    SchemaError,
    StoreError,
    StoreNotFoundError,
    UnsafeInputError,
    unknown_name_message,
)

__all__ = ["StoredRows", "TrajectoryWriter", "follow", "open_trajectory"]

BLOCK_BYTES = 32 * 2**20


def open_trajectory(
    paths: Any,
    *,
    layers: Sequence[str] | None = None,
    damaged: str = "raise",
    block_bytes: int = BLOCK_BYTES,
) -> xr.Dataset:
    """Open one run, or join a list or glob of runs of one architecture along `replica`, lazily.

    Parameters
    ----------
    paths : path, URL, zarr store, repository; or a list of them; or a glob pattern
        Where the runs are. Matches of a pattern are joined in natural order. Patterns of URLs: `open_sweep`.
    layers : sequence of str, optional
        Layers to keep; all if not given.
    damaged : str
        ``"raise"``, or ``"drop"``: leave out the layers that have a damaged tile (every tile is read once to know), and
        the buffers if one of their tiles is damaged.
    block_bytes : int
        Size of the blocks in which weights are read: all steps of a range of parameters.

    Returns
    -------
    xarray.Dataset
        A trajectory. Of a store that is being written it holds the committed rows, and its attribute ``state`` is
        ``"writing"``; :func:`follow` waits for more. Joined runs keep the steps they all have.

    Raises
    ------
    ArgumentError
        If an argument is not allowed.
    StoreNotFoundError
        If a path does not exist or a pattern matches nothing.
    SchemaError
        If a store has another schema version, is not a trajectory, or runs differ in their layers or buffers.
    StoreError
        If tiles are missing or damaged.
    UnsafeInputError
        If the metadata ask for something a trajectory never needs.

    Examples
    --------
    >>> import tempfile
    >>> path = tempfile.mkdtemp() + "/run.zarr"
    >>> with TrajectoryWriter(path, {"w": (2,)}) as writer:
    ...     for step in (0, 10):
    ...         writer.append(step, [step, 1.0], loss=0.5)
    >>> run = open_trajectory(path)
    >>> run.weights.values.tolist(), run.state
    ([[[0.0, 1.0], [10.0, 1.0]]], 'finished')
    """
    if damaged not in {"raise", "drop"}:
        raise ArgumentError(unknown_name_message("choice of damaged", damaged, ["raise", "drop"]))
    local = isinstance(paths, str | Path) and "://" not in str(paths)
    if local and glob.has_magic(str(paths)) and not Path(paths).exists():
        from trajstats.data._naming import natural_key

        found = sorted(glob.glob(str(paths)), key=natural_key)
        if not found:
            msg = f"no store matches {str(paths)!r}; check the pattern and the folder it starts from"
            raise StoreNotFoundError(msg)
        paths = found
    if isinstance(paths, str) and not local and glob.has_magic(paths):  # or an address with a query
        try:
            return _open_one(paths, layers, damaged, block_bytes)
        except StoreNotFoundError:
            msg = (
                f"{without_credentials(paths)} is no trajectory store, and patterns of URLs are not expanded here: "
                "open_sweep(pattern) opens the runs that match; open_trajectory([url, ...]) joins runs along replica"
            )
            raise StoreNotFoundError(msg) from None
    if isinstance(paths, list | tuple):
        if not paths:
            msg = "the list of stores is empty"
            raise StoreNotFoundError(msg)
        return _join([_open_one(path, layers, damaged, block_bytes) for path in paths], paths)
    return _open_one(paths, layers, damaged, block_bytes)


def follow(target: Any, /, *, poll: float = 1.0, timeout: float | None = None) -> Iterator[xr.Dataset]:
    """Watch a run that is being written: give the trajectory whenever rows were added, until it is finished.

    Parameters
    ----------
    target : path, URL or zarr store
        The store.
    poll : float
        Seconds between looks.
    timeout : float, optional
        Seconds without a new row after which to stop; for ever if not given.

    Yields
    ------
    xarray.Dataset
        All committed rows so far; the last one has ``state == "finished"`` unless the timeout ended the watch.
    """
    seen: tuple[int, str] = (-1, "")
    since = time.monotonic()
    while True:
        run = open_trajectory(target)
        now = (run.sizes[STEP], str(run.attrs.get(STATE)))
        if now != seen:
            seen, since = now, time.monotonic()
            yield run
        if now[1] == FINISHED or (timeout is not None and time.monotonic() - since > timeout):
            return
        time.sleep(poll)


def _open_one(target: Any, layers: Sequence[str] | None, damaged: str, block_bytes: int) -> xr.Dataset:
    place = Place(target)
    attrs = check_zarr(place)
    with place.remembering() if attrs.get(STATE) == FINISHED else nullcontext():
        return _checked(target, place, attrs, layers, damaged, block_bytes)


def _checked(
    target: Any,
    place: Place,
    attrs: dict[str, Any],
    layers: Sequence[str] | None,
    damaged: str,
    block_bytes: int,
) -> xr.Dataset:
    if attrs.get(STATE) == CREATING:
        msg = f"{place} is being created, or its creation was cut short; nothing was recorded yet"
        raise StoreError(msg)
    if attrs.get("schema_version") != SCHEMA_VERSION:
        msg = (
            f"{place} has schema_version {attrs.get('schema_version')!r}; this one reads version {SCHEMA_VERSION}."
            " Open it with the trajstats that wrote it, or ingest the checkpoints again."
        )
        raise SchemaError(msg)
    if "store_format" not in attrs:
        trajectory = _plain(place)
        return trajectory if layers is None else select_layers(trajectory, layers)
    for _ in range(20):
        tiles = Tiles(place)
        attrs = tiles.attrs
        rows = int(attrs.get(COMMITTED, tiles.array().shape[1]))
        records: list[Record] = []
        if attrs.get(STATE, FINISHED) != FINISHED:
            journal = open_journal(place, tiles.layout.row_bytes, tiles.layout.rows, tiles.buffer_bytes)
            records, damage = journal.scan(rows)
            if damage is not None and not damage.torn and damaged == "raise":
                if int(tiles.attrs.get(COMMITTED, 0)) != rows:
                    continue
                msg = (
                    f"{place}: {damage}. Restore the journal from a copy; open_trajectory(path, damaged='drop') shows "
                    "the rows before."
                )
                raise StoreError(msg)
        if int(tiles.attrs.get(COMMITTED, rows)) == rows:  # else the writer has just gathered rows: look again
            break
    _refuse_changed(place, tiles, damaged)
    lost = tiles.missing(rows)
    if damaged == "drop":  # of tiles only: what is lost of the rest concerns all layers
        lost = [key for key in lost if key.partition("/")[0] not in (tiles.variable, BUFFER_BYTES)]
    if lost := _needed(tiles, lost, layers):
        raise StoreError(missing_tiles_message(place, lost))
    check_records(records, tiles.n_layers, str(place))
    trajectory = _dataset(target, tiles, rows, records, attrs, block_bytes)
    if damaged == "drop":
        from trajstats.data.store.verification import verify

        tiles_lost = verify(target).tiles
        bad = {name for tile in tiles_lost for name in tile.layers}
        if any(tile.file.startswith(f"{BUFFER_BYTES}/") for tile in tiles_lost):
            trajectory = trajectory.drop_vars([BUFFERS, BUFFER_NAME])
        trajectory = select_layers(trajectory, [n for n in map(str, trajectory[LAYER].values) if n not in bad])
    return trajectory if layers is None else select_layers(trajectory, layers)


def _refuse_changed(place: Place, tiles: Tiles, damaged: str) -> None:
    changed = tiles.changed_metadata()
    if changed == [ATTRIBUTES]:
        msg = (
            f"{place}: attributes changed since they were written. Restore zarr.json from a copy; if they were changed "
            "on purpose, open_trajectory(path, damaged='drop') opens the store as it is."
        )
        if damaged != "drop":
            raise StoreError(msg)
        warnings.warn(msg, stacklevel=5)
    elif changed:
        msg = f"{place}: {', '.join(changed[:5])} changed since the store was written; restore it from a copy"
        raise StoreError(msg)


def _plain(place: Place) -> xr.Dataset:
    # A trajectory that was saved with Dataset.to_zarr: as xarray reads it, with its small arrays in memory.
    with bounded_codecs(), foreign(str(place), "Its arrays do not fit together; restore it from a copy"):
        trajectory = xr.open_zarr(place.path(), consolidated=False, chunks={})
        names = [n for n in ("layer_stop", "layer_shape", "layer_kind", *CLOCKS[1:]) if n in trajectory.data_vars]
        trajectory = trajectory.set_coords(names)
        small = {str(n): trajectory[n].load() for n in trajectory.data_vars if n not in ("weights", SKETCH, BUFFERS)}
    return label(check_trajectory(trajectory.assign(small), sketched=True))


def _needed(tiles: Tiles, lost: list[str], layers: Sequence[str] | None) -> list[str]:
    # Where layers are chosen, only their tiles matter.
    if not lost or layers is None or tiles.variable == SKETCH:
        return lost
    group = tiles.place.group()
    assert group is not None
    stops = np.asarray(array_of(group, "layer_stop")[...]).tolist()
    ranges = [r for name, *r in zip(layer_names(group), [0, *stops[:-1]], stops, strict=True) if name in layers]
    width = tiles.layout.shard

    def hit(key: str) -> bool:
        at = int(key.rpartition("/")[2]) * width
        return any(start < at + width and stop > at for start, stop in ranges)

    return [key for key in lost if not key.startswith(f"{tiles.variable}/") or hit(key)]


def _dataset(
    target: Any, tiles: Tiles, rows: int, records: Sequence[Record], attrs: Mapping[str, Any], block_bytes: int
) -> xr.Dataset:
    import dask.array as da

    total = rows + len(records)
    stored = StoredRows(target, total, records)
    layout = tiles.layout
    width = max(1, block_bytes // max(1, total * layout.dtype.itemsize) // layout.shard) * layout.shard
    high = total
    if total * layout.shard * layout.dtype.itemsize > 4 * block_bytes:
        high = max(1, 4 * block_bytes // (layout.shard * layout.dtype.itemsize) // layout.rows) * layout.rows
    chunks = (1, max(1, high), *layout.row_shape[:-1], max(1, width))
    data = da.from_array(
        stored, chunks=chunks, name=f"{tiles.variable}-{attrs.get('uid')}-{total}", meta=np.empty(0, stored.dtype)
    )
    coordinates = {*str(attrs.get("coordinates", "")).split(), *CLOCKS}
    variables: dict[str, Any] = {}
    coords: dict[str, Any] = {}
    for name, array in tiles.arrays(committed=True).items():
        dims = dims_of(array)
        if name in (tiles.variable, INITIAL, BUFFER_BYTES):
            continue
        values = _small_array(tiles, name, array, tuple(slice(rows) if d == STEP else slice(None) for d in dims))
        if STEP in dims and records:
            values = np.concatenate([values, _journal_values(name, dims, records, values)], axis=dims.index(STEP))
        (coords if name in coordinates or dims == (name,) else variables)[name] = (dims, values)
    for name in dict.fromkeys(n for record in records for n in record.metadata.get("series", {})):
        if name not in variables and name not in coords:
            clock = name in CLOCKS
            dims = (STEP,) if clock else (REPLICA, STEP)
            before = np.full((rows,) if clock else (1, rows), np.nan)
            values = np.concatenate([before, _journal_values(name, dims, records, before)], axis=-1)
            (coords if clock else variables)[name] = (dims, values)
    state = lazy_buffers(target, tiles, total, records, attrs.get("uid"), block_bytes)
    coords |= {name: found for name, found in state.items() if name == BUFFER_NAME}
    variables |= {name: found for name, found in state.items() if name == BUFFERS}
    dims = SKETCH_DIMS if tiles.variable == SKETCH else WEIGHT_DIMS
    kept = {k: v for k, v in attrs.items() if k not in {"coordinates", "store_format", "checksums"}}
    kept[COMMITTED] = total
    kept.setdefault(STATE, FINISHED)
    with foreign(str(tiles.place), "Its arrays do not fit together; restore it from a copy"):
        found = xr.Dataset({tiles.variable: (dims, data), **variables}, coords=coords, attrs=kept)
    return label(check_trajectory(found, sketched=True))


def _small_array(tiles: Tiles, name: str, array: Any, within: tuple[slice, ...]) -> np.ndarray:
    try:
        with foreign(str(tiles.place), "Restore it from a copy"):
            values = np.asarray(array[within])
    except UnsafeInputError as error:
        msg = f"{tiles.place}: the array {name!r:.80}: {error}"
        raise UnsafeInputError(msg) from error
    except StoreError as error:
        msg = f"{tiles.place}: the array {name!r:.80} is damaged ({error}); restore it from a copy"
        raise StoreError(msg) from error
    return values.astype(object) if values.dtype.kind == "T" else values


def _journal_values(name: str, dims: tuple[str, ...], records: Sequence[Record], like: np.ndarray) -> np.ndarray:
    shape = tuple(len(records) if d == STEP else n for d, n in zip(dims, like.shape, strict=True))
    if name == STEP:
        return np.array([record.step for record in records], dtype=np.int64)
    if name in (DIGEST, FLOOR) and LAYER in dims:
        key, fill = ("digest", 0) if name == DIGEST else ("floor", np.nan)
        values = np.full(shape, fill, dtype=like.dtype)
        for k, record in enumerate(records):
            values[0, k] = record.metadata.get(key, fill)
        return values
    return np.array([record.metadata.get("series", {}).get(name, np.nan) for record in records]).reshape(shape)


def select_layers(trajectory: xr.Dataset, names: Sequence[str]) -> xr.Dataset:
    """Keep some layers of a trajectory."""
    from trajstats.data.schema import layer_slices

    every = layer_slices(trajectory, None)
    for name in names:
        if name not in every:
            raise ArgumentError(unknown_name_message("layer", name, every))
    keep = [k for k, name in enumerate(every) if name in set(names)]
    if not keep:
        msg = "no layer would be left"
        raise SchemaError(msg)
    if len(keep) == len(every):
        return trajectory
    slices = list(every.values())
    stops = np.cumsum([slices[k].stop - slices[k].start for k in keep])
    dim = "bucket" if SKETCH in trajectory else PARAMETER
    if dim == "bucket":
        ends = trajectory["bucket_layer_stop"].values
        slices = [slice(a, b) for a, b in zip([0, *ends[:-1]], ends, strict=True)]
    parts = [trajectory[[SKETCH if dim == "bucket" else "weights"]].isel({dim: slices[k]}) for k in keep]
    joined = xr.concat(parts, dim=dim, data_vars="all", coords="minimal", compat="override")
    rest = trajectory.drop_vars([SKETCH if dim == "bucket" else "weights"]).isel({LAYER: keep})
    merged = joined.drop_vars([n for n in joined.coords if n not in joined.dims]).drop_vars(LAYER, errors="ignore")
    merged = rest.merge(merged, compat="override", join="override").assign_coords(layer_stop=(LAYER, stops))
    if dim == "bucket":
        merged = merged.assign_coords(
            bucket_layer_stop=(LAYER, np.cumsum([s.stop - s.start for s in (slices[k] for k in keep)]))
        )
    merged.attrs = dict(trajectory.attrs)
    return merged
