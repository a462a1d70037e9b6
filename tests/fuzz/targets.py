"""What is fuzzed: how a valid input is made, how it is read, and whether a change of its bytes must be noticed.

Add a target by decorating a function that makes inputs::

    @target("name", read=function, checksum=True)
    def make(folder: Path) -> None:
        ...

`make` writes one or more files or folders into an empty folder, each of which is a seed. `read(path, out)` reads one
that was damaged, may write below `out` (and into the folder `path`, if it is a store that is resumed), and returns the
numbers that it found; it may raise any `TrajstatsError`.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

import trajstats as ts
from trajstats.data.formats._open import open_checkpoint
from trajstats.data.ingest._discovery import find_checkpoints
from trajstats.data.ingest._whole_series import read_series
from trajstats.data.ingest.into_store import ingest


@dataclass(frozen=True)
class Target:
    """One kind of input."""

    name: str
    make: Callable[[Path], None]
    read: Callable[[Path, Path], Any]
    checksum: bool


TARGETS: dict[str, Target] = {}


def target(name: str, *, read: Callable[[Path, Path], Any], checksum: bool = False) -> Callable[[Any], Any]:
    """Register a target; with `checksum`, a change of bytes must be refused or give the same numbers."""

    def register(make: Callable[[Path], None]) -> Callable[[Path], None]:
        TARGETS[name] = Target(name, make, read, checksum)
        return make

    return register


def digest(found: Any) -> str:
    """Digest of what was read: names and bytes."""
    total = hashlib.sha256()
    if isinstance(found, xr.DataTree):
        found = {f"{node.path}/{name}": node.dataset[name] for node in found.subtree for name in node.dataset.variables}
    if isinstance(found, xr.Dataset | xr.DataArray):
        found = found.to_dataset(name="x") if isinstance(found, xr.DataArray) else found
        found = {str(name): found[name] for name in found.variables}
    for name, values in sorted(found.items()):
        array = np.asarray(values)
        total.update(f"{name} {array.shape} {array.dtype}".encode("utf-8", "backslashreplace"))
        total.update(
            repr(array.tolist()).encode()
            if array.dtype.kind in ("O", "T", "U")
            else np.ascontiguousarray(array).tobytes()
        )
    return total.hexdigest()


# --- checkpoints ------------------------------------------------------------------------------------------------------


def read_checkpoint(path: Path, out: Path) -> dict[str, np.ndarray]:
    found = open_checkpoint(path)
    values = {}
    for name, tensor in found.tensors.items():
        parts = [tensor.read(at, min(at + 2**16, tensor.size)) for at in range(0, tensor.size, 2**16)]
        values[name] = np.concatenate(parts) if parts else np.zeros(0)
    if values and path.is_file() and sum(path.read_bytes()) % 50 == 0:  # some of them all the way
        ingest(path, out / "store", step_from=lambda _: 1)
    return values


def weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "layer.weight": rng.standard_normal((13, 7)).astype("f4"),
        "layer.bias": rng.standard_normal(7).astype("f4"),
        "scale": rng.standard_normal(()).astype("f8"),
        "half": rng.standard_normal(300).astype("f2"),
    }


def unchecked(name: str) -> Callable[[Any], Any]:
    return target(name, read=read_checkpoint)


def checked(name: str) -> Callable[[Any], Any]:
    return target(name, read=read_checkpoint, checksum=True)


@unchecked("safetensors")
def make_safetensors(folder: Path) -> None:
    header, at, data = {"__metadata__": {"format": "pt"}}, 0, b""
    names = {"float32": "F32", "float64": "F64", "float16": "F16"}
    for name, w in weights().items():
        header[name] = {"dtype": names[w.dtype.name], "shape": list(w.shape), "data_offsets": [at, at + w.nbytes]}
        at, data = at + w.nbytes, data + w.tobytes()
    text = json.dumps(header).encode()
    (folder / "a.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)


@unchecked("sharded")
def make_sharded(folder: Path) -> None:
    (folder / "model").mkdir()
    make_safetensors(folder / "model")
    names = dict.fromkeys(weights(), "a.safetensors")
    (folder / "model" / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))


def torch_pickle() -> tuple[bytes, list[bytes]]:
    out, data = io.BytesIO(), []
    out.write(b"\x80\x02}q\x00(")
    for k, (name, w) in enumerate(weights().items()):
        kind = {"float32": "Float", "float64": "Double", "float16": "Half"}[w.dtype.name]
        text = f"X{{}}{name}ctorch._utils\n_rebuild_tensor_v2\n((X{{}}storagectorch\n{kind}Storage\nX{{}}{k}X{{}}cpu"
        sizes = [struct.pack("<I", n).decode("latin-1") for n in (len(name), 7, 1, 3)]
        out.write(text.format(*sizes).encode("latin-1"))
        out.write(b"M" + struct.pack("<H", w.size) + b"tQK\x00(")
        for n in w.shape:
            out.write(b"K" + bytes([n]) if n < 256 else b"M" + struct.pack("<H", n))
        out.write(b"t(")
        for n in w.strides:
            out.write(b"K" + bytes([n // w.itemsize]))
        out.write(b"t\x89ccollections\nOrderedDict\n)RtR")
        data.append(w.tobytes())
    out.write(b"X\x05\x00\x00\x00epochK\x03X\x02\x00\x00\x00lrG" + struct.pack(">d", 0.1) + b"u.")
    return out.getvalue(), data


@checked("torch")
def make_torch(folder: Path) -> None:
    head, data = torch_pickle()
    with zipfile.ZipFile(folder / "ab.pt", "w") as archive:
        archive.writestr("archive/data.pkl", head)
        archive.writestr("archive/byteorder", "little")
        for k, raw in enumerate(data):
            archive.writestr(f"archive/data/{k}", raw)


@unchecked("torch legacy")
def make_legacy(folder: Path) -> None:
    head, data = torch_pickle()
    parts = [pickle.dumps(0x1950A86A20F9469CFC6C, 2), pickle.dumps(1001, 2), pickle.dumps({"little_endian": True}, 2)]
    parts += [head, pickle.dumps([str(k) for k in range(len(data))], 2)]
    sizes = [w.size for w in weights().values()]
    parts += [struct.pack("<q", n) + raw for n, raw in zip(sizes, data, strict=True)]
    (folder / "a.bin").write_bytes(b"".join(parts))


def read_hub(path: Path, out: Path) -> dict[str, np.ndarray]:
    where = find_checkpoints(path)
    found = {}
    for name, file in zip(where.names or map(str, where.files), where.files, strict=True):
        found |= {f"{name}/{tensor}": values for tensor, values in read_checkpoint(file, out).items()}
    return found


@target("hub cache", read=read_hub)
def make_hub(folder: Path) -> None:
    cache = folder / "models--org--name"
    for step in (1, 2):
        commit = hashlib.sha1(str(step).encode()).hexdigest()
        for part in ("blobs", "refs", f"snapshots/{commit}"):
            (cache / part).mkdir(parents=True, exist_ok=True)
        make_safetensors(cache)
        (cache / "a.safetensors").rename(cache / "blobs" / f"{step:064d}")
        (cache / "refs" / f"step{step}").write_text(commit)
        (cache / "snapshots" / commit / "model.safetensors").symlink_to(f"../../blobs/{step:064d}")


def read_output(path: Path, out: Path) -> dict[str, np.ndarray]:
    plan = ts.ingest(path, out / "plan.zarr", dry_run=True)
    if sum(map(ord, str(plan))) % 20 == 0:
        ts.ingest(path, out / "store.zarr")
    return {"steps": np.array(plan.steps)}


@target("trainer output", read=read_output)
def make_output(folder: Path) -> None:
    for step in (10, 20):
        place = folder / "checkpoint" / f"checkpoint-{step}"
        place.mkdir(parents=True)
        make_safetensors(place)
        (place / "a.safetensors").rename(place / "model.safetensors")
        log = [
            {"step": k, "epoch": k / 10, "loss": 1.0 / k, "learning_rate": 0.1 - k / 1000}
            for k in range(5, step + 1, 5)
        ]
        state = {"global_step": step, "epoch": step / 10, "log_history": log, "best_metric": None}
        (place / "trainer_state.json").write_text(json.dumps(state))


@unchecked("npy")
def make_npy(folder: Path) -> None:
    np.save(folder / "a.npy", weights()["layer.weight"])
    np.save(folder / "fortran.npy", np.asfortranarray(weights()["layer.weight"].astype(">f8")))


@checked("npz")
def make_npz(folder: Path) -> None:
    np.savez(folder / "a.npz", **weights())
    np.savez_compressed(folder / "packed.npz", fortran=np.asfortranarray(weights()["layer.weight"]), **weights())


@unchecked("msgpack")
def make_msgpack(folder: Path) -> None:
    import msgpack

    def leaf(w: np.ndarray) -> Any:
        return msgpack.ExtType(1, msgpack.packb((w.shape, w.dtype.name, w.tobytes())))

    found = {name: leaf(w) for name, w in weights().items()}
    pieces = [weights()["half"][:200], weights()["half"][200:]]
    split = {
        "__msgpack_chunked_array__": True,
        "shape": {"0": 300},
        "chunks": {str(k): leaf(p) for k, p in enumerate(pieces)},
    }
    (folder / "a.msgpack").write_bytes(
        msgpack.packb({"params": found | {"split": split}, "step": 7, "name": "x", "none": None})
    )


def hdf5_file(path: Path, version: str) -> None:
    import h5py

    with h5py.File(path, "w", libver=version) as file:
        for k, (name, w) in enumerate(weights().items()):
            more = [
                {},
                {"chunks": (3,), "compression": "gzip", "shuffle": True},
                {},
                {"chunks": (128,), "compression": "lzf"},
            ][k]
            file.create_dataset(name.replace(".", "/"), data=w, **more)
        file.create_dataset("sum", data=np.arange(90.0).reshape(9, 10), chunks=(4, 4), fletcher32=True, fillvalue=2.0)
        file.create_dataset("growing", data=np.arange(20.0), maxshape=(None,), chunks=(7,))
        file.create_dataset("never", (3, 3), "f4", fillvalue=1.5)
        file["text"] = "some text"
        file.attrs["backend"] = "x"


@unchecked("hdf5")
def make_hdf5(folder: Path) -> None:
    hdf5_file(folder / "old.h5", "earliest")
    hdf5_file(folder / "new.h5", "latest")


@checked("keras")
def make_keras(folder: Path) -> None:
    hdf5_file(folder / "w.h5", "earliest")
    for name, how in (("a.keras", zipfile.ZIP_STORED), ("packed.keras", zipfile.ZIP_DEFLATED)):
        with zipfile.ZipFile(folder / name, "w", how) as archive:
            archive.writestr("config.json", json.dumps({"config": {"layers": []}}))
            archive.write(folder / "w.h5", "model.weights.h5")
    (folder / "w.h5").unlink()


@unchecked("orbax")
def make_orbax(folder: Path) -> None:
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "a", {"params": weights()})
        checkpointer.wait_until_finished()


# --- whole series -----------------------------------------------------------------------------------------------------


def read_whole_series(path: Path, out: Path) -> dict[str, np.ndarray]:
    values = {}
    for step, found in read_series(path, {"step": "time"})[0]:
        for name, tensor in found.tensors.items():
            values[f"{step} {name}"] = tensor.read(0, tensor.size)
    return values


def series() -> xr.Dataset:
    rng = np.random.default_rng(0)
    data = {"w": (("time", "a"), rng.standard_normal((6, 11)).astype("f4")), "n": (("time",), np.arange(6, dtype="i4"))}
    packed = {"p": (("time", "a"), rng.integers(0, 99, (6, 11)).astype("i2"), {"scale_factor": 0.5, "_FillValue": -1})}
    return xr.Dataset(data | packed, coords={"time": 10 * np.arange(6, dtype="i4")})


@target("netcdf", read=read_whole_series)
def make_netcdf(folder: Path) -> None:
    series().to_netcdf(folder / "old.nc", engine="scipy", unlimited_dims=["time"])
    series().to_netcdf(folder / "plain.nc", engine="scipy")
    chunked = {"w": {"chunksizes": (2, 4), "zlib": True}}
    series().to_netcdf(folder / "new.nc", engine="h5netcdf", encoding=chunked, unlimited_dims=["time"])


@target("zarr series", read=read_whole_series)
def make_zarr(folder: Path) -> None:
    series().to_zarr(folder / "a.zarr", consolidated=False, zarr_format=3)
    chunked = {"w": {"chunks": (2, 4), "shards": (4, 8)}}
    series()[["w"]].to_zarr(folder / "b.zarr", consolidated=False, zarr_format=3, encoding=chunked)


# --- what this package writes itself ----------------------------------------------------------------------------------


def read_store(path: Path, out: Path) -> xr.Dataset:
    from trajstats.data.store.verification import verify

    verify(path)
    return ts.open_trajectory(path).load()


def fill(writer: ts.TrajectoryWriter, steps: range) -> None:
    rng = np.random.default_rng(0)
    for step in steps:
        writer.append(step, {"a": rng.standard_normal((3, 5)), "b": rng.standard_normal(4)}, loss=1.0 / (step + 1))


@target("store", read=read_store, checksum=True)
def make_store(folder: Path) -> None:
    with ts.TrajectoryWriter(folder / "a.zarr", {"a": (3, 5), "b": (4,)}) as writer:
        fill(writer, range(6))


def resume_store(path: Path, out: Path) -> xr.Dataset:
    with ts.TrajectoryWriter(path, {"a": (3, 5), "b": (4,)}) as writer:
        writer.append(99, {"a": np.ones((3, 5)), "b": np.ones(4)}, loss=0.5)
    return ts.open_trajectory(path).load()


@target("journal", read=resume_store, checksum=True)
def make_journal(folder: Path) -> None:
    import os

    if pid := os.fork():
        os.waitpid(pid, 0)
        return
    writer = ts.TrajectoryWriter(folder / "a.zarr", {"a": (3, 5), "b": (4,)})  # and then the power fails
    fill(writer, range(6))
    os._exit(0)


def read_fit(path: Path, out: Path) -> xr.DataTree:
    return ts.FitResult.load(path).to_datatree()


@target("fit", read=read_fit, checksum=True)
def make_fit(folder: Path) -> None:
    rng = np.random.default_rng(0)
    draws = xr.Dataset({"mu": (("chain", "draw"), rng.standard_normal((2, 8)))})
    ts.FitResult("fit_decay", draws, xr.Dataset(), xr.Dataset({"converged": True})).save(folder / "a.zarr")


def read_pairs(path: Path, out: Path) -> xr.Dataset:
    run = ts.trajectory_dataset(np.arange(32.0).reshape(8, 4).astype("f4"), step=range(8))
    run.attrs["uid"] = "0" * 32
    return ts.cached_pairs(run, path).load()


@target("pairs", read=read_pairs, checksum=True)
def make_pairs(folder: Path) -> None:
    read_pairs(folder / "a.zarr", folder)


def read_task(path: Path, out: Path) -> dict[str, np.ndarray]:
    from trajstats.estimators.curvature._task_store import TaskStore

    return TaskStore(path, {"seed": 1}).read("one")


@target("task", read=read_task, checksum=True)
def make_task(folder: Path) -> None:
    from trajstats.estimators.curvature._task_store import TaskStore

    TaskStore(folder / "a.zarr", {"seed": 1}).write("one", {"loss": np.arange(9.0), "n": np.array([3])})


def estimate(data: float, *, rng: np.random.Generator) -> xr.DataArray:
    return xr.DataArray(np.arange(16.0).reshape(2, 8) + data, dims=("chain", "draw"), name="mu")


def read_batch(path: Path, out: Path) -> xr.Dataset:
    found = ts.fit_batch(estimate, {"a": 0.0, "b": 1.0}, rng=0, store=path, scheduler="synchronous")
    return found[["mu"]]  # a damaged member is made again


@target("batch", read=read_batch, checksum=True)
def make_batch(folder: Path) -> None:
    read_batch(folder / "a.zarr", folder)


@target("plain store", read=read_store)
def make_plain(folder: Path) -> None:
    weights = np.random.default_rng(0).standard_normal((6, 19)).astype(np.float32)
    run = ts.trajectory_dataset(weights, step=range(6), layers={"a": (3, 5), "b": (4,)}, series={"loss": np.ones(6)})
    run.to_zarr(folder / "a.zarr", consolidated=False)


def resume_buffers(path: Path, out: Path) -> xr.Dataset:
    with ts.TrajectoryWriter(path, {"a": (3,)}, buffers={"n": ((), "int64"), "mean": ((4,), "float32")}) as writer:
        if writer.last_step != 99:
            writer.append(99, np.ones(3), buffers={"n": np.int64(9), "mean": np.ones(4, np.float32)})
    return ts.open_trajectory(path).load()


@target("store with buffers", read=resume_buffers, checksum=True)
def make_buffers(folder: Path) -> None:
    with ts.TrajectoryWriter(
        folder / "a.zarr", {"a": (3,)}, buffers={"n": ((), "int64"), "mean": ((4,), "float32")}
    ) as writer:
        for step in range(3):
            writer.append(step, np.full(3, step), buffers={"n": np.int64(step), "mean": np.ones(4, np.float32)})
