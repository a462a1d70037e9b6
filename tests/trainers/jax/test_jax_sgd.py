"""The compiled loop against a plain loop in NumPy and torch's own optimiser, and resuming after a kill."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from trajstats_trainers.architectures.mlp import JaxMLP, mlp_init, torch_mlp
from trajstats_trainers.jax.adapter import accuracy, cross_entropy
from trajstats_trainers.jax.sgd import train_jax
from trajstats_trainers.recording import batch_order
from trajstats_trainers.tasks.digits import mnist_digits

import trajstats as ts

SIZES = (16, 5, 10)
SCHEDULE = [0, 1, 7, 40, 90]


@pytest.fixture(scope="module")
def task():
    return mnist_digits(pool=7)


def train(task, paths, *, seeds=(0, 4), schedule=SCHEDULE, learning_rate=0.1, **options):
    data = (task.inputs[:210], task.targets[:210])
    start = [mlp_init(SIZES, seed) for seed in seeds]
    settings = {"seeds": seeds, "schedule": schedule, "learning_rate": learning_rate, "batch_size": 10, "l2": 1e-3}
    return train_jax(JaxMLP(SIZES), start, cross_entropy, data, paths, progress=None, **{**settings, **options})


def torch_reference(task, seed, order="shuffled"):
    module = torch_mlp(SIZES)
    with torch.no_grad():
        for parameter, value in zip(module.parameters(), mlp_init(SIZES, seed).values(), strict=True):
            parameter.copy_(torch.from_numpy(value))
    # torch's weight_decay adds w * weight_decay to the gradient: twice the L2 factor.
    optimiser = torch.optim.SGD(module.parameters(), lr=0.1, weight_decay=2e-3)
    x, y = torch.from_numpy(task.inputs[:210]), torch.from_numpy(task.targets[:210]).long()
    rows = []
    for step in range(SCHEDULE[-1] + 1):
        if step in SCHEDULE:
            rows.append(torch.cat([p.detach().reshape(-1) for p in module.parameters()]).numpy().copy())
        chosen = batch_order(order, 210, seed=seed, epoch=step // 21)[(step % 21) * 10 :][:10]
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(module(x[chosen]), y[chosen]).backward()
        optimiser.step()
    return np.stack(rows)


@pytest.mark.parametrize("order", ["shuffled", "cyclic"])
def test_equals_torch_sgd(task, tmp_path, order):
    paths = train(task, [tmp_path / "a.zarr", tmp_path / "b.zarr"], order=order, metrics={"accuracy": accuracy})
    run = ts.open_trajectory([str(path) for path in paths])
    assert run.replica.values.tolist() == [0, 4]
    assert run.step.values.tolist() == SCHEDULE
    for row, seed in enumerate((0, 4)):
        # float32 steps in another order of sums: about 1e-7 each, over 90 steps of a stable loop.
        np.testing.assert_allclose(run.weights.values[row], torch_reference(task, seed, order), atol=2e-5)
    assert json.loads(run.attrs["optimiser"])["order"] == order
    np.testing.assert_allclose(run.epoch, run.step / 21)
    np.testing.assert_allclose(run.proper_time, 0.1 * run.step)
    assert run.accuracy.isel(step=-1).min() > 0.2


def test_resumes_to_the_same_bits(task, tmp_path):
    whole = train(task, [tmp_path / "a.zarr", tmp_path / "b.zarr"])
    parts = [tmp_path / "c.zarr", tmp_path / "d.zarr"]
    train(task, parts, schedule=SCHEDULE[:3])
    train(task, parts)
    train(task, parts)  # nothing left to do
    one, two = (ts.open_trajectory([str(p) for p in paths]) for paths in (whole, parts))
    np.testing.assert_array_equal(one.weights.values, two.weights.values)
    np.testing.assert_array_equal(one.loss.values, two.loss.values)


def test_refuses_to_mix_settings(task, tmp_path):
    paths = [tmp_path / "a.zarr", tmp_path / "b.zarr"]
    train(task, paths, schedule=SCHEDULE[:2])
    before = ts.open_trajectory(str(paths[0])).load()
    with pytest.raises(ts.StoreError, match="learning_rate.*0.1"):
        train(task, paths, learning_rate=0.2)
    assert before.identical(ts.open_trajectory(str(paths[0])).load())


def test_divergence_is_told_and_keeps_what_was_committed(task, tmp_path):
    paths = [tmp_path / "a.zarr", tmp_path / "b.zarr"]
    with pytest.raises(ts.NonFiniteError, match="lower the learning rate"):
        train(task, paths, learning_rate=1e20)
    assert ts.open_trajectory(str(paths[0])).step.values.tolist()[0] == 0


def test_counts_must_agree(task, tmp_path):
    with pytest.raises(ts.ArgumentError, match="2 params, 1 paths"):
        train(task, [tmp_path / "a.zarr"])
