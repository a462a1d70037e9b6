"""Which files and tensors are ingested, and what is left out by name."""

from __future__ import annotations

import json
from collections import namedtuple

import numpy as np
import pytest

import trajstats as ts
from trajstats.data._buffers import buffers_at
from trajstats.data.formats._open import open_checkpoint

STEPS = (100, 200)


def save(path, **arrays):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **{name: np.asarray(value, "f4") for name, value in arrays.items()})


def full(step, *shape):
    return np.full(shape or (3,), step, "f4")


def plan(root, **options):
    return ts.ingest(root, root.parent / "out.zarr", dry_run=True, **options)


def values(root, **options):
    ts.ingest(root, root.parent / "out.zarr", **options)
    run = ts.open_trajectory(root.parent / "out.zarr")
    return run, dict(zip(run.step.values.tolist(), run.weights.values[0], strict=True))


# ---- files beside a series


@pytest.mark.parametrize("name", ["best", "last", "latest", "final", "model_best", "step_200_final", "best-step=150"])
def test_special_checkpoints_are_left_out_and_named(tmp_path, name):
    for step in STEPS:
        save(tmp_path / "in" / f"step_{step}.npz", w=full(step))
    save(tmp_path / "in" / f"{name}.npz", w=full(7))
    found = plan(tmp_path / "in")
    assert found.steps == list(STEPS)
    assert "beside the series" in found.left_out[f"{name}.npz"]
    assert f"{name}.npz" in str(found)


def test_a_series_of_best_checkpoints_is_a_series(tmp_path):
    for step in STEPS:
        save(tmp_path / "in" / f"best-step={step}.npz", w=full(step))
    assert plan(tmp_path / "in").steps == list(STEPS)


def test_explicit_steps_keep_every_file(tmp_path):
    for name in ("step_100", "best"):
        save(tmp_path / f"{name}.npz", w=full(1))
    given = {100: tmp_path / "step_100.npz", 150: str(tmp_path / "best.npz")}
    assert ts.ingest(given, tmp_path / "out.zarr", dry_run=True).steps == [100, 150]
    found = ts.ingest(list(given.items()), tmp_path / "out.zarr", dry_run=True)
    assert found.steps == [100, 150]
    assert found.rule == "given"


def test_links_to_the_last_checkpoint(tmp_path):
    for step in STEPS:
        save(tmp_path / "in" / f"step_{step}.npz", w=full(step))
    (tmp_path / "in" / "step_newest.npz").symlink_to("step_200.npz")
    found = plan(tmp_path / "in")
    assert found.steps == list(STEPS)
    assert found.left_out["step_newest.npz"] == "a link to step_200.npz"


