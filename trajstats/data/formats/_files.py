"""Read one file, whatever its format: the reader is chosen by its name and first bytes."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

from trajstats.data.formats._archives import read_npy, read_npz, read_safetensors
from trajstats.data.formats._msgpack import read_msgpack
from trajstats.data.formats._tensor import Checkpoint, input_size
from trajstats.data.formats.hdf5._read import read_hdf5, read_keras
from trajstats.data.formats.torch_files._read import read_torch
from trajstats.data.safety._budget import Budget
from trajstats.errors import StoreNotFoundError, UnsafeInputError, UnsupportedError


def read_file(path: Path, budget: Budget | None = None) -> Checkpoint:
    """List every tensor of one file, optimizer state included; other shards or ranks are not looked for."""
    if not path.exists():
        msg = f"{path} does not exist"
        raise StoreNotFoundError(msg)
    if not stat.S_ISREG(path.stat().st_mode):
        msg = f"{path} is neither a file nor a folder; it is not read"
        raise UnsafeInputError(msg)
    return _reader(path)(path, budget or Budget.for_size(input_size(path)))


def _reader(path: Path) -> Callable[[Path, Budget], Checkpoint]:
    with path.open("rb") as stream:
        magic = stream.read(16)
    suffix = "".join(path.suffixes[-2:]) if path.name.endswith(".weights.h5") else path.suffix
    if suffix == ".safetensors":
        return read_safetensors
    if magic[:8] == b"\x89HDF\r\n\x1a\n" or suffix in {".h5", ".hdf5", ".weights.h5"}:
        return read_hdf5
    if suffix == ".npy" or magic[:6] == b"\x93NUMPY":
        return read_npy
    if suffix == ".npz":
        return read_npz
    if suffix == ".keras":
        return read_keras
    if suffix in {".msgpack", ".flax"}:
        return read_msgpack
    if suffix in {".pkl", ".pickle", ".joblib", ".dill"} or path.name == ".metadata":
        msg = f"{path} is a Python pickle, which runs whatever its author wrote. Ask for safetensors or npz instead."
        raise UnsafeInputError(msg)
    if suffix in {".pt", ".pth", ".bin", ".ckpt", ".tar"}:
        return read_torch
    msg = (
        f"{path}: unknown checkpoint format {suffix or 'without a suffix'}; known: .safetensors, .index.json, .pt, "
        ".pth, .bin, .ckpt, .npz, .npy, .h5, .hdf5, .weights.h5, .keras, .msgpack, orbax folders"
    )
    raise UnsupportedError(msg)
