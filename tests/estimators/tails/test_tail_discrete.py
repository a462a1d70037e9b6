"""Values on a grid: integers, quantised and rounded weights, copies; a layer without a tail among others."""

import warnings

import numpy as np
import pytest
from scipy.special import zeta

from trajstats import hill_plot, spectral_tails, tail_fit, trajectory_dataset, weight_tails
from trajstats.errors import FitError
from trajstats.estimators.tails._discrete import draw_zeta, find_grid, log_zeta, spread_rounded
from trajstats.estimators.tails._kernels import PowerLaw


def zeta_sample(alpha, n, seed=0):
    """Exact inversion of P(k) = k^-alpha / zeta(alpha)."""
    k = np.arange(1, 1_000_000)
    return 1.0 + np.searchsorted(np.cumsum(k**-alpha) / zeta(alpha), np.random.default_rng(seed).random(n))


@pytest.mark.parametrize("alpha", [1.01, 1.5, 2.5, 8.0, 20.0])
def test_log_zeta_equals_scipy(alpha):
    q = np.array([1.0, 2.0, 5.0, 30.0, 400.0])
    np.testing.assert_allclose(log_zeta(alpha, q), np.log(zeta(alpha, q)), atol=2e-11)


def test_integers_of_a_zeta_law_give_its_exponent():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        powerlaw = pytest.importorskip("powerlaw")
        sample = zeta_sample(2.5, 5000)
        theirs = powerlaw.Fit(sample, discrete=True, xmin=1, estimate_discrete=False, verbose=0).power_law.alpha
    fit = tail_fit(sample, x_min=1, rng=0, compare=False)
    assert fit.kind == "discrete"
    assert float(fit.alpha) == pytest.approx(theirs, abs=1e-4)
    assert float(fit.alpha) == pytest.approx(2.5, abs=4 * float(fit.alpha_stderr))
    # the second derivative of ln zeta(2.5) is 0.4606 and n = 5000: 0.0208 + what the estimate of alpha moves it
    assert float(fit.alpha_stderr) == pytest.approx(0.0243, abs=0.001)


@pytest.mark.slow
def test_stated_error_is_the_scatter_over_samples():
    fits = [tail_fit(zeta_sample(2.2, 1000, seed), x_min=1, rng=0, compare=False) for seed in range(100)]
    alpha = np.array([float(fit.alpha) for fit in fits])
    stated = np.mean([float(fit.alpha_stderr) for fit in fits])
    # the sd of 100 draws is known to 7 %
    assert alpha.std() == pytest.approx(stated, rel=0.25)
    assert abs(alpha.mean() - 2.2) < 4 * stated / np.sqrt(100)


@pytest.mark.parametrize("scale", [1.0, 0.013, -250.0])
def test_a_grid_of_any_step_gives_the_same_exponent(scale):
    whole = tail_fit(zeta_sample(2.5, 3000), rng=0)
    scaled = tail_fit((scale * zeta_sample(2.5, 3000)).astype(np.float32), rng=0)
    assert float(scaled.alpha) == pytest.approx(float(whole.alpha), rel=1e-6)
    assert float(scaled.x_min) == pytest.approx(abs(scale) * float(whole.x_min), rel=1e-5)
    assert float(scaled.grid_step) == pytest.approx(abs(scale), rel=1e-5)
    np.testing.assert_allclose(scaled.log_likelihood_ratio, whole.log_likelihood_ratio, atol=0.05)
    np.testing.assert_allclose(
        scaled.law_parameters.sel(law="gaussian")[0],
        abs(scale) * whole.law_parameters.sel(law="gaussian")[0],
        rtol=1e-3,
    )


def test_zeta_draws_follow_the_law():
    law = PowerLaw(2.2, 3.0, 1, 0.0)
    draws = draw_zeta(law, 200_000, np.random.default_rng(0))
    for k in (3, 4, 10, 100, 8000):
        above = zeta(2.2, k) / zeta(2.2, 3)
        assert np.mean(draws >= k) == pytest.approx(above, abs=5 * np.sqrt(above / 200_000) + 1e-9)


