"""Formats that are trees: HDF5 and Keras, orbax and sharded folders, and whole series in zarr or netCDF."""

# ruff: noqa: DOC201, DOC402, DOC501  # inside the package: one line says what a method gives and raises

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from trajstats.data.budget import Budget, foreign, shorten
from trajstats.data.formats import (
    RAW,
    SKIPPED_FILES,
    Checkpoint,
    Tensor,
    check_shape,
    input_size,
    open_checkpoint,
)
from trajstats.data.formats_flat import MAX_JSON, json_object, open_zip
from trajstats.data.guard import check_links, check_zarr
from trajstats.data.naming import natural_key
from trajstats.data.place import Place
from trajstats.data.unpacking import bounded_codecs
from trajstats.errors import ArgumentError, StoreError, UnsafeInputError, UnsupportedError, optional_package, unknown

HDF5_FILTERS = {1: "gzip", 2: "shuffle", 3: "fletcher32", 32000: "lzf"}
MAX_CHUNK = 2**28
MAX_MEMBER = 2**31
WEIGHT_FILES = (
    "model.safetensors",
    "pytorch_model.bin",
    "model.weights.h5",
    "flax_model.msgpack",
    "consolidated.00.pth",
)
ORBAX_MARKS = ("_METADATA", "manifest.ocdbt", "_CHECKPOINT_METADATA")


