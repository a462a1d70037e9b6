"""Gradient noise against enumeration, and the displacements that noise explains."""

import itertools

import numpy as np
import pytest
import xarray as xr

from tests.reference.numpy_networks import LeastSquares, SoftmaxLinear
from trajstats import (
    ArgumentError,
    NonFiniteError,
    SchemaError,
    gradient_noise,
    msd,
    noise_clock,
    noise_normalised_msd,
    open_trajectory,
    time_pairs,
)
from trajstats.data.schema import trajectory_dataset

RNG = np.random.default_rng(0)
NETWORK = SoftmaxLinear(RNG.standard_normal((8, 4)), RNG.integers(0, 3, 8), l2=0.05)
LAYERS = {"a": (2, 4), "b": (4,)}
NETWORK.layers = LAYERS


def trajectory(steps=(0, 10), replicas=1, n=12):
    return trajectory_dataset(
        RNG.standard_normal((replicas, len(steps), n)), step=steps, layers=LAYERS if n == 12 else None
    )


@pytest.mark.parametrize("size", [1, 3, 8])
@pytest.mark.parametrize("replacement", [False, True])
def test_minibatch_noise_is_that_of_all_minibatches_enumerated(size, replacement):
    if replacement and size == 8:
        size = 2
    run = trajectory(replicas=2)
    found = gradient_noise(NETWORK, run, batch_size=size, replacement=replacement, memory=400)
    draws = itertools.product(range(8), repeat=size) if replacement else itertools.combinations(range(8), size)
    draws = [list(d) for d in draws]
    assert found.D1.dims == ("replica", "step", "layer")
    for r, k in itertools.product(range(2), range(2)):
        w = run.weights.values[r, k]
        g = np.array([NETWORK.gradient(w, d) for d in draws])
        for layer, part in (("a", slice(0, 8)), ("b", slice(8, 12))):
            here = found.isel(replica=r, step=k).sel(layer=layer)
            mean = g[:, part].mean(axis=0)
            np.testing.assert_allclose(here.D1, mean @ mean, rtol=1e-12)
            np.testing.assert_allclose(here.D2, (g[:, part] ** 2).sum(axis=1).mean() - mean @ mean, atol=1e-13)


def test_noise_per_sample_and_of_fixed_batches():
    run = trajectory()
    sample = gradient_noise(NETWORK, run, of="sample", per="all")
    one = gradient_noise(NETWORK, run, batch_size=1, per="all")
    xr.testing.assert_allclose(sample.D2, one.D2)
    assert sample.attrs["of"] == "sample"
    assert sample.n_parameters == 12
    batches = np.arange(8).reshape(4, 2)
    fixed = gradient_noise(NETWORK, run, batches=batches, per="all")
    g = np.array([NETWORK.gradient(run.weights.values[0, 1], b) for b in batches])
    np.testing.assert_allclose(fixed.D2[0, 1], g.var(axis=0).sum(), rtol=1e-12)


def test_estimate_from_some_examples_is_unbiased():
    network = SoftmaxLinear(RNG.standard_normal((40, 4)), RNG.integers(0, 3, 40))
    network.layers = LAYERS
    run = trajectory(steps=(0,))
    exact = gradient_noise(network, run, of="sample", per="all").D2.item()
    draws = [gradient_noise(network, run, of="sample", per="all", examples=5, rng=s).D2.item() for s in range(300)]
    assert abs(np.mean(draws) - exact) < 4 * np.std(draws) / np.sqrt(300)
    assert np.std(draws) > 0.01 * exact


def test_sum_losses_scale_with_the_batch():
    class Summed(SoftmaxLinear):
        reduction = "sum"

        def gradient(self, weights, indices=None):
            indices = np.arange(self.n_examples) if indices is None else indices
            return self.example_gradients(weights, indices).sum(axis=0) + 2 * self.l2 * weights

    network = Summed(NETWORK.x, NETWORK.y, l2=0.05)
    network.layers = LAYERS
    run = trajectory(steps=(0,))
    found = gradient_noise(network, run, batch_size=3, per="all")
    w = run.weights.values[0, 0]
    g = np.array([network.gradient(w, list(d)) for d in itertools.combinations(range(8), 3)])
    np.testing.assert_allclose(found.D1.item(), g.mean(axis=0) @ g.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.D2.item(), g.var(axis=0).sum(), rtol=1e-12)


