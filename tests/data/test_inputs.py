"""What people really pass by mistake: every public function answers with one sentence that names the fix."""

import inspect

import numpy as np
import pytest
import torch
import xarray as xr

import trajstats as ts
from tests.reference.numpy_networks import LeastSquares
from trajstats.data._inputs import FIT, NETWORK, TRAJECTORY, accepts, describe
from trajstats.errors import ArgumentError, SchemaError


@pytest.fixture(scope="module")
def run():
    rng = np.random.default_rng(0)
    step = np.unique(np.rint(np.geomspace(1, 100, 8)).astype(int))
    weights = np.cumsum(rng.standard_normal((2, step.size, 15)), axis=1)
    layers = {"0.weight": (3, 4), "0.bias": (3,)}
    return ts.trajectory_dataset(weights, step=step, layers=layers, series={"loss": np.ones((2, step.size))})


@pytest.fixture(scope="module")
def wrong(run):
    """One of each thing that is passed for another."""
    everything = ts.all_pairs(run)
    data = torch.utils.data.TensorDataset(torch.zeros(3, 4))
    pairs = ts.time_pairs(run)
    return {
        "run": run,
        "pairs": pairs,
        "delta": ts.msd(run, pairs),
        "several": ts.two_time(run, pairs, observables=["msd", "kurtosis"]),
        "all pairs": everything,
        "matrix": everything.msd,
        "module": torch.nn.Linear(4, 3),
        "dataset": data,
        "loader": torch.utils.data.DataLoader(data),
        "path": "run.zarr",
        "number": 3,
        "none": None,
    }


def checked_functions():
    """Every public function with a checked argument, and what it accepts."""
    for name in ts.__all__:
        accepted = getattr(getattr(ts, name), "__accepts__", None)
        if accepted is not None:
            yield name, accepted


@pytest.mark.parametrize(("name", "accepted"), list(checked_functions()), ids=lambda v: v if isinstance(v, str) else "")
def test_the_wrong_thing_is_named_with_its_remedy(name, accepted, wrong):
    function = getattr(ts, name)
    tried = 0
    for thing in wrong.values():
        if any(kind.fits(thing) for kind in accepted[0]):
            continue
        with pytest.raises(ArgumentError) as caught:
            function(thing, *[None] * (len(accepted) - 1))
        text = str(caught.value)
        assert text.startswith(f"{name}: ")
        assert describe(thing) in text
        assert len(text) < 400
        tried += 1
    assert tried >= 4


def test_every_function_of_a_run_a_network_pairs_or_a_delta_is_checked():
    """Complete by construction: a public function whose first argument has one of these names has the check."""
    names = {"trajectory", "run", "network", "pairs", "delta", "spectrum", "esd"}
    elsewhere = {"check_trajectory", "compare_aging", "plot_collapse"}  # they take several kinds and check themselves
    for name in ts.__all__:
        function = getattr(ts, name)
        if not inspect.isfunction(function) or name in elsewhere:
            continue
        first = next(iter(inspect.signature(function).parameters), "")
        assert first not in names or hasattr(function, "__accepts__"), name


