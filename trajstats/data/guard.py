"""What a store or file from a stranger may ask for: checked from metadata, before anything is decoded or allocated."""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from zarr.core.sync import sync

from trajstats.data.buffers import BUFFERS
from trajstats.data.folder import check_plain
from trajstats.data.layout import BUFFER_BYTES, COMMITTED, INITIAL, JOURNAL, READ_FORMATS
from trajstats.data.place import Place
from trajstats.data.schema import SKETCH, WEIGHTS
from trajstats.errors import SchemaError, StoreNotFoundError, UnsafeInputError

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
MAX_TEXT_FILE = 64 * 2**20
_BLOSC = struct.Struct("<4B3I")


def check_zarr(place: Place, *, lazy: tuple[str, ...] = LAZY) -> dict[str, Any]:
    """Check the metadata of a zarr v3 group: plain codecs and types, believable sizes, no way out of its folder.

    Parameters
    ----------
    place : Place
        The store.
    lazy : tuple of str
        Arrays that are read in blocks; all others must fit into memory.

    Returns
    -------
    dict
        Attributes of the root.

    Raises
    ------
    StoreNotFoundError
        If there is no zarr group.
    SchemaError
        If it is of zarr format 2.
    UnsafeInputError
        If a codec could run code, a size is absurd, or a link leads out of the folder.
    """
    root = read_json(place, "zarr.json")
    if root is None:
        if place.get(".zgroup") is not None or place.get(".zarray") is not None:
            msg = f"{place} is zarr format 2; a trajectory is zarr format 3. {CONVERT_ZARR_2}"
            raise SchemaError(msg)
        inside = " (the folder holds no zarr.json)" if place.local is not None else ""
        msg = f"{place} is no trajectory store{inside}. Checkpoint files are read with ingest(...)."
        raise StoreNotFoundError(msg)
    attrs = root.get("attributes")
    attrs = attrs if isinstance(attrs, dict) else {}
    if root.get("node_type") != "group":
        msg = f"{place} is a zarr {root.get('node_type')}, not a group; give the folder above it"
        raise SchemaError(msg)
    if place.local is not None:
        check_plain(place.local)
    rows = attrs.get(COMMITTED)
    if rows is not None and (not isinstance(rows, int) or isinstance(rows, bool) or not 0 <= rows < 2**53):
        msg = f"{place}: committed_rows is {rows!r:.40}, which is no number of rows"
        raise UnsafeInputError(msg)
    for name in node_names(place):
        node = read_json(place, f"{name}/zarr.json")
        if node is not None and node.get("node_type") == "array" and name != JOURNAL:
            check_array(f"{place}/{name}", node, lazy=name in lazy, rows=rows if isinstance(rows, int) else None)
            if name not in lazy and place.local is not None:
                _check_chunk_headers(place.local / name, node)
    if attrs.get("store_format") not in (None, *READ_FORMATS):
        known = " and ".join(map(str, READ_FORMATS))
        msg = f"{place} has store_format {attrs['store_format']!r:.40}; this one reads {known}. Update trajstats."
        raise SchemaError(msg)
    return attrs


def read_json(place: Place, key: str) -> dict[str, Any] | None:
    """Read one metadata document of bounded size.

    Parameters
    ----------
    place : Place
        The store.
    key : str
        Its key.

    Returns
    -------
    dict or None
        The document; None if there is none.

    Raises
    ------
    UnsafeInputError
        If it is too large or no JSON object.
    """
    if place.local is not None:
        size = place.folder.size(key) or 0
        if size > MAX_METADATA_BYTES:
            msg = f"{place}/{key:.200}: {size} bytes of metadata; at most {MAX_METADATA_BYTES} are read"
            raise UnsafeInputError(msg)
    raw = place.get(key)
    if raw is None:
        return None
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError) as error:
        msg = f"{place}/{key} is damaged: {error!s:.100}. A copy of the store may have a whole one."
        raise UnsafeInputError(msg) from error
    if not isinstance(found, dict):
        msg = f"{place}/{key} is no JSON object"
        raise UnsafeInputError(msg)
    return found


def node_names(place: Place) -> list[str]:
    """List the members of the root.

    Parameters
    ----------
    place : Place
        The store.

    Returns
    -------
    list of str
        Names of arrays and groups.
    """
    if place.local is not None:
        return sorted(entry.name for entry in os.scandir(place.local) if entry.is_dir())

    async def names() -> list[str]:
        prefix = place.path().path
        return [key async for key in place.store.list_dir(prefix)]

    return sorted(name.strip("/") for name in sync(names()) if name != "zarr.json")


