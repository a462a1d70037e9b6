"""torch distributed checkpoints: a folder of `.metadata` and `*.distcp`, in which tensors lie in chunks.

`.metadata` is a pickle. It is walked by the machine for torch files, with a list of the few classes that torch writes
there; all are stand-ins. Each chunk is a range of a `.distcp` file in which `torch.save` wrote one tensor.
"""

from __future__ import annotations

import io
import math
import os
import re
import stat
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

import numpy as np

from trajstats.data.formats._boxes import box_tensor, read_chunks
from trajstats.data.formats._tensor import MAX_NAME, RAW, Checkpoint, Tensor, check_shape
from trajstats.data.formats.torch_files._machine import _Machine, _run
from trajstats.data.formats.torch_files._names import KNOWN, ClassName, Opaque
from trajstats.data.formats.torch_files._read import read_torch_zip
from trajstats.data.safety._budget import Budget, shorten
from trajstats.data.safety._links import check_link
from trajstats.errors import StoreError, StoreNotFoundError, UnsafeInputError, UnsupportedError

MAX_METADATA = 2**30
MAX_DIMENSIONS = 32  # of an array in NumPy 1
_HERE = "torch.distributed.checkpoint.metadata"
_OLD = "torch.distributed._shard.sharded_tensor.metadata"
_PLANNER = "torch.distributed.checkpoint.planner"
_CLASSES = {
    *((_HERE, name) for name in ("Metadata", "MetadataIndex", "StorageMeta", "TensorProperties")),
    *((_HERE, name) for name in ("TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata")),
    *((_HERE, "_MEM_FORMAT_ENCODING"), (_OLD, "TensorProperties"), (_OLD, "MEM_FORMAT_ENCODING")),
    *(("torch.distributed.checkpoint.filesystem", name) for name in ("_StorageInfo", "_StoragePrefix")),
    ("olmo_core.distributed.checkpoint.filesystem", "_StorageInfo"),
    # Megatron-LM keeps the plans of its ranks there; they are not needed.
    *((_PLANNER, name) for name in ("SavePlan", "WriteItem", "WriteItemType", "TensorWriteData")),
    *((f"megatron.core.dist_checkpointing.{module}", "MCoreMetadata") for module in ("mapping", "strategies.torch")),
    *(("torch.serialization", "_get_layout"), ("torch", "device")),
    *((module, name) for module in ("pathlib", "pathlib._local") for name in ("PosixPath", "WindowsPath")),
    *((module, name) for module in ("pathlib", "pathlib._local") for name in ("PurePosixPath", "PureWindowsPath")),
}
_OTHER_TYPE = re.compile("(?:float|uint|int|bits|complex|quint|qint)[0-9][0-9a-z_]{0,20}")


class _MetadataMachine(_Machine):
    """A pickle machine that knows the classes of `.metadata` and no other name."""

    def find_class(self, module: str, name: str) -> Any:
        """Give the stand-in of a class of `.metadata`; refuse every other name."""
        if (module, name) in _CLASSES:
            return ClassName(f"{module}.{name}")
        known = KNOWN.get((module, name))
        if (module, name) in {("torch", "Size"), ("collections", "OrderedDict")} or isinstance(known, tuple):
            return known
        if module != "torch" or not _OTHER_TYPE.fullmatch(name):
            self._refuse(f"asks for {module[:80]}.{name[:80]}")
        return ClassName(f"torch.{name}")

    def persistent_load(self, key: Any) -> NoReturn:
        """Refuse tensors, which `.metadata` does not hold."""
        self._refuse("holds a storage")