def test_first_step_of_sgd_moves_by_the_noise_identity():
    # Delta(0, 1) = eta^2 (D1 + D2) / M in the mean over the first minibatch: all of them, as replicas.
    rate, w = 0.3, RNG.standard_normal(12)
    draws = [list(d) for d in itertools.combinations(range(8), 3)]
    paths = [[w, w - rate * NETWORK.gradient(w, d)] for d in draws]
    run = trajectory_dataset(np.array(paths), step=[0, 1], layers=LAYERS)
    for per in ("layer", "all"):
        delta = msd(run, time_pairs(run, waiting_time=[0], lag=[1]), per=per).mean("replica")
        noise = gradient_noise(NETWORK, run.isel(replica=[0], step=[0]), batch_size=3, per=per)
        known = rate**2 * (noise.D1 + noise.D2) / noise.n_parameters
        # The displacements are formed in float32.
        np.testing.assert_allclose(delta.values.ravel(), known.values.ravel(), rtol=1e-6)


def test_first_step_of_a_recorded_run_moves_by_the_noise_identity(tmp_path):
    pytest.importorskip("jax")
    from trajstats_trainers.architectures.mlp import JaxMLP, mlp_init
    from trajstats_trainers.jax.adapter import JaxNetwork, cross_entropy
    from trajstats_trainers.jax.sgd import train_jax
    from trajstats_trainers.recording import batch_order
    from trajstats_trainers.tasks.digits import mnist_digits

    digits = mnist_digits(pool=7)
    data = (digits.inputs[:300], digits.targets[:300])
    sizes, seeds, rate, size, l2 = (16, 5, 10), range(16), 0.3, 10, 1e-3
    start = mlp_init(sizes, 0)
    settings = {"seeds": seeds, "schedule": [0, 1], "learning_rate": rate, "batch_size": size, "l2": l2}
    paths = [tmp_path / f"{seed}.zarr" for seed in seeds]
    train_jax(JaxMLP(sizes), [start] * len(seeds), cross_entropy, data, paths, progress=None, **settings)
    run = open_trajectory([str(path) for path in paths])
    network = JaxNetwork(JaxMLP(sizes), start, cross_entropy, data, l2=l2)
    first = run.isel(replica=[0], step=[0])
    delta = msd(run, time_pairs(run, waiting_time=[0], lag=[1]), per="all").isel(pair=0).compute()

    # Over the minibatches that were drawn the identity is exact: what is left is the rounding of float32 weights, about
    # 6e-8 of a weight of size 0.5 in moves of about 1e-2.
    drawn = [batch_order("shuffled", 300, seed=seed, epoch=0)[:size] for seed in seeds]
    noise = gradient_noise(network, first, batches=drawn, per="all")
    known = rate**2 * (noise.D1 + noise.D2) / noise.n_parameters
    np.testing.assert_allclose(delta.mean().item(), known.item(), rtol=1e-4)

    # Over all minibatches it holds in the mean, within the error of sixteen draws.
    noise = gradient_noise(network, first, batch_size=size, per="all")
    known = rate**2 * (noise.D1 + noise.D2).item() / noise.n_parameters.item()
    error = delta.std(ddof=1).item() / np.sqrt(len(seeds))
    assert abs(delta.mean().item() - known) < 4 * error
    # The test can tell: the noise of one sample in place of ten would be far outside.
    assert error < 0.15 * known


def test_clock_integrates_the_noise():
    step = np.array([0, 1, 3, 10, 40])
    noise = xr.Dataset({"D2": (("replica", "step"), np.stack([2.0 + 0 * step, 3.0 * step]))}, coords={"step": step})
    clock = noise_clock(noise)
    np.testing.assert_allclose(clock[0], 2 * step)
    np.testing.assert_allclose(clock[1], 1.5 * step**2)
    epochs = noise_clock(noise.assign_coords(epoch=("step", step / 5)), clock="epoch")
    np.testing.assert_allclose(epochs, clock / 5)
    with pytest.raises(ArgumentError, match="clock"):
        noise_clock(noise, clock="epochs")


