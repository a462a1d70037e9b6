"""Sketched runs through the same door as saved weights."""

from __future__ import annotations

import numpy as np
import pytest

import trajstats as ts
from trajstats.data.sketch import Sketch
from trajstats.errors import UnsupportedError

STEPS = [0, 1, 5, 20]
LAYERS = {"a": (300, 100), "b": (4000,)}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    walk = ts.brownian(STEPS, rng=0, layers=LAYERS, start=1.0, diffusion=1e-3)
    for name, options in (("full", {}), ("sketch", {"sketch": Sketch(buckets=2048)})):
        with ts.TrajectoryWriter(folder / f"{name}.zarr", LAYERS, **options) as writer:
            for step, row in zip(STEPS, walk.weights.values[0], strict=True):
                writer.append(step, {"a": row[:30_000].reshape(300, 100), "b": row[30_000:]}, proper_time=step / 10)
    return ts.open_trajectory(folder / "full.zarr"), ts.open_trajectory(folder / "sketch.zarr")


@pytest.mark.parametrize("per", ["layer", "all"])
def test_a_sketch_gives_the_msd_within_its_error_bar(runs, per):
    full, sketch = runs
    pairs = ts.time_pairs(full)
    want = ts.msd(full, pairs, per=per, clock="proper_time").compute()
    got = ts.msd(sketch, pairs, per=per, clock="proper_time").compute()
    assert got.dims == want.dims
    for name in ("waiting_time", "lag", "first", "second", "n_parameters"):
        np.testing.assert_allclose(got[name], want[name])
    # Few hash replicas: Student's t. The relative error of a bucket sum is at most sqrt(2 / k).
    assert float(abs(got / want - 1).max()) < 5 * np.sqrt(2 / 2048)
    assert float((got.stderr / got).max()) < 5 * np.sqrt(2 / 2048)


def test_what_a_sketch_does_not_keep_is_refused(runs):
    _, sketch = runs
    pairs = ts.time_pairs(sketch)
    with pytest.raises(UnsupportedError, match="save the weights"):
        ts.two_time(sketch, pairs, observables="kurtosis")
    with pytest.raises(UnsupportedError, match="per='kind'"):
        ts.msd(sketch, pairs, per="kind")