@dataclass
class _Chunk:
    """A part of a tensor, and the range of a file in which it lies."""

    file: Path
    start: int
    length: int
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    dtype: str
    lock: threading.Lock = field(default_factory=threading.Lock)
    opened: Tensor | None = None

    def open(self, where: str) -> Tensor:
        """Open what lies in the range, once; it must be the tensor that `.metadata` describes."""
        with self.lock:
            if self.opened is None:
                budget = Budget.for_size(self.length)
                found = read_torch_zip(self.file, budget, (self.start, self.length)).tensors
                (tensor,) = found.values() if len(found) == 1 else (None,)
                if tensor is None or (tensor.shape, tensor.dtype) != (self.sizes, self.dtype):
                    there = "no single tensor" if tensor is None else f"{tensor.dtype} of shape {shorten(tensor.shape)}"
                    msg = (
                        f"{self.file}: at byte {self.start} there is {there}, where {where} should have "
                        f"{self.dtype} of shape {shorten(self.sizes)}; the files are not of one checkpoint"
                    )
                    raise StoreError(msg)
                self.opened = tensor
            return self.opened


def read_distributed(path: Path, budget: Budget) -> Checkpoint:
    """Read the `.metadata` of a torch distributed checkpoint; tensors are put together from their chunks when read."""
    file = path / ".metadata"
    entries, stored, attributes = _metadata(file, budget)
    reshaped = _reshaped_by_megatron(attributes)
    _check_files(path, stored, budget)
    found = Checkpoint(str(path), {})
    objects = []
    for name, entry in entries.items():
        where = f"{file}: {shorten(name)}"
        if not isinstance(name, str) or len(name) > MAX_NAME:
            msg = f"{where} is not a name"
            raise UnsafeInputError(msg)
        budget.spend_objects(16, where)
        if isinstance(entry, Opaque) and entry.name.endswith(".BytesStorageMetadata"):
            objects.append(name)
            continue
        if not isinstance(entry, Opaque) or not entry.name.endswith(".TensorStorageMetadata"):
            msg = f"{where} is described by {shorten(entry)}, neither a tensor nor an object"
            raise UnsafeInputError(msg)
        described = entry.attributes()
        shape, kind = check_shape(where, described.get("size")), _dtype(where, described.get("properties"))
        if kind not in RAW or len(shape) > MAX_DIMENSIONS:
            found.passed_over[name] = f"type {kind:.40}" if kind not in RAW else f"{len(shape)} dimensions"
            continue
        if name in reshaped:
            found.passed_over[name] = "numbers of an optimizer that Megatron-LM put into another order"
            continue
        parts = described.get("chunks")
        budget.spend_objects(16 * len(parts) if isinstance(parts, list | tuple) else 0, where)
        chunks = _chunks(path, name, parts, kind, stored)
        _check_cover(where, shape, chunks, budget)
        found.tensors[name] = box_tensor(shape, kind, partial(read_chunks, where, kind, chunks))
    if objects:
        more = f" ({len(objects)} of them)" if len(objects) > 1 else ""
        found.passed_over[objects[0]] = f"an object that is saved as a pickle, which is not read{more}"
    found.containers = _containers(attributes.get("planner_data"))
    return found


def _metadata(file: Path, budget: Budget) -> tuple[Mapping[Any, Any], dict[Any, dict[str, Any]], dict[str, Any]]:
    """Walk `.metadata`: what there is, where each chunk is stored, and all attributes."""
    size = file.stat().st_size if file.is_file() else 0
    if not 0 < size <= MAX_METADATA:
        msg = f"{file} has {size} bytes; the checkpoint was not finished, or is damaged"
        raise StoreError(msg)
    tree = _run(_MetadataMachine(io.BytesIO(file.read_bytes()), str(file), budget), str(file))
    attributes = tree.attributes() if isinstance(tree, Opaque) and tree.name.endswith("Metadata") else {}
    entries, storage = attributes.get("state_dict_metadata"), attributes.get("storage_data")
    if not isinstance(entries, Mapping) or not isinstance(storage, Mapping):
        msg = f"{file} does not describe a torch distributed checkpoint; it is damaged, or of a torch not known here"
        raise StoreError(msg)
    stored = {}
    for index, info in storage.items():
        budget.spend_objects(16, str(file))
        if not isinstance(index, Opaque) or not isinstance(info, Opaque) or not info.name.endswith("._StorageInfo"):
            msg = f"{file}: {shorten(info)} does not say where a chunk is stored"
            raise StoreError(msg)
        key = index.attributes()
        name, offset = key.get("fqn"), key.get("offset")
        if not isinstance(name, str):
            msg = f"{file}: the chunk of {shorten(name)} has no name"
            raise StoreError(msg)
        place = (name, check_shape(f"{file}: offset in {shorten(name)}", offset) if offset is not None else None)
        if place in stored:
            msg = f"{file}: a chunk of {shorten(name)} at {shorten(offset)} is stored twice"
            raise UnsafeInputError(msg)
        stored[place] = info.attributes()
    return entries, stored, attributes


