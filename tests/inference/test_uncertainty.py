"""The stated uncertainty is half the 68 % interval, and does not depend on the seed of the generator."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from scipy.stats import norm, t

from trajstats.inference._uncertainty import half_interval, mean_half_interval, student_t_draws
from trajstats.inference.aging.fit import fit_subaging
from trajstats.inference.batch.many_fits import fit_batch
from trajstats.inference.results import FitResult

WAIT, LAG = (a.ravel() for a in np.meshgrid(np.geomspace(100, 1e4, 6), np.geomspace(10, 1e4, 8), indexing="ij"))


def seeds(n, sigma=0.02):
    """Replicas of one aging curve (mu = 0.5) that differ in level and slope."""
    rng = np.random.default_rng(3)
    curve = -np.expm1(-(np.sqrt(WAIT + LAG) - np.sqrt(WAIT)) / 20)
    x, y = (np.log(a) - np.log(a).mean() for a in (WAIT, LAG))
    tilt = rng.standard_normal((n, 3, 1)) * sigma
    noise = tilt[:, 0] + tilt[:, 1] * x + tilt[:, 2] * y + 0.2 * sigma * rng.standard_normal((n, WAIT.size))
    coords = {"waiting_time": ("pair", WAIT), "lag": ("pair", LAG), "replica": np.arange(n)}
    return xr.DataArray(curve * np.exp(noise), dims=("replica", "pair"), coords=coords)


def test_half_interval_is_the_standard_deviation_of_a_gaussian():
    draws = norm.ppf((np.arange(10_000) + 0.5) / 10_000)
    assert half_interval(draws) == pytest.approx(1, rel=0.006)
    assert half_interval(np.stack([draws, 2 * draws]), axis=1).tolist() == pytest.approx([0.9945, 1.989], rel=1e-3)


@pytest.mark.parametrize("freedom", [1, 2, 7])
def test_draws_of_few_replicas_have_the_quantiles_of_their_law(freedom):
    draws = student_t_draws(2.0, 0.1, freedom, (4, 500), np.random.default_rng(0))
    for level in (0.025, 0.16, 0.5, 0.84, 0.975):
        low, high = 2 + 0.1 * t.ppf([level - 1 / 2000, level + 1 / 2000], freedom)
        assert low < np.quantile(draws, level) < high
    chains = np.median(draws, axis=1)  # the slices are in random order: chains agree
    assert np.ptp(chains) < 0.05


def test_mean_over_values_has_the_interval_of_student():
    values = np.array([1.0, 2.0, 4.0])
    expected = t.ppf(0.84, 2) * values.std(ddof=1) / np.sqrt(3)
    assert mean_half_interval(values) == pytest.approx(expected)


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("likelihood", ["wick", "seeds"])
def test_the_stated_error_does_not_depend_on_the_seed_of_the_generator(n, likelihood):
    delta = seeds(n)
    fits = [fit_subaging(delta, rng=seed, likelihood=likelihood) for seed in range(3)]
    table = xr.concat([fit.summary().sel(coefficient="mu") for fit in fits], "seed")
    stated = table["stderr"].values
    edges = table["interval"].sel(level=0.68).values
    np.testing.assert_allclose(stated, np.diff(edges, axis=1)[:, 0] / 2)
    assert np.ptp(stated) < 0.02 * stated.mean()
    wide = np.diff(table["interval"].sel(level=0.95).values, axis=1)
    assert np.ptp(wide) < 0.05 * wide.mean()
    assert len({fit.status for fit in fits}) == 1


def test_whatever_prints_an_uncertainty_prints_that_one():
    draws = np.random.default_rng(0).standard_t(1, size=(4, 500)) * 0.1 + 0.5
    fit = FitResult("fit_subaging", xr.Dataset({"mu": (("chain", "draw"), draws)}), xr.Dataset(), xr.Dataset())
    low, high = np.quantile(draws, [0.16, 0.84])
    stated = (high - low) / 2
    assert f"+- {stated:.2g}  (68 %" in str(fit) == repr(fit)
    assert f">{stated:.2g}</td>" in fit._repr_html_()
    assert float(fit.summary(levels=(0.95,))["stderr"][0]) == pytest.approx(stated)
    batch = fit_batch(lambda data, *, rng: fit, {"a": 0}, rng=0, scheduler="synchronous")
    assert float(batch["stderr"].squeeze()) == pytest.approx(stated)
