"""Runs that are joined keep what differs between them, and copies are refused."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

import trajstats as ts
from trajstats.data._replicas import joined_attrs
from trajstats.errors import SchemaError


def record(path, seed, *, start=None, **attrs):
    rng = np.random.default_rng(seed)
    weights = np.zeros(4) if start is None else start
    with ts.TrajectoryWriter(path, {"w": (4,)}, attrs={"seed": seed, **attrs}) as writer:
        for step in (0, 1, 10):
            writer.append(step, {"w": weights.astype(np.float32)}, loss=float(rng.random()))
            weights = weights + rng.standard_normal(4)


def test_seeds_label_the_replicas_and_stay_in_the_attributes(tmp_path):
    for seed in (3, 11):
        record(tmp_path / f"s{seed}.zarr", seed, net={"width": 5, "seed": seed}, task="digits")
    run = ts.open_trajectory([tmp_path / "s3.zarr", tmp_path / "s11.zarr"])
    assert run["replica"].values.tolist() == [3, 11]
    assert json.loads(run.attrs["seed"]) == [3, 11]
    assert json.loads(run.attrs["net"]) == {"width": 5, "seed": [3, 11]}
    assert run.attrs["task"] == "digits"
    assert run.attrs["schema_version"] == 1
    assert "+" in run.attrs["uid"]
    times = ts.learning_times({"w5": run}, loss=0.99, clock="step")
    assert times["width"].values.tolist() == [5.0, 5.0]


def test_a_copy_of_a_run_is_refused(tmp_path):
    record(tmp_path / "a.zarr", 1)
    record(tmp_path / "b.zarr", 2)
    shutil.copytree(tmp_path / "a.zarr", tmp_path / "c.zarr")
    ts.open_trajectory([tmp_path / "a.zarr", tmp_path / "b.zarr"])  # the same first weights are no copy
    with pytest.raises(SchemaError, match=r"c.zarr is a copy of .*a.zarr: copies are no independent runs"):
        ts.open_trajectory([tmp_path / "a.zarr", tmp_path / "b.zarr", tmp_path / "c.zarr"])
    with pytest.raises(SchemaError, match="is a copy of"):
        ts.open_trajectory([tmp_path / "a.zarr", tmp_path / "a.zarr"])


def test_the_same_weights_recorded_again_are_refused(tmp_path):
    record(tmp_path / "a.zarr", 1)
    record(tmp_path / "again.zarr", 1)
    run = ts.open_trajectory(tmp_path / "a.zarr")
    if "digest" not in run:
        pytest.skip("this store keeps no digests")
    with pytest.raises(SchemaError, match=r"again.zarr is a copy of"):
        ts.open_trajectory([tmp_path / "a.zarr", tmp_path / "again.zarr"])


def test_attributes_that_some_runs_lack_are_kept():
    assert joined_attrs([{"a": 1, "b": 2}, {"a": 1}]) == {"a": 1, "b": "[2, null]"}
    assert joined_attrs([{"a": "x"}, {"a": "y"}]) == {"a": '["x", "y"]'}
    assert joined_attrs([{"a": "{broken"}, {"a": "{broken"}]) == {"a": "{broken"}
