"""A fit gives the same numbers whatever unit its data came in, and figures of it can be drawn."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr

import trajstats as ts
from trajstats.inference._scaling import own_unit, rounded
from trajstats.inference.sampling._emcee_chains import scatter_walkers
from trajstats.inference.sampling._maximum import maximise

STEP = np.unique(np.geomspace(1, 1e4, 40).astype(int))
LOSS = (0.3 + STEP**-0.5) * np.exp(0.02 * np.random.default_rng(1).standard_normal(STEP.size))
WAIT, LAG = (a.ravel() for a in np.meshgrid(np.geomspace(100, 1e4, 5), np.geomspace(10, 1e4, 6), indexing="ij"))
MSD = -np.expm1(-(np.sqrt(WAIT + LAG) - np.sqrt(WAIT)) / 20)
MSD = MSD * np.exp(0.02 * np.random.default_rng(0).standard_normal(WAIT.size))
WIDTH = np.repeat([6.0, 8.0, 12.0, 20.0, 40.0], 3)
TIMES = 100 / (WIDTH - 4) * np.exp(0.1 * np.random.default_rng(2).standard_normal(WIDTH.size))


def decay(scale, **options):
    loss = xr.DataArray(LOSS * scale, dims="step", coords={"step": STEP})
    return ts.fit_decay(loss, rng=0, max_steps=150, **options)


def aging(scale, **options):
    coords = {"waiting_time": ("pair", WAIT), "lag": ("pair", LAG)}
    return ts.fit_subaging(xr.DataArray(MSD * scale, dims="pair", coords=coords), rng=0, **options)


def divergence(scale, **options):
    times = xr.DataArray(TIMES * scale, dims="run", coords={"width": ("run", WIDTH)})
    return ts.fit_divergence(times, rng=0, max_steps=300, **options)


@pytest.mark.parametrize("scale", [1e-30, 1e30, 0.37e-6])
def test_numbers_that_differ_by_a_unit_become_the_same(scale):
    values = np.random.default_rng(0).lognormal(size=1000)
    scaled, unit = own_unit(values)
    other, other_unit = own_unit(values * scale)
    np.testing.assert_array_equal(scaled, other)
    assert other_unit == pytest.approx(unit * scale)
    np.testing.assert_allclose(scaled * unit, values, rtol=1e-9)
    assert rounded(0.0) == 0
    assert own_unit(np.zeros(0))[1] == 1


def test_a_decay_has_one_beta_at_any_scale():
    plain = decay(1.0, prior={"log_middle": (-8.0, 2.0), "L_inf": (0.0, 0.32)})
    for scale in (1e-30,):
        shift = np.log(scale)
        prior = {"log_middle": (-8.0 + shift, 2.0 + shift), "L_inf": (0.0, 0.32 * scale)}
        fit = decay(scale, prior=prior)
        np.testing.assert_array_equal(fit.posterior["beta"], plain.posterior["beta"])
        for name in ("L_inf", "A"):
            np.testing.assert_allclose(fit.posterior[name], plain.posterior[name] * scale, rtol=1e-9)
        np.testing.assert_allclose(fit.data["loss"], plain.data["loss"] * scale, rtol=1e-9)
        np.testing.assert_allclose(fit.data["predicted"], plain.data["predicted"] * scale, rtol=1e-9)
        np.testing.assert_allclose(fit.predict(time=[50.0]), plain.predict(time=[50.0]) * scale, rtol=1e-9)
        np.testing.assert_allclose(fit.attrs["priors"]["L_inf"], [0.0, 0.32 * scale], rtol=1e-9)
        assert fit.flags == plain.flags
        figure = ts.plot_decay(fit).get_figure()
        figure.canvas.draw()
        plt.close(figure)


def test_a_decay_over_fifteen_decades_is_fitted():
    loss = xr.DataArray(STEP**-4.0 * np.exp(0.02 * np.sin(STEP)), dims="step", coords={"step": STEP})
    fit = ts.fit_decay(loss, rng=0, max_steps=150)
    assert float(fit.summary()["value"].sel(coefficient="beta")) == pytest.approx(4, abs=0.1)


@pytest.mark.parametrize(
    "options", [{}, {"sampler": "emcee", "max_steps": 100}, {"estimator": "power_law", "max_steps": 50}]
)
def test_an_msd_has_one_mu_at_any_scale(options):
    plain = aging(1.0, **options)
    for scale in (1e-30, 1e30):
        fit = aging(scale, **options)
        np.testing.assert_array_equal(fit.posterior["mu"], plain.posterior["mu"])
        np.testing.assert_allclose(fit.predict(), plain.predict() * scale, rtol=1e-8)
        np.testing.assert_allclose(fit.data["msd"], plain.data["msd"] * scale, rtol=1e-8)
        np.testing.assert_allclose(fit.data["residual"], plain.data["residual"], atol=1e-8)
        threshold = plain.tables["threshold_scan"]["threshold"]
        np.testing.assert_allclose(fit.tables["threshold_scan"]["threshold"], threshold * scale, rtol=1e-8)
        assert fit.flags == plain.flags


def test_an_msd_of_any_scale_is_drawn():
    fit = aging(1e-30)
    coords = {"waiting_time": ("pair", WAIT), "lag": ("pair", LAG)}
    delta = xr.DataArray(MSD * 1e-30, dims="pair", coords=coords, attrs={"clock": "step"})
    for ax in (ts.plot_collapse(delta, fit), ts.plot_scan(fit), ts.plot_corner(fit), ts.plot_msd(delta)):
        figure = ax.get_figure()
        figure.canvas.draw()
        plt.close(figure)


def test_a_divergence_has_one_w_c_at_any_unit_of_time():
    plain = divergence(1.0, prior={"log_middle": (0.0, 8.0)})
    for scale in (1e-30, 1e30):
        shift = np.log(scale)
        fit = divergence(scale, prior={"log_middle": (shift, 8.0 + shift)})
        np.testing.assert_array_equal(fit.posterior["w_c"], plain.posterior["w_c"])
        np.testing.assert_allclose(fit.posterior["A"], plain.posterior["A"] * scale, rtol=1e-9)
        np.testing.assert_allclose(fit.predict(width=[10.0]), plain.predict(width=[10.0]) * scale, rtol=1e-9)
        np.testing.assert_allclose(fit.attrs["priors"]["log_middle"], [shift, 8.0 + shift], atol=1e-6)
        figure = ts.plot_divergence(fit).get_figure()
        figure.canvas.draw()
        plt.close(figure)


def test_learning_times_do_not_depend_on_the_unit_of_the_loss():
    loss = np.exp(-STEP / 1000.0)

    def runs(scale):
        run = ts.trajectory_dataset(np.zeros((STEP.size, 1)), step=STEP, series={"loss": loss * scale})
        return {"w": run.assign_attrs(width=5)}

    plain = ts.learning_times(runs(1.0), loss=0.5)
    for scale in (1e-30, 1e30):
        other = ts.learning_times(runs(scale), loss=0.5 * scale)
        np.testing.assert_allclose(other["learning_time"], plain["learning_time"], rtol=1e-9)


def test_the_search_works_between_bounds_of_any_size():
    best = maximise(lambda v: -0.5 * float(v[0] / 1e-31 - 2) ** 2, {"x": (1e-31, 0.0, 1e-30)})
    assert best.values["x"] == pytest.approx(2e-31, rel=1e-3)
    walkers = scatter_walkers(
        lambda x: np.where((x[:, 0] > 0) & (x[:, 0] < 4e-31), 0.0, -np.inf),
        np.array([2e-31]),
        np.array([[1e-64]]),
        16,
        np.random.default_rng(0),
    )
    assert walkers.std() == pytest.approx(1e-32, rel=0.6)
