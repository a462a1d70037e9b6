"""How a store is laid out: tiles of rows x parameters, and the plain zarr arrays that hold them."""

from __future__ import annotations

import math
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

from trajstats.data._buffer_tensors import BufferTensor, tensors_to_json
from trajstats.data._buffers import BUFFER, BUFFER_NAME, BUFFERS, TENSORS
from trajstats.data.safety._budget import foreign
from trajstats.data.safety._codecs import bounded
from trajstats.data.schema import (
    LAYER,
    REPLICA,
    SCHEMA_VERSION,
    SKETCH,
    SKETCH_DIMS,
    STEP,
    WEIGHT_DIMS,
    WEIGHTS,
    as_attrs,
    layer_coords,
)
from trajstats.data.store.files._place import Place
from trajstats.errors import StoreError

STORE_FORMAT = 2
READ_FORMATS = (1, STORE_FORMAT)  # format 1 has no digests and no buffers
COMMITTED = "committed_rows"
STATE = "state"
CHECKSUMS = "checksums"
STRUCTURAL = ("schema_version", "store_format", COMMITTED, STATE, "coordinates", "uid", "source_dtype")
CREATING, WRITING, FINISHED = "creating", "writing", "finished"
JOURNAL = "journal"
FLOOR = "rounding_floor"
DIGEST = "digest"
BUFFER_BYTES = "buffer_bytes"
BUFFER_BYTE = "buffer_byte"
INITIAL = "initial_weights"
TILE_BYTES = 4 * 2**20
TILE_ROWS = 64
SERIES_CHUNK = 2**16
MAX_FILES = 100_000
EXPECTED_ROWS = 4096
RESERVED = frozenset(
    {*WEIGHT_DIMS, WEIGHTS, SKETCH, FLOOR, LAYER, "layer_stop", "layer_shape", "layer_kind", "hash", "bucket"}
    | {"bucket_layer_stop", INITIAL, "journal", "c", DIGEST, BUFFERS, BUFFER, BUFFER_NAME, BUFFER_BYTES, BUFFER_BYTE}
)
SERIES_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")


