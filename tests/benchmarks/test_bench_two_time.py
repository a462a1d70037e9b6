"""Speed of the pair kernels at small sizes, beside other packages on their own task; the large run is a script here.

`make bench` runs them. The full-size comparison (N = 4e6, T = 512, from a store) is two_time_at_scale.py.
"""

from __future__ import annotations

import importlib
import warnings

import numpy as np
import pytest
from scipy.spatial.distance import pdist

import trajstats as ts
from trajstats.data.schema import trajectory_dataset
from trajstats.data.synthetic.processes import brownian

N, T = 16384, 512


@pytest.fixture(scope="module")
def run():
    return brownian(range(T), rng=0, n_parameters=N, diffusion=1e-6, start=1.0)


def compute(result):
    return result.compute(scheduler="synchronous")


@pytest.mark.benchmark(group="all pairs, N = 16384, T = 512")
@pytest.mark.parametrize(
    "observables",
    [
        ["msd"],
        ["kurtosis"],
        ["kurtosis", "correlation", "sign_flips"],
        ["kurtosis", "correlation", "sign_flips", "velocity_correlation"],
        ["self_intermediate_scattering"],
    ],
    ids="+".join,
)
def test_all_pairs(benchmark, run, observables):
    result = ts.all_pairs(run, observables=observables, wavenumber=100.0)
    compute(result)
    benchmark(compute, result)


@pytest.mark.benchmark(group="all pairs, N = 16384, T = 512")
def test_float64_gram(benchmark, run):
    x = run.weights.values[0].astype(np.float64)
    benchmark(lambda: x @ x.T)


@pytest.mark.benchmark(group="all pairs, N = 16384, T = 512")
def test_scipy_pdist(benchmark, run):
    x = run.weights.values[0].astype(np.float64)
    benchmark.pedantic(pdist, (x, "sqeuclidean"), rounds=2)


@pytest.mark.benchmark(group="no cliff: the same number of pair differences")
@pytest.mark.parametrize(("t", "n"), [(64, 1_048_576), (512, 16384), (2048, 1024)])
def test_many_and_few_checkpoints(benchmark, t, n):
    result = ts.all_pairs(brownian(range(t), rng=0, n_parameters=n, diffusion=1e-6))
    compute(result)
    benchmark.pedantic(compute, (result,), rounds=3)


@pytest.mark.benchmark(group="no cliff: T = 64, N = 300 000 in layers")
@pytest.mark.parametrize("layers", [1, 300])
def test_many_layers(benchmark, layers):
    shapes = {f"layer {k}": (300_000 // layers,) for k in range(layers)}
    result = ts.all_pairs(brownian(range(64), rng=0, layers=shapes, diffusion=1e-6), per="layer")
    compute(result)
    benchmark.pedantic(compute, (result,), rounds=3)


@pytest.mark.benchmark(group="listed pairs: 12 waiting times x 50 lags")
def test_listed_pairs(benchmark):
    waiting, lags = ts.log_schedule(100, 100_000, 12), ts.log_schedule(1, 100_000, 50)
    run = brownian(ts.aging_schedule(waiting, lags), rng=0, n_parameters=N, diffusion=1e-6)
    result = ts.msd(run, ts.time_pairs(run, waiting_time=waiting, lag=lags), per="all")
    compute(result)
    benchmark(compute, result)


@pytest.fixture(scope="module")
def particles():
    """As many random walkers as molecular dynamics has atoms: (frame, particle, 3)."""
    steps = np.random.default_rng(0).standard_normal((T, 1000, 3)).astype(np.float32)
    return steps.cumsum(axis=0)


@pytest.fixture(scope="module")
def time_averaged(particles):
    """The answer by definition, per particle (three coordinates) at every lag."""
    x = particles.astype(np.float64)
    return np.array([((x[k:] - x[: T - k]) ** 2).sum(axis=2).mean() for k in range(T)])


@pytest.mark.benchmark(group="time-averaged MSD of 1000 particles, 512 frames")
def test_ours_time_averaged(benchmark, particles, time_averaged):
    run = trajectory_dataset(particles.reshape(T, -1), step=range(T))
    result = ts.time_averaged_msd(ts.all_pairs(run).msd)
    got = compute(result)
    np.testing.assert_allclose(3 * got[0], time_averaged[1:], rtol=1e-6)
    benchmark(compute, result)


@pytest.mark.benchmark(group="time-averaged MSD of 1000 particles, 512 frames")
def test_freud(benchmark, particles, time_averaged):
    freud = pytest.importorskip("freud")

    def measure():
        return freud.msd.MSD(mode="window").compute(particles).msd

    np.testing.assert_allclose(measure()[1:], time_averaged[1:], rtol=1e-3)
    benchmark(measure)


@pytest.mark.benchmark(group="time-averaged MSD of 1000 particles, 512 frames")
def test_tidynamics(benchmark, particles, time_averaged):
    tidynamics = pytest.importorskip("tidynamics")
    x = particles.astype(np.float64)

    def measure():
        return np.mean([tidynamics.msd(x[:, k]) for k in range(x.shape[1])], axis=0)

    np.testing.assert_allclose(measure()[1:], time_averaged[1:], rtol=1e-6)
    benchmark.pedantic(measure, rounds=2)


@pytest.mark.benchmark(group="time-averaged MSD of 1000 particles, 512 frames")
def test_mdanalysis_fft(benchmark, particles, time_averaged):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            mda = importlib.import_module("MDAnalysis")
            msd = importlib.import_module("MDAnalysis.analysis.msd")
        except ImportError:
            pytest.skip("MDAnalysis is not installed")
        universe = mda.Universe.empty(particles.shape[1], trajectory=True)
        universe.load_new(particles)

        def measure():
            return msd.EinsteinMSD(universe, msd_type="xyz", fft=True).run().results.timeseries

        np.testing.assert_allclose(measure()[1:], time_averaged[1:], rtol=1e-4)
        benchmark.pedantic(measure, rounds=2)
