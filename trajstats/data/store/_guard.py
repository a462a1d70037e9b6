"""Check what the metadata of an untrusted store request, before anything is decoded or allocated."""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from zarr.core.sync import sync

from trajstats.data._buffers import BUFFERS
from trajstats.data.safety._budget import PROMISED_SIZE, Budget, json_object, shorten
from trajstats.data.schema import SKETCH, WEIGHTS
from trajstats.data.store._layout import (
    BUFFER_BYTES,
    CHECKSUMS,
    COMMITTED,
    CREATING,
    FINISHED,
    INITIAL,
    JOURNAL,
    READ_FORMATS,
    STATE,
    WRITING,
)
from trajstats.data.store.files._folder import check_plain
from trajstats.data.store.files._place import Place
from trajstats.errors import SchemaError, StoreError, StoreNotFoundError, UnsafeInputError

CODECS = frozenset({"bytes", "blosc", "crc32c", "zstd", "gzip", "sharding_indexed", "vlen-utf8", "transpose"})
CONVERT_ZARR_2 = (
    "Convert it: xarray.open_zarr(old).drop_encoding().to_zarr(new, zarr_format=3); "
    "then ingest(new, out, dims={'step': its dimension of time})"
)
ITEM_BYTES = {
    **dict.fromkeys(["bool", "int8", "uint8"], 1),
    **dict.fromkeys(["int16", "uint16", "float16"], 2),
    **dict.fromkeys(["int32", "uint32", "float32"], 4),
    **dict.fromkeys(["int64", "uint64", "float64", "complex64"], 8),
    "complex128": 16,
    "string": 256,
}
LAZY = (WEIGHTS, SKETCH, INITIAL, BUFFER_BYTES, BUFFERS)
MAX_METADATA_BYTES = 16 * 2**20
MAX_SMALL_BYTES = 2**29
MAX_CHUNK_BYTES = 2**30
MAX_TILES = 2_000_000
MAX_PARTS = 65_536
# Files of data that may be claimed beyond those in the folder, bytes of small arrays that may be claimed in any case,
# and beyond them how many times the bytes in the folder (floors and digests are at most about the size of the rows).
FREE_TILES = 1000
FREE_PLAIN_TILES, PLAIN_RATIO = 20_000, 100
FREE_BYTES = 64 * 2**20
SMALL_RATIO = 8
STORE_NAME = "store_format"
_BLOSC = struct.Struct("<4B3I")


def check_zarr(place: Place, *, lazy: tuple[str, ...] = LAZY) -> dict[str, Any]:
    """Check the metadata of a zarr v3 group: plain codecs and types, believable sizes, no way out of its folder."""
    budget = Budget.for_size(PROMISED_SIZE)
    root = read_json(place, "zarr.json", budget)
    if root is None:
        raise _nothing(place)
    attrs = root.get("attributes")
    attrs = attrs if isinstance(attrs, dict) else {}
    if root.get("node_type") != "group":
        msg = f"{place} is a zarr {shorten(root.get('node_type'))}, not a group; give the folder above it"
        raise SchemaError(msg)
    present = check_plain(place.local) if place.local is not None else None
    rows = _check_marks(place, attrs)
    claims = _Claims(0, 0)
    for name in node_names(place):
        node = read_json(place, f"{name}/zarr.json", budget)
        if node is not None and node.get("node_type") == "array" and name != JOURNAL:
            small = name not in lazy
            tiles = check_array(f"{place}/{name}", node, lazy=not small, rows=rows)
            _check_names(f"{place}/{name}", node) if STORE_NAME in attrs else None
            whole = small or STORE_NAME in attrs
            claims.add(tiles if whole else 0, bytes_of(node) if small else 0)
            if not whole and present is not None:  # zarr leaves out chunks that hold the fill value only
                check_claims(place, tiles, present, free=FREE_PLAIN_TILES, ratio=PLAIN_RATIO)
            if small and place.local is not None:
                _check_chunk_headers(place, name, node)
    if present is not None:
        claims.compare(place, present)
    return attrs


@dataclass
class _Claims:
    """Files and bytes that the metadata of a store ask for, compared with what is in its folder."""

    tiles: int
    small_bytes: int

    def add(self, tiles: int, small_bytes: int) -> None:
        self.tiles += tiles
        self.small_bytes += small_bytes

    def compare(self, place: Place, files: int) -> None:
        check_claims(place, self.tiles, files)
        if self.small_bytes > FREE_BYTES:
            stored = sum(place.folder.size(key) or 0 for key in place.folder.files())
            if self.small_bytes > SMALL_RATIO * stored:
                msg = (
                    f"{place}: the arrays beside the weights claim {self.small_bytes} bytes, and {stored} are in the "
                    "folder; the metadata are damaged or made to exhaust memory, and the store is not read"
                )
                raise UnsafeInputError(msg)


