"""torch distributed checkpoints, written by torch, in one process or by several ranks: bit for bit."""

from __future__ import annotations

import pickle
import shutil

import numpy as np
import pytest

import trajstats as ts
from trajstats.data.formats._open import open_checkpoint

torch = pytest.importorskip("torch")
dcp = pytest.importorskip("torch.distributed.checkpoint")
pytestmark = pytest.mark.filterwarnings("ignore")


def values():
    generator = torch.Generator().manual_seed(0)
    make = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
    return {
        "layers.0.weight": make(7, 5),
        "layers.0.bias": make(7),
        "embedding": make(12, 6).bfloat16(),
        "cube": make(4, 6, 5).double(),
        "half": make(9).half(),
        "scale": make(),
    }


def check(found, want):
    assert set(found.tensors) == set(want)
    for name, tensor in found.tensors.items():
        expected = want[name].float() if want[name].dtype == torch.bfloat16 else want[name]
        expected = expected.numpy().reshape(-1)
        assert tensor.shape == tuple(want[name].shape)
        assert tensor.dtype == str(want[name].dtype).removeprefix("torch.")
        read = tensor.read(0, tensor.size)
        assert read.dtype == expected.dtype
        np.testing.assert_array_equal(read, expected)
        n = tensor.size
        for start, stop in [(0, 1), (n // 3, n // 2 + 1), (n - 1, n), (1, n), (n // 4, n // 4)]:
            np.testing.assert_array_equal(tensor.read(start, stop), expected[start:stop])


def save(path, state):
    dcp.save(state, checkpoint_id=str(path), no_dist=True)
    return path


def test_one_process_with_optimizer_and_counters(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 3, "path": tmp_path}
    found = open_checkpoint(save(tmp_path / "a", state))
    check(found, {name: p.detach() for name, p in model.named_parameters()})
    assert set(found.buffers) == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    assert found.passed_over["optimizer.state.0.exp_avg"] == "optimizer state"
    assert any("saved as a pickle" in why for why in found.passed_over.values())
    moments = open_checkpoint(tmp_path / "a", optimizer=True).tensors
    assert any("exp_avg" in name for name in moments)


@pytest.mark.parametrize("state", [values(), {"state": {"net": values()}}, {"model": values(), "epoch": 2}])
def test_every_type_and_nesting(tmp_path, state):
    found = open_checkpoint(save(tmp_path / "a", state))
    assert not found.passed_over or set(found.passed_over) == {"epoch"}
    prefix = "state.net." if "state" in state else ""
    check(found, {f"{prefix}{name}": w for name, w in values().items()})


def test_an_empty_tensor_and_types_that_are_not_numbers(tmp_path):
    found = open_checkpoint(save(tmp_path / "a", {"w": torch.ones(3), "no": torch.ones(0, 4), "c": torch.ones(2) * 1j}))
    assert found.tensors["no"].shape == (0, 4)
    assert found.tensors["no"].read(0, 0).size == 0
    assert found.passed_over["c"] == "type complex64"


def test_a_series_of_folders(tmp_path):
    for step in (0, 100, 200):
        state = {"model": {name: w + step for name, w in values().items()}, "optimizer": {"m": torch.ones(3)}}
        save(tmp_path / "in" / f"step-{step}", state)
    plan = ts.ingest(tmp_path / "in", tmp_path / "out.zarr")
    assert plan.steps == [0, 100, 200]
    run = ts.open_trajectory(tmp_path / "out.zarr")
    assert run.sizes["parameter"] == sum(w.numel() for w in values().values())
    file = tmp_path / "in" / "step-100" / "__0_0.distcp"
    damaged = bytearray(file.read_bytes())
    damaged[bytes(damaged).index((values()["cube"] + 100).numpy().tobytes()[:16])] ^= 1
    file.write_bytes(damaged)
    with pytest.raises(ts.StoreError, match=r"step-100/__0_0\.distcp.*checksum"):
        ts.ingest(tmp_path / "in", tmp_path / "again.zarr")


def save_as_ranks(path, n, places):
    """Let this process be one rank after another, and write what each of them would."""
    import torch.distributed as dist
    from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
    from torch.distributed.tensor import distribute_tensor

    fake = pytest.importorskip("torch.testing._internal.distributed.fake_pg")
    writers, planners, plans = [], [], []
    for rank in range(n):
        dist.init_process_group("fake", rank=rank, world_size=n, store=fake.FakeStore())
        try:
            mesh = dist.device_mesh.init_device_mesh("cpu", (n,))
            local = {
                name: distribute_tensor(w, mesh, [places[name]], src_data_rank=None) if name in places else w
                for name, w in values().items()
            }
            planner, writer = DefaultSavePlanner(), dcp.FileSystemWriter(path)
            planner.set_up_planner({"model": local, "lr": 0.1}, writer.storage_meta(), rank == 0)
            writer.set_up_storage_writer(rank == 0)
            plans.append(writer.prepare_local_plan(planner.create_local_plan()))
            planners.append(planner)
            writers.append(writer)
        finally:
            dist.destroy_process_group()
    plans, metadata = planners[0].create_global_plan(plans)
    plans = writers[0].prepare_global_plan(plans)
    results = [
        writer.write_data(planner.finish_plan(plan), planner).wait()
        for writer, planner, plan in zip(writers, planners, plans, strict=True)
    ]
    writers[0].finish(metadata, results)
    return path


@pytest.mark.parametrize("n", [2, 3, 5])
def test_ranks_that_hold_rows_columns_or_copies(tmp_path, n):
    from torch.distributed.tensor import Replicate, Shard

    places = {"layers.0.weight": Shard(0), "layers.0.bias": Shard(0), "embedding": Shard(1), "cube": Shard(1)}
    path = save_as_ranks(tmp_path / "a", n, {**places, "half": Replicate()})
    assert len(list(path.glob("*.distcp"))) == n
    check(open_checkpoint(path), values())


@pytest.mark.slow
def test_two_real_processes(tmp_path):
    torch.multiprocessing.spawn(_one_rank, (2, str(tmp_path / "a"), 29561), nprocs=2)
    check(open_checkpoint(tmp_path / "a"), values())


def _one_rank(rank, n, path, port):
    import os

    import torch.distributed as dist
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(n))
    dist.init_process_group("gloo", rank=rank, world_size=n)
    mesh = dist.device_mesh.init_device_mesh("cpu", (n,))
    places = {"layers.0.weight": Shard(0), "embedding": Shard(1), "cube": Shard(2), "half": Replicate()}
    state = {k: distribute_tensor(w, mesh, [places[k]]) if k in places else w for k, w in values().items()}
    dcp.save({"model": state, "optimizer": {"m": torch.ones(3)}}, checkpoint_id=path)
    dist.destroy_process_group()


@pytest.mark.parametrize("options", [{"single_file_per_rank": False}, {"thread_count": 3}, {"sync_files": False}])
def test_options_of_the_writer(tmp_path, options):
    writer = dcp.FileSystemWriter(tmp_path / "a", **options)
    dcp.save({"model": values()}, storage_writer=writer, no_dist=True)
    check(open_checkpoint(tmp_path / "a"), values())


def test_a_model_at_the_top_beside_its_optimizer(tmp_path):
    """torchtitan saves the names of the model without a mapping around them."""
    optimizer = {"state": {name: {"exp_avg": w} for name, w in values().items()}}
    state = {**values(), "optimizer": optimizer, "train_state": {"step": torch.tensor(3)}, "dataloader": {"x": 1}}
    found = open_checkpoint(save(tmp_path / "a", state))
    check(found, values())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (
            b"torch.distributed.checkpoint.filesystem\n_StorageInfo",
            b"olmo_core.distributed.checkpoint.filesystem\n_StorageInfo",
        ),
        (
            b"torch.distributed.checkpoint.metadata\nMetadata\n",
            b"megatron.core.dist_checkpointing.mapping\nMCoreMetadata\n",
        ),
    ],
)
def test_classes_of_other_libraries_that_write_the_same(tmp_path, old, new):
    path = save(tmp_path / "a", {"model": values()})
    raw = pickle.dumps(pickle.loads((path / ".metadata").read_bytes()), 2)
    assert old in raw
    (path / ".metadata").write_bytes(raw.replace(old, new))
    check(open_checkpoint(path), values())


