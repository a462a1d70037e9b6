"""Maximum likelihood against closed forms and certified data."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from scipy.stats import chi2

from trajstats.errors import ArgumentError, FitError, TooFewReplicasError, UnsupportedError, optional_package
from trajstats.inference._uncertainty import left_out, linear_error
from trajstats.inference.model_scores import compare_fits, information_criteria, log_evidence, savage_dickey
from trajstats.inference.results import FitResult
from trajstats.inference.sampling._maximum import best_maximum, maximise


def test_exponential_rate_profile_is_exact():
    x = np.random.default_rng(0).exponential(2.0, 30)
    best = maximise(
        lambda v: -x.size * np.log(v[0]) - x.sum() / v[0], {"scale": (1.0, 0.01, 100.0)}, profile=("scale",)
    )
    mean = x.mean()
    assert best.values["scale"] == pytest.approx(mean, rel=1e-4)
    assert best.stderr["scale"] == pytest.approx(mean / np.sqrt(x.size), rel=0.02)
    for edge in best.intervals["scale"]:
        drop = x.size * (np.log(edge / mean) + mean / edge - 1)
        assert drop == pytest.approx(chi2.ppf(0.95, 1) / 2, rel=1e-2)


def test_certified_nonlinear_regression():
    # NIST StRD Misra1a: y = b1 (1 - exp(-b2 x)); certified b1 = 2.3894212918E+02, b2 = 5.5015643181E-04
    y = np.array([10.07, 14.73, 17.94, 23.93, 29.61, 35.18, 40.02, 44.82, 50.76, 55.05, 61.01, 66.40, 75.47, 81.78])
    x = np.array([77.6, 114.9, 141.1, 190.8, 239.9, 289.0, 332.8, 378.4, 434.8, 477.3, 536.8, 593.1, 689.1, 760.0])
    best = maximise(
        lambda v: -0.5 * 12 * np.log(np.sum((y + v[0] * np.expm1(-v[1] * x)) ** 2)),
        {"b1": (250.0, 100.0, 500.0), "b2": (5e-4, 1e-4, 1e-3)},
    )
    assert best.values["b1"] == pytest.approx(2.3894212918e02, rel=1e-4)
    assert best.values["b2"] == pytest.approx(5.5015643181e-04, rel=1e-4)
    assert best.stderr["b1"] == pytest.approx(2.7070075241, rel=0.05)


def test_a_bound_that_binds_is_named_and_flat_directions_stay_wide():
    best = maximise(lambda v: float(v[0]), {"x": (0.5, 0.0, 1.0), "free": (0.0, -1.0, 1.0)})
    assert best.at_bound[0] == "x"
    assert best.stderr["free"] == pytest.approx(2 / np.sqrt(12), rel=0.2)
    with pytest.raises(FitError, match="not finite"):
        maximise(lambda v: float("-inf"), {"x": (0.5, 0.0, 1.0)})


def test_jackknife_of_a_mean_is_exact():
    x = np.random.default_rng(0).standard_normal(30)
    value, error = left_out(x, lambda s: s.mean(axis=0))
    assert value == pytest.approx(x.mean())
    assert error == pytest.approx(x.std(ddof=1) / np.sqrt(30))
    with pytest.raises(TooFewReplicasError):
        left_out(np.ones((1, 3)), lambda s: s.mean(axis=0))
    with pytest.raises(TooFewReplicasError):
        linear_error(np.ones(3), np.ones((1, 3)), np.ones(3))


def test_information_criteria_follow_their_formulas():
    one = information_criteria(-5.0, 3, 10)
    assert one["aicc"] == pytest.approx(6 + 10 + 24 / 6)
    assert one["bic"] == pytest.approx(3 * np.log(10) + 10)
    assert information_criteria(-5.0, 9, 10)["aicc"] == np.inf


def test_savage_dickey_of_a_gaussian_is_exact():
    draws = np.random.default_rng(0).normal(0.3, 0.2, 100_000)
    exact = np.log(2.0 * np.exp(-0.5 * (0.3 / 0.2) ** 2) / (0.2 * np.sqrt(2 * np.pi)))
    assert savage_dickey(draws, 0.0, (-1.0, 1.0)) == pytest.approx(exact, abs=0.03)
    assert savage_dickey(draws, 0.99, (-1.0, 1.0)) < -3


def scored(table):
    """A fit that holds nothing but the log likelihood (draw, group) of its groups."""
    chains = table.reshape(4, -1, table.shape[1])
    held = xr.Dataset({"y": (("chain", "draw", "group"), chains)}, coords={"group": np.arange(table.shape[1])})
    return FitResult("fit_divergence", xr.Dataset(), xr.Dataset(), xr.Dataset(), log_likelihood=held)


def test_left_out_scores_are_the_exact_ones_of_a_gaussian_mean():
    rng = np.random.default_rng(0)
    y = rng.normal(0, 1, 20)
    mean = rng.normal(y.mean(), 1 / np.sqrt(20), 20_000)
    table = -0.5 * (y - mean[:, None]) ** 2 - 0.5 * np.log(2 * np.pi)
    worse = -0.5 * (y - 2) ** 2 - 0.5 * np.log(2 * np.pi) + np.zeros((20_000, 1))
    found = compare_fits({"shifted": scored(worse), "mean": scored(table)})
    left = (y.sum() - y) / 19
    exact = -0.5 * (y - left) ** 2 / (1 + 1 / 19) - 0.5 * np.log(2 * np.pi * (1 + 1 / 19))
    assert found["model"].values.tolist() == ["mean", "shifted"]
    assert float(found["score"][0]) == pytest.approx(exact.sum(), abs=0.02)
    gap = worse[0] - exact
    assert float(found["score_difference"][1]) == pytest.approx(gap.sum(), abs=0.05)
    assert float(found["difference_stderr"][1]) == pytest.approx(np.sqrt(20) * gap.std(ddof=1), rel=0.02)
    assert bool(found["reliable"].all())


def test_scores_from_heavy_weights_are_called_unreliable():
    # weights with a tail of index 1/k
    draws = np.random.default_rng(0).pareto(1 / 0.9, (20_000, 2))
    found = compare_fits({"a": scored(-np.log1p(draws)), "b": scored(-np.log1p(draws[:, ::-1]))})
    np.testing.assert_allclose(found["pareto_k"], 0.9, atol=0.1)
    assert not found["reliable"].any()


def test_fits_without_independent_groups_are_not_scored():
    empty = FitResult("fit_decay", xr.Dataset(), xr.Dataset(), xr.Dataset())
    with pytest.raises(ArgumentError, match="one series with drifting noise"):
        compare_fits({"a": empty, "b": empty})


def test_evidence_of_a_gaussian_in_a_box_is_exact():
    covariance = np.array([[0.04, 0.018], [0.018, 0.01]])
    inverse = np.linalg.inv(covariance)
    value, error = log_evidence(
        lambda x: -0.5 * np.einsum("mi,ij,mj->m", x, inverse, x), {"a": (-3.0, 3.0), "b": (-2.0, 2.0)}, rng=0
    )
    exact = np.log(2 * np.pi * np.sqrt(np.linalg.det(covariance)) / 24)
    assert error < 0.3
    assert abs(value - exact) < 3 * error
    assert log_evidence(lambda x: -0.5 * x[:, 0] ** 2, {"a": (-3.0, 3.0)}, rng=1) == log_evidence(
        lambda x: -0.5 * x[:, 0] ** 2, {"a": (-3.0, 3.0)}, rng=1
    )


def test_packages_that_are_not_installed_are_named():
    with pytest.raises(UnsupportedError, match=r"pip install 'trajstats\[evidence\]'"):
        optional_package("no_such_package", "the evidence", "trajstats[evidence]")


def test_the_highest_of_two_maxima_is_found():
    def two(v):
        return np.logaddexp(-50 * ((v - 0.2) ** 2).sum(axis=-1), 3 - 50 * ((v - 0.8) ** 2).sum(axis=-1))

    start = {"a": (0.2, 0.0, 1.0), "b": (0.2, 0.0, 1.0)}
    found = best_maximum(two, start, {"a": (0.0, 1.0), "b": (0.0, 1.0)})
    np.testing.assert_allclose(found.vector, 0.8, atol=1e-3)
    assert maximise(lambda v: float(two(v[None])[0]), start).vector[0] == pytest.approx(0.2, abs=1e-3)
