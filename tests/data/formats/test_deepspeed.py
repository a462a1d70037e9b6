"""DeepSpeed and Megatron-LM: whole models are read, parts of one refused with the tool that joins them."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest

import trajstats as ts
from trajstats.data.formats._open import open_checkpoint

torch = pytest.importorskip("torch")
SHAPES = {"wte.weight": (6, 4), "h.0.w": (4, 4), "h.0.b": (4,)}


def weights(step):
    generator = torch.Generator().manual_seed(step)
    return {name: torch.randn(shape, generator=generator).bfloat16() for name, shape in SHAPES.items()}


def model_states(step, **more):
    """What DeepSpeed 0.16 puts into mp_rank_00_model_states.pt."""
    return {
        "module": weights(step), "buffer_names": [], "optimizer": None,
        "param_shapes": [{name: torch.Size(shape) for name, shape in SHAPES.items()}],
        "frozen_param_shapes": None, "frozen_param_fragments": None, "shared_params": {}, "lr_scheduler": {},
        "data_sampler": None, "random_ltd": None, "sparse_tensor_module_names": set(), "skipped_steps": 0,
        "global_steps": step, "global_samples": step * 8, "dp_world_size": 2, "mp_world_size": 1,
        "ds_config": {"train_batch_size": 8}, "ds_version": "0.16.4", "args": argparse.Namespace(lr=1e-3), **more,
    }  # fmt: skip


def write(root, step, ranks=(0,), name="mp_rank_{:02d}_model_states.pt", optimizer="bf16_zero_pp_rank_{}", **more):
    folder = root / f"global_step{step}"
    folder.mkdir(parents=True)
    for rank in ranks:
        torch.save(model_states(step, **more), folder / name.format(rank))
    partition = {"base_optimizer_state": {"state": {0: {"exp_avg": torch.zeros(20)}}}, "zero_stage": 1}
    for rank in range(2):
        file = folder / f"{optimizer.format(rank)}_mp_rank_00_optim_states.pt"
        torch.save({"optimizer_state_dict": partition, "ds_version": "0.16.4"}, file)
    (root / "latest").write_text(f"global_step{step}")
    (root / "zero_to_fp32.py").write_text("")
    return folder


@pytest.mark.parametrize("optimizer", ["bf16_zero_pp_rank_{}", "zero_pp_rank_{}"])
def test_zero_1_is_read_and_the_optimizer_named(tmp_path, optimizer):
    for step in (500, 1000):
        write(tmp_path / "run", step, optimizer=optimizer)
    plan = ts.ingest(tmp_path / "run", tmp_path / "out.zarr")
    assert plan.steps == [500, 1000]
    assert plan.layers == {name: SHAPES[name] for name in plan.layers}
    assert len(plan.layers) == 3
    assert list(plan.left_out.values()).count("optimizer or trainer state") == 4
    assert plan.passed_over["args"].startswith("an object of class argparse.Namespace")
    found = open_checkpoint(tmp_path / "run" / "global_step500" / "mp_rank_00_model_states.pt")
    for name, w in weights(500).items():
        np.testing.assert_array_equal(found.tensors[name].read(0, w.numel()), w.float().numpy().reshape(-1))


def test_zero_3_names_the_tool(tmp_path):
    empty = {"module": {name: torch.empty(0).bfloat16() for name in SHAPES}}
    write(tmp_path / "run", 500, (0, 1), "zero_pp_rank_{}_mp_rank_00_model_states.pt", **empty)
    match = r"zero_pp_rank_0_mp_rank_00_model_states\.pt is one of 2 parts .* ZeRO-3.*zero_to_fp32\.py"
    with pytest.raises(ts.UnsupportedError, match=match):
        ts.ingest(tmp_path / "run", tmp_path / "out.zarr")
    write(tmp_path / "other", 500, **empty)  # older releases, and other names
    with pytest.raises(ts.UnsupportedError, match=r"'wte\.weight' has shape \(0,\), and should have .*zero_to_fp32"):
        ts.ingest(tmp_path / "other", tmp_path / "out.zarr")


def test_several_model_parallel_ranks_are_refused(tmp_path):
    write(tmp_path / "run", 500, (0, 1), mp_world_size=2)
    with pytest.raises(ts.UnsupportedError, match=r"mp_rank_00_model_states\.pt is one of 2 parts"):
        ts.ingest(tmp_path / "run", tmp_path / "out.zarr")
    # One of them by itself says that it is a part.
    (tmp_path / "run" / "global_step500" / "mp_rank_01_model_states.pt").unlink()
    with pytest.raises(
        ts.UnsupportedError, match=r"mp_rank_00_model_states\.pt is the part of one of 2 model-parallel"
    ):
        ts.ingest(tmp_path / "run", tmp_path / "out.zarr")


def test_experts_in_files_of_their_own_are_refused(tmp_path):
    folder = write(tmp_path / "run", 500)
    for k in range(3):
        torch.save({f"h.0.experts.{k}.w": torch.ones(3)}, folder / f"layer_0_expert_{k}_mp_rank_00_model_states.pt")
    for path in (tmp_path / "run", folder / "mp_rank_00_model_states.pt"):
        with pytest.raises(ts.UnsupportedError, match=r"the experts of this model are in 3 files beside it"):
            ts.ingest(path, tmp_path / "out.zarr")


def test_layers_of_a_pipeline_are_put_together(tmp_path):
    for step in (500, 1000):
        folder = write(tmp_path / "run", step, module=None)
        for layer in (0, 2, 3, 10):
            file = folder / f"layer_{layer:02d}-model_00-model_states.pt"
            torch.save({"w": torch.full((2, 3), float(step + layer)), "b": torch.ones(3)}, file)
    plan = ts.ingest(tmp_path / "run", tmp_path / "out.zarr")
    assert plan.steps == [500, 1000]
    assert list(plan.layers) == [f"layer_{k:02d}.{name}" for k in (0, 2, 3, 10) for name in ("b", "w")]
    run = ts.open_trajectory(tmp_path / "out.zarr")
    assert run.weights.values[0, 1].reshape(-1)[3] == 1000
    torch.save({"w": torch.ones(2, 3)}, tmp_path / "run" / "global_step500" / "layer_02-model_01-model_states.pt")
    with pytest.raises(ts.UnsupportedError, match="each layer is cut into 2 parts"):
        ts.ingest(tmp_path / "run", tmp_path / "out2.zarr")


def test_the_whole_model_of_a_trainer_beside_what_deepspeed_writes(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    for step in (500, 1000):
        write(tmp_path / "run" / f"checkpoint-{step}", step, (0, 1), "zero_pp_rank_{}_mp_rank_00_model_states.pt")
        safetensors.save_file(weights(step), tmp_path / "run" / f"checkpoint-{step}" / "model.safetensors")
    plan = ts.ingest(tmp_path / "run", tmp_path / "out.zarr")
    assert plan.steps == [500, 1000]
    assert [Path(file).name for file in plan.files] == ["model.safetensors"] * 2
    assert "the files of DeepSpeed beside the whole model" in plan.left_out.values()


def test_one_rank_of_megatron_says_so_in_its_arguments(tmp_path):
    sizes = {"tensor_model_parallel_size": 1, "pipeline_model_parallel_size": 1, "padded_vocab_size": 4}
    state = {"checkpoint_version": 3.0, "iteration": 100, "model": {"language_model": {"w": torch.ones(3)}}}
    folder = tmp_path / "run" / "iter_0000100" / "mp_rank_00"
    folder.mkdir(parents=True)
    torch.save({**state, "args": argparse.Namespace(**sizes)}, folder / "model_optim_rng.pt")
    assert ts.ingest(tmp_path / "run", tmp_path / "out.zarr").layers == {"language_model.w": (3,)}
    for name in ("tensor_model_parallel_size", "pipeline_model_parallel_size"):
        torch.save({**state, "args": argparse.Namespace(**{**sizes, name: 2})}, folder / "model_optim_rng.pt")
        with pytest.raises(ts.UnsupportedError, match=rf"model_optim_rng\.pt is the part.*{name}: 2.*convert\.py"):
            ts.ingest(tmp_path / "run", tmp_path / "out2.zarr")