def test_what_megatron_put_into_another_order_is_named(tmp_path):
    path = save(tmp_path / "a", {"model": values()})
    edit(path, lambda m: setattr(m, "mcore_data", {"model.cube": {"nd_reformulated_orig_global_shape": (8, 15)}}))
    found = open_checkpoint(path)
    assert "cube" not in found.tensors
    assert "Megatron-LM" in found.passed_over["model.cube"]


def test_the_state_of_a_model_and_its_optimizer_in_one_object(tmp_path):
    from torch.distributed.checkpoint.state_dict import get_state_dict

    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    model_state, optimizer_state = get_state_dict(model, optimizer)
    path = save(tmp_path / "a", {"app": {"model": model_state, "optim": optimizer_state}})
    found = open_checkpoint(path)
    check(found, {f"app.model.{name}": p.detach() for name, p in model.named_parameters()})


def write_by_hand(folder, name, whole, pieces):
    """Write one tensor in several chunks and files, with torch's own classes."""
    from torch.distributed.checkpoint.filesystem import _StorageInfo
    from torch.distributed.checkpoint.metadata import (
        ChunkStorageMetadata,
        Metadata,
        MetadataIndex,
        TensorProperties,
        TensorStorageMetadata,
    )

    folder.mkdir(parents=True, exist_ok=True)
    chunks, places = [], {}
    for k, (offsets, sizes) in enumerate(pieces):
        part = whole[tuple(slice(a, a + n) for a, n in zip(offsets, sizes, strict=True))].clone()
        file = folder / f"__{k % 2}_0.distcp"
        first = file.stat().st_size if file.exists() else 0
        torch.save(part, folder / "one")
        with file.open("ab") as stream:
            stream.write((folder / "one").read_bytes())
        length = (folder / "one").stat().st_size
        (folder / "one").unlink()
        chunks.append(ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)))
        places[MetadataIndex(name, torch.Size(offsets), k)] = _StorageInfo(file.name, first, length)
    entry = TensorStorageMetadata(TensorProperties(dtype=whole.dtype), whole.shape, chunks)
    (folder / ".metadata").write_bytes(pickle.dumps(Metadata({name: entry}, storage_data=places)))