def check_array(where: str, node: Mapping[str, Any], *, lazy: bool, rows: int | None) -> None:
    """Check the metadata of one array.

    Parameters
    ----------
    where : str
        Its name, for messages.
    node : mapping
        Its ``zarr.json``.
    lazy : bool
        Whether it is read in blocks.
    rows : int or None
        Committed rows, which bound what will be read.

    Raises
    ------
    UnsafeInputError
        If a codec, type or size is not acceptable.
    """
    try:
        shape = [int(n) for n in node["shape"]]
        chunk = [int(n) for n in node["chunk_grid"]["configuration"]["chunk_shape"]]
        codecs = list(_codec_names(node["codecs"]))
    except (KeyError, TypeError, ValueError) as error:
        msg = f"{where}: metadata are incomplete ({error!r:.100})"
        raise UnsafeInputError(msg) from error
    kind = node.get("data_type")
    if not isinstance(kind, str) or kind not in ITEM_BYTES:
        msg = f"{where}: data type {kind!r:.60} is not read; allowed: {', '.join(ITEM_BYTES)}"
        raise UnsafeInputError(msg)
    for codec in codecs:
        if codec not in CODECS:
            msg = (
                f"{where}: codec {codec!r:.60} is not read, since it may run code; allowed: {', '.join(sorted(CODECS))}"
            )
            raise UnsafeInputError(msg)
    if len(chunk) != len(shape) or any(n < 0 for n in shape) or any(n < 1 for n in chunk):
        msg = f"{where}: shape {shape} and chunks {chunk} do not fit together"
        raise UnsafeInputError(msg)
    item = ITEM_BYTES[kind]
    if math.prod(chunk) * item > MAX_CHUNK_BYTES:
        n_bytes = math.prod(chunk) * item
        msg = f"{where}: one chunk of shape {chunk} takes {n_bytes:.3g} bytes; at most {MAX_CHUNK_BYTES:.3g}"
        raise UnsafeInputError(msg)
    if lazy and rows is not None and len(shape) > 1:
        shape[1] = rows
    if not lazy and math.prod(shape) * item > MAX_SMALL_BYTES:
        msg = f"{where}: {math.prod(shape):.3g} elements where a few per layer or step are expected; it is not read"
        raise UnsafeInputError(msg)
    tiles = math.prod(-(-n // c) for n, c in zip(shape, chunk, strict=True))
    if tiles > MAX_TILES:
        msg = f"{where}: shape {shape} claims {tiles:.3g} tiles; at most {MAX_TILES:.3g} are believed"
        raise UnsafeInputError(msg)


def bytes_of(node: Mapping[str, Any]) -> int:
    """Return the bytes that an array takes in memory, by metadata that were checked."""
    return math.prod(node["shape"]) * ITEM_BYTES[node["data_type"]]


def _codec_names(codecs: Any) -> Iterator[str]:
    for codec in codecs:
        name = codec if isinstance(codec, str) else codec["name"]
        yield name
        inner = {} if isinstance(codec, str) else codec.get("configuration") or {}
        for key in ("codecs", "index_codecs"):
            if key in inner:
                yield from _codec_names(inner[key])


def check_links(folder: Path) -> None:
    """Check that no symbolic link under a folder leads out of it.

    Parameters
    ----------
    folder : Path
        The folder.

    Raises
    ------
    UnsafeInputError
        If one does.
    """
    root = folder.resolve()
    todo = [root]
    while todo:
        with os.scandir(todo.pop()) as entries:
            for entry in entries:
                if entry.is_symlink():
                    goal = Path(os.path.realpath(entry.path))
                    if root != goal and root not in goal.parents:
                        msg = f"{entry.path} is a link that leads out of {folder}; it is not followed"
                        raise UnsafeInputError(msg)
                elif entry.is_dir(follow_symlinks=False):
                    todo.append(Path(entry.path))


def _check_chunk_headers(folder: Path, node: Mapping[str, Any]) -> None:
    # blosc allocates what the header of a chunk claims, before it looks at the chunk.
    names = list(_codec_names(node["codecs"]))
    size = math.prod(node["chunk_grid"]["configuration"]["chunk_shape"]) * ITEM_BYTES[node["data_type"]]
    for file in (folder / "c").rglob("*") if (folder / "c").is_dir() else ():
        if not file.is_file():
            continue
        length = file.stat().st_size
        text = node["data_type"] == "string"
        if length > (MAX_TEXT_FILE if text else size + 2**16):
            msg = f"{file}: {length} bytes for a chunk of {size} bytes; it is not read"
            raise UnsafeInputError(msg)
        if names[-1 if names[-1] != "crc32c" else -2] != "blosc":
            continue
        with file.open("rb") as stream:
            header = stream.read(_BLOSC.size)
        if len(header) == _BLOSC.size:
            claimed = _BLOSC.unpack(header)[4]
            if claimed > (MAX_TEXT_FILE if text else size):
                msg = f"{file}: claims to unpack to {claimed} bytes where {size} are expected; it is not read"
                raise UnsafeInputError(msg)
