"""Plots of Jacobians, tails and fixed points: what is drawn is what was computed."""

import matplotlib as mpl
import numpy as np
import pytest

mpl.use("Agg")

import matplotlib.pyplot as plt
from reference.numpy_mlp import NumpyMLP, draw

import trajstats as ts


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


def test_jacobian_plot_has_a_line_per_step_and_the_law():
    net = NumpyMLP((30, 30))
    weights = np.stack([draw((30, 30), seed=s) for s in range(2)])
    run = ts.trajectory_dataset(weights, step=[0, 10], layers=net.layers)
    esd = ts.jacobian_esd(net, run, np.ones((2, 30)), rng=0)
    comparison = ts.compare_to_theory(esd, ts.JacobianLaw(1, activation="tanh"), simulations=3, rng=0)
    ax = ts.plot_jacobian_esd(esd, comparison)
    assert len(ax.lines) == 3
    x = esd.squared_singular_value.values
    np.testing.assert_allclose(ax.lines[0].get_ydata(), x * esd.density.values[0])
    np.testing.assert_allclose(ax.lines[2].get_ydata(), x * comparison.theory.values)
    assert ax.get_xscale() == ax.get_yscale() == "log"


def test_hill_plot_draws_index_and_error():
    hill = ts.hill_plot(np.random.default_rng(0).standard_cauchy(500))
    ax = ts.plot_hill({"Cauchy": hill})
    np.testing.assert_allclose(ax.lines[0].get_ydata(), hill["index"])
    assert ax.get_legend() is not None


def test_tail_index_plot_means_over_replicas():
    weights = np.random.default_rng(0).standard_t(3, (2, 2, 600))
    run = ts.trajectory_dataset(weights, step=[0, 5], layers={"0.weight": (20, 30)})
    tails = ts.weight_tails(run, compare=False, rng=0)
    ax = ts.plot_tail_index(tails)
    np.testing.assert_allclose(ax.lines[0].get_ydata(), tails.hill_index.mean("replica").values[:, 0])


def test_basins_and_slice():
    def map_(x):
        return np.tanh(2 * x)

    census = ts.fixed_point_census(map_, 2, starts=100, rng=0)
    bars = ts.plot_basins(census).patches
    np.testing.assert_allclose([bar.get_height() for bar in bars], [*census.share.values, 0.0])
    plane = ts.attractor_slice(map_, census, origin=[0, 0], first=[1, 0], second=[0, 1], points=6)
    ax = ts.plot_attractor_slice(plane)
    assert len(ax.get_legend().get_texts()) == 4


def test_count_plot_draws_one_line_per_width():
    scan = ts.census_scan([4, 6], [1, 2], laws=["gaussian"], scales=[0.5], seeds=2, starts=10, rng=0).compute()
    ax = ts.plot_fixed_point_count(scan, law="gaussian", scale=0.5)
    assert len(ax.containers) == 2
