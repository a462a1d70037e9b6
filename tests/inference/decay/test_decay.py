"""Decays to a floor with known answers."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from scipy.stats import multivariate_normal

import trajstats as ts
from trajstats.errors import ArgumentError, FitError, NonFiniteError
from trajstats.inference.decay._likelihood import Binned, _kalman, decay_window, log_bins, log_likelihood

T = np.geomspace(1, 1e4, 80)


def curve(loss, t=T):
    return xr.DataArray(loss, dims="step", coords={"step": t})


def noise(seed=0, sd=0.02, n=80):
    return 1 + np.random.default_rng(seed).normal(0, sd, n)


def test_power_law_to_a_floor():
    fit = ts.fit_decay(curve((0.1 + T**-0.5) * noise()), rng=0)
    assert fit.converged
    for name, truth in (("L_inf", 0.1), ("beta", 0.5), ("A", 1.0)):
        row = fit.summary().sel(coefficient=name)
        assert abs(float(row["value"]) - truth) < 3.5 * float(row["stderr"])
    assert float(fit.tables["floor"]["probability_positive"]) > 0.99
    best = fit.tables["models"]["model"].values[np.argmin(fit.tables["models"]["bic"].values)]
    assert best == "power_law"
    assert float(fit.predict(time=[1e8]).median()) == pytest.approx(0.1, abs=0.02)


def test_a_floor_of_zero_is_preferred_where_there_is_none():
    fit = ts.fit_decay(curve(T**-0.5 * noise(1)), rng=0, max_steps=4000)
    assert float(fit.tables["floor"]["probability_positive"]) < 0.5
    assert fit.summary()["interval"].sel(coefficient="L_inf", level=0.95, bound="lower") < 2e-3
    fixed = ts.fit_decay(curve(T**-0.5 * noise(1)), rng=0, floor=False, max_steps=2000)
    assert (fixed.posterior["L_inf"] == 0).all()
    assert float(fixed.summary()["value"].sel(coefficient="beta")) == pytest.approx(0.5, abs=0.02)


def test_a_curve_that_is_wrong_is_still_sampled_and_loses():
    # coefficients of the wrong curve end in a corner of their prior: walkers find their way inside
    fit = ts.fit_decay(curve((0.1 + T**-0.5) * noise(3)), rng=0, curve="logarithmic", max_steps=1000)
    assert any("prefer the model 'power_law'" in flag for flag in fit.flags)
    top = fit.tables["models"]["log_likelihood"]
    assert float(top.sel(model="power_law")) >= float(top.sel(model="power_law without floor")) - 1e-3


@pytest.mark.parametrize(
    ("name", "law"),
    [
        ("stretched_exponential", lambda t: np.exp(-((t / 30) ** 0.6))),
        ("logarithmic", lambda t: 1 / (1 + 0.6 * np.log1p(t / 30))),
    ],
)
def test_other_curves_have_a_time_scale_of_their_own(name, law):
    # far from the middle of the times, 100
    loss = (0.05 + law(T)) * noise(4, 0.005)
    fit = ts.fit_decay(curve(loss), rng=0, curve=name, window=(0.5, 2e4), max_steps=4000)
    for coefficient, truth in (("tau", 30), ("beta", 0.6), ("A", 1.0), ("L_inf", 0.05)):
        row = fit.summary().sel(coefficient=coefficient, level=0.95)["interval"]
        assert float(row.sel(bound="lower")) < truth < float(row.sel(bound="upper"))
    np.testing.assert_allclose(fit.predict(time=T).median(["chain", "draw"]), 0.05 + law(T), rtol=0.01)
    bic = fit.tables["models"]["bic"]
    assert float(bic.sel(model=name)) == float(bic.min())


def test_the_noise_filter_is_the_exact_gaussian():
    rng = np.random.default_rng(0)
    x = np.sort(rng.uniform(0, 9, 12))
    r = rng.standard_normal((1, 12))
    alone = rng.uniform(0.1, 1, 12)
    drift, reach, white = 0.7, 1.3, 0.4
    covariance = drift * np.exp(-np.abs(x[:, None] - x) / reach) + white * np.diag(alone)
    exact = multivariate_normal(np.zeros(12), covariance).logpdf(r[0])
    ours = _kalman(r, np.diff(x), alone, np.array([drift]), np.array([reach]), np.array([white]))[0]
    assert ours == pytest.approx(exact, rel=1e-12)


def test_the_likelihood_is_a_density_of_the_losses():
    # the same curve in another unit: the density changes by the unit, and nothing else does
    loss, count = (0.1 + T**-0.5) * noise(), np.geomspace(1, 300, 80)
    theta = np.array([[0.1, np.log(0.1), 0.5, np.log(0.05), 0.3, 0.2, 0.7]])
    one = log_likelihood(theta, Binned(T, loss, count), "power_law")
    scaled = theta + np.array([0.9, np.log(10), 0, 0, 0, 0, 0])
    ten = log_likelihood(scaled, Binned(T, 10 * loss, count), "power_law")
    assert ten == pytest.approx(one - 80 * np.log(10))
    clean = 0.1 + 0.1 * (T / 100) ** -0.5
    middle = np.exp(np.log(clean).mean())
    sd = 0.05 * middle * (clean / middle) ** 0.7
    gaps = np.abs(np.log(T)[:, None] - np.log(T))
    kernel = 0.3 * np.exp(-gaps / np.exp(0.2)) + 0.7 * np.diag(np.exp(np.log(count).mean()) / count)
    exact = multivariate_normal(clean, sd[:, None] * kernel * sd).logpdf(loss)
    assert one == pytest.approx(exact)


def test_curves_saved_at_every_step_weigh_what_a_bin_averages():
    # 2000 steps one by one: the last bins average 200 losses, and say so much more
    t = np.arange(1.0, 2001)
    loss = (0.1 + t**-0.5) * (1 + 0.1 * np.random.default_rng(2).standard_normal(t.size))
    fit = ts.fit_decay(curve(loss, t), rng=0, max_steps=8000)
    row = fit.summary().sel(coefficient="beta")
    assert abs(float(row["value"]) - 0.5) < 3 * float(row["stderr"])
    # the Cramer-Rao bound of this noise is 0.013; bins that all weigh the same give 0.034
    assert float(row["stderr"]) < 0.025


def test_the_window_does_not_depend_on_when_losses_were_saved():
    t = np.arange(1.0, 5001)
    loss = 2.0 * np.minimum((t / 30) ** -0.7, 1) * (1 + 0.01 * np.random.default_rng(1).standard_normal(t.size))
    sparse = np.unique(np.geomspace(1, 5000, 150).astype(int)) - 1
    for keep in (slice(None), sparse):
        first, last = decay_window(t[keep], loss[keep], 20)
        assert 28 < first < 40
        assert last == 5000
    # no plateau: from the start, however it was saved
    assert decay_window(t, 0.01 + t**-0.5, 20)[0] <= 3


def test_a_prior_of_a_floor_that_is_held_or_above_zero():
    loss = curve((0.1 + T**-0.5) * noise())
    with pytest.raises(ArgumentError, match="would do nothing"):
        ts.fit_decay(loss, rng=0, floor=False, prior={"L_inf": (0.0, 0.1)})
    fit = ts.fit_decay(loss, rng=0, prior={"L_inf": (0.05, 0.2)}, max_steps=1000)
    assert "floor" not in fit.tables  # its prior says already that it is above zero


def test_bins_average_what_falls_into_them():
    binned = log_bins(np.array([1.0, 2.0, 10.0, 20.0, 30.0]), np.array([1.0, 3.0, 5.0, 6.0, 7.0]), 1)
    np.testing.assert_allclose(binned.loss, [2.0, 6.0])
    np.testing.assert_allclose(binned.count, [2, 3])


def test_plateau_is_left_out_by_the_stated_rule():
    loss = np.where(T < 30, 2.0, 2.0 * (T / 30) ** -0.7) * noise(2, 0.005)
    fit = ts.fit_decay(curve(loss), rng=0, max_steps=1000)
    assert 20 < fit.attrs["window"][0] < 60
    assert "fitted from" in fit.flags[0]


@pytest.mark.parametrize(
    ("loss", "error", "words"),
    [
        (np.where(T > 50, np.nan, 1.0), NonFiniteError, "NaN"),
        (np.ones(80), FitError, "constant"),
        (1 - T, FitError, "not positive"),
        (T**0.5, FitError, "does not fall"),
    ],
)
def test_hopeless_losses_are_refused(loss, error, words):
    with pytest.raises(error, match=words):
        ts.fit_decay(curve(loss), rng=0)


def test_times_points_and_options_are_checked():
    with pytest.raises(FitError, match="do not increase"):
        ts.fit_decay(curve([3.0, 2.0, 1.0], [1, 3, 2]), rng=0)
    with pytest.raises(FitError, match="1 bins"):
        ts.fit_decay(curve([3.0, 2.0], [1, 3]), rng=0)
    with pytest.raises(NonFiniteError, match="times"):
        ts.fit_decay(curve(T**-0.5, np.where(T > 5e3, np.nan, T)), rng=0)
    with pytest.raises(ArgumentError, match="bins_per_decade=0"):
        ts.fit_decay(curve(T**-0.5), rng=0, bins_per_decade=0)
    with pytest.raises(ArgumentError, match="max_steps=0"):
        ts.fit_decay(curve(T**-0.5), rng=0, max_steps=0)
    with pytest.raises(ArgumentError, match="unknown curve"):
        ts.fit_decay(curve(T**-0.5), rng=0, curve="powerlaw")
    with pytest.raises(ArgumentError, match="replicas"):
        ts.fit_decay(xr.DataArray(np.ones((2, 80)), dims=("replica", "step"), coords={"step": T}), rng=0)