def check_claims(place: Place, claimed: int, there: int, *, free: int = FREE_TILES, ratio: int = 4) -> None:
    """Refuse metadata that claim many more files of data than there are."""
    if claimed > free + ratio * there:
        msg = (
            f"{place}: the metadata claim {claimed} files of data, and {there} are there; most of the "
            "store is missing, or the metadata are damaged. Restore it from a copy"
        )
        raise UnsafeInputError(msg)


def _nothing(place: Place) -> Exception:
    """Say what is wrong with a place that has no metadata."""
    if place.get(".zgroup") is not None or place.get(".zarray") is not None:
        return SchemaError(f"{place} is zarr format 2; a trajectory is zarr format 3. {CONVERT_ZARR_2}")
    if place.local is not None and place.folder.names(JOURNAL):
        return StoreError(f"{place} has a journal and no zarr.json, which was lost; restore it from a copy")
    inside = " (the folder holds no zarr.json)" if place.local is not None else ""
    return StoreNotFoundError(f"{place} is no trajectory store{inside}. Checkpoint files are read with ingest(...).")


def _check_marks(place: Place, attrs: Mapping[str, Any]) -> int | None:
    """Check the attributes by which a store of `TrajectoryWriter` is known; return its committed rows."""
    own = attrs.get(STORE_NAME)
    if own is None:
        marks = [name for name in (CHECKSUMS,) if name in attrs]
        marks += [JOURNAL] if place.get(f"{JOURNAL}/zarr.json") is not None or _has_rows(place) else []
        if marks:
            msg = (
                f"{place}/zarr.json is damaged: it has no {STORE_NAME}, but the store has {' and '.join(marks)}, so it "
                "was written by TrajectoryWriter. Restore zarr.json from a copy."
            )
            raise StoreError(msg)
    elif own not in READ_FORMATS or isinstance(own, bool):
        msg = f"{place} has {STORE_NAME} {shorten(own)}; this one reads {READ_FORMATS}. Update trajstats."
        raise SchemaError(msg)
    elif attrs.get(STATE) not in (CREATING, WRITING, FINISHED):
        msg = f"{place}/zarr.json is damaged: state is {shorten(attrs.get(STATE))}. Restore it from a copy."
        raise StoreError(msg)
    rows = attrs.get(COMMITTED)
    if rows is None and (own is None or attrs.get(STATE) == CREATING):
        return None
    if type(rows) is not int or not 0 <= rows < 2**53:
        msg = f"{place}: committed_rows is {shorten(rows)}, which is no number of rows"
        raise UnsafeInputError(msg)
    return rows


def _check_names(where: str, node: Mapping[str, Any]) -> None:
    names = node.get("dimension_names")
    if not isinstance(names, list) or len(names) != len(node["shape"]) or not all(isinstance(n, str) for n in names):
        msg = f"{where}: its dimensions are {shorten(names)}; it needs one name for each. Restore it from a copy"
        raise UnsafeInputError(msg)


def _has_rows(place: Place) -> bool:
    return place.local is not None and any(name.endswith(".rows") for name in place.folder.names(JOURNAL))


def read_json(place: Place, key: str, budget: Budget | None = None) -> dict[str, Any] | None:
    """Read one metadata document of bounded size; None if there is none."""
    if place.local is not None:
        size = place.folder.size(key) or 0
        if size > MAX_METADATA_BYTES:
            msg = f"{place}/{key:.200}: {size} bytes of metadata; at most {MAX_METADATA_BYTES} are read"
            raise UnsafeInputError(msg)
    raw = place.get(key)
    if raw is None:
        return None
    try:
        return json_object(raw, f"{place}/{key:.200}", budget or Budget.for_size(len(raw)))
    except StoreError as error:
        msg = f"{place}/{key:.200} is damaged: {error!s:.300}. A copy of the store may have a whole one."
        raise UnsafeInputError(msg) from error


def node_names(place: Place) -> list[str]:
    """List the members of the root."""
    if place.local is not None:
        return sorted(entry.name for entry in os.scandir(place.local) if entry.is_dir())

    async def names() -> list[str]:
        prefix = place.path().path
        return [key async for key in place.store.list_dir(prefix)]

    return sorted(name.strip("/") for name in sync(names()) if name != "zarr.json")