def _check_files(path: Path, stored: Mapping[Any, dict[str, Any]], budget: Budget) -> None:
    """Check that every chunk lies within a plain file of the folder, and that no two share bytes."""
    sizes: dict[str, int] = {}
    ranges: dict[str, list[tuple[int, int]]] = {}
    for (name, _), info in stored.items():
        where = f"{path / '.metadata'}: {shorten(name)}"
        file, start, length = (info.get(key) for key in ("relative_path", "offset", "length"))
        plain = isinstance(file, str) and PurePosixPath(file).name == file and file.isprintable() and len(file) < 256
        if not isinstance(file, str) or not plain or "\\" in file or ":" in file or file in {"", ".", ".."}:
            msg = f"{where}: its file {shorten(file)} is not a plain file name"
            raise UnsafeInputError(msg)
        if info.get("transform_descriptors"):
            msg = (
                f"{where} is packed by {shorten(info['transform_descriptors'])}, which is not read. Save it without "
                "extensions: torch.distributed.checkpoint.save(state, checkpoint_id=path)"
            )
            raise UnsupportedError(msg)
        if file not in sizes:
            budget.spend_objects(100, where)
            sizes[file] = _file_size(path, file)
        begin, n = check_shape(f"{where}: offset and length", (start, length))
        if begin + n > sizes[file]:
            msg = (
                f"{path / file} is truncated: it has {sizes[file]} bytes, and {shorten(name)} takes {n} at byte {begin}"
            )
            raise StoreError(msg)
        ranges.setdefault(file, []).append((begin, begin + n))
    for file, parts in ranges.items():
        parts.sort()
        if any(stop > start for (_, stop), (start, _) in zip(parts, parts[1:], strict=False)):
            msg = f"{path / '.metadata'}: two chunks share bytes of {file}; it is damaged"
            raise UnsafeInputError(msg)


def _file_size(path: Path, name: str) -> int:
    file = path / name
    if os.path.islink(file):
        check_link(file, path)
    if not file.exists():
        msg = f"{file} does not exist: it holds parts of this checkpoint. Download all files of the folder"
        raise StoreNotFoundError(msg)
    status = file.stat()
    if not stat.S_ISREG(status.st_mode):
        msg = f"{file} is not a file; it is not read"
        raise UnsafeInputError(msg)
    return status.st_size


def _dtype(where: str, properties: Any) -> str:
    """Return the type of a tensor, which must be an ordinary dense one."""
    state = properties.given[-1] if isinstance(properties, Opaque) and properties.given else None
    if isinstance(state, Mapping):
        state = (state.get("dtype"), state.get("layout"))
    if not isinstance(state, tuple) or len(state) < 2:
        msg = f"{where} has no type; .metadata is damaged, or of a torch that is not known here"
        raise StoreError(msg)
    layout = state[1].arguments if isinstance(state[1], Opaque) else ()
    if layout not in ((("torch.strided",),), ()):
        return "of another layout"
    kind = state[0]
    name = kind[1] if isinstance(kind, tuple) and len(kind) == 2 and kind[0] == "dtype" else getattr(kind, "name", None)
    if not isinstance(name, str):
        msg = f"{where} has type {shorten(kind)}, which is none of torch"
        raise StoreError(msg)
    return name.removeprefix("torch.")


