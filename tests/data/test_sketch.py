"""Sketches: unbiased, with the variance they should have and error bars that show it."""

from __future__ import annotations

import numpy as np
import pytest

import trajstats as ts
from trajstats.data.sketch import Sketch, _keys, sketch_msd


def test_hash_has_its_published_values():
    # splitmix64 from seed 0
    assert [int(x) for x in _keys(np.uint64(0), 0, 2)] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]
    # Published values: a sketch made elsewhere must be the same.
    assert hex(Sketch(seed=7).key("0.weight", 3)) == "0x2298f2e17224bb01"
    got = Sketch(buckets=4, hashes=2, seed=1).project(np.arange(1.0, 9.0), {"w": (8,)})
    np.testing.assert_array_equal(got, KNOWN)


KNOWN = np.array([[3.0, 10.0, -9.0, 0.0], [-12.0, 1.0, -1.0, -8.0]])


@pytest.mark.parametrize("kind", ["countsketch", "sparse"])
def test_sketch_is_linear_and_does_not_know_the_order_of_layers(kind):
    rng = np.random.default_rng(0)
    sketch = Sketch(buckets=32, hashes=3, kind=kind)
    a, b = rng.standard_normal((2, 300))
    layers = {"x": (100,), "y": (200,)}
    np.testing.assert_allclose(
        sketch.project(a, layers, reference=b), sketch.project(a, layers) - sketch.project(b, layers), atol=1e-12
    )
    swapped = sketch.project(np.concatenate([a[100:], a[:100]]), {"y": (200,), "x": (100,)})
    np.testing.assert_array_equal(sketch.project(a, layers), np.concatenate([swapped[:, 32:], swapped[:, :32]], axis=1))


def naive(values, key, buckets):
    """CountSketch of a vector in plain Python integers."""
    mask = 2**64 - 1
    out = np.zeros(buckets)
    for i, value in enumerate(values):
        x = (int(key) + 0x9E3779B97F4A7C15 * (i + 1)) & mask
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
        x ^= x >> 31
        out[((x >> 32) * buckets) >> 32] += value * (1 - 2 * (x & 1))
    return out


def test_against_a_naive_implementation():
    values = np.random.default_rng(1).standard_normal(500)
    sketch = Sketch(buckets=37, hashes=2, seed=9)
    got = sketch.project(values, {"w": (500,)})
    for replica in range(2):
        np.testing.assert_allclose(got[replica], naive(values, sketch.key("w", replica), 37), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["countsketch", "sparse"])
@pytest.mark.parametrize("shape", ["gauss", "heavy"])
def test_variance_law(kind, shape):
    rng = np.random.default_rng(3)
    n, k, hashes = 3000, 64, 1500
    d = rng.standard_normal(n) if shape == "gauss" else rng.standard_t(1.5, n)
    square = np.sum(d**2)
    got = np.sum(Sketch(buckets=k, hashes=hashes, kind=kind).project(d, {"w": (n,)}) ** 2, axis=1) / square
    law = 2 / k * (1 - np.sum(d**4) / square**2)
    assert abs(got.mean() - 1) < 4 * got.std() / np.sqrt(hashes)
    spread = np.abs((got - got.mean()) ** 2 - got.var()).mean() * 2 / np.sqrt(hashes)
    if kind == "countsketch":
        assert abs(got.var() - law) < 4 * spread + 0.1 * law
    else:  # four buckets a weight: a few large weights collide with themselves, which costs at most as much
        assert got.var() < 2 / k * 1.25


def test_subsampling_fails_on_heavy_tails_where_sketches_do_not():
    rng = np.random.default_rng(4)
    n, k = 100_000, 1024
    d = rng.standard_t(1.2, n)
    exact = np.mean(d**2)
    sketch = np.sum(Sketch(buckets=k, hashes=200).project(d, {"w": (n,)}) ** 2, axis=1) / n
    sampled = np.array([np.mean(rng.choice(d, k) ** 2) for _ in range(200)])
    assert np.sqrt(np.mean((sketch / exact - 1) ** 2)) < 1.3 * np.sqrt(2 / k)
    assert np.sqrt(np.mean((sampled / exact - 1) ** 2)) > 1.0


