"""torch checkpoints, without torch: the pickle is walked by a machine that knows tensors and nothing else.

``torch.load`` builds objects; this reader only needs to know where the bytes of each tensor lie. Its unpickler resolves
a fixed list of names, all to stand-ins defined here, so nothing in the file can name a function that does anything.
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from trajstats.data.formats._tensor import RAW, Checkpoint, Tensor, check_shape, file_tensor, leaves, outer_mappings
from trajstats.data.formats._zip_files import Verified, open_zip, read_member
from trajstats.data.formats.torch_files._deepspeed import check_whole
from trajstats.data.formats.torch_files._machine import _Machine, _run
from trajstats.data.formats.torch_files._names import ClassName, Opaque, Storage, Unread, View
from trajstats.data.formats.torch_files._objects import LeftOut
from trajstats.data.safety._budget import Budget, shorten
from trajstats.errors import StoreError, UnsafeInputError

MAX_PICKLE = 64 * 2**20
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


# name -> shape of the whole tensor, axis along which it is split, number of the piece
Pieces = dict[str, tuple[tuple[int, ...], int, int]]


def read_torch(path: Path, budget: Budget, pieces: Pieces | None = None) -> Checkpoint:
    """Read a torch checkpoint, in the zip format of torch >= 1.6 or the one before it.

    One rank's piece of a distributed tensor is an error, unless there are `pieces` to note it in.
    """
    with path.open("rb") as stream:
        magic = stream.read(4)
    if magic == b"PK\x03\x04":
        return read_torch_zip(path, budget, pieces=pieces)
    return _read_legacy(path, budget, pieces)


def read_torch_zip(
    path: Path, budget: Budget, span: tuple[int, int] | None = None, pieces: Pieces | None = None
) -> Checkpoint:
    """Read what `torch.save` wrote to a file, or to a range of a file (start, length)."""
    with open_zip(path, budget, span) as archive:
        infos = {info.filename: info for info in archive.infolist()}
        pickles = [name for name in infos if name.rpartition("/")[2] == "data.pkl"]
        if len(pickles) != 1 or any("/code/" in name for name in infos):
            msg = f"{path} holds {len(pickles)} data.pkl or code (TorchScript); only state dicts are read"
            raise UnsafeInputError(msg)
        root = pickles[0].removesuffix("data.pkl")
        if f"{root}byteorder" in infos and read_member(archive, path, f"{root}byteorder", 64).strip() != b"little":
            msg = f"{path} was written on a big-endian machine; save it again on a little-endian one"
            raise StoreError(msg)
        machine = _Machine(io.BytesIO(read_member(archive, path, pickles[0], MAX_PICKLE)), str(path), budget)
        tree = _run(machine, str(path))

    members: dict[str, Verified] = {}

    def locate(storage: Storage) -> tuple[int, int, Verified | None]:
        info = infos.get(f"{root}data/{storage.key}")
        if info is None or info.compress_type != zipfile.ZIP_STORED:
            msg = f"{path}: storage {shorten(storage.key)} is missing or compressed; the file is damaged"
            raise StoreError(msg)
        if storage.key not in members:
            members[storage.key] = Verified(path, info, span)
        return members[storage.key].begin, info.file_size, members[storage.key]

    return _collect(path, tree, machine.storages, locate, budget, pieces)


def _read_legacy(path: Path, budget: Budget, pieces: Pieces | None) -> Checkpoint:
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(min(size, MAX_PICKLE))
    stream = io.BytesIO(head)
    where = str(path)
    if _run(_Machine(stream, where, budget), where) != LEGACY_MAGIC:
        msg = f"{path} is a bare pickle or no torch file; it is not read. Ask for safetensors or npz instead."
        raise UnsafeInputError(msg)
    for _ in range(2):  # protocol version, system information
        _run(_Machine(stream, where, budget), where)
    machine = _Machine(stream, where, budget)
    tree = _run(machine, where)
    keys = _run(_Machine(stream, where, budget), where)
    position = stream.tell()
    places: dict[str, tuple[int, int]] = {}
    for key in keys if isinstance(keys, list) else []:
        budget.spend_objects(4, where)
        if not isinstance(key, str):
            msg = f"{path}: its list of storages holds {shorten(key)}, which is not a name; the file is damaged"
            raise StoreError(msg)
        storage = machine.storages.get(key)
        with path.open("rb") as file:
            file.seek(position)
            raw = file.read(8)
        if storage is None or len(raw) != 8:
            msg = f"{path} is truncated or damaged at byte {position}"
            raise StoreError(msg)
        count = struct.unpack("<q", raw)[0]
        item = RAW[storage.dtype].itemsize if storage.dtype in RAW else int(storage.dtype[5:])
        if count < 0 or position + 8 + count * item > size:
            msg = f"{path} is truncated: storage {shorten(key)} ends beyond the file"
            raise StoreError(msg)
        places[key] = (position + 8, count * item)
        position += 8 + count * item

    def locate(storage: Storage) -> tuple[int, int, Verified | None]:
        if storage.key not in places:
            msg = f"{path}: storage {shorten(storage.key)} is missing"
            raise StoreError(msg)
        return (*places[storage.key], None)

    return _collect(path, tree, machine.storages, locate, budget, pieces)


def _collect(
    path: Path,
    tree: Any,
    storages: Mapping[str, Storage],
    locate: Callable[[Storage], tuple[int, int, Verified | None]],
    budget: Budget,
    pieces: Pieces | None,
) -> Checkpoint:
    found = Checkpoint(str(path), {})
    if not isinstance(tree, Mapping | list | tuple):
        tree = {"object" if isinstance(tree, Opaque) else "tensor": tree}
    check_whole(str(path), tree)
    found.containers = outer_mappings(tree)
    left_out = LeftOut(str(path), budget)
    for name, value in leaves(tree, str(path), budget):
        leaf = value
        if isinstance(leaf, Unread) and leaf.piece is not None and pieces is not None:
            leaf, shape, axis, number = leaf.piece
            pieces[name] = check_shape(f"{path}: tensor {shorten(name)}", shape), axis, number
        if isinstance(leaf, Opaque | ClassName | Unread):
            left_out.add(name, leaf)
        if not isinstance(leaf, View):
            continue
        budget.spend_objects(8, f"{path}: tensor {shorten(name)}")
        if name in found.tensors or name in found.passed_over:
            msg = f"{path}: two tensors are called {shorten(name)}"
            raise UnsafeInputError(msg)
        storage = leaf.storage
        left_out.has(storage)
        left_out.cover(leaf.beside)
        kind = leaf.dtype or getattr(storage, "dtype", "")
        if not isinstance(storage, Storage) or kind not in RAW:
            found.passed_over[name] = f"type {kind:.40}" if leaf.dtype else "not a tensor of numbers"
            continue
        begin, n_bytes, verified = locate(storage)
        tensor = _view_tensor(path, name, leaf, (storage.key, kind), begin, n_bytes)
        found.tensors[name] = tensor if verified is None else verified.tensor(tensor)
    left_out.report(found, storages)
    return found


def _view_tensor(path: Path, name: str, view: View, of: tuple[str, str], base: int, n_bytes: int) -> Tensor:
    key, kind = of
    item = RAW[kind].itemsize
    where = f"{path}: tensor {shorten(name)}"
    check_shape(where, view.shape)
    numbers = [view.offset, *view.stride]
    if any(isinstance(n, bool) or not isinstance(n, int) or not 0 <= n < 2**60 for n in numbers) or len(
        view.shape
    ) != len(view.stride):
        msg = f"{where} has an offset or stride that is not a size"
        raise UnsafeInputError(msg)
    size = math.prod(view.shape)
    last = view.offset + sum((n - 1) * s for n, s in zip(view.shape, view.stride, strict=True)) if size else view.offset
    if size and ((last + 1) * item > n_bytes or size > n_bytes // item):
        msg = f"{where} of shape {shorten(view.shape)} reaches beyond its {n_bytes // item} stored elements"
        raise UnsafeInputError(msg)
    identity = (str(path), key, view.offset, view.stride)
    contiguous = tuple(math.prod(view.shape[k + 1 :]) for k in range(len(view.shape)))
    matters = [(a, b) for a, b, n in zip(view.stride, contiguous, view.shape, strict=True) if n > 1]
    if all(a == b for a, b in matters):
        plain = file_tensor(path, base + view.offset * item, view.shape, kind)
        return Tensor(plain.shape, plain.dtype, plain.read, identity)
    whole = file_tensor(path, base, (n_bytes // item,), kind)

    def read(start: int, stop: int) -> np.ndarray:
        index = np.unravel_index(np.arange(start, stop), view.shape)
        at = view.offset + sum(i * s for i, s in zip(index, view.stride, strict=True))
        low, high = int(np.min(at)), int(np.max(at)) + 1
        return whole.read(low, high)[np.asarray(at) - low]

    return Tensor(view.shape, kind, read, identity)