GRIDS = {
    "rows": [((0, 0, 0), (2, 5, 4)), ((2, 0, 0), (3, 5, 4)), ((5, 0, 0), (1, 5, 4))],
    "columns": [((0, 0, 0), (6, 5, 3)), ((0, 0, 3), (6, 5, 1))],
    "grid": [((0, 0, 0), (4, 2, 4)), ((4, 0, 0), (2, 2, 4)), ((0, 2, 0), (4, 3, 4)), ((4, 2, 0), (2, 3, 4))],
    "uneven": [((0, 0, 0), (6, 1, 4)), ((0, 1, 0), (2, 4, 4)), ((2, 1, 0), (4, 4, 2)), ((2, 1, 2), (4, 4, 2))],
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("grid", GRIDS)
def test_chunks_in_several_files(tmp_path, grid, dtype):
    whole = torch.randn(6, 5, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    write_by_hand(tmp_path / "x", "w", whole, GRIDS[grid])
    tensor = open_checkpoint(tmp_path / "x").tensors["w"]
    flat = whole.float().numpy().ravel()
    for start, stop in [(0, 120), (0, 1), (7, 8), (3, 77), (19, 20), (119, 120), (40, 40)]:
        np.testing.assert_array_equal(tensor.read(start, stop), flat[start:stop])


# --- a file of each rank ----------------------------------------------------------------------------------------------


def save_files_of_ranks(folder, n, places, change=lambda rank, state: state):
    """Write what each rank would write with torch.save, as verl does."""
    import torch.distributed as dist
    from torch.distributed.tensor import distribute_tensor

    fake = pytest.importorskip("torch.testing._internal.distributed.fake_pg")
    folder.mkdir(parents=True)
    for rank in range(n):
        dist.init_process_group("fake", rank=rank, world_size=n, store=fake.FakeStore())
        try:
            mesh = dist.device_mesh.init_device_mesh("cpu", (n,))
            state = {
                k: distribute_tensor(w, mesh, [places[k]], src_data_rank=None) if k in places else w
                for k, w in values().items()
            }
            torch.save(change(rank, state), folder / f"model_world_size_{n}_rank_{rank}.pt")
            torch.save({"state": {0: torch.ones(3)}}, folder / f"optim_world_size_{n}_rank_{rank}.pt")
            torch.save({"rng": torch.ones(3)}, folder / f"extra_state_world_size_{n}_rank_{rank}.pt")
        finally:
            dist.destroy_process_group()


@pytest.mark.parametrize("n", [2, 3, 5, 12])
def test_a_file_of_each_rank(tmp_path, n):
    from torch.distributed.tensor import Replicate, Shard

    places = {"layers.0.weight": Shard(0), "layers.0.bias": Shard(0), "embedding": Shard(1), "cube": Shard(2)}
    for step in (10, 20):
        save_files_of_ranks(tmp_path / "in" / f"global_step_{step}" / "actor", n, {**places, "half": Replicate()})
    file = tmp_path / "in" / "global_step_10" / "actor" / f"model_world_size_{n}_rank_0.pt"
    check(open_checkpoint(file), values())
    plan = ts.ingest(tmp_path / "in", tmp_path / "out.zarr", dry_run=True)
    assert plan.steps == [10, 20]
    assert list(plan.left_out.values()).count("optimizer or trainer state") >= 4
    file.with_name(f"model_world_size_{n}_rank_1.pt").unlink()
    with pytest.raises(ts.StoreNotFoundError, match=rf"rank_1\.pt does not exist: 1 of the {n} files"):
        open_checkpoint(file)


def test_files_of_ranks_that_do_not_fit_together(tmp_path):
    from torch.distributed.tensor import Shard

    def differ(rank, state):
        return state | {"scale": torch.tensor(float(rank))}

    save_files_of_ranks(tmp_path / "differ", 2, {"cube": Shard(0)}, differ)
    with pytest.raises(ts.UnsupportedError, match=r"'scale' is another one in the files of the other 1 ranks"):
        open_checkpoint(tmp_path / "differ" / "model_world_size_2_rank_0.pt")
    save_files_of_ranks(tmp_path / "swapped", 2, {"cube": Shard(0)})
    one, other = (tmp_path / "swapped" / f"model_world_size_2_rank_{k}.pt" for k in (0, 1))
    one.rename(tmp_path / "x")
    other.rename(one)
    (tmp_path / "x").rename(other)
    with pytest.raises(ts.StoreError, match=r"'cube': rank 0 of 2 holds .* as piece 0"):
        open_checkpoint(one)
    save_files_of_ranks(tmp_path / "names", 2, {"cube": Shard(0)}, lambda k, s: s | {f"x{k}": torch.ones(1)})
    with pytest.raises(ts.StoreError, match="do not hold the same tensors"):
        open_checkpoint(tmp_path / "names" / "model_world_size_2_rank_0.pt")


# --- damage -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    from torch.distributed.tensor import Shard

    return save_as_ranks(tmp_path / "step-5", 2, {"embedding": Shard(1), "cube": Shard(0)})


def read_all(folder):
    for tensor in open_checkpoint(folder).tensors.values():
        tensor.read(0, tensor.size)


def edit(folder, change):
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    change(metadata)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))


