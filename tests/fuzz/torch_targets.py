"""Fuzzed inputs that torch itself writes: objects beside tensors, distributed checkpoints, folders of DeepSpeed."""

from __future__ import annotations

import argparse
import collections
import datetime
import enum
import pathlib
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from targets import checked, target, unchecked, weights

from trajstats.data.formats._open import open_checkpoint
from trajstats.data.ingest.into_store import ingest


class Color(enum.Enum):
    RED = 1


class Config(dict):
    """A mapping with attributes, as many trainers have one."""


@contextmanager
def ranks(rank: int, n: int) -> Iterator[Any]:
    """Let this process be one of several ranks, without the others."""
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=rank, world_size=n, store=FakeStore())
    try:
        yield dist.device_mesh.init_device_mesh("cpu", (n,))
    finally:
        dist.destroy_process_group()


def tensors() -> dict[str, Any]:
    import torch

    return {name: torch.from_numpy(np.array(w)) for name, w in weights().items()}


def content() -> dict[str, Any]:
    """Weights, and whatever people keep beside them."""
    import torch
    from torch.distributed.tensor import DTensor, Replicate

    w = torch.arange(12.0).reshape(3, 4)
    config = Config(a=1, inner=Config(t=w))
    config.note, config.itself = Color.RED, config
    state: dict[str, Any] = dict(tensors())
    state |= {"p": torch.nn.Parameter(w.T), "b": torch.nn.Buffer(w), "short": torch.ones(3, dtype=torch.uint16)}
    state |= {"sparse": w.to_sparse(), "neg": torch.complex(w, w).conj().imag, "f8": w.to(torch.float8_e4m3fn)}
    state["p"].scale = torch.ones(2)
    with ranks(0, 1) as mesh:
        state["whole"] = DTensor.from_local(w + 1, mesh, [Replicate()], run_check=False)
        objects = {
            "args": argparse.Namespace(lr=0.1, path=pathlib.PurePosixPath("/a"), kind=torch.float16),
            "config": config,
            "counts": collections.Counter("aab"),
            "list": collections.deque([Color.RED, w]),
            "when": datetime.datetime(2024, 1, 2),
            "array": np.arange(3.0),
            "keys": {Color.RED: 1, pathlib.PurePosixPath("b"): {Color.RED}},
        }
        return {"model": state, **objects}


@checked("torch objects")
def make_objects(folder: Path) -> None:
    import torch

    torch.save(content(), folder / "ab.pt")
    torch.save(content(), folder / "later.pt", pickle_protocol=4)


@unchecked("torch objects, old format")
def make_old_objects(folder: Path) -> None:
    import torch

    torch.save(content(), folder / "a.pt", _use_new_zipfile_serialization=False)


def save_as_ranks(path: Path, n: int) -> None:
    """Write what each of several ranks would."""
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
    from torch.distributed.tensor import Shard, distribute_tensor

    parts = []
    for rank in range(n):
        with ranks(rank, n) as mesh:
            axes = {"layer.weight": 0, "half": 0}
            state = {
                k: distribute_tensor(w, mesh, [Shard(axes[k])], src_data_rank=None) if k in axes else w
                for k, w in tensors().items()
            }
            planner, writer = DefaultSavePlanner(), checkpoint.FileSystemWriter(path)
            planner.set_up_planner({"model": state, "lr": 0.1}, writer.storage_meta(), rank == 0)
            writer.set_up_storage_writer(rank == 0)
            parts.append((planner, writer, writer.prepare_local_plan(planner.create_local_plan())))
    plans, metadata = parts[0][0].create_global_plan([plan for *_, plan in parts])
    plans = parts[0][1].prepare_global_plan(plans)
    results = [
        writer.write_data(planner.finish_plan(plan), planner).wait()
        for (planner, writer, _), plan in zip(parts, plans, strict=True)
    ]
    parts[0][1].finish(metadata, results)


@unchecked("torch distributed")
def make_distributed(folder: Path) -> None:
    from torch.distributed import checkpoint

    checkpoint.save({"model": tensors(), "step": 3}, checkpoint_id=str(folder / "alone"), no_dist=True)
    save_as_ranks(folder / "ranks", 3)
    save_as_ranks(folder / "names", 2)
    metadata = folder / "names" / ".metadata"
    metadata.write_bytes(pickle.dumps(pickle.loads(metadata.read_bytes()), 2))  # names in the plain form


def read_rank(path: Path, out: Path) -> dict[str, np.ndarray]:
    found = open_checkpoint(path / "model_world_size_2_rank_0.pt")
    return {name: tensor.read(0, tensor.size) for name, tensor in found.tensors.items()}


@target("files of ranks", read=read_rank)
def make_files_of_ranks(folder: Path) -> None:
    import torch
    from torch.distributed.tensor import Shard, distribute_tensor

    (folder / "a").mkdir()
    for rank in range(2):
        with ranks(rank, 2) as mesh:
            state = dict(tensors())
            for axis, name in enumerate(("layer.bias", "layer.weight")):
                state[name] = distribute_tensor(state[name], mesh, [Shard(axis)], src_data_rank=None)
            torch.save(state, folder / "a" / f"model_world_size_2_rank_{rank}.pt")


def read_folder(path: Path, out: Path) -> dict[str, np.ndarray]:
    ingest(path, out / "store", step_from=lambda _: 1)
    return {}


@target("deepspeed", read=read_folder)
def make_deepspeed(folder: Path) -> None:
    import torch

    states = {"module": tensors(), "param_shapes": [{k: w.shape for k, w in tensors().items()}], "mp_world_size": 1}
    states |= {"ds_version": "0.16.4", "args": argparse.Namespace(lr=0.1)}
    for name in ("model", "layers"):
        (folder / name / "global_step1").mkdir(parents=True)
        torch.save(states, folder / name / "global_step1" / "mp_rank_00_model_states.pt")
    for k in (0, 2):
        torch.save(
            {"w": torch.ones(2, 3) + k}, folder / "layers/global_step1" / f"layer_{k:02d}-model_00-model_states.pt"
        )
