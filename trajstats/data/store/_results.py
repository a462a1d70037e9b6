"""Saved results (fits, batches, pairs, spectra): written whole or not at all, opened with care."""

from __future__ import annotations

import os
import shutil
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from zarr.abc.store import Store
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import StorePath

from trajstats.data.safety._budget import PROMISED_SIZE, Budget, foreign, json_object
from trajstats.data.safety._codecs import bounded_codecs
from trajstats.data.safety._seal import ROOT, SealedStore, seal, sums_of, without_seal
from trajstats.data.safety._sizes import check_size
from trajstats.data.store._guard import MAX_METADATA_BYTES, bytes_of, check_array
from trajstats.data.store.files._folder import check_plain
from trajstats.data.store.files._folder_store import FolderStore
from trajstats.errors import StoreNotFoundError, TrajstatsError, UnsafeInputError

# Format 3 has no codec that runs code; both readers get the format, or they would look for format 2 as well.
_HOW: dict[str, Any] = {"consolidated": False, "chunks": None, "zarr_format": 3}
_DO = "It is damaged: restore it from a copy, or remove it and compute it again"
# Set on results that were saved before they had checksums, and not saved with them.
UNVERIFIED = "unverified"
_WHY = "saved without checksums by an older version: damage would not be noticed"


def open_kept(place: Path | StorePath, /) -> xr.Dataset:
    """Open a result lazily; what is read later is checked then, like all that is read here.

    Links in the folder, chunks that unpack to more than the metadata say and coordinates of an unbelievable size raise
    UnsafeInputError; what changed since it was saved raises StoreError.
    """
    return _opened(_checked(place, every=False), str(place))


def load_kept(place: Path | StorePath, /) -> xr.Dataset:
    """Read a result into memory; one that claims more than 64 MiB and a hundred times its size is not read."""
    found = _opened(_checked(place, every=True), str(place))
    with foreign(str(place), _DO):
        return found.load()


def load_kept_tree(place: Path, /) -> xr.DataTree:
    """Read a tree of results into memory, with the checks of `load_kept`."""
    store = _checked(place, every=True)
    with bounded_codecs(), foreign(str(place), _DO):
        tree = xr.open_datatree(store, engine="zarr", **_HOW).load()
    tree.attrs = _attrs(tree.attrs, store)
    return tree


def load_kept_arrays(place: Path, /) -> dict[str, np.ndarray]:
    """Read the arrays of a group, with the checks of `load_kept`."""
    store = _checked(place, every=True)
    with bounded_codecs(), foreign(str(place), _DO):
        group = zarr.open_group(store, mode="r", zarr_format=3)
        return {str(key): np.asarray(array[...]) for key, array in group.arrays()}


def kept_attrs(place: Path | StorePath, /) -> dict[str, Any]:
    """Read the attributes of a result, checked."""
    store, prefix = _address(place)
    node = read_object(store, prefix, ROOT, Budget.for_size(0))
    if node is None:
        msg = f"no result at {place}"
        raise StoreNotFoundError(msg)
    sums_of(node, str(place))
    attrs = node.get("attributes")
    return without_seal(attrs) if isinstance(attrs, dict) else {}


def damage_of_kept(place: Path | StorePath, /) -> tuple[int, list[str], bool]:
    """Read a result once: how many objects, what is damaged, and whether it has checksums."""
    try:
        store = _checked(place, every=False)
    except TrajstatsError as error:
        return 0, [str(error)], True
    if not isinstance(store, SealedStore):
        return 0, [], False
    damaged = []
    for key in store.sums:
        try:
            sync(store.get(key))
        except TrajstatsError as error:
            damaged.append(str(error))
    return len(store.sums), damaged, True