def chunk(metadata, name, k=0):
    return metadata.state_dict_metadata[name].chunks[k]


def info(metadata, name):
    return next(value for index, value in metadata.storage_data.items() if index.fqn == name)


def set_chunk(name, offsets, sizes, k=0):
    def change(metadata):
        part = chunk(metadata, name, k)
        index = next(i for i in metadata.storage_data if i.fqn == name and i.offset == part.offsets)
        stored = metadata.storage_data.pop(index)
        part.offsets, part.sizes = torch.Size(offsets), torch.Size(sizes)
        metadata.storage_data[type(index)(name, part.offsets, index.index)] = stored

    return change


def test_the_fixture_is_read(folder):
    check(open_checkpoint(folder), values())


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (set_chunk("model.cube", (0, 0, 0), (2, 6, 4)), ts.StoreError, "hold 108 of 120 numbers"),
        (set_chunk("model.cube", (1, 0, 0), (2, 6, 5)), ts.UnsafeInputError, "overlap"),
        (set_chunk("model.cube", (3, 0, 0), (2, 6, 5)), ts.UnsafeInputError, "not within its shape"),
        (set_chunk("model.cube", (0, 0), (2, 6)), ts.UnsafeInputError, "not within its shape"),
        (set_chunk("model.cube", (0, 0, 0), (4, 6, 5)), ts.UnsafeInputError, "overlap"),
        (lambda m: m.state_dict_metadata["model.cube"].chunks.pop(), ts.StoreError, "hold 60 of 120 numbers"),
        (lambda m: chunk(m, "model.half").sizes.__class__ and setattr(chunk(m, "model.half"), "sizes", (2**40,)),
         ts.UnsafeInputError, "does not fit"),
        (lambda m: setattr(m.state_dict_metadata["model.half"], "size", (-1,)), ts.UnsafeInputError, "not a shape"),
        (lambda m: setattr(m.state_dict_metadata["model.half"], "size", (8,)), ts.UnsafeInputError, "not within"),
        (lambda m: setattr(m.state_dict_metadata["model.half"].properties, "dtype", torch.float32), None, "float16 of"),
        (lambda m: setattr(info(m, "model.half"), "relative_path", "../secret.distcp"), ts.UnsafeInputError, "plain"),
        (lambda m: setattr(info(m, "model.half"), "relative_path", "/etc/passwd"), ts.UnsafeInputError, "plain"),
        (lambda m: setattr(info(m, "model.half"), "relative_path", "a/b.distcp"), ts.UnsafeInputError, "plain"),
        (lambda m: setattr(info(m, "model.half"), "relative_path", ".."), ts.UnsafeInputError, "plain"),
        (lambda m: setattr(info(m, "model.half"), "relative_path", "c.distcp"), ts.StoreNotFoundError, "c.distcp does"),
        (lambda m: setattr(info(m, "model.half"), "offset", -4), ts.UnsafeInputError, "not a shape"),
        (lambda m: setattr(info(m, "model.half"), "offset", 2**40), ts.StoreError, "truncated"),
        (lambda m: setattr(info(m, "model.half"), "offset", 1), ts.UnsafeInputError, "share bytes"),
        (lambda m: setattr(info(m, "model.half"), "transform_descriptors", ["zstd"]), ts.UnsupportedError, "packed by"),
        (lambda m: m.storage_data.clear(), ts.StoreError, "stored in no file"),
        (lambda m: setattr(m, "storage_data", None), ts.StoreError, "does not describe"),
        (lambda m: setattr(m, "state_dict_metadata", 3), ts.StoreError, "does not describe"),
        (lambda m: m.state_dict_metadata.update(x=3), ts.UnsafeInputError, "neither a tensor"),
        (lambda m: m.state_dict_metadata.update(x=torch.ones(2)), ts.UnsafeInputError, "asks for"),
    ],
)  # fmt: skip
def test_damaged_metadata(folder, change, error, match):
    edit(folder, change)
    with pytest.raises(error or ts.StoreError, match=match) as caught:
        read_all(folder)
    assert "step-5" in str(caught.value)


