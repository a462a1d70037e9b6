"""What every public estimator keeps: float64, labels, provenance, replicas apart, the same numbers for any chunking."""

from __future__ import annotations

import inspect
import json
import tempfile

import numpy as np
import pytest
import xarray as xr
from trajstats_trainers.architectures.mlp import JaxMLP, mlp_init
from trajstats_trainers.jax.adapter import JaxNetwork

import trajstats as ts

SIZES = (8, 9, 8)


@pytest.fixture(scope="module")
def run():
    """Three replicas of a small square net that moves at random, 24 log-spaced steps, with clocks and a loss."""
    rng = np.random.default_rng(11)
    step = np.unique(np.rint(np.geomspace(1, 1_000, 24)).astype(int))
    layers = {"0.weight": (9, 8), "0.bias": (9,), "1.weight": (8, 9), "1.bias": (8,)}
    n = sum(int(np.prod(shape)) for shape in layers.values())
    jumps = rng.standard_normal((3, step.size, n)) * np.sqrt(np.diff(step, prepend=0))[None, :, None]
    return ts.trajectory_dataset(
        (0.5 * rng.standard_normal((3, 1, n)) + 5e-3 * np.cumsum(jumps, axis=1)).astype(np.float32),
        step=step,
        layers=layers,
        replica=[3, 5, 8],
        series={"loss": 1 / np.sqrt(step) + 0.01 * rng.random((3, step.size))},
        clocks={"proper_time": 0.05 * step},
    )


@pytest.fixture(scope="module")
def network():
    rng = np.random.default_rng(2)
    data = (rng.standard_normal((12, 8)), rng.standard_normal((12, 8)))
    return JaxNetwork(JaxMLP(SIZES), mlp_init(SIZES, 0), _squared_error, data, dtype="float64")


def _squared_error(outputs, targets):
    return ((outputs - targets) ** 2).mean()


@pytest.fixture(scope="module")
def inputs():
    return np.random.default_rng(5).standard_normal((8, 8))


def pairs(run):
    return ts.time_pairs(run, lags_per_decade=3)


def delta(run, **options):
    return ts.msd(run, pairs(run), **options)


def noise(network, run):
    return ts.gradient_noise(network, run, batch_size=4)


def spectrum(network, run):
    return ts.hessian_spectrum(network, run, steps=run.step.values[[0, -1]], rng=0)


def overlaps(run):
    return ts.two_time(run, pairs(run), observables=["overlap"]).overlap


def echo_pairs(run):
    return ts.time_pairs(run, waiting_time=[1], lags_per_decade=50)


def cached(run):
    with tempfile.TemporaryDirectory() as folder:
        return ts.cached_pairs(run, f"{folder}/pairs.zarr").load()


def extended(run):
    return ts.extend_pairs(ts.all_pairs(run.isel(step=slice(12))).compute(), run)


def wide(run):
    """A matrix large enough for a tail of its spectrum, with the labels and the chunks of a run."""
    made = ts.trajectory_dataset(
        np.random.default_rng(7).standard_normal((3, 2, 3_600)),
        step=[0, 1],
        layers={"w.weight": (60, 60)},
        replica=run.replica.values,
    ).assign_attrs(uid=run.attrs["uid"])
    return made.chunk({dim: sizes[0] for dim, sizes in run.weights.chunksizes.items()})


# Name -> call on (run, network, inputs). A public estimator without a row here or in WITHOUT_A_RUN fails a test.
TABLE = {
    "msd": lambda run, net, x: delta(run),
    "two_time": lambda run, net, x: ts.two_time(run, pairs(run), observables=["msd", "overlap", "correlation"]),
    "all_pairs": lambda run, net, x: ts.all_pairs(run),
    "van_hove": lambda run, net, x: ts.van_hove(run, pairs(run).isel(pair=slice(0, 4)), bins=10),
    "path_statistics": lambda run, net, x: ts.path_statistics(run),
    "trajectory_pca": lambda run, net, x: ts.trajectory_pca(ts.all_pairs(run).msd, components=3),
    "loss_regimes": lambda run, net, x: ts.loss_regimes(run, rng=0, resamples=20),
    "local_exponent": lambda run, net, x: ts.local_exponent(delta(run)),
    "time_averaged_msd": lambda run, net, x: ts.time_averaged_msd(ts.all_pairs(run).msd),
    "hessian_spectrum": lambda run, net, x: ts.hessian_spectrum(net, run, steps=run.step.values[[0, -1]], rng=0),
    "gradient_noise": lambda run, net, x: noise(net, run),
    "noise_clock": lambda run, net, x: ts.noise_clock(noise(net, run)),
    "jacobian_esd": lambda run, net, x: ts.jacobian_esd(net, run, x, steps=run.step.values[[0, -1]], rng=0),
    "weight_tails": lambda run, net, x: ts.weight_tails(run, layers=["0.weight"], compare=False, rng=0),
    "training_response": lambda run, net, x: ts.training_response(net, run, x, x[:2], steps=run.step.values[[0, -1]]),
    "feature_space": lambda run, net, x: ts.feature_space(net, run, x, steps=run.step.values[[0, -1]]),
    "fragility": lambda run, net, x: ts.fragility(net, run, x, steps=run.step.values[[-1]]),
    "extreme_eigenpairs": lambda run, net, x: ts.extreme_eigenpairs(net, run, steps=run.step.values[[-1]], rng=0),
    "spectral_density": lambda run, net, x: ts.spectral_density(spectrum(net, run)),
    "spectral_summary": lambda run, net, x: ts.spectral_summary(spectrum(net, run)),
    "spectral_tails": lambda run, net, x: ts.spectral_tails(wide(run), rng=0),
    "noise_normalised_msd": lambda run, net, x: ts.noise_normalised_msd(delta(run), noise(net, run), learning_rate=0.1),
    "dynamic_susceptibility": lambda run, net, x: ts.dynamic_susceptibility(overlaps(run)),
    "epoch_echo": lambda run, net, x: ts.epoch_echo(ts.msd(run, echo_pairs(run), per="all"), epoch=10),
    "stationarity_test": lambda run, net, x: ts.stationarity_test(ts.all_pairs(run).msd, windows=3),
    "cached_pairs": lambda run, net, x: cached(run),
    "extend_pairs": lambda run, net, x: extended(run),
}

