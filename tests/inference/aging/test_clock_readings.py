"""Brownian motion in proper time does not age, however the learning rate falls: mu is 0 by every way to ask."""

from __future__ import annotations

import html
import json

import numpy as np
import pytest
import xarray as xr
from click.testing import CliRunner

import trajstats as ts
from trajstats.cli import main
from trajstats.data.store.maintenance import append_from
from trajstats.errors import ArgumentError

LAST = 30_000
STEPS = np.unique(np.rint(np.geomspace(1, LAST, 80)).astype(int))


@pytest.fixture(scope="module")
def walk():
    """Steps of variance eta under a learning rate eta that falls as one over the step."""
    time = np.cumsum(1 / np.arange(1, LAST + 1))[STEPS - 1]
    noise = np.random.default_rng(1).standard_normal((1, STEPS.size, 1500))
    weights = np.cumsum(noise * np.sqrt(np.diff(time, prepend=0))[None, :, None], axis=1)
    return ts.trajectory_dataset(weights.astype("f4"), step=STEPS, clocks={"proper_time": time})


@pytest.fixture(scope="module")
def fitted(walk):
    return ts.fit_subaging(ts.msd(walk, ts.time_pairs(walk, lags_per_decade=8)), rng=0)


@pytest.fixture(scope="module")
def store(walk, tmp_path_factory):
    path = tmp_path_factory.mktemp("walk") / "walk.zarr"
    append_from(path, walk)
    return path


def check_steady(fit):
    low, high = fit.summary(levels=[0.99])["interval"].sel(coefficient="mu").values.ravel()
    assert low < 0 < high
    assert high - low < 0.25
    assert fit.attrs["clock"] == "proper_time"


def test_by_default(fitted):
    check_steady(fitted)
    assert "clock_reason" in fitted.attrs
    assert "optimiser steps" in fitted.flags[0]
    assert fitted.data.lag.attrs["units"] == "sum of learning rates"


def test_both_readings_are_shown(fitted):
    table = fitted.tables["clocks"]
    assert table["clock"].values.tolist() == ["proper_time", "step"]
    assert abs(float(table["mu"].sel(clock="proper_time"))) < 0.1
    assert float(table["mu"].sel(clock="step")) > 0.85


def test_with_the_clock_given_to_the_pairs_alone(walk):
    pairs = ts.time_pairs(walk, lags_per_decade=8, clock="proper_time")
    fit = ts.fit_subaging(ts.msd(walk, pairs), rng=0)
    check_steady(fit)
    assert "clock_reason" not in fit.attrs


def test_on_steps_where_they_are_asked_for(walk):
    fit = ts.fit_subaging(ts.msd(walk, ts.time_pairs(walk, lags_per_decade=8), clock="step"), rng=0)
    assert fit.attrs["clock"] == "step"
    assert "clocks" not in fit.tables
    assert float(fit.summary()["value"].sel(coefficient="mu")) > 0.85


def test_predictions_name_their_clock(fitted):
    assert fitted.predict().sizes["pair"] == fitted.data.sizes["pair"]
    with pytest.raises(ArgumentError, match="could be optimiser steps or on the clock of this fit"):
        fitted.predict(waiting_time=2.0, lag=1.0)
    with pytest.raises(ArgumentError, match="this fit is in proper_time"):
        fitted.predict(waiting_time=2.0, lag=1.0, clock="step")
    predicted = fitted.predict(waiting_time=2.0, lag=[0.5, 1.0], clock="proper_time")
    ratio = predicted.median(("chain", "draw")).values
    assert ratio[1] / ratio[0] == pytest.approx(2, rel=0.05)


def test_a_fit_that_was_saved_keeps_its_clock(fitted, tmp_path):
    fitted.save(tmp_path / "mu.fit")
    back = ts.FitResult.load(tmp_path / "mu.fit")
    assert back.attrs["clock"] == "proper_time"
    assert back.tables["clocks"]["clock"].values.tolist() == ["proper_time", "step"]