@pytest.mark.parametrize("sharded", [False, True])
def test_an_output_folder_with_the_final_model_in_it(tmp_path, sharded):
    safetensors = pytest.importorskip("safetensors.numpy")
    torch = pytest.importorskip("torch")
    root = tmp_path / "gpt2"
    for folder, step in [(root, 9), *((root / f"checkpoint-{step}", step) for step in STEPS)]:
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {"model.layers.0.w": full(step), "model.layers.1.w": full(step + 1)}
        if sharded and folder != root:
            files = {name: f"model-0000{k}-of-00002.safetensors" for k, name in enumerate(tensors, 1)}
            for name, file in files.items():
                safetensors.save_file({name: tensors[name]}, folder / file)
            (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
        else:
            safetensors.save_file(tensors, folder / "model.safetensors")
        torch.save({"state": {0: {"exp_avg": torch.zeros(3)}}}, folder / "optimizer.pt")
        torch.save([1], folder / "training_args.bin")
    run, rows = values(root)
    assert run.layer.values.tolist() == ["model.layers.0.w", "model.layers.1.w"]
    assert {step: row.tolist() for step, row in rows.items()} == {s: [s] * 3 + [s + 1] * 3 for s in STEPS}
    assert "beside the series" in plan(root).left_out["model.safetensors"]


def test_state_of_the_trainer_in_files_of_its_own(tmp_path):
    for step in STEPS:
        for name in ("model", "optim", "train", "rng_state_0"):
            save(tmp_path / "in" / f"step{step}-unsharded" / f"{name}.npz", w=full(step))
    found = plan(tmp_path / "in")
    assert found.steps == list(STEPS)
    assert found.left_out["step100-unsharded/optim.npz"] == "optimizer or trainer state"


def test_unfinished_checkpoints(tmp_path):
    for step in STEPS:
        save(tmp_path / "in" / f"checkpoint-{step}" / "w.npz", w=full(step))
    save(tmp_path / "in" / "tmp-checkpoint-300" / "w.npz", w=full(300))
    assert plan(tmp_path / "in").steps == list(STEPS)


def test_shards_without_an_index(tmp_path):
    for step in STEPS:
        for k in (1, 2):
            save(tmp_path / "in" / f"step{step}" / f"model-0000{k}-of-00002.npz", **{f"l{k}": full(step * k)})
    _, rows = values(tmp_path / "in")
    assert rows[200].tolist() == [200] * 3 + [400] * 3
    shard = tmp_path / "in" / "step100" / "model-00002-of-00002.npz"
    assert set(open_checkpoint(shard).tensors) == {"l1", "l2"}
    shard.unlink()
    with pytest.raises(ts.StoreNotFoundError, match=r"model-00002-of-00002.npz .*1 of the 2 files"):
        plan(tmp_path / "in")


def llama(ranks):
    """Weights of one layer, whole and cut as LLaMA's code cuts them."""
    rng = np.random.default_rng(0)
    shapes = {"attention.wq": (8, 4), "attention.wo": (4, 8), "feed_forward.w2": (4, 6), "feed_forward.w1": (6, 4)}
    whole = {f"layers.0.{name}.weight": rng.standard_normal(shape).astype("f4") for name, shape in shapes.items()}
    whole |= {"tok_embeddings.weight": rng.standard_normal((10, 4)).astype("f4"), "norm.weight": np.ones(4, "f4")}
    parts = [{} for _ in range(ranks)]
    for name, value in whole.items():
        axis = 1 if name.split(".")[-2] in {"wo", "w2", "tok_embeddings"} else 0
        cut = [value] * ranks if value.ndim == 1 else np.split(value, ranks, axis)
        for part, piece in zip(parts, cut, strict=True):
            part[name] = np.ascontiguousarray(piece)
    return whole, parts


def test_ranks_of_llama_are_joined(tmp_path):
    torch = pytest.importorskip("torch")
    whole, parts = llama(2)
    for k, part in enumerate(parts):
        torch.save({n: torch.from_numpy(v) for n, v in part.items()}, tmp_path / f"consolidated.{k:02d}.pth")
    for path in (tmp_path, tmp_path / "consolidated.01.pth"):
        found = open_checkpoint(path)
        for name, value in whole.items():
            tensor = found.tensors[name]
            assert tensor.shape == value.shape
            np.testing.assert_array_equal(tensor.read(0, tensor.size), value.reshape(-1))
            np.testing.assert_array_equal(tensor.read(1, tensor.size - 1), value.reshape(-1)[1:-1])


@pytest.mark.parametrize("change", ["name", "unequal", "lost", "shape"])
def test_ranks_that_cannot_be_joined_are_refused(tmp_path, change):
    torch = pytest.importorskip("torch")
    _, parts = llama(2)
    if change == "name":
        for part in parts:
            part["layers.0.mixer.weight"] = np.ones((2, 4), "f4")
    elif change == "unequal":
        parts[1]["norm.weight"] = np.zeros(4, "f4")
    elif change == "shape":
        parts[1]["layers.0.attention.wq.weight"] = np.ones((2, 4), "f4")
    for k, part in enumerate(parts):
        file = f"consolidated.{k + (change == 'lost'):02d}.pth"
        torch.save({n: torch.from_numpy(v) for n, v in part.items()}, tmp_path / file)
    with pytest.raises((ts.UnsupportedError, ts.StoreNotFoundError), match=r"Join them first|Download all"):
        open_checkpoint(tmp_path / "consolidated.01.pth")


def test_ranks_of_megatron_are_refused(tmp_path):
    torch = pytest.importorskip("torch")
    for rank in range(2):
        folder = tmp_path / "in" / "iter_0000100" / f"mp_rank_{rank:02d}"
        folder.mkdir(parents=True)
        torch.save({"model": {"w": torch.ones(2, 2)}}, folder / "model_optim_rng.pt")
    with pytest.raises(ts.UnsupportedError, match=r"one of 2 parts .*Megatron"):
        plan(tmp_path / "in")


def test_two_runs_deep_in_one_folder(tmp_path):
    for run in ("2024-01-01_a", "2024-01-02_b"):
        save(tmp_path / "in" / run / "version_0" / "logs" / "checkpoints" / "step_100.npz", w=full(1))
    with pytest.raises(ts.SchemaError, match="duplicate step.*give one run"):
        ts.ingest(tmp_path / "in", tmp_path / "out.zarr")


@pytest.mark.parametrize("address", ["s3://bucket/ckpts", "hf://org/model"])
def test_other_machines_are_named(tmp_path, address):
    with pytest.raises(ts.UnsupportedError, match="download them"):
        ts.ingest(address, tmp_path / "out.zarr")


def test_home_and_file_addresses(tmp_path, monkeypatch):
    save(tmp_path / "a b" / "step1.npz", w=full(1))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert ts.ingest("~/a b", tmp_path / "out.zarr", dry_run=True).steps == [1]
    assert ts.ingest((tmp_path / "a b").as_uri(), tmp_path / "out.zarr", dry_run=True).steps == [1]


# ---- tensors in a file


def in_memory(tree, **options):
    return ts.ingest([(0, tree)], "never.zarr", dry_run=True, **options)


STATE = {
    "fc.weight": np.ones((2, 3), "f4"),
    "bn.running_mean": np.zeros(2, "f4"),
    "bn.num_batches_tracked": np.int64(3),
}
AROUND = {
    "epoch": 3,
    "best_acc1": np.float32(12.5),
    "optimizer": {"state": {0: {"exp_avg": np.ones(3, "f4")}}},
    "lr_scheduler": {"base": np.ones(2, "f4")},
    "callbacks": {"EarlyStopping": {"best_score": np.float32(1), "curve": np.ones(9, "f4")}},
    "rng_state": np.zeros(8, np.uint8),
}


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict", "net", "params"])
def test_the_model_alone_is_read(key):
    found = in_memory({key: STATE, **AROUND})
    assert found.layers == {"fc.weight": (2, 3)}
    assert set(found.buffers) == {"bn.running_mean", "bn.num_batches_tracked"}
    assert found.passed_over["optimizer.state.0.exp_avg"] == "optimizer state"
    assert "best_acc1" in found.passed_over


def test_scores_beside_plain_weights_are_no_layers():
    found = in_memory({"w": np.ones(3), "best_acc1": 3.0, "epoch": 5.0, "logit_scale": 2.6})
    assert set(found.layers) == {"w", "logit_scale"}


@pytest.mark.parametrize("name", ["model_ema", "ema", "state_dict_ema", "teacher"])
def test_a_model_and_its_average_must_be_chosen(name):
    tree = {"model": STATE, name: STATE, "optimizer": {}, "epoch": 3}
    with pytest.raises(ts.ArgumentError, match=rf"part='model' .*part='{name}'"):
        in_memory(tree)
    assert set(in_memory(tree, part=name).layers) == {"fc.weight"}
    both = in_memory(tree, part=["model", name]).layers
    assert set(both) == {"model.fc.weight", f"{name}.fc.weight"}
    with pytest.raises(ts.ArgumentError, match="has no part 'x'"):
        in_memory(tree, part="x")


def test_two_nets_of_one_model_are_both_kept():
    found = in_memory({"generator": {"w": np.ones((2, 2))}, "discriminator": {"w": np.ones((2, 2))}, "optimizer": {}})
    assert set(found.layers) == {"generator.w", "discriminator.w"}


def test_layers_of_a_bare_tree_are_no_rivals():
    found = in_memory({"params": {"Dense_0": {"kernel": np.ones((2, 2))}, "Dense_1": {"kernel": np.ones((2, 2))}}})
    assert set(found.layers) == {"Dense_0.kernel", "Dense_1.kernel"}


def test_a_train_state_of_flax():
    tree = {
        "params": {"d": {"kernel": np.ones((2, 2))}},
        "batch_stats": {"bn": {"mean": np.ones(2)}},
        "opt_state": [{}],
    }
    found = in_memory(tree)
    assert found.layers == {"d.kernel": (2, 2)}
    assert set(found.buffers) == {"batch_stats.bn.mean"}


def test_legacy_keras_without_its_optimizer(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "epoch1.h5", "w") as file:
        file["model_weights/dense/dense/kernel:0"] = np.ones((2, 3), "f4")
        file["model_weights/bn/bn/moving_mean:0"] = np.ones(3, "f4")
        file["optimizer_weights/adam/m/dense/kernel:0"] = np.ones((2, 3), "f4")
    found = ts.ingest(tmp_path / "epoch1.h5", tmp_path / "out.zarr", dry_run=True)
    assert set(found.layers) == {"dense.dense.kernel:0"}
    assert set(found.buffers) == {"bn.bn.moving_mean:0"}


def test_statistics_of_keras_3_which_has_numbers_for_names(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "step1.weights.h5", "w") as file:
        for k in range(4):
            file[f"layers/batch_normalization_1/vars/{k}"] = np.full(3, k, "f4")
        file["layers/dense/vars/0"] = np.ones((2, 3), "f4")
    found = open_checkpoint(tmp_path / "step1.weights.h5")
    assert set(found.buffers) == {"layers.batch_normalization_1.vars.2", "layers.batch_normalization_1.vars.3"}


def test_buffers_are_stored_beside_the_layers(tmp_path):
    torch = pytest.importorskip("torch")
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    states = {}
    for step in range(12):
        net(torch.randn(8, 3) + step).sum().backward()
        net[0].weight.data += 0.1
        states[step] = {name: value.clone() for name, value in net.state_dict().items()}
        torch.save({"state_dict": states[step], "epoch": step}, tmp_path / f"checkpoint_{step:04d}.pth.tar")
    ts.ingest(tmp_path, tmp_path / "out.zarr")
    run = ts.open_trajectory(tmp_path / "out.zarr")
    assert run.layer.values.tolist() == ["0.bias", "0.weight", "1.bias", "1.weight"]
    for k in (0, 5, 11):
        found = buffers_at(run, 0, k)
        assert set(found) == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
        for name, value in found.items():
            want = states[k][name].numpy()
            assert value.dtype == want.dtype
            np.testing.assert_array_equal(value, want)


def test_an_object_array_beside_arrays(tmp_path):
    for step in STEPS:
        np.savez(tmp_path / f"step{step}.npz", w=full(step), config=np.array({"lr": 1}, object))
    found = ts.ingest(tmp_path, tmp_path / "out.zarr", dry_run=True)
    assert set(found.layers) == {"w"}
    assert "pickle" in found.passed_over["config"]


# ---- what a user may give in memory

Pair = namedtuple("Pair", "w b")
TREES = {
    "nested": ({"layer": {"w": np.ones(3), "b": np.ones(1)}}, {"layer.w": (3,), "layer.b": (1,)}),
    "lists of arrays": ({"coefs": [np.ones((2, 3)), np.ones((3, 1))]}, {"coefs.0": (2, 3), "coefs.1": (3, 1)}),
    "lists of numbers": ({"w": [[1.0, 2.0], [3.0, 4.0]]}, {"w": (2, 2)}),
    "named tuples": ({"x": Pair(np.ones(2), np.ones(1))}, {"x.w": (2,), "x.b": (1,)}),
    "other byte order": ({"w": np.ones(3, ">f4")}, {"w": (3,)}),
    "text and nothing beside": ({"w": np.ones(3), "note": "x", "none": None}, {"w": (3,)}),
}


@pytest.mark.parametrize("kind", TREES)
def test_trees(kind):
    tree, layers = TREES[kind]
    assert in_memory(tree).layers == layers


def test_what_an_iterator_yields_is_copied(tmp_path):
    w = np.zeros(3)

    def training():
        for step in range(3):
            w[:] = step
            yield step, {"w": w}

    ts.ingest(training(), tmp_path / "out.zarr")
    assert ts.open_trajectory(tmp_path / "out.zarr").weights.values[0, :, 0].tolist() == [0, 1, 2]


WRONG = {
    "no steps": ([{"w": np.ones(3)}] * 2, "without steps"),
    "one checkpoint": ({"w": np.ones(3)}, "is one checkpoint"),
    "fractions": ([(0.5, {"w": np.ones(3)})], "not a whole number"),
    "dates": ({np.datetime64("2024-01-01"): {"w": np.ones(3)}}, "is a time"),
    "durations": ({np.timedelta64(3, "s"): {"w": np.ones(3)}}, "is a time"),
    "a number": (3, "give a folder"),
    "arrays": ([(0, np.ones(3))], "mapping of names to arrays"),
    "nothing": ({}, "no checkpoints"),
    "turned round": ({"a.pt": 3}, "turn it round"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_mistakes_get_a_sentence(tmp_path, kind):
    given, match = WRONG[kind]
    with pytest.raises(ts.ArgumentError, match=match):
        ts.ingest(given, tmp_path / "out.zarr")


def test_a_module_and_quantised_weights(tmp_path):
    torch = pytest.importorskip("torch")
    with pytest.raises(ts.ArgumentError, match=r"state_dict\(\)"):
        ts.ingest([(0, torch.nn.Linear(2, 2))], tmp_path / "out.zarr")
    with pytest.raises(ts.UnsupportedError, match="quantised"):
        in_memory({"w": np.ones(3, np.int8)})


def tensorflow_files(folder, step):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "checkpoint").write_text(f'model_checkpoint_path: "ckpt-{step}"')
    (folder / f"ckpt-{step}.index").write_bytes(b"x")
    (folder / f"ckpt-{step}.data-00000-of-00001").write_bytes(b"x")
    return folder


def test_tensorflow_is_refused_with_a_recipe(tmp_path):
    folder = tensorflow_files(tmp_path / "in", 100)
    for given in (folder, folder / "ckpt-100.index", folder / "ckpt-100.data-00000-of-00001", str(folder / "ckpt-*")):
        with pytest.raises(ts.UnsupportedError, match=r"load_checkpoint\('.*in/ckpt-100'\)\n.*\n  np\.savez") as caught:
            ts.ingest(given, tmp_path / "run.zarr")
        compile("\n".join(line.strip() for line in str(caught.value).splitlines()[1:]), "recipe", "exec")
    (tmp_path / "saved" / "variables").mkdir(parents=True)
    (tmp_path / "saved" / "saved_model.pb").write_bytes(b"x")
    with pytest.raises(ts.UnsupportedError, match=r"load_checkpoint\('.*saved/variables/variables'\)"):
        ts.ingest(tmp_path / "saved", tmp_path / "run.zarr")


def test_tensorflow_beside_a_series_is_named(tmp_path):
    folder = tensorflow_files(tmp_path / "in", 100)
    for step in (1, 2):
        np.savez(folder / f"step{step}.npz", w=np.arange(9.0) * step)
    plan = ts.ingest(folder, tmp_path / "run.zarr", dry_run=True)
    assert plan.steps == [1, 2]
    assert plan.left_out["ckpt-100.index"] == "of a TensorFlow checkpoint, which is not read"


def test_links_to_a_folder_above_are_not_followed(tmp_path):
    folder = tmp_path / "in"
    for step in (1, 2):
        (folder / f"step{step}").mkdir(parents=True)
        np.savez(folder / f"step{step}" / "model.npz", w=np.arange(9.0) * step)
    (folder / "step2" / "again").symlink_to(folder)
    (folder / "here").symlink_to(folder)
    plan = ts.ingest(folder, tmp_path / "run.zarr", dry_run=True)
    assert plan.steps == [1, 2]
    assert plan.left_out == dict.fromkeys(["here", "step2/again"], "a link to a folder above it")
