"""Plots of two-time statistics: what is drawn is what was measured, with units on the axes."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pytest

import trajstats as ts
from trajstats.data.schema import trajectory_dataset
from trajstats.data.synthetic.processes import brownian
from trajstats.errors import ArgumentError

mpl.use("Agg")
STEPS = [0, 1, 2, 5, 10, 20, 50, 100, 200]


@pytest.fixture(autouse=True)
def close_figures():
    yield
    import matplotlib.pyplot as plt

    plt.close("all")


@pytest.fixture(scope="module")
def run():
    made = brownian(STEPS, rng=0, layers={"a": (10, 20), "b": (20,)}, replicas=3)
    loss = np.linspace(2, 1, len(STEPS))
    return trajectory_dataset(
        made.weights.values, step=STEPS, layers={"a": (10, 20), "b": (20,)}, series={"loss": loss},
        clocks={"proper_time": 0.1 * np.array(STEPS)},
    )  # fmt: skip


def test_msd_has_a_curve_and_a_band_for_each_waiting_time(run):
    pairs = ts.time_pairs(run, waiting_time=[0, 10])
    delta = ts.msd(run, pairs, clock="proper_time")
    ax = ts.plot_msd(delta)
    total = ts.msd(run, pairs, per="all", clock="proper_time").compute()
    curve = ax.lines[1]
    mine = total.waiting_time == 1.0
    np.testing.assert_allclose(curve.get_xdata(), total.lag[mine])
    np.testing.assert_allclose(curve.get_ydata(), total[:, mine.values].median("replica"), rtol=1e-9)
    assert len(ax.collections) == 2
    assert ax.get_xlabel() == "lag $t$ (proper time: sum of learning rates)"
    assert "squared weight" in ax.get_ylabel()


def test_layers_have_a_panel_each(run):
    panels = ts.plot_msd_layers(ts.msd(run, ts.time_pairs(run)))
    assert [p.get_title() for p in panels] == ["a  (M = 200)", "b  (M = 20)"]
    with pytest.raises(ArgumentError, match="no layers"):
        ts.plot_msd_layers(ts.msd(run, ts.time_pairs(run), per="all"))


def test_map_shows_all_pairs(run):
    result = ts.all_pairs(run).msd.compute()
    ax = ts.plot_two_time_map(result)
    drawn = ax.collections[0].get_array()
    want = result.mean("replica").values
    np.testing.assert_allclose(drawn[want > 0], want[want > 0])
    with pytest.raises(ArgumentError, match="select one layer"):
        ts.plot_two_time_map(ts.all_pairs(run, per="layer").msd)


def test_van_hove_has_its_gaussian(run):
    for scale in ("linear", "log"):
        ax = ts.plot_van_hove(ts.van_hove(run, ts.time_pairs(run, waiting_time=[0]), bins=10, scale=scale).compute())
        assert "Gaussian" in [t.get_text() for t in ax.get_legend().get_texts()]
        assert ax.get_xscale() == scale


def test_local_exponents_have_bands(run):
    ax = ts.plot_local_exponent(ts.local_exponent(ts.msd(run, ts.time_pairs(run, waiting_time=[0, 1]), per="all")))
    assert len(ax.collections) == 2
    assert "optimiser steps" in ax.get_xlabel()


def test_loss_shows_its_regimes():
    t = np.unique(np.geomspace(1, 1e5, 300).astype(int))
    loss = np.interp(np.log(t), np.log([1e2, 1e3]), [2.0, 0.5])
    run = trajectory_dataset(np.zeros((t.size, 1)), step=t, series={"loss": loss})
    ax = ts.plot_loss(run, ts.loss_regimes(run, rng=0))
    assert [line.get_linestyle() for line in ax.lines] == ["-", "--", "--"]
    assert len(ax.patches) == 2