@dataclass(frozen=True)
class Layout:
    """Shape of the rows of a store and of the tiles they are stored in."""

    variable: str  # ``"weights"``, ``"sketch"`` or ``"buffer_bytes"``
    row_shape: tuple[int, ...]  # ``(parameter,)``, ``(hash, bucket)`` or ``(buffer_byte,)``
    dtype: np.dtype[Any]  # Stored type
    rows: int  # Size of a tile along `step` and along the last dimension
    columns: int  # Size of a tile along `step` and along the last dimension
    # Width of a file along the last dimension, a multiple of `columns`; equal to it where files are not sharded
    shard: int

    @property
    def size(self) -> int:
        """Numbers in one row."""
        return math.prod(self.row_shape)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.size * self.dtype.itemsize

    def blocks(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[tuple[Any, ...], slice]]:
        """Walk over a slab, a few files at a time: index into the array, range of the flat row."""
        last = self.row_shape[-1]
        wide = self.shard * max(1, (4 * TILE_BYTES) // max(1, self.rows * self.shard * self.dtype.itemsize))
        stop = self.size if stop is None else stop
        for lead in np.ndindex(self.row_shape[:-1]):
            offset = int(np.ravel_multi_index(lead, self.row_shape[:-1])) * last if lead else 0
            for begin in range(0, last, wide):
                end = min(begin + wide, last)
                if offset + end > start and offset + begin < stop:
                    yield (*lead, slice(begin, end)), slice(offset + begin, offset + end)


def plan_layout(
    variable: str,
    row_shape: tuple[int, ...],
    dtype: Any,
    *,
    expected_rows: int = EXPECTED_ROWS,
    rows: int | None = None,
) -> Layout:
    """Choose tiles of about 4 MiB and, where they would make too many files, shards of several tiles."""
    kind = np.dtype(dtype)
    last = max(1, row_shape[-1])
    if rows is None:
        rows = TILE_ROWS
        while rows < 1024 and 2 * rows * last * kind.itemsize <= TILE_BYTES:
            rows *= 2
    columns = min(max(1, TILE_BYTES // (TILE_ROWS * kind.itemsize)), last)
    shard = columns
    while shard < last and math.prod(row_shape[:-1]) * -(-last // shard) * -(-expected_rows // rows) > MAX_FILES:
        shard *= 2
    return Layout(variable, row_shape, kind, rows, columns, shard)


def layout_of(array: zarr.Array) -> Layout:
    """Read the layout back from an array of a store."""
    if len(array.shape) < 3:
        msg = f"{array.store}: {array.basename:.80} has {len(array.shape)} dimensions where rows of a run have 3 or 4"
        raise StoreError(msg)
    chunks, shards = array.chunks, array.shards
    shape = tuple(int(n) for n in array.shape)
    files = chunks if shards is None else shards
    return Layout(array.basename, shape[2:], np.dtype(array.dtype), int(chunks[1]), int(chunks[-1]), int(files[-1]))


def create_store(
    place: Place,
    layout: Layout,
    layers: Mapping[str, Sequence[int]],
    *,
    replica: int,
    attrs: Mapping[str, Any],
    extra: Mapping[str, tuple[tuple[str, ...], np.ndarray]],
    buffers: Sequence[BufferTensor] = (),
    expected_rows: int = EXPECTED_ROWS,
) -> None:
    """Create the arrays of an empty store."""
    # "creating" is replaced in one write at the end: a store killed in here is recognised and made again.
    if place.get("zarr.json") is None:
        zarr.create_group(place.path(), attributes={STATE: CREATING})
    _create_tiled(place, layout, SKETCH_DIMS if layout.variable == SKETCH else WEIGHT_DIMS)
    if buffers:
        bytes_of_row = sum(tensor.nbytes for tensor in buffers)
        rows = min(layout.rows, TILE_ROWS)
        tiled = plan_layout(BUFFER_BYTES, (bytes_of_row,), "uint8", expected_rows=expected_rows, rows=rows)
        _create_tiled(place, tiled, (REPLICA, STEP, BUFFER_BYTE), {TENSORS: tensors_to_json(buffers)})
    put_array(place, STEP, np.zeros(0, dtype=np.int64), (STEP,))
    put_array(place, REPLICA, np.array([replica], dtype=np.int64), (REPLICA,))
    coords = layer_coords(layers)
    put_array(place, LAYER, coords[LAYER], (LAYER,))
    for name in ("layer_stop", "layer_shape", "layer_kind"):
        put_array(place, name, coords[name][1], (LAYER,))
    if layout.variable == WEIGHTS:
        put_array(place, FLOOR, np.zeros((1, 0, len(layers))), (REPLICA, STEP, LAYER))
    put_array(place, DIGEST, np.zeros((1, 0, len(layers)), dtype=np.uint64), (REPLICA, STEP, LAYER))
    for name, (names, values) in extra.items():
        put_array(place, name, values, names)
    coordinates = ["layer_stop", "layer_shape", "layer_kind", *(n for n, (d, _) in extra.items() if d != (n,))]
    root = {
        "schema_version": SCHEMA_VERSION,
        "uid": uuid.uuid4().hex,
        "source": str(place),
        **as_attrs(attrs),
        "coordinates": " ".join(coordinates),
        "store_format": STORE_FORMAT,
        STATE: WRITING,
        COMMITTED: 0,
    }
    if place.local is not None:
        place.make_durable([key for key in place.folder.files() if not key.startswith(JOURNAL)])
    group = zarr.open_group(place.path(), mode="r+", use_consolidated=False)
    group.attrs.put(root)
    place.make_durable(["zarr.json"], "create")


def _create_tiled(place: Place, layout: Layout, dims: tuple[str, ...], attrs: Mapping[str, Any] | None = None) -> None:
    """Create an empty array of tiles; bytes of buffers are often the same in all rows, which zstd finds."""
    plain = layout.dtype == np.uint8
    zarr.create_array(
        place.path(),
        name=layout.variable,
        shape=(1, 0, *layout.row_shape),
        chunks=_grid(layout, layout.columns),
        shards=None if layout.shard == layout.columns else _grid(layout, layout.shard),
        dtype=layout.dtype,
        fill_value=0 if plain else np.nan,
        compressors=[
            ZstdCodec(level=3) if plain else BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle"),
            Crc32cCodec(),
        ],
        dimension_names=dims,
        attributes=dict(attrs or {}),
        overwrite=True,
    )


def _grid(layout: Layout, width: int) -> tuple[int, ...]:
    return (1, layout.rows, *(1 for _ in layout.row_shape[:-1]), width)


def put_array(
    place: Place, name: str, values: np.ndarray, dims: tuple[str, ...], *, chunk: int | None = None
) -> zarr.Array:
    """Write one small array: series and steps in one large chunk, text as variable-length strings."""
    text = values.dtype == object or values.dtype.kind in "UT"
    chunks: tuple[int, ...] = tuple(
        SERIES_CHUNK if dim == STEP else max(1, n) for dim, n in zip(dims, values.shape, strict=True)
    )
    if STEP in dims and len(dims) > 2:  # floors: as many rows as make a chunk of about 4 MiB
        chunks = (1, max(1, min(SERIES_CHUNK, TILE_BYTES // (8 * max(1, values.shape[-1])))), max(1, values.shape[-1]))
    if chunk is not None:
        chunks = (max(1, min(chunk, values.size)),)
    kind: Any = str if text else values.dtype
    array = zarr.create_array(
        place.path(),
        name=name,
        shape=values.shape,
        chunks=chunks,
        dtype=kind,
        fill_value=np.nan if values.dtype.kind == "f" else None,
        compressors=[BloscCodec(cname="lz4", clevel=5, shuffle="noshuffle"), Crc32cCodec()],
        dimension_names=dims,
        config={"write_empty_chunks": True},
        overwrite=True,
    )
    if values.size:
        array[...] = values.astype(np.dtypes.StringDType()) if text else values
    return array


def array_of(group: zarr.Group, name: str) -> zarr.Array:
    """Get an array of a group by name."""
    try:
        with foreign(f"{group.store}: {name:.80}/zarr.json", "It is damaged; restore it from a copy"):
            found = group[name]
    except StoreError as error:
        if not isinstance(error.__cause__, KeyError):
            raise
        msg = f"{group.store}: the array {name!r:.80} or its metadata are missing; restore {name}/zarr.json from a copy"
        raise StoreError(msg) from error
    if not isinstance(found, zarr.Array):
        msg = f"{group.store}: {name!r:.80} is a group where an array is expected; this is no trajectory store"
        raise StoreError(msg)
    return bounded(found)