def record(path, weights, layers, **options):
    with ts.TrajectoryWriter(path, layers, **options) as writer:
        for k, row in enumerate(weights):
            writer.append(k, row)
    return ts.open_trajectory(path)


def test_msd_from_a_sketched_run_with_honest_errors(tmp_path):
    rng = np.random.default_rng(5)
    layers = {"a": (4000,), "e": (0,), "b": (50, 20), "small": (7,)}
    weights = np.cumsum(rng.standard_normal((40, 5007)) * 1e-4, axis=0).astype(np.float32) + 1.0
    run = record(tmp_path / "s.zarr", weights, layers, sketch=Sketch(buckets=256, hashes=16))
    full = record(tmp_path / "w.zarr", weights, layers)
    pairs = ts.time_pairs(run, waiting_time=[0, 3, 20], lag=[1, 5, 10])
    first, second = pairs["first"].values, pairs["second"].values
    w = full.weights.values[0].astype(float)
    d = (w[second] - w[first]) ** 2
    exact = np.stack([d[:, :4000].mean(1), np.zeros(len(d)), d[:, 4000:5000].mean(1), d[:, 5000:].mean(1)], axis=1)
    estimate, stderr = sketch_msd(run, pairs)
    assert estimate.dims == ("replica", "pair", "layer")
    z = ((estimate.values[0] - exact) / np.where(exact > 0, stderr.values[0], 1.0))[:, [0, 2, 3]]
    assert np.abs(z).max() < 5
    assert 0.4 < np.sqrt(np.mean(z**2)) < 1.8
    every, error = sketch_msd(run, pairs, per="all")
    assert (np.abs(every.values[0] - d.mean(1)) < 5 * error.values[0]).all()


def test_sketching_a_step_of_float32_loses_no_small_steps(tmp_path):
    n = 2000
    weights = np.full((3, n), 1000.0, np.float32)
    weights[1:] += np.float32(2**-13)
    weights[2] += np.float32(2**-13)
    run = record(tmp_path / "s.zarr", weights, {"w": (n,)}, sketch=Sketch(buckets=512, hashes=8))
    estimate, stderr = sketch_msd(run, ts.time_pairs(run, waiting_time=[1], lag=[1]))
    assert abs(estimate.values.item() / 2**-26 - 1) < 5 * stderr.values.item() / 2**-26


def test_resumed_run_measures_from_the_same_start(tmp_path):
    weights = np.random.default_rng(6).standard_normal((6, 100)).astype(np.float32)
    sketch = Sketch(buckets=16, hashes=2)
    whole = record(tmp_path / "a.zarr", weights, {"w": (100,)}, sketch=sketch)
    record(tmp_path / "b.zarr", weights[:3], {"w": (100,)}, sketch=sketch)
    with ts.TrajectoryWriter(tmp_path / "b.zarr", {"w": (100,)}, sketch=sketch) as writer:
        for k in range(3, 6):
            writer.append(k, weights[k])
    np.testing.assert_array_equal(ts.open_trajectory(tmp_path / "b.zarr").sketch.values, whole.sketch.values)
    with pytest.raises(ts.ArgumentError, match="sketch_seed"):
        ts.TrajectoryWriter(tmp_path / "b.zarr", {"w": (100,)}, sketch=Sketch(buckets=16, hashes=2, seed=1))
    with pytest.raises(ts.ArgumentError, match="sketch="):
        ts.TrajectoryWriter(tmp_path / "b.zarr", {"w": (100,)})


def test_estimators_that_need_weights_say_so(tmp_path):
    run = record(tmp_path / "s.zarr", np.zeros((2, 9)), {"w": (9,)}, sketch=Sketch(buckets=4, hashes=2))
    with pytest.raises(ts.SchemaError, match="sketches"):
        ts.check_trajectory(run)


@pytest.mark.parametrize("bad", [{"kind": "fft"}, {"hashes": 1}, {"buckets": 0}, {"seed": -1}])
def test_arguments(bad):
    with pytest.raises(ts.ArgumentError):
        Sketch(**bad)
