"""The torch loop against the compiled one, which is itself tested against torch's optimiser; and resuming."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from trajstats_trainers.architectures.mlp import JaxMLP, mlp_init, torch_mlp
from trajstats_trainers.jax.adapter import accuracy, cross_entropy
from trajstats_trainers.jax.sgd import train_jax
from trajstats_trainers.tasks.digits import scikit_digits
from trajstats_trainers.torch.sgd import train_torch

import trajstats as ts
from trajstats.data._buffers import buffers_at

SIZES = (64, 5, 10)
SCHEDULE = [0, 1, 7, 40, 90]


@pytest.fixture(scope="module")
def data():
    task = scikit_digits()
    return task.inputs[:215], task.targets[:215]


def start():
    module = torch_mlp(SIZES)
    with torch.no_grad():
        for parameter, value in zip(module.parameters(), mlp_init(SIZES, 3).values(), strict=True):
            parameter.copy_(torch.from_numpy(value))
    return module


def train(data, path, **options):
    settings = {"seed": 3, "schedule": SCHEDULE, "learning_rate": 0.1, "batch_size": 10, "l2": 1e-3, "progress": None}
    return train_torch(start(), torch.nn.functional.cross_entropy, data, path, **{**settings, **options})


@pytest.mark.parametrize("order", ["shuffled", "cyclic", "replacement"])
def test_equals_the_jax_loop(data, tmp_path, order):
    def right(outputs, targets):
        return (outputs.argmax(1) == targets).float().mean()

    train(data, tmp_path / "torch.zarr", order=order, metrics={"accuracy": right})
    train_jax(
        JaxMLP(SIZES), [mlp_init(SIZES, 3)], cross_entropy, data, [tmp_path / "jax.zarr"], seeds=[3],
        schedule=SCHEDULE, learning_rate=0.1, batch_size=10, l2=1e-3, order=order, metrics={"accuracy": accuracy},
        progress=None,
    )  # fmt: skip
    one, two = (ts.open_trajectory(str(tmp_path / f"{kind}.zarr")) for kind in ("torch", "jax"))
    # float32 steps in another order of sums: about 1e-7 each, over 90 steps of a stable loop.
    np.testing.assert_allclose(one.weights.values, two.weights.values, atol=2e-5)
    for name in ("loss", "accuracy", "epoch", "proper_time"):
        np.testing.assert_allclose(one[name], two[name], rtol=1e-4)
    settings = [json.loads(run.attrs["optimiser"]) for run in (one, two)]
    assert settings[0]["order"] == order
    assert {k: v for k, v in settings[0].items() if k != "framework"} == {
        k: v for k, v in settings[1].items() if k != "framework"
    }


def test_resumes_to_the_same_bits(data, tmp_path):
    train(data, tmp_path / "whole.zarr")
    train(data, tmp_path / "parts.zarr", schedule=SCHEDULE[:3])
    train(data, tmp_path / "parts.zarr")
    train(data, tmp_path / "parts.zarr")  # nothing left to do
    one, two = (ts.open_trajectory(str(tmp_path / f"{kind}.zarr")) for kind in ("whole", "parts"))
    assert one.step.values.tolist() == SCHEDULE
    np.testing.assert_array_equal(one.weights.values, two.weights.values)


def test_batch_norms_are_recorded_and_resumed_to_the_same_bits(data, tmp_path):
    def train_normed(path, schedule):
        torch.manual_seed(0)
        module = torch.nn.Sequential(torch.nn.Linear(64, 6), torch.nn.BatchNorm1d(6), torch.nn.Linear(6, 10))
        options = {"seed": 1, "learning_rate": 0.1, "batch_size": 10, "progress": None}
        train_torch(module, torch.nn.functional.cross_entropy, data, path, schedule=schedule, **options)
        assert module.training
        return module

    train_normed(tmp_path / "whole.zarr", SCHEDULE)
    train_normed(tmp_path / "parts.zarr", SCHEDULE[:3])
    module = train_normed(tmp_path / "parts.zarr", SCHEDULE)
    one, two = (ts.open_trajectory(str(tmp_path / f"{kind}.zarr")) for kind in ("whole", "parts"))
    np.testing.assert_array_equal(one.weights.values, two.weights.values)
    np.testing.assert_array_equal(one.buffers.values, two.buffers.values)
    assert "1.running_mean" not in one.layer.values
    last = buffers_at(two, 0, len(SCHEDULE) - 1)
    assert int(last["1.num_batches_tracked"]) == SCHEDULE[-1]  # measuring the loss does not count as training
    np.testing.assert_array_equal(last["1.running_var"], module[1].running_var.numpy())


def test_refuses_to_mix_settings_and_tells_divergence(data, tmp_path):
    train(data, tmp_path / "a.zarr", schedule=SCHEDULE[:2])
    with pytest.raises(ts.StoreError, match="order.*shuffled"):
        train(data, tmp_path / "a.zarr", order="cyclic")
    with pytest.raises(ts.NonFiniteError, match="lower the learning rate"):
        train(data, tmp_path / "b.zarr", learning_rate=1e20)
    assert ts.open_trajectory(str(tmp_path / "b.zarr")).step.values.tolist()[0] == 0
