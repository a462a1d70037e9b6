"""Zarr groups and netCDF files of unknown origin, opened as datasets whose arrays are read when they are needed."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from xarray.backends import BackendArray
from xarray.core import indexing

from trajstats.data.formats._tensor import check_shape, input_size
from trajstats.data.formats.hdf5._read import Source, StoredArray, entries
from trajstats.data.safety._budget import PROMISED_SIZE, Budget, foreign, shorten
from trajstats.data.safety._codecs import bounded_codecs
from trajstats.data.store._guard import ITEM_BYTES, check_zarr, read_json
from trajstats.data.store.files._place import Place
from trajstats.errors import UnsafeInputError, UnsupportedError

MAX_CHUNK = 64 * 2**20
MAX_ARRAYS = 500  # opening one takes about three milliseconds
_DECODE: dict[str, Any] = {"decode_times": False, "decode_timedelta": False}


def open_dataset(path: Path, budget: Budget) -> xr.Dataset:
    """Open a zarr group or a netCDF file; what it claims is compared with what it holds before anything is read.

    Scales, offsets and missing values are decoded as the CF conventions say; times stay numbers with their units.
    """
    if path.is_dir():
        names = tuple(entry.name for entry in path.iterdir() if entry.is_dir())
        budget.spend_objects(100 * len(names), str(path))
        if len(names) > (most := int(MAX_ARRAYS * max(1.0, input_size(path) / PROMISED_SIZE))):
            msg = f"{path} holds {len(names)} arrays, which take long to open; at most {most} are opened at this size"
            raise UnsafeInputError(msg)
        check_zarr(Place(path), lazy=names)
        for name in names:
            _check_zarr_array(path, name, budget)
        with foreign(str(path)), bounded_codecs():
            return xr.open_zarr(path, consolidated=False, chunks=None, zarr_format=3, **_DECODE)
    with path.open("rb") as stream:
        magic = stream.read(8)
    if magic == b"\x89HDF\r\n\x1a\n":
        return _open_netcdf4(path, budget)
    if magic[:4] not in {b"CDF\x01", b"CDF\x02"}:
        msg = f"{path} is neither a zarr group nor a file of netCDF 3 or 4; no other kind of file holds a whole series"
        raise UnsupportedError(msg)
    with path.open("rb") as stream, foreign(str(path)), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # damaged attributes
        return xr.open_dataset(path, engine="scipy", **_DECODE)


def _check_zarr_array(path: Path, name: str, budget: Budget) -> None:
    node = read_json(Place(path), f"{name}/zarr.json")
    if node is None or node.get("node_type") != "array":
        return
    where = f"{path}: {shorten(name)}"
    item = ITEM_BYTES[node["data_type"]]  # checked by check_zarr, like the shapes
    shape = check_shape(where, node["shape"])
    chunk = check_shape(where, node["chunk_grid"]["configuration"]["chunk_shape"])
    stored = input_size(path / name)
    if 0 in chunk or len(chunk) != len(shape):
        msg = f"{where}: chunks {shorten(chunk)} do not fit to a shape {shorten(shape)}"
        raise UnsafeInputError(msg)
    # Chunks that were never written are visited like others.
    chunks = math.prod(-(-n // size) for n, size in zip(shape, chunk, strict=True))
    budget.spend_objects(10 * max(0, chunks - sum(len(files) for _, _, files in os.walk(path / name))), where)
    for codec in node["codecs"]:
        if isinstance(codec, dict) and codec.get("name") == "sharding_indexed":
            inside = codec.get("configuration")
            inner = check_shape(where, inside.get("chunk_shape") if isinstance(inside, dict) else None)
            if 16 * math.prod(chunk) > (stored + MAX_CHUNK) * math.prod(inner):
                msg = f"{where}: shards of {shorten(chunk)} hold more chunks of {shorten(inner)} than there are bytes"
                raise UnsafeInputError(msg)
            chunk = inner
    if (size := math.prod(chunk) * item) > max(MAX_CHUNK, 2 * stored):
        msg = f"{where}: a chunk of shape {shorten(chunk)} takes {size} bytes, and the array {stored} on disk"
        raise UnsafeInputError(msg)
    budget.spend_unpacked(math.prod(shape) * item, stored, where)


def _open_netcdf4(path: Path, budget: Budget) -> xr.Dataset:
    source = Source(path, 0, path.stat().st_size)
    listed, blob, block = entries(source, str(path), budget, netcdf=True)
    sizes: dict[str, int] = {}
    variables: dict[str, xr.Variable] = {}
    for entry in listed:
        name, dims = entry["name"], entry.get("dims")
        if entry["kind"] != "dataset" or "shape" not in entry or dims is None:
            continue
        where = f"{path}: {shorten(name)}"
        if len(dims) != len(entry["shape"]) or len(set(dims)) != len(dims):
            msg = f"{where} has dimensions {shorten(dims)} for a shape {shorten(entry['shape'])}; it is damaged"
            raise UnsafeInputError(msg)
        for dim, size in zip(dims, entry["shape"], strict=True):
            if sizes.setdefault(dim, size) != size:
                msg = f"{where} has {size} along {shorten(dim)}, and another variable {sizes[dim]}; it is damaged"
                raise UnsafeInputError(msg)
        if not entry["only_dimension"]:
            data = indexing.LazilyIndexedArray(_Lazy(StoredArray(source, entry, blob, block, where, budget)))
            variables[name] = xr.Variable(dims, data, _attributes(entry["attributes"]))
    with foreign(str(path)):
        return xr.decode_cf(xr.Dataset(variables), **_DECODE)


def _attributes(found: Mapping[str, list[Any]]) -> dict[str, Any]:
    attributes: dict[str, Any] = {}
    for key, (kind, value, *_) in found.items():
        if kind == "text":
            attributes[key] = value
        else:
            numbers = np.frombuffer(bytes.fromhex(value), kind)
            attributes[key] = numbers[0] if numbers.size == 1 else numbers
    return attributes


class _Lazy(BackendArray):
    """A dataset of HDF5 as xarray reads it."""

    def __init__(self, array: StoredArray) -> None:
        self.array = array
        self.shape, self.dtype = array.shape, array.dtype

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.BASIC, self._read)

    def _read(self, key: tuple[Any, ...]) -> np.ndarray:
        box: list[slice] = []
        inside: list[Any] = []
        for part, size in zip(key, self.shape, strict=True):
            if isinstance(part, slice):
                wanted = range(*part.indices(size))
                low, high = (min(wanted), max(wanted) + 1) if len(wanted) else (0, 0)
                inside.append(slice(None) if wanted.step == 1 else np.asarray(wanted, dtype=np.int64) - low)
            else:
                low, high = int(part), int(part) + 1
                inside.append(0)
            box.append(slice(low, high))
        block = self.array.read(tuple(box))
        for axis in reversed(range(len(inside))):
            block = block[(slice(None),) * axis + (inside[axis],)]
        return block
