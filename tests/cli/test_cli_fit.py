"""The command line door to the fits."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner

import trajstats as ts
from trajstats.cli import main
from trajstats.data.store.maintenance import append_from


def run(*arguments):
    return CliRunner().invoke(main, ["fit", *(str(a) for a in arguments)])


def curve_store(path, steps, losses, **options):
    with ts.TrajectoryWriter(path, {"w": (2,)}, sync=60.0, **options) as writer:
        for step, loss in zip(steps, losses, strict=True):
            writer.append(int(step), np.zeros(2, "f4"), loss=float(loss))


@pytest.fixture(scope="module")
def decaying(tmp_path_factory):
    folder = tmp_path_factory.mktemp("decay")
    steps = np.unique(np.rint(np.geomspace(1, 10_000, 120)).astype(int))
    rng = np.random.default_rng(0)
    for seed in (0, 1):
        noise = np.exp(0.02 * rng.standard_normal(steps.size))
        curve_store(folder / f"seed{seed}.zarr", steps, (0.1 + 2.0 * steps**-0.5) * noise, replica=seed)
    return [folder / "seed0.zarr", folder / "seed1.zarr"]


def test_decay_is_fitted_printed_and_saved(decaying, tmp_path):
    done = run("decay", *decaying, "--out", tmp_path / "decay.fit")
    assert done.exit_code == 0, done.output
    assert "beta = 0." in done.output
    fit = ts.FitResult.load(tmp_path / "decay.fit")
    beta = fit.summary().sel(coefficient="beta")
    assert abs(float(beta["value"]) - 0.5) < 3 * float(beta["stderr"])


def test_json_and_status(decaying, tmp_path):
    done = run("decay", decaying[0], "--out", tmp_path / "decay.fit", "--max-steps", 200, "--json")
    facts = json.loads(done.stdout)
    assert facts["status"] == "not converged"
    assert done.exit_code == 3
    assert {"value", "stderr", "interval"} == set(facts["coefficients"]["beta"])


def test_subaging_chooses_waiting_times(tmp_path):
    steps = np.unique(np.rint(np.geomspace(1, 10_000, 60)).astype(int))
    append_from(tmp_path / "run.zarr", ts.brownian(steps, layers={"w": (2_000,)}, rng=0))
    done = run("subaging", tmp_path / "run.zarr", "--out", tmp_path / "mu.fit", "--workers", 1)
    assert done.exit_code in {0, 3}, done.output
    assert "mu = " in done.output
    data = ts.FitResult.load(tmp_path / "mu.fit").data
    waiting = np.unique(data["waiting_time"].values)
    assert 8 <= waiting.size <= 12
    assert waiting.max() <= 3_000


def test_subaging_by_a_parametric_curve(tmp_path):
    steps = np.unique(np.rint(np.geomspace(1, 10_000, 60)).astype(int))
    append_from(tmp_path / "run.zarr", ts.brownian(steps, layers={"w": (2_000,)}, rng=0))
    options = ("--estimator", "power_law", "--max-steps", 100, "--workers", 1, "--out", tmp_path / "mu.fit")
    done = run("subaging", tmp_path / "run.zarr", *options)
    assert done.exit_code == 3, done.output  # too short a chain
    assert ts.FitResult.load(tmp_path / "mu.fit").attrs["estimator"] == "power_law"


def test_divergence_over_the_runs_of_a_sweep(tmp_path):
    steps = np.unique(np.rint(np.geomspace(1, 100_000, 60)).astype(int))
    rng = np.random.default_rng(1)
    for width in (8, 9, 10, 12, 14, 18, 24, 32):
        for seed in range(2):
            tau = 3_000 / (width - 6) * np.exp(0.1 * rng.standard_normal())
            curve_store(
                tmp_path / f"w{width}_s{seed}.zarr", steps, 1 / (1 + (steps / tau) ** 2), attrs={"width": width}
            )
    done = run("divergence", tmp_path, "--loss", 0.5, "--out", tmp_path / "w_c.fit", "--json")
    facts = json.loads(done.stdout)
    assert facts["kind"] == "fit_divergence"
    found = facts["coefficients"]["w_c"]
    assert abs(found["value"] - 6) < 3 * found["stderr"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["decay", "{store}", "--out", "{store}"], 1, "exists; a fit is never overwritten"),
        (["decay", "{store}", "--out", "{folder}/no/fit"], 1, "is no folder"),
        (["decay", "{store}", "--out", "{folder}/f", "--series", "los"], 1, "did you mean 'loss'?"),
        (["divergence", "{store}", "--out", "{folder}/f"], 2, "--loss"),
        (["divergence", "{store}", "--out", "{folder}/f", "--loss", "0.5"], 1, "no attribute 'width'"),
        (["decay", "--out", "{folder}/f"], 2, "PATHS"),
    ],
)
def test_mistakes_are_told_and_nothing_is_written(decaying, tmp_path, arguments, code, said):
    done = run(*(a.format(store=decaying[0], folder=tmp_path) for a in arguments))
    assert done.exit_code == code
    assert said in done.output
    assert not (tmp_path / "f").exists()