def test_swapped_arguments(run):
    pairs = ts.time_pairs(run)
    with pytest.raises(ArgumentError, match=r"swapped; call msd\(trajectory, pairs\)"):
        ts.msd(pairs, run)
    rng = np.random.default_rng(0)
    network = LeastSquares(rng.standard_normal((5, 15)), rng.standard_normal(5))
    assert NETWORK.fits(network)
    with pytest.raises(ArgumentError, match=r"swapped; call hessian_spectrum\(network, trajectory\)"):
        ts.hessian_spectrum(run, network, rng=0)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda w: ts.hessian_spectrum(w["module"], w["run"], rng=0), "TorchNetwork(module, loss_fn"),
        (lambda w: ts.gradient_noise(w["loader"], w["run"]), "a torch DataLoader"),
        (lambda w: ts.msd("run.zarr", w["pairs"]), "open_trajectory(path)"),
        (lambda w: ts.msd(w["run"], w["run"]), "time_pairs(run)"),
        (lambda w: ts.tail_fit(w["run"], rng=0), "run.weights"),
        (lambda w: ts.local_exponent(w["run"]), "msd(run, time_pairs(run))"),
        (lambda w: ts.fit_subaging(w["several"], rng=0), "result.msd"),
        (lambda w: ts.trajectory_pca(w["all pairs"]), "result.msd"),
        (lambda w: ts.time_averaged_msd(w["delta"]), "all_pairs(run).msd"),
        (lambda w: ts.fit_decay(w["run"], rng=0), "run.loss"),
        (lambda w: ts.plot_msd(w["run"]), "msd(run, time_pairs(run))"),
        (lambda w: ts.plot_corner(w["delta"]), "fit_subaging"),
        (lambda w: ts.time_pairs(w["run"], waiting_time=10), "waiting_time=[10]"),
        (lambda w: ts.time_pairs(w["run"], lag=10), "lag=[10]"),
        (lambda w: ts.msd(w["run"].isel(replica=0), w["pairs"]), "run.sel(replica=[...])"),
    ],
)
def test_the_sentence_says_what_to_do(call, words, wrong):
    with pytest.raises((ArgumentError, SchemaError)) as caught:
        call(wrong)
    assert words in str(caught.value)


def test_options_of_lazy_scans_are_checked_at_the_call():
    with pytest.raises(ArgumentError, match="activation"):
        ts.census_scan([10], [1], activation="tahn", seeds=2, starts=5, rng=0)
    with pytest.raises(ArgumentError, match="starts"):
        ts.census_scan([10], [1], seeds=2, starts=0, rng=0)


def test_a_checked_function_keeps_its_name_and_signature():
    assert ts.msd.__name__ == "msd"
    assert next(iter(inspect.signature(ts.msd).parameters)) == "trajectory"

    @accepts(TRAJECTORY, (FIT, NETWORK))
    def two(trajectory, other):
        return trajectory, other

    with pytest.raises(ArgumentError, match="a fit or a network"):
        two(xr.Dataset({"weights": 1.0}, coords={"step": [0]}), 3)


LAYERS = {"a.weight": (3, 4), "a.bias": (3,), "b.weight": (2, 3)}


@pytest.fixture(scope="module", params=["store", "memory"])
def layered(request, tmp_path_factory):
    rng = np.random.default_rng(0)
    if request.param == "memory":
        return ts.trajectory_dataset(rng.standard_normal((2, 5, 21)), step=range(5), layers=LAYERS)
    path = tmp_path_factory.mktemp("layers") / "run.zarr"
    with ts.TrajectoryWriter(path, LAYERS) as writer:
        for step in range(5):
            writer.append(step, rng.standard_normal(21).astype(np.float32), loss=1.0)
    return ts.open_trajectory(path)


@pytest.mark.parametrize("chosen", ["a.bias", "b.weight", ["a.weight"], ["b.weight"], ["b.weight", "a.weight"]])
def test_layers_selected_from_a_run(layered, chosen):
    part = layered.sel(layer=chosen)
    names = [chosen] if isinstance(chosen, str) else chosen
    whole = ts.msd(layered, ts.time_pairs(layered)).compute().sel(layer=names)
    mine = ts.msd(part, ts.time_pairs(part)).compute()
    xr.testing.assert_allclose(mine, whole)
    assert ts.check_trajectory(part).sizes["parameter"] == sum(int(np.prod(LAYERS[name])) for name in names)
    if "rounding_floor" in whole.coords:
        np.testing.assert_allclose(mine.rounding_floor, whole.rounding_floor)


def test_layers_selected_by_position(layered):
    part = layered.isel(layer=slice(1, 3))
    total = ts.all_pairs(part).msd.compute()
    by_hand = layered.weights.isel(parameter=slice(12, 21))
    expected = ((by_hand.isel(step=3) - by_hand.isel(step=1)) ** 2).mean("parameter")
    np.testing.assert_allclose(total.isel(step=1, step_prime=3), expected, rtol=1e-6)