def test_pure_noise_gives_the_number_of_steps():
    # Brownian weights whose strength falls linearly in time: interpolation is exact between the noise's steps.
    step = np.arange(0, 401, 4)
    m, rate, n = 20_000, 0.1, len(step)
    strength = 5.0 - 0.01 * step
    moves = rate**2 / m * np.cumsum(5.0 - 0.01 * (np.arange(400) + 0.5))
    at = np.append(0, moves)[step]
    noise = xr.Dataset(
        {"D2": (("replica", "step"), strength[None])},
        coords={"step": step, "n_parameters": m},
        attrs={"of": "minibatch"},
    )
    first, second = (np.repeat([0, 40], [n - 1, n - 11]), np.r_[step[1:], step[11:]])
    delta = xr.DataArray(
        [[at[b // 4] - at[a // 4] for a, b in zip(first, second, strict=True)]],
        dims=("replica", "pair"),
        coords={"first": ("pair", first), "second": ("pair", second)},
    )
    shuffled = np.random.default_rng(1).permutation(len(first))
    found = noise_normalised_msd(delta[:, shuffled], noise, learning_rate=rate)
    np.testing.assert_allclose(found[0], (second - first)[shuffled], rtol=1e-10)
    start = noise_normalised_msd(delta, noise, by="start")
    np.testing.assert_allclose(start[0], delta[0] / strength[first // 4], rtol=1e-12)


def test_normalised_displacements_of_a_real_walk_per_layer():
    rng = np.random.default_rng(3)
    step = np.arange(0, 65)
    walk = np.cumsum(rng.standard_normal((1, 65, 9_000)) * 0.1, axis=1)
    run = trajectory_dataset(walk, step=step, layers={"a": (4_000,), "b": (5_000,)})
    delta = msd(run, time_pairs(run, waiting_time=[0], lag=[1, 4, 16, 64]))
    noise = xr.Dataset(
        {"D2": (("replica", "step", "layer"), np.broadcast_to([4_000.0, 5_000.0], (1, 65, 2)))},
        coords={"step": step, "replica": [0], "layer": ["a", "b"], "n_parameters": ("layer", [4_000, 5_000])},
        attrs={"of": "minibatch"},
    )
    found = noise_normalised_msd(delta, noise, learning_rate=0.1)
    assert found.dims == delta.dims
    # Relative error of a mean square over 4,000 independent walkers: sqrt(2 / 4000) = 2.2 %; four of them.
    np.testing.assert_allclose(found.isel(replica=0), found.lag.values[:, None] * [1, 1], rtol=0.09)


BAD = {
    "neither": ({}, "exactly one of batch_size"),
    "both": ({"batch_size": 2, "batches": [[0]]}, "exactly one of batch_size"),
    "too large": ({"batch_size": 9}, "batch_size=9 exceeds the network's 8"),
    "of": ({"of": "samples"}, "did you mean 'sample'"),
    "sample with a batch": ({"of": "sample", "batch_size": 2}, "neither batch_size nor batches"),
    "per": ({"per": "al", "batch_size": 2}, "did you mean 'all'"),
    "step": ({"batch_size": 2, "steps": [3]}, "nearest saved one is 0"),
    "examples": ({"batch_size": 2, "examples": 9}, "examples=9"),
    "empty batches": ({"batches": []}, "empty"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_are_named(name):
    options, message = BAD[name]
    with pytest.raises(ArgumentError, match=message):
        gradient_noise(NETWORK, trajectory(), **options)


def test_mismatches_are_named():
    run = trajectory()
    with pytest.raises(SchemaError, match="12 weights and the trajectory 5"):
        gradient_noise(NETWORK, trajectory(n=5), batch_size=2)
    broken = run.copy(deep=True)
    broken.weights[0, 1, 3] = np.nan
    with pytest.raises(NonFiniteError, match="replica 0, step 10"):
        gradient_noise(NETWORK, broken, batch_size=2)
    noise = gradient_noise(NETWORK, run, batch_size=2)
    delta = msd(run, time_pairs(run, waiting_time=[0], lag=[10]), per="all")
    with pytest.raises(SchemaError, match="same per="):
        noise_normalised_msd(delta, noise, learning_rate=0.1)
    with pytest.raises(ArgumentError, match="learning_rate"):
        noise_normalised_msd(delta, gradient_noise(NETWORK, run, batch_size=2, per="all"))
    with pytest.raises(ArgumentError, match="whole span"):
        noise_normalised_msd(delta, gradient_noise(NETWORK, run, steps=[0], batch_size=2, per="all"), learning_rate=1)
    with pytest.raises(SchemaError, match="per 'sample'"):
        noise_normalised_msd(delta, gradient_noise(NETWORK, run, of="sample", per="all"), learning_rate=1)


def test_least_squares_noise_at_the_minimum_is_the_residual_s():
    x = RNG.standard_normal((50, 3))
    y = x @ [[1.0], [2.0], [3.0]] + RNG.standard_normal((50, 1))
    w = np.linalg.lstsq(x, y, rcond=None)[0].ravel()
    noise = gradient_noise(LeastSquares(x, y), trajectory_dataset(w[None], step=[0]), of="sample", per="all")
    np.testing.assert_allclose(noise.D1, 0, atol=1e-25)
    np.testing.assert_allclose(noise.D2.item(), np.mean((x @ w - y.ravel()) ** 2 * (x**2).sum(axis=1)), rtol=1e-12)
