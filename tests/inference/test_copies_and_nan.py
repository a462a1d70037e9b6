"""Copies are refused and NaN is named wherever runs are compared or averaged."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from click.testing import CliRunner

import trajstats as ts
from trajstats.cli import main
from trajstats.errors import FitError, NonFiniteError

STEPS = np.unique(np.rint(np.geomspace(1, 10_000, 60)).astype(int))


def curve(width, seed):
    noise = np.exp(0.05 * np.random.default_rng(seed).standard_normal(STEPS.size))
    return 10 / width * STEPS**-0.5 * noise


def run_of(losses, width):
    run = ts.trajectory_dataset(
        np.zeros((len(losses), STEPS.size, 2)), step=STEPS, layers={"w": (2,)}, series={"loss": np.array(losses)}
    )
    return run.assign_attrs(width=width)


def test_learning_times_refuse_copies_inside_a_run_and_between_runs():
    with pytest.raises(FitError, match="is a copy of"):
        ts.learning_times({"a": run_of([curve(4, 0), curve(4, 0)], 4)}, loss=0.5)
    twice = {"a": run_of([curve(4, 0)], 4), "b": run_of([curve(4, 0)], 4)}
    with pytest.raises(FitError, match="b is a copy of replica a"):
        ts.learning_times(twice, loss=0.5)
    apart = {"a": run_of([curve(4, 0)], 4), "b": run_of([curve(4, 1)], 4)}
    assert ts.learning_times(apart, loss=0.5).sizes["run"] == 2


def test_a_divergence_refuses_seeds_that_are_copies():
    width = np.array([4.0, 5, 6, 8, 12])
    one = 100.3 / (width - 2)
    times = xr.DataArray([one, 1.1 * one, one], dims=("seed", "width"), coords={"width": width, "seed": [7, 8, 9]})
    with pytest.raises(FitError, match="replica 9 is a copy of replica 7"):
        ts.fit_divergence(times, rng=0)


@pytest.fixture
def stores(tmp_path):
    for seed in (0, 1, 2):
        losses = 0.1 + curve(5, seed)
        if seed == 2:
            losses[5] = np.nan
        with ts.TrajectoryWriter(tmp_path / f"s{seed}.zarr", {"w": (2,)}, sync=60.0, replica=seed) as writer:
            for step, loss in zip(STEPS, losses, strict=True):
                writer.append(int(step), np.zeros(2, "f4"), loss=float(loss))
    return [str(tmp_path / f"s{seed}.zarr") for seed in (0, 1, 2)]


def test_the_command_line_never_averages_over_nan_silently(stores, tmp_path):
    refused = CliRunner().invoke(main, ["fit", "decay", *stores, "--out", str(tmp_path / "a.fit")])
    assert refused.exit_code not in (0, 3)
    assert "1 of" in refused.output
    assert "--on-nan skip" in refused.output
    assert not (tmp_path / "a.fit").exists()
    out = str(tmp_path / "b.fit")
    done = CliRunner().invoke(main, ["fit", "decay", *stores, "--on-nan", "skip", "--max-steps", "200", "--out", out])
    assert done.exit_code in (0, 3), done.output
    assert any("1 of" in flag and "steps left out" in flag for flag in ts.FitResult.load(out).flags)


@pytest.mark.parametrize("on_nan", ["raise", "skip"])
def test_a_layer_of_nan_is_named(on_nan):
    run = ts.brownian(STEPS, layers={"good": (50,), "bad": (50,)}, rng=0)
    delta = ts.msd(run, ts.time_pairs(run)).compute()
    delta = delta.where(delta["layer"] != "bad")
    for over in ("total", "bad"):
        with pytest.raises(NonFiniteError, match=r"NaN or infinite in layer 'bad'.*\.sel\(layer"):
            ts.fit_subaging(delta, rng=0, over=over, on_nan=on_nan)