def test_two_items_swapped(folder):
    def swap(metadata):
        one, other = info(metadata, "model.half"), info(metadata, "model.layers.0.bias")
        one.__dict__, other.__dict__ = other.__dict__, one.__dict__

    edit(folder, swap)
    with pytest.raises(ts.TrajstatsError, match="not of one checkpoint|does not fit"):
        read_all(folder)


@pytest.mark.parametrize("how", ["missing", "truncated", "empty", "other"])
def test_files_that_are_not_whole(folder, how):
    file = folder / "__1_0.distcp"
    if how == "missing":
        file.unlink()
    elif how == "other":
        shutil.copy(folder / "__0_0.distcp", file)
    else:
        file.write_bytes(file.read_bytes()[: 0 if how == "empty" else -100])
    with pytest.raises((ts.StoreError, ts.StoreNotFoundError), match=r"__1_0\.distcp"):
        read_all(folder)


def test_a_link_out_of_the_folder(folder, tmp_path):
    (folder / "__1_0.distcp").rename(tmp_path / "secret")
    (folder / "__1_0.distcp").symlink_to(tmp_path / "secret")
    with pytest.raises(ts.UnsafeInputError, match="is a link"):
        open_checkpoint(folder)


@pytest.mark.parametrize("name", [b"os\nsystem", b"builtins\neval", b"argparse\nNamespace", b"a\nB", b"torch\nload"])
def test_metadata_with_any_other_name_is_refused(folder, name):
    (folder / ".metadata").write_bytes(b"\x80\x02c" + name + b"\n)R.")
    with pytest.raises(ts.UnsafeInputError, match=r"\.metadata asks for"):
        open_checkpoint(folder)


def test_a_checkpoint_that_was_not_finished_is_named(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "step-6")
    (tmp_path / "step-6" / ".metadata").rename(tmp_path / "step-6" / ".metadata.tmp")
    plan = ts.ingest(tmp_path, tmp_path / "out.zarr", dry_run=True)
    assert plan.steps == [5]
    assert plan.left_out["step-6"] == "a torch distributed checkpoint without .metadata: not finished"


@pytest.mark.parametrize("inner", ["pytorch_model_fsdp_0", "model"])
def test_folders_of_accelerate_and_lightning(tmp_path, inner):
    for step in (10, 20):
        save(tmp_path / "in" / f"checkpoint-{step}" / inner, {"model": values()})
        save(tmp_path / "in" / f"checkpoint-{step}" / "optimizer_0", {"optimizer": {"m": torch.ones(3)}})
    assert ts.ingest(tmp_path / "in", tmp_path / "out.zarr").steps == [10, 20]
    for step in (10, 20):
        path = save(tmp_path / "lightning" / f"epoch=0-step={step}.ckpt", {"state_dict": values()})
        torch.save({"epoch": 0}, path / "meta.pt")
    assert ts.ingest(tmp_path / "lightning", tmp_path / "out2.zarr").steps == [10, 20]
