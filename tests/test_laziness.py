"""Opening, choosing pairs and calling an estimator compute nothing; metadata alone is read."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

import trajstats as ts


@pytest.fixture
def stored(tmp_path, small_run):
    paths = []
    for k in range(small_run.sizes["replica"]):
        path = tmp_path / f"run{k}.zarr"
        layers = {"0.weight": (4, 5), "0.bias": (4,), "1.weight": (1, 2)}
        with ts.TrajectoryWriter(path, layers, replica=k) as writer:
            for row, step in enumerate(small_run.step.values):
                writer.append(int(step), small_run.weights.values[k, row], loss=float(small_run.loss[k, row]))
        paths.append(str(path))
    return paths


def test_the_guard_works(no_compute):
    import dask.array as da

    with no_compute(), pytest.raises(AssertionError, match="stayed lazy"):
        da.ones(3).sum().compute()


def test_open_and_estimate_stay_lazy(stored, no_compute):
    with no_compute():
        run = ts.open_trajectory(stored)
        pairs = ts.time_pairs(run, lags_per_decade=4)
        delta = ts.msd(run, pairs)
        every = ts.all_pairs(run)
    assert run.weights.chunks is not None
    assert delta.chunks is not None
    assert every.msd.chunks is not None
    assert np.isfinite(delta.compute()).all()


def pairs(run):
    return ts.time_pairs(run, lags_per_decade=4)


# Name -> call on (run, computed pairs of its first checkpoints). A public estimator is here or in EAGER.
LAZY = {
    "msd": lambda run, _: ts.msd(run, pairs(run)),
    "two_time": lambda run, _: ts.two_time(run, pairs(run), observables=["msd", "overlap", "correlation"]),
    "all_pairs": lambda run, _: ts.all_pairs(run),
    "extend_pairs": lambda run, first: ts.extend_pairs(first, run),
    "path_statistics": lambda run, _: ts.path_statistics(run),
    "van_hove": lambda run, _: ts.van_hove(run, pairs(run).isel(pair=slice(4)), bins=10),
    "time_averaged_msd": lambda run, _: ts.time_averaged_msd(ts.all_pairs(run).msd),
    "two_time_plan": lambda run, _: ts.two_time_plan(run, pairs(run)),
}
# They compute when called: they run a network or a map, fit, test or diagonalise, or write a store.
EAGER = {
    "attractor_slice",
    "cached_pairs",
    "census_scan",
    "dynamic_susceptibility",
    "epoch_echo",
    "extreme_eigenpairs",
    "feature_space",
    "fixed_point_census",
    "fragility",
    "gradient_noise",
    "hessian_spectrum",
    "hill_plot",
    "jacobian_esd",
    "local_exponent",
    "loss_regimes",
    "noise_clock",
    "noise_normalised_msd",
    "spectral_density",
    "spectral_summary",
    "spectral_tails",
    "stationarity_test",
    "tail_fit",
    "training_response",
    "trajectory_pca",
    "weight_tails",
}


def test_every_estimator_is_lazy_or_listed_as_eager():
    public = {
        name
        for module, names in ts._MODULES.items()
        if module.startswith("trajstats.estimators")
        for name in names
        if inspect.isfunction(getattr(ts, name))
    }
    assert public == LAZY.keys() | EAGER
    assert not LAZY.keys() & EAGER


@pytest.mark.parametrize("name", sorted(LAZY))
def test_computes_nothing(name, stored, no_compute):
    first = ts.all_pairs(ts.open_trajectory(stored).isel(step=slice(12))).compute()
    with no_compute():
        result = LAZY[name](ts.open_trajectory(stored), first)
    if name != "two_time_plan":
        assert result.chunks
