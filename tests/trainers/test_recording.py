"""Flattening, recording and batch orders."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from trajstats_trainers._module_state import module_buffers, split_state
from trajstats_trainers.recording import Recorder, batch_order, flatten, layer_shapes, steps_per_epoch, unflatten

import trajstats as ts
from trajstats.data._buffers import buffers_at


def test_flatten_round_trip():
    arrays = {"b": np.arange(3.0), "a": np.arange(6.0).reshape(2, 3), "empty": np.zeros((0, 4)), "one": np.array(7.0)}
    back = unflatten(flatten(arrays), layer_shapes(arrays))
    assert list(back) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(back[name], array)


def test_unflatten_refuses_another_length():
    with pytest.raises(ts.SchemaError, match=r"\(4,\).*\(6,\)"):
        unflatten(np.zeros(4), {"w": (2, 3)})


def test_recorder_takes_torch_and_resumes(tmp_path):
    module = torch.nn.Linear(3, 2)
    weights = dict(module.named_parameters())
    path = tmp_path / "run.zarr"
    with Recorder(path, layer_shapes(weights), schedule=[0, 1, 4]) as recorder:
        recorder.record(0, weights, loss=1.0)
    with Recorder(path, layer_shapes(weights), schedule=[0, 1, 4]) as recorder:
        assert [step for step in range(6) if recorder.due(step)] == [1, 4]
        recorder.record(1, weights, loss=0.5)
        recorder.record(4, flatten({k: v.detach() for k, v in weights.items()}), loss=0.25)
    run = ts.open_trajectory(str(path))
    assert run.step.values.tolist() == [0, 1, 4]
    assert run.loss.values.tolist() == [[1.0, 0.5, 0.25]]
    np.testing.assert_array_equal(run.weights.values[0, 2], flatten({k: v.detach() for k, v in weights.items()}))


def test_recorder_takes_bfloat16_of_torch_exactly(tmp_path):
    module = torch.nn.Linear(5, 4).to(torch.bfloat16)
    weights = dict(module.named_parameters())
    path = tmp_path / "run.zarr"
    with Recorder(path, layer_shapes(weights), schedule=[0]) as recorder:
        recorder.record(0, weights, loss=1.0)
    run = ts.open_trajectory(str(path))
    exact = np.concatenate([p.detach().float().numpy().ravel() for p in weights.values()])
    np.testing.assert_array_equal(run.weights.values[0, 0], exact)
    np.testing.assert_array_equal(flatten(weights), exact)
    # the store knows how coarse the source was
    assert run.source_dtype == "bfloat16"


class Tied(torch.nn.Module):
    """Two layers of one weight, batch norm, a mask that checkpoints hold and a table that they do not."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = torch.nn.Linear(3, 3, bias=False), torch.nn.Linear(3, 3, bias=False)
        self.two.weight = self.one.weight
        self.norm = torch.nn.BatchNorm1d(3)
        self.register_buffer("mask", torch.tensor([True, False, True]))
        self.register_buffer("table", torch.arange(4.0), persistent=False)

    def forward(self, x):
        return self.two(self.norm(self.one(x))) * self.mask


@pytest.mark.parametrize("as_state", [False, True])
def test_recorder_keeps_the_buffers_of_a_module(tmp_path, as_state):
    module = Tied()
    path = tmp_path / "run.zarr"
    expected = []
    with Recorder(path, module, schedule=[0, 1, 2]) as recorder:
        for step in range(3):
            recorder.record(step, module.state_dict() if as_state else module, loss=0.0)
            expected.append({name: value.clone() for name, value in module.state_dict().items()})
            module(torch.randn(8, 3, generator=torch.Generator().manual_seed(step)))
    run = ts.open_trajectory(str(path))
    assert run.layer.values.tolist() == ["one.weight", "norm.weight", "norm.bias"]
    for step in range(3):
        found = buffers_at(run, 0, step)
        assert list(found) == ["mask", "norm.running_mean", "norm.running_var", "norm.num_batches_tracked"]
        for name, value in found.items():
            np.testing.assert_array_equal(value, expected[step][name].numpy(), strict=True)
    assert not np.array_equal(buffers_at(run, 0, 0)["norm.running_var"], buffers_at(run, 0, 2)["norm.running_var"])


def test_recorder_refuses_what_a_state_dict_holds_besides(tmp_path):
    module = Tied()
    with Recorder(tmp_path / "run.zarr", module, schedule=[0]) as recorder:
        with pytest.raises(ts.ArgumentError, match="unknown layer 'more'"):
            recorder.record(0, {**module.state_dict(), "more": torch.zeros(2)})
        with pytest.raises(ts.ArgumentError, match="1 of 4 buffers are not given: 'mask'"):
            recorder.record(0, {name: value for name, value in module.state_dict().items() if name != "mask"})
        recorder.record(0, module.state_dict())
    trained, held = split_state(module.state_dict(), layer_shapes(module), module_buffers(module))
    assert "two.weight" not in trained
    assert len(held) == 4


@pytest.mark.parametrize("schedule", [[], [-1, 3], [2, 2]])
def test_recorder_refuses_bad_schedules(tmp_path, schedule):
    with pytest.raises(ts.ArgumentError, match="schedule"):
        Recorder(tmp_path / "run.zarr", {"w": (2,)}, schedule=schedule)
    assert not (tmp_path / "run.zarr").exists()


def test_batch_orders():
    first, again = (batch_order("shuffled", 100, seed=1, epoch=2) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert sorted(first.tolist()) == list(range(100))
    assert (first != batch_order("shuffled", 100, seed=1, epoch=3)).any()
    assert (first != batch_order("shuffled", 100, seed=2, epoch=2)).any()
    assert len(set(batch_order("replacement", 100, seed=1, epoch=2).tolist())) < 100
    with pytest.raises(ts.ArgumentError, match="unknown order 'shufled'"):
        batch_order("shufled", 100, seed=0, epoch=0)


def test_steps_per_epoch():
    assert steps_per_epoch(103, 50) == 2
    with pytest.raises(ts.ArgumentError, match="batch_size=104"):
        steps_per_epoch(103, 104)