def test_batches_say_which_clock(walk):
    cases = {name: ts.msd(walk, ts.time_pairs(walk, lags_per_decade=3, clock=name)) for name in ("step", "proper_time")}
    both = ts.fit_batch(ts.fit_subaging, cases, rng=0, scheduler="synchronous")
    assert both["clock"].values.tolist() == ["step", "proper_time"]
    mapped = ts.map_sweep(_aging, {"a": walk}, rng=0, scheduler="synchronous")
    assert str(mapped["clock"].values) == "proper_time"
    assert abs(float(mapped["value"].sel(coefficient="mu").squeeze())) < 0.15


def _aging(run, *, rng):
    return ts.fit_subaging(ts.msd(run, ts.time_pairs(run, lags_per_decade=4)), rng=rng)


def command(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def test_command_line(store, tmp_path):
    done = command("fit", "subaging", store, "--out", tmp_path / "mu.fit", "--json", "--workers", 1)
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert facts["clock"] == "proper_time"
    assert facts["other_clock"]["clock"] == "step"
    assert facts["other_clock"]["mu"] > 0.85
    assert "optimiser steps" in facts["flags"][0]
    check_steady(ts.FitResult.load(tmp_path / "mu.fit"))
    for number in ("--waiting-time", "--min-lag"):
        refused = command("fit", "subaging", store, "--out", tmp_path / "no.fit", number, 1000)
        assert refused.exit_code == 1
        assert "could mean 1000 optimiser steps or a sum of learning rates of 1000" in refused.output
        assert not (tmp_path / "no.fit").exists()
    steps = command("fit", "subaging", store, "--out", tmp_path / "steps.fit", "--clock", "step", "--workers", 1)
    assert "mu = 0.9" in steps.output


def test_page(store, tmp_path):
    page = tmp_path / "page.html"
    assert command("analyze", store, "--out", page, "--json", "--workers", 1).exit_code == 0
    text = html.unescape(page.read_text())
    assert "Times are in proper time (sum of learning rates): no clock was given" in text
    assert "µ on optimiser steps" in text
    assert "clock='proper_time'" in text
    assert "(steps)</th>" not in text.split("MSD at waiting time")[1]
    with pytest.raises(ArgumentError, match="waiting_time=1000 could mean"):
        ts.analyze(str(store), tmp_path / "no.html", waiting_time=[1000], progress=False)
    assert not (tmp_path / "no.html").exists()
    given = ts.analyze(
        str(store), tmp_path / "steps.html", waiting_time=STEPS[[20, 40, 60]], clock="step", progress=False
    )
    assert "proper time" not in given.read_text()


@pytest.fixture(scope="module")
def falling():
    """A loss that falls as a power of proper time, under a rate that falls as one over the root of the step."""
    time = np.cumsum(np.arange(1, LAST + 1) ** -0.5)[STEPS - 1]
    noise = np.exp(0.02 * np.random.default_rng(0).standard_normal(STEPS.size))
    loss = 0.01 + 2 * time**-1.5 * noise
    return xr.DataArray(loss, dims="step", coords={"step": STEPS, "proper_time": ("step", time)})


def test_decays_are_on_the_same_default(falling):
    fit = ts.fit_decay(falling, rng=0, max_steps=40)
    assert fit.attrs["clock"] == "proper_time"
    assert "no clock was given" in fit.flags[0]
    with pytest.raises(ArgumentError, match="window=1000 could mean 1000 optimiser steps"):
        ts.fit_decay(falling, rng=0, window=(10, 1000))
    with pytest.raises(ArgumentError, match="time could be optimiser steps"):
        fit.predict(time=[2.0])
    assert fit.predict(time=[2.0], clock="proper_time").dims[-1] == "proper_time"
    assert ts.plot_decay(fit) is not None


def test_decay_on_the_command_line_shows_both(falling, tmp_path):
    with ts.TrajectoryWriter(tmp_path / "run.zarr", {"w": (2,)}) as writer:
        for step, time, loss in zip(STEPS, falling.proper_time.values, falling.values, strict=True):
            writer.append(int(step), np.zeros(2, "f4"), loss=float(loss), proper_time=float(time))
    done = command("fit", "decay", tmp_path / "run.zarr", "--out", tmp_path / "d.fit", "--max-steps", 40)
    assert "times are in proper_time (sum of learning rates)" in done.output
    assert "on proper_time and" in done.output
    assert "on optimiser steps" in done.output
