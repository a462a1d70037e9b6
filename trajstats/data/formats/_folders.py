"""Checkpoints that are folders: sharded, with other files next to the weights, or written by orbax."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from trajstats.data._naming import natural_key
from trajstats.data.formats._archives import MAX_JSON
from trajstats.data.formats._boxes import Box, box_tensor
from trajstats.data.formats._files import read_file
from trajstats.data.formats._parts import is_training_state, read_group, shards_of
from trajstats.data.formats._tensor import RAW, Checkpoint, check_shape, input_size
from trajstats.data.formats.torch_files._distributed import read_distributed
from trajstats.data.safety._budget import Budget, foreign, json_object, shorten
from trajstats.data.safety._links import check_link, check_links
from trajstats.errors import StoreError, UnsafeInputError, UnsupportedError, optional_package

WEIGHT_FILES = (
    "model.safetensors",
    "pytorch_model.bin",
    "model.weights.h5",
    "flax_model.msgpack",
    "consolidated.00.pth",
)
SINGLE_FILES = (".safetensors", ".npz", ".pt", ".pth", ".bin", ".h5", ".keras", ".msgpack", ".ckpt")
ORBAX_MARKS = ("_METADATA", "manifest.ocdbt", "_CHECKPOINT_METADATA")


def is_checkpoint_folder(path: Path) -> bool:
    """Check whether a folder is one checkpoint, rather than a series of them."""
    names = {entry.name for entry in path.iterdir()}
    if names & {*WEIGHT_FILES, ".metadata"} or any(name.endswith(".index.json") for name in names):
        return True
    return is_orbax_folder(path) or len(_shard_groups(path, names)) == 1


def is_orbax_folder(path: Path) -> bool:
    """Check whether a folder was written by orbax."""
    return any((path / name).exists() for name in ORBAX_MARKS) or (path / "default" / "_METADATA").is_file()


def is_unfinished_folder(path: Path) -> bool:
    """Check whether a folder holds a torch distributed checkpoint whose `.metadata`, written last, is missing."""
    names = {entry.name for entry in path.iterdir()}
    return ".metadata" not in names and any(name.endswith(".distcp") for name in names)


def _shard_groups(path: Path, names: Iterable[str]) -> set[Path]:
    """List the sharded checkpoints in a folder without an index, each by its first; none if there are other files."""
    files = [path / name for name in names if name.endswith(SINGLE_FILES) and not is_training_state(name)]
    groups = {shards[0] if (shards := shards_of(file)) else None for file in files}
    return set() if None in groups else {file for file in groups if file is not None}


def read_folder(path: Path, budget: Budget) -> Checkpoint:
    """Read a folder that is one checkpoint: sharded, with optimizer files next to the weights, or written by orbax."""
    check_links(path)
    names = sorted((entry.name for entry in path.iterdir()), key=natural_key)
    if ".metadata" in names:
        return read_distributed(path, budget)
    for suffix in (".safetensors.index.json", ".index.json"):
        if index := [name for name in names if name.endswith(suffix)]:
            return read_index(path / index[0], budget)
    for name in WEIGHT_FILES:
        if name in names:
            return read_group(path / name, budget)
    if "_METADATA" in names:
        return _read_orbax(path, budget)
    if set(names) & set(ORBAX_MARKS) or (path / "default" / "_METADATA").is_file():
        return _read_items(path, budget)
    single = [n for n in names if n.endswith(SINGLE_FILES) and not is_training_state(n)]
    shards = _shard_groups(path, names)
    if len(shards) == 1 or len(single) == 1:
        return read_group(path / single[0], budget)
    msg = f"{path} holds {len(single)} weight files and no index; give the one to read, or a series with ingest"
    raise UnsupportedError(msg)


def read_index(path: Path, budget: Budget) -> Checkpoint:
    """Read the index of a sharded checkpoint, and the headers of its shards."""
    if path.stat().st_size > MAX_JSON:
        msg = f"{path}: an index of {path.stat().st_size} bytes is not read"
        raise UnsafeInputError(msg)
    weight_map = json_object(path.read_bytes(), str(path), budget).get("weight_map")
    if not isinstance(weight_map, dict):
        msg = f"{path} has no weight_map; it is no index of a sharded checkpoint"
        raise StoreError(msg)
    if wrong := [shard for shard in weight_map.values() if not isinstance(shard, str)]:
        msg = f"{path}: shard {shorten(wrong[0])} is not a plain file name"
        raise UnsafeInputError(msg)
    found = Checkpoint(str(path), {})
    for shard in dict.fromkeys(weight_map.values()):
        plain = PurePosixPath(shard).name == shard and shard.isprintable() and len(shard) < 256 and "\\" not in shard
        if not plain or shard in {"", ".", ".."}:
            msg = f"{path}: shard {shorten(shard)} is not a plain file name"
            raise UnsafeInputError(msg)
        file = path.parent / shard
        check_link(file, path.parent)
        if file.name.endswith(".index.json"):
            msg = f"{path}: shard {shorten(shard)} is an index again"
            raise UnsafeInputError(msg)
        budget.spend_objects(100, str(file))
        part = read_file(file, budget)
        found.tensors.update({n: t for n, t in part.tensors.items() if weight_map.get(n) == shard})
        unlisted = [n for n in part.tensors if n not in weight_map]
        found.passed_over.update(dict.fromkeys(unlisted, f"in {shorten(shard)} and not in the index"))
        found.passed_over.update(part.passed_over)
    if lost := [n for n in weight_map if n not in found.tensors and n not in found.passed_over]:
        msg = f"{path}: tensor {shorten(lost[0])} and {len(lost) - 1} more of the index are in no shard"
        raise StoreError(msg)
    return found


def _read_items(path: Path, budget: Budget) -> Checkpoint:
    """Read the items of an orbax checkpoint, whatever they are called; those without arrays are passed over by name."""
    folders = [entry for entry in sorted(path.iterdir(), key=lambda e: natural_key(e.name)) if entry.is_dir()]
    items = [folder for folder in folders if (folder / "_METADATA").is_file()]
    others = {folder.name: "an orbax item without arrays" for folder in folders if folder not in items}
    if not items:
        listed = f"; its items are {', '.join(list(others)[:5])}" if others else ""
        msg = (
            f"{path}: no item of this orbax checkpoint has a _METADATA that describes arrays{listed}. It was not "
            "finished, holds no arrays, or was written by an orbax older than 0.5"
        )
        raise StoreError(msg)
    if len(items) == 1:
        found = _read_orbax(items[0], budget)
        return Checkpoint(str(path), found.tensors, {**found.passed_over, **others}, containers=found.containers)
    joined = Checkpoint(str(path), {}, others)
    for item in items:
        found = _read_orbax(item, budget)
        joined.tensors |= {f"{item.name}.{name}": tensor for name, tensor in found.tensors.items()}
        joined.passed_over |= {f"{item.name}.{name}": why for name, why in found.passed_over.items()}
        joined.containers |= {item.name, *(f"{item.name}.{name}" for name in found.containers)}
    return joined


def _read_orbax(path: Path, budget: Budget) -> Checkpoint:
    tensorstore = optional_package("tensorstore", "reading an orbax checkpoint", "trajstats[orbax]")
    file = path / "_METADATA"
    if not file.is_file() or file.stat().st_size > MAX_JSON:
        msg = f"{path} has no readable _METADATA; it was not finished, or written by an orbax older than 0.5"
        raise StoreError(msg)
    metadata = json_object(file.read_bytes(), str(file), budget)
    driver = "zarr3" if metadata.get("use_zarr3") else "zarr"
    base = {"driver": "file", "path": f"{os.path.realpath(path)}/"}
    found = Checkpoint(str(path), {})
    present = input_size(path)
    for keys, entry in _orbax_entries(file, metadata):
        name = ".".join(keys)
        where = f"{path}: {shorten(name)}"
        budget.spend_objects(300, where)  # opening one takes about a millisecond
        if any(key in {"..", "."} or "/" in key or "\\" in key or "\0" in key for key in keys):
            msg = f"{where}: this key of the tree would leave the folder"
            raise UnsafeInputError(msg)
        if metadata.get("use_ocdbt", True):
            store = {"driver": "ocdbt", "base": base, "path": f"{name}/"}
        else:
            store = {"driver": "file", "path": f"{os.path.realpath(path)}/{name}/"}
        described = entry.get("value_metadata")
        kind = described.get("value_type") if isinstance(described, dict) else ""
        if kind in ("None", "Dict", "List", "str", "string"):
            found.passed_over[name] = kind
            continue
        spec = {"driver": driver, "kvstore": store}
        with foreign(where):
            array = tensorstore.open(spec, open=True, read=True, context=_bounded(tensorstore)).result()
        if array.dtype.name not in RAW:
            found.passed_over[name] = f"type {array.dtype.name}"
            continue
        shape = check_shape(where, tuple(int(n) for n in array.shape))
        budget.spend_unpacked(math.prod(shape) * RAW[array.dtype.name].itemsize, present, where)

        def read_box(box: Box, array: Any = array, where: str = where) -> np.ndarray:
            with foreign(where):
                return np.asarray((array[box] if box else array).read().result())

        found.tensors[name] = box_tensor(shape, array.dtype.name, read_box)
        found.containers |= {keys[0]} if len(keys) > 1 else frozenset()
    return found


def _orbax_entries(file: Path, metadata: dict[str, Any]) -> Iterator[tuple[list[str], dict[str, Any]]]:
    tree = metadata.get("tree_metadata")
    for entry in tree.values() if isinstance(tree, dict) else [None]:
        path = entry.get("key_metadata") if isinstance(entry, dict) else None
        if not isinstance(path, list) or not all(isinstance(key, dict) and "key" in key for key in path):
            msg = f"{file} does not describe a tree of arrays; it is damaged, or of an orbax that is not known here"
            raise StoreError(msg)
        yield [str(key["key"]) if isinstance(key["key"], str | int) else "" for key in path], dict(entry or {})


def _bounded(tensorstore: Any) -> Any:
    return tensorstore.Context({"cache_pool": {"total_bytes_limit": 0}})