@pytest.mark.slow
def test_p_value_accepts_a_zeta_law_and_rejects_poisson_counts():
    low = sum(
        float(tail_fit(zeta_sample(2.5, 1000, seed), bootstrap=40, compare=False, rng=seed).p_value) < 0.1
        for seed in range(20)
    )
    assert low <= 6
    counts = np.random.default_rng(0).poisson(20, 3000)
    assert float(tail_fit(counts, min_tail=1000, bootstrap=40, compare=False, rng=0).p_value) <= 0.05


def test_laws_are_compared_on_integers():
    rng = np.random.default_rng(1)
    fit = tail_fit(np.rint(np.exp(1.5 + 0.5 * rng.standard_normal(20_000))), x_min=2, rng=0)
    lognormal = fit.sel(law="lognormal")
    assert float(lognormal.log_likelihood_ratio) < -100
    np.testing.assert_allclose(lognormal.law_parameters, [1.5, 0.5], rtol=0.05)
    true = tail_fit(zeta_sample(2.5, 5000), x_min=1, rng=0)
    assert (true.log_likelihood_ratio > -4).all()
    assert float(true.sel(law="gaussian").log_likelihood_ratio) > 1000


@pytest.mark.parametrize(("bits", "name"), [(8, "bfloat16"), (11, "float16"), (4, "float8_e4m3")])
def test_rounded_floats_keep_their_exponent(bits, name):
    del name
    sample = np.random.default_rng(0).random(20_000) ** (-1 / 1.5)
    mantissa, exponent = np.frexp(sample)
    rounded = np.ldexp(np.rint(mantissa * 2**bits), exponent - bits)
    fit = tail_fit(rounded, rng=0, compare=False, x_min=2.0)
    exact = tail_fit(sample, rng=0, compare=False, x_min=2.0)
    assert fit.kind == "rounded"
    assert float(fit.alpha) == pytest.approx(float(exact.alpha), abs=1.5 * float(exact.alpha_stderr))
    assert float(fit.ks_distance) < 0.03
    spread = spread_rounded(np.sort(rounded), bits)
    assert np.unique(spread).size == spread.size
    assert (np.abs(spread / np.sort(rounded) - 1) <= 2.0**-bits).all()


def test_quantised_weights_are_near_the_unrounded_exponent():
    weights = np.random.default_rng(0).standard_t(3, 20_000)
    exact = tail_fit(weights, rng=0, compare=False)
    levels = tail_fit(np.round(weights / np.abs(weights).max() * 127) * 0.031, rng=0, compare=False)
    assert levels.kind == "discrete"
    assert float(levels.alpha) == pytest.approx(float(exact.alpha), abs=4 * float(exact.alpha_stderr))
    plot, smooth = hill_plot(np.round(10 * weights)), hill_plot(weights)
    at = {"k": 300, "method": "nearest"}
    assert float(plot["index"].sel(**at)) == pytest.approx(float(smooth["index"].sel(**at)), rel=0.1)


def test_float32_ties_by_chance_are_no_grid():
    assert find_grid(np.sort(np.abs(np.random.default_rng(0).standard_normal(3_000_000).astype(np.float32)))).kind == (
        "continuous"
    )


def test_copies_and_too_few_levels_are_refused():
    sample = np.random.default_rng(0).random(500) ** (-1 / 1.5)
    with pytest.raises(FitError, match="repeat another one"):
        tail_fit(np.repeat(sample, 2), rng=0)
    with pytest.raises(FitError, match="only 3 levels"):
        tail_fit(np.random.default_rng(0).integers(1, 4, 500), rng=0)


def test_a_layer_without_a_tail_does_not_stop_the_others():
    rng = np.random.default_rng(0)
    layers = {"good.weight": (60, 60), "zero.weight": (60, 60), "bad.weight": (60, 60)}
    weights = np.concatenate([rng.standard_normal(3600), np.zeros(3600), rng.standard_normal(3600)])[None].copy()
    weights[0, -1] = np.nan
    run = trajectory_dataset(weights, step=[0], layers=layers)
    for fit in (weight_tails(run, rng=0, compare=False), spectral_tails(run, rng=0)):
        row = fit.isel(replica=0, step=0)
        assert np.isfinite(row.alpha).values.tolist() == [True, False, False]
        assert str(row.reason[0].item()) == ""
        assert "zero" in str(row.reason[1].item())
        assert "NaN" in str(row.reason[2].item())
    with pytest.raises(FitError, match=r"zero\.weight"):
        spectral_tails(run, layers=["zero.weight"], rng=0)