def rows_tensor(shape: tuple[int, ...], dtype: str, read_rows: Callable[[int, int], np.ndarray]) -> Tensor:
    """Describe a tensor of which ranges along the first axis can be read.

    Parameters
    ----------
    shape : tuple of int
        Its shape.
    dtype : str
        Its type in the file.
    read_rows : callable (start, stop) -> ndarray
        Reads a range of the first axis; all of it where there is no axis.

    Returns
    -------
    Tensor
        Reads any range of the flattened array.
    """
    width = math.prod(shape[1:])

    def read(start: int, stop: int) -> np.ndarray:
        if stop <= start:
            return np.zeros(0, np.float32)
        first, last = (start // width, -(-stop // width)) if shape else (0, 1)
        block = np.asarray(read_rows(first, last))
        if dtype == "bfloat16":
            block = (block.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        flat = np.ascontiguousarray(block).reshape(-1)
        return flat[start - first * width : stop - first * width].astype(_little(flat.dtype), copy=False)

    return Tensor(shape, dtype, read)


def _little(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return dtype.newbyteorder("=")


def _known_type(dtype: np.dtype[Any]) -> str | None:
    name = np.dtype(dtype).newbyteorder("=").name
    return name if name in RAW else None


def read_hdf5(path: Path, budget: Budget) -> Checkpoint:
    """Read the tree of an HDF5 file, Keras ``.weights.h5`` included."""
    return _read_hdf5(path, str(path), path.stat().st_size, budget)


def _read_hdf5(source: Any, where: str, size: int, budget: Budget) -> Checkpoint:
    h5py = optional_package("h5py", "reading HDF5", "trajstats[hdf5]")
    found = Checkpoint(where, {})
    with h5py.File(source, "r") as file:
        todo: list[tuple[str, Any]] = [("", file)]
        seen: set[Any] = set()
        while todo:
            prefix, group = todo.pop(0)
            for key in group:
                name = f"{prefix}.{key}" if prefix else str(key)
                link = group.get(key, getlink=True)
                if not isinstance(link, h5py.HardLink):
                    msg = (
                        f"{where}: {name!r:.80} is a {type(link).__name__} that leads elsewhere; links are not followed"
                    )
                    raise UnsafeInputError(msg)
                node = group[key]
                mark = h5py.h5o.get_info(node.id).addr
                if mark in seen:
                    found.passed_over[name] = "a second name of something already listed"
                    continue
                seen.add(mark)
                if isinstance(node, h5py.Group):
                    todo.append((name, node))
                elif isinstance(node, h5py.Dataset):
                    _take_dataset(found, source, where, name, node, size, budget)
    return found


def _take_dataset(found: Checkpoint, source: Any, where: str, name: str, node: Any, size: int, budget: Budget) -> None:
    h5py = optional_package("h5py", "reading HDF5", "trajstats[hdf5]")
    label = f"{where}: {name!r:.80}"
    if node.external or node.is_virtual:
        msg = f"{label} keeps its data in other files; it is not read"
        raise UnsafeInputError(msg)
    if node.shape is None or _known_type(node.dtype) is None:
        found.passed_over[name] = f"type {node.dtype}"
        return
    plist = node.id.get_create_plist()
    filters = [plist.get_filter(k)[0] for k in range(plist.get_nfilters())]
    if any(f not in HDF5_FILTERS for f in filters):
        msg = f"{label} uses HDF5 filters {filters}, which load plugins; only {list(HDF5_FILTERS.values())} are read"
        raise UnsafeInputError(msg)
    shape = check_shape(label, tuple(int(n) for n in node.shape))
    stored = min(int(node.id.get_storage_size()), size)
    n_bytes = math.prod(shape) * node.dtype.itemsize
    budget.spend_unpacked(n_bytes, stored, label)
    if not filters and n_bytes > stored and plist.get_layout() != h5py.h5d.CHUNKED and stored:
        msg = f"{label} of {n_bytes} bytes has {stored} in the file; it is truncated"
        raise StoreError(msg)
    if node.chunks and math.prod(node.chunks) * node.dtype.itemsize > MAX_CHUNK:
        msg = f"{label} has chunks of {math.prod(node.chunks) * node.dtype.itemsize} bytes; it is not read"
        raise UnsafeInputError(msg)
    inner = node.name

    def read_rows(start: int, stop: int) -> np.ndarray:
        with h5py.File(source, "r") as file:
            return file[inner][start:stop] if shape else file[inner][()]

    found.tensors[name] = rows_tensor(shape, _known_type(node.dtype) or "", read_rows)


def read_keras(path: Path, budget: Budget) -> Checkpoint:
    """Read the weights of a ``.keras`` archive; its configuration, which may hold code, is never built."""
    with open_zip(path, budget) as archive:
        infos = {info.filename: info for info in archive.infolist()}
        config = infos.get("config.json")
        if config is not None:
            if config.file_size > MAX_JSON:
                msg = f"{path}: config.json of {config.file_size} bytes; it is not read"
                raise UnsafeInputError(msg)
            text = archive.read(config)
            if b"__lambda__" in text or b'"Lambda"' in text:
                msg = f"{path}: the model has a Lambda layer, that is marshalled code; take model.weights.h5 out of it"
                raise UnsafeInputError(msg)
        info = infos.get("model.weights.h5")
        if info is None:
            msg = f"{path} has no model.weights.h5; it is no Keras archive"
            raise StoreError(msg)
        if info.compress_type != zipfile.ZIP_STORED and info.file_size > MAX_MEMBER:
            msg = f"{path}: compressed weights of {info.file_size} bytes; unpack the archive and give model.weights.h5"
            raise UnsupportedError(msg)
        with archive.open(info) as stream:
            found = _read_hdf5(stream, str(path), info.file_size, budget)
    for name, tensor in list(found.tensors.items()):
        found.tensors[name] = _from_archive(path, name, tensor)
    return found


def _from_archive(path: Path, name: str, tensor: Tensor) -> Tensor:
    h5py = optional_package("h5py", "reading HDF5", "trajstats[hdf5]")

    def read_rows(start: int, stop: int) -> np.ndarray:
        with (
            zipfile.ZipFile(path) as archive,
            archive.open("model.weights.h5") as stream,
            h5py.File(stream, "r") as file,
        ):
            node = file[name.replace(".", "/")] if name.replace(".", "/") in file else _find(file, name)
            return node[start:stop] if tensor.shape else node[()]

    return rows_tensor(tensor.shape, tensor.dtype, read_rows)


def _find(group: Any, name: str) -> Any:
    # A key may hold a dot itself.
    for key in group:
        if name == key:
            return group[key]
        if name.startswith(f"{key}.") and (found := _find(group[key], name[len(key) + 1 :])) is not None:
            return found
    return None


def is_checkpoint_folder(path: Path) -> bool:
    """Tell whether a folder is one checkpoint, rather than a series of them.

    Parameters
    ----------
    path : Path
        A folder.

    Returns
    -------
    bool
        Whether :func:`read_folder` reads it.
    """
    names = {entry.name for entry in path.iterdir()}
    if names & {*ORBAX_MARKS, *WEIGHT_FILES, ".metadata"} or any(name.endswith(".index.json") for name in names):
        return True
    return (path / "default" / "_METADATA").is_file()


def read_folder(path: Path, budget: Budget) -> Checkpoint:
    """Read a folder that is one checkpoint: sharded, with optimizer files beside the weights, or written by orbax."""
    check_links(path)
    names = sorted((entry.name for entry in path.iterdir()), key=natural_key)
    if ".metadata" in names:
        msg = (
            f"{path} is a torch distributed checkpoint: its .metadata is a pickle, which can run code. Convert it "
            "where it was made: torch.distributed.checkpoint.format_utils.dcp_to_torch_save"
        )
        raise UnsafeInputError(msg)
    for suffix in (".safetensors.index.json", ".index.json"):
        if index := [name for name in names if name.endswith(suffix)]:
            return open_checkpoint(path / index[0], optimizer=True, budget=budget)
    for name in WEIGHT_FILES:
        if name in names:
            return open_checkpoint(path / name, optimizer=True, budget=budget)
    if (path / "default" / "_METADATA").is_file():
        return _read_orbax(path / "default", budget)
    if set(names) & set(ORBAX_MARKS):
        return _read_orbax(path, budget)
    known = (".safetensors", ".npz", ".pt", ".pth", ".bin", ".h5", ".keras", ".msgpack", ".ckpt")
    single = [n for n in names if n.endswith(known) and not n.startswith(SKIPPED_FILES)]
    if len(single) == 1:
        return open_checkpoint(path / single[0], optimizer=True, budget=budget)
    msg = f"{path} holds {len(single)} weight files and no index; give the one to read, or a series with ingest"
    raise UnsupportedError(msg)


def _read_orbax(path: Path, budget: Budget) -> Checkpoint:
    tensorstore = optional_package("tensorstore", "reading an orbax checkpoint", "trajstats[orbax]")
    file = path / "_METADATA"
    if not file.is_file() or file.stat().st_size > MAX_JSON:
        msg = f"{path} has no readable _METADATA; it was not finished, or written by an orbax older than 0.5"
        raise StoreError(msg)
    metadata = json_object(file.read_bytes(), str(file), budget)
    driver = "zarr3" if metadata.get("use_zarr3") else "zarr"
    base = {"driver": "file", "path": f"{path.resolve()}/"}
    found = Checkpoint(str(path), {})
    present = input_size(path)
    for keys, entry in _orbax_entries(file, metadata):
        name = ".".join(keys)
        where = f"{path}: {shorten(name)}"
        budget.spend_objects(1000, where)  # opening one takes about a millisecond
        if any(key in {"..", "."} or "/" in key or "\\" in key or "\0" in key for key in keys):
            msg = f"{where}: this key of the tree would leave the folder"
            raise UnsafeInputError(msg)
        if metadata.get("use_ocdbt", True):
            store = {"driver": "ocdbt", "base": base, "path": f"{name}/"}
        else:
            store = {"driver": "file", "path": f"{path.resolve() / name}/"}
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

        def read_rows(
            start: int, stop: int, array: Any = array, shape: tuple[int, ...] = shape, where: str = where
        ) -> np.ndarray:
            with foreign(where):
                return (array[start:stop] if shape else array).read().result()

        found.tensors[name] = rows_tensor(shape, array.dtype.name, read_rows)
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


def read_series(path: Path, dims: Mapping[str, str]) -> list[tuple[int, Checkpoint]]:
    """Read a zarr or netCDF file that holds a whole series, one variable per tensor with a dimension for time.

    Parameters
    ----------
    path : Path
        A zarr group or a netCDF file.
    dims : mapping
        ``{"step": "time"}``: the name there of the dimension that is `step` here.

    Returns
    -------
    list of (step, Checkpoint)
        One for each time, in order.

    Raises
    ------
    ArgumentError
        If no dimension is named, or no variable has it.
    """
    import xarray as xr

    along = dims.get("step")
    if along is None or set(dims) != {"step"}:
        msg = f"dims={dict(dims)}: name the dimension of time, as in dims={{'step': 'time'}}"
        raise ArgumentError(msg)
    if path.is_dir():
        check_zarr(Place(path), lazy=_array_names(path))
        with bounded_codecs():
            data = xr.open_zarr(path, consolidated=False, chunks=None)
    else:
        with path.open("rb") as stream:
            hdf5 = stream.read(8) == b"\x89HDF\r\n\x1a\n"
        if hdf5:
            read_hdf5(path, Budget.for_size(path.stat().st_size))  # for its checks
            optional_package("h5netcdf", "reading netCDF 4", "h5netcdf")
        data = xr.open_dataset(path, engine="h5netcdf" if hdf5 else "scipy")
    if along not in data.dims:
        raise ArgumentError(unknown("dimension", along, data.dims))
    steps = data[along].values if along in data.coords else np.arange(data.sizes[along])
    names = [str(n) for n, v in data.data_vars.items() if along in v.dims and _known_type(v.dtype)]
    series = []
    for k, step in enumerate(steps):
        found = Checkpoint(f"{path}[{along}={step}]", {})
        for name in names:
            variable = data[name].variable
            shape = tuple(n for d, n in variable.sizes.items() if d != along)

            def read_rows(start: int, stop: int, v: Any = variable, k: int = k, shape: Any = shape) -> np.ndarray:
                row = v.isel({along: k})
                return np.asarray(row[start:stop] if shape else row)

            found.tensors[name] = rows_tensor(shape, _known_type(variable.dtype) or "", read_rows)
        series.append((int(step), found))
    return series


def _array_names(path: Path) -> tuple[str, ...]:
    return tuple(entry.name for entry in path.iterdir() if entry.is_dir())