# They average over replicas by definition: the error comes from their scatter.
OVER_REPLICAS = {"local_exponent", "dynamic_susceptibility", "epoch_echo", "stationarity_test"}


def census():
    return ts.fixed_point_census(ts.RandomNet((4, 4)), 4, rng=0, starts=10)


def plane():
    return ts.attractor_slice(
        ts.RandomNet((4, 4)), census(), origin=np.zeros(4), first=np.ones(4), second=np.arange(4.0), points=5
    )


def sample():
    return np.random.default_rng(0).standard_cauchy(1_000)


# Name -> call. They take a map or plain samples, so that there is neither a source nor a replica.
WITHOUT_A_RUN = {
    "fixed_point_census": census,
    "attractor_slice": plane,
    "census_scan": lambda: ts.census_scan([4], [1], rng=0, seeds=2, starts=5, laws=["gaussian"], scales=[0.5]),
    "hill_plot": lambda: ts.hill_plot(sample()),
    "tail_fit": lambda: ts.tail_fit(sample(), rng=0),
}

# It returns a plan of the work, not a labelled result.
NOT_A_RESULT = {"two_time_plan"}


def estimators():
    found = set()
    for module, names in ts._MODULES.items():
        if not module.startswith("trajstats.estimators"):
            continue
        for name in names:
            public = getattr(ts, name)
            if inspect.isfunction(public):
                found.add(name)
    return found


@pytest.mark.parametrize("name", sorted(estimators()))
def test_every_estimator_has_a_row(name):
    assert name in TABLE.keys() | WITHOUT_A_RUN.keys() | NOT_A_RESULT, f"add {name} to TABLE or WITHOUT_A_RUN"


@pytest.mark.parametrize("name", sorted(WITHOUT_A_RUN))
def test_labels_without_a_run(name):
    result = WITHOUT_A_RUN[name]()
    for key in ("long_name", "units", "estimator", "arguments", "source"):
        assert key in result.attrs, f"{name} lacks {key}"
    assert result.attrs["estimator"] == name
    assert "replica" not in result.dims
    json.loads(result.attrs["arguments"])
    assert all(a.dtype == np.float64 for a in arrays(result).values() if np.issubdtype(a.dtype, np.floating))
    xr.testing.assert_identical(result.compute(), WITHOUT_A_RUN[name]().compute())


@pytest.mark.parametrize("name", sorted(estimators()))
def test_signature(name):
    """Data positional-only, options keyword-only."""
    for parameter in inspect.signature(getattr(ts, name)).parameters.values():
        assert parameter.kind is not inspect.Parameter.POSITIONAL_OR_KEYWORD or parameter.name in {
            "steps",
            "dim",
            "map",
            "path",
        }


@pytest.mark.parametrize("name", sorted(estimators()))
def test_docstring(name):
    """Parameters, returns, errors and one executed example."""
    text = inspect.getdoc(getattr(ts, name))
    for heading in ("Parameters", "Returns", "Examples"):
        assert f"{heading}\n---" in text, f"{name} has no section {heading}"
    assert ">>>" in text


def arrays(result):
    return {"": result} if isinstance(result, xr.DataArray) else dict(result.data_vars)


@pytest.mark.parametrize("name", sorted(TABLE))
def test_labels(name, run, network, inputs):
    result = TABLE[name](run, network, inputs)
    for key in ("long_name", "units", "estimator", "arguments", "source"):
        assert key in result.attrs, f"{name} lacks {key}"
    assert result.attrs["source"] == run.attrs["uid"]
    json.loads(result.attrs["arguments"])
    floating = [a for a in arrays(result).values() if np.issubdtype(a.dtype, np.floating)]
    assert floating
    assert all(a.dtype == np.float64 for a in floating)
    if name in OVER_REPLICAS:
        assert "replica" not in result.dims
        return
    assert result.sizes["replica"] == 3
    assert result["replica"].values.tolist() == [3, 5, 8]


@pytest.mark.parametrize("name", sorted(TABLE))
def test_any_chunking_gives_the_same_numbers(name, run, network, inputs):
    whole = TABLE[name](run, network, inputs).compute()
    for chunks in ({"parameter": 7}, {"step": 3, "parameter": 11}, {"replica": 1}):
        again = TABLE[name](run.chunk(chunks), network, inputs).compute()
        xr.testing.assert_allclose(whole, again, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", sorted(TABLE))
def test_survives_a_zarr_store(name, run, network, inputs, tmp_path):
    result = TABLE[name](run, network, inputs).compute()
    stored = result.to_dataset(name="value") if isinstance(result, xr.DataArray) else result
    stored.to_zarr(tmp_path / "r.zarr", consolidated=False)
    back = xr.open_zarr(tmp_path / "r.zarr", consolidated=False).load()
    for key, value in arrays(stored).items():
        np.testing.assert_array_equal(back[key].values, value.values)
    assert (back.attrs if isinstance(result, xr.Dataset) else back["value"].attrs)["estimator"] == result.attrs[
        "estimator"
    ]