def read_object(store: Store, prefix: str, key: str, budget: Budget) -> dict[str, Any] | None:
    """Read one metadata document of bounded size; None if there is none."""
    name = f"{prefix}/{key}" if prefix else key
    size = store.folder.size(name) if isinstance(store, FolderStore) else None
    raw = None
    if size is None or size <= MAX_METADATA_BYTES:
        found = sync(store.get(name, default_buffer_prototype()))
        raw = None if found is None else found.to_bytes()
    if (size or len(raw or b"")) > MAX_METADATA_BYTES:
        msg = f"{store}/{name}: {size} bytes of metadata; at most {MAX_METADATA_BYTES} are read"
        raise UnsafeInputError(msg)
    return None if raw is None else json_object(raw, f"{store}/{name}", budget)


def _address(place: Path | StorePath) -> tuple[Store, str]:
    if isinstance(place, Path):
        return FolderStore(place, read_only=True), ""
    return place.store, place.path.strip("/")


def _checked(place: Path | StorePath, *, every: bool) -> Any:
    """Check the metadata of all groups and arrays, and return the store to read them from."""
    where = str(place)
    store, prefix = _address(place)
    size = None
    if isinstance(place, Path):
        if not place.is_dir():
            msg = f"no result at {where}"
            raise StoreNotFoundError(msg)
        check_plain(place)
        size = sum(os.path.getsize(place / key) for key in FolderStore(place).folder.files())
    budget = Budget.for_size(PROMISED_SIZE if size is None else size)
    root = read_object(store, prefix, ROOT, budget)
    if root is None:
        msg = f"{where} holds no result: no {ROOT} there"
        raise StoreNotFoundError(msg)
    sums = sums_of(root, where)
    sealed: Store | None = None if sums is None else SealedStore(store, prefix, sums)
    start = f"{prefix}/" if prefix and sealed is None else ""
    claimed = 0
    for key in _keys(sealed or store, "" if sealed else prefix):
        budget.spend_objects(1, where)
        if not key.endswith(f"/{ROOT}") or key == start + ROOT:
            continue
        node = read_object(sealed or store, "", key, budget)
        if node is not None and node.get("node_type") == "array":
            name = key.removeprefix(start).removesuffix(f"/{ROOT}")
            check_array(f"{where}/{name}", node, lazy=True, rows=None)
            # Of a result that is opened lazily xarray reads the coordinates of its dimensions.
            if every or node.get("dimension_names") == [name.rpartition("/")[2]]:
                claimed += bytes_of(node)
    if size is not None:  # of a store elsewhere only its chunks are bounded
        check_size(where, claimed, size)
    return sealed if sealed is not None else store if isinstance(place, Path) else place


def _keys(store: Store, prefix: str) -> list[str]:
    async def every() -> list[str]:
        return [key async for key in store.list_prefix(f"{prefix}/" if prefix else "")]

    return sync(every())


def _opened(store: Any, where: str) -> xr.Dataset:
    with bounded_codecs(), foreign(where, _DO):
        found = xr.open_zarr(store, **_HOW)
    found.attrs = _attrs(found.attrs, store)
    return found


def _attrs(attrs: dict[Any, Any], store: Any) -> dict[Any, Any]:
    return without_seal(attrs) | ({} if isinstance(store, SealedStore) else {UNVERIFIED: _WHY})


def save_kept(path: Path, data: xr.Dataset | xr.DataTree, /, *, former: Path | None = None) -> None:
    """Write a result to a folder, which takes its place under its name once it is whole."""
    scratch = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch.mkdir()  # new, so that nothing can be prepared in it
    try:
        data.to_zarr(FolderStore(scratch), mode="w", consolidated=False)
        seal(FolderStore(scratch))
        _replace(path, scratch, former)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _replace(path: Path, scratch: Path, former: Path | None) -> None:
    if not os.path.lexists(path):
        scratch.rename(path)
        return
    retired = former or path.with_name(f"{path.name}.{uuid.uuid4().hex}.old")
    path.rename(retired)
    try:
        scratch.rename(path)
    except BaseException:
        if not os.path.lexists(path):
            retired.rename(path)
        raise
    remove_kept(retired)


def remove_kept(path: Path, /) -> None:
    """Delete a result; of a link the link alone."""
    if path.is_symlink():
        path.unlink()
    else:
        shutil.rmtree(path)