def check_array(where: str, node: Mapping[str, Any], *, lazy: bool, rows: int | None) -> int:
    """Check codecs, type and sizes in the metadata of one array, and return how many files of data they claim."""
    shape, chunk, codecs, kind = _parts(where, node)
    if not isinstance(node.get("attributes", {}), dict):
        msg = (
            f"{where}: its attributes are {shorten(node['attributes'])}, not names with values; restore it from a copy"
        )
        raise UnsafeInputError(msg)
    if not isinstance(kind, str) or kind not in ITEM_BYTES:
        msg = f"{where}: data type {shorten(kind)} is not read; allowed: {', '.join(ITEM_BYTES)}"
        raise UnsafeInputError(msg)
    for name, inner in codecs:
        if not isinstance(name, str) or name not in CODECS:
            allowed = ", ".join(sorted(CODECS))
            msg = f"{where}: codec {shorten(name)} is not read, since it may run code; allowed: {allowed}"
            raise UnsafeInputError(msg)
        if inner is not None and (not _fits(chunk, inner) or _count(chunk, inner) > MAX_PARTS):
            msg = f"{where}: parts of shape {shorten(inner)} do not fit into files of shape {shorten(chunk)}"
            raise UnsafeInputError(msg)
    if not _fits(shape, chunk):
        msg = f"{where}: shape {shorten(shape)} and chunks {shorten(chunk)} do not fit together"
        raise UnsafeInputError(msg)
    item = ITEM_BYTES[kind]
    if math.prod(chunk) * item > MAX_CHUNK_BYTES:
        msg = (
            f"{where}: one chunk of shape {shorten(chunk)} takes {shorten(math.prod(chunk) * item)} bytes; at most "
            f"{MAX_CHUNK_BYTES}"
        )
        raise UnsafeInputError(msg)
    if lazy and rows is not None and len(shape) > 1:
        shape = [shape[0], rows, *shape[2:]]
    if not lazy and math.prod(shape) * item > MAX_SMALL_BYTES:
        msg = (
            f"{where}: {shorten(math.prod(shape))} elements where a few per layer or step are expected; it is not read"
        )
        raise UnsafeInputError(msg)
    tiles = _count(shape, chunk)
    if tiles > (MAX_PARTS if kind == "string" else MAX_TILES):
        msg = f"{where}: shape {shorten(shape)} claims {shorten(tiles)} tiles; at most {MAX_TILES} are believed"
        raise UnsafeInputError(msg)
    return tiles


def _parts(where: str, node: Mapping[str, Any]) -> tuple[Any, Any, list[tuple[Any, Any]], Any]:
    try:
        shape, chunk = node["shape"], node["chunk_grid"]["configuration"]["chunk_shape"]
        codecs = list(_codecs(node["codecs"]))
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        msg = f"{where}: metadata are incomplete ({type(error).__name__}: {error!s:.100})"
        raise UnsafeInputError(msg) from error
    return shape, chunk, codecs, node.get("data_type")


def _fits(shape: Any, chunk: Any) -> bool:
    both = isinstance(shape, list) and isinstance(chunk, list) and len(shape) == len(chunk) <= 32
    return both and all(type(n) is int and n >= 0 for n in shape) and all(type(n) is int and n >= 1 for n in chunk)


def _count(shape: Any, chunk: Any) -> int:
    return math.prod(-(-n // c) for n, c in zip(shape, chunk, strict=True))


def bytes_of(node: Mapping[str, Any]) -> int:
    """Return the bytes that an array takes in memory, by metadata that were checked."""
    return math.prod(node["shape"]) * ITEM_BYTES[node["data_type"]]


def _codecs(codecs: Any) -> Iterator[tuple[Any, Any]]:
    """List all codecs, also those within shards, by name, with the shape of the parts of a shard."""
    for codec in codecs:
        if isinstance(codec, str):
            yield codec, None
            continue
        inner = codec.get("configuration") or {}
        yield codec["name"], inner["chunk_shape"] if codec["name"] == "sharding_indexed" else None
        for key in ("codecs", "index_codecs"):
            if key in inner:
                yield from _codecs(inner[key])


def _check_chunk_headers(place: Place, name: str, node: Mapping[str, Any]) -> None:
    # blosc allocates what the header of a chunk claims, before it looks at the chunk.
    # The last codec that is not a checksum made the bytes of a chunk.
    maker = next((name for name, _ in reversed([*_codecs(node["codecs"])]) if name != "crc32c"), None)
    chunk = math.prod(node["chunk_grid"]["configuration"]["chunk_shape"])
    size = chunk * (2**10 if node["data_type"] == "string" else ITEM_BYTES[node["data_type"]]) + 2**16
    for key in place.folder.files(f"{name}/c"):
        length = place.folder.size(key) or 0
        if length > size:
            msg = f"{place}/{key:.200}: {length} bytes for a chunk of {size} bytes; it is not read"
            raise UnsafeInputError(msg)
        if maker != "blosc":
            continue
        header = place.folder.read(key, 0, _BLOSC.size) or b""
        if len(header) == _BLOSC.size and (claimed := _BLOSC.unpack(header)[4]) > size:
            msg = f"{place}/{key:.200}: claims to unpack to {claimed} bytes where {size} are expected; it is not read"
            raise UnsafeInputError(msg)