def _chunks(path: Path, name: str, described: Any, kind: str, stored: Mapping[Any, dict[str, Any]]) -> list[_Chunk]:
    """List the chunks of a tensor, each in a range of bytes that can hold it."""
    where = f"{path / '.metadata'}: {shorten(name)}"
    found = []
    for part in described if isinstance(described, list | tuple) else [None]:
        attributes = part.attributes() if isinstance(part, Opaque) else {}
        at = check_shape(f"{where}: offset of a chunk", attributes.get("offsets"))
        shape = check_shape(f"{where}: a chunk", attributes.get("sizes"))
        info = stored.get((name, at))
        if info is None and math.prod(shape) == 0:
            continue
        if info is None:
            msg = f"{where}: the chunk at {shorten(at)} is stored in no file; the checkpoint is not complete"
            raise StoreError(msg)
        file, start, length = info["relative_path"], info["offset"], info["length"]
        if math.prod(shape) * RAW[kind].itemsize > length:
            msg = f"{where}: a chunk of shape {shorten(shape)} of {kind} does not fit the {length} bytes stored for it"
            raise UnsafeInputError(msg)
        found.append(_Chunk(path / file, start, length, at, shape, kind))
    return found


def _check_cover(where: str, shape: tuple[int, ...], chunks: list[_Chunk], budget: Budget) -> None:
    """Check that the chunks lie within the tensor and cover each element once."""
    chunks = [chunk for chunk in chunks if 0 not in chunk.sizes]
    for chunk in chunks:
        fits = len(chunk.offsets) == len(chunk.sizes) == len(shape) and all(
            at + n <= size for at, n, size in zip(chunk.offsets, chunk.sizes, shape, strict=True)
        )
        if not fits:
            msg = (
                f"{where}: a chunk of shape {shorten(chunk.sizes)} at {shorten(chunk.offsets)} is not within its shape "
                f"{shorten(shape)}"
            )
            raise UnsafeInputError(msg)
    covered = sum(math.prod(chunk.sizes) for chunk in chunks)
    if covered < math.prod(shape):
        msg = (
            f"{where}: its chunks hold {covered} of {math.prod(shape)} numbers; the others were not saved, or are in "
            "the folder of another rank"
        )
        raise StoreError(msg)
    # The edges of all chunks cut the tensor into cells; each must belong to one chunk.
    edges = [
        sorted({0, *(e for c in chunks for e in (c.offsets[d], c.offsets[d] + c.sizes[d]))}) for d in range(len(shape))
    ]
    n_cells = math.prod(len(edge) - 1 for edge in edges) if chunks else 0
    budget.spend_objects(n_cells + 4 * len(chunks), f"{where}: its chunks")
    if len(chunks) < 2:
        return
    cells = np.zeros([len(edge) - 1 for edge in edges], np.uint16)
    index = [{value: k for k, value in enumerate(edge)} for edge in edges]
    for chunk in chunks:
        box = tuple(
            slice(index[d][at], index[d][at + n])
            for d, (at, n) in enumerate(zip(chunk.offsets, chunk.sizes, strict=True))
        )
        cells[box] += 1
    if (cells != 1).any():
        msg = f"{where}: its chunks overlap or leave gaps; .metadata is damaged"
        raise UnsafeInputError(msg)


def _containers(paths: Any) -> frozenset[str]:
    """List the names of the mappings in the two outermost levels, from the paths that torch made flat names of."""
    found: set[str] = set()
    for path in paths.values() if isinstance(paths, Mapping) else ():
        if isinstance(path, tuple) and len(path) > 1 and isinstance(path[0], str):
            found.add(path[0][:MAX_NAME])
            if len(path) > 2 and isinstance(path[1], str) and isinstance(path[2], str):
                found.add(f"{path[0]}.{path[1]}"[:MAX_NAME])
    return frozenset(found)


def _reshaped_by_megatron(attributes: Mapping[str, Any]) -> set[Any]:
    """List the tensors whose numbers Megatron-LM saved in another order than their shape says."""
    noted = attributes.get("mcore_data")
    known = noted.items() if isinstance(noted, Mapping) else ()
    return {name for name, note in known if isinstance(note, Mapping) and "nd_reformulated_orig_global_shape" in note}
