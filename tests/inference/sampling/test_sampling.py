"""Samplers against known laws, their diagnostics, and resuming."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import kstest

from trajstats.errors import ArgumentError, FitError, StoreError
from trajstats.inference.sampling._batched_chains import sample_batch, sample_ensembles
from trajstats.inference.sampling._emcee_chains import r_hat, sample_posterior

COVARIANCE = np.array([[1.0, 0.9], [0.9, 2.0]])
INVERSE = np.linalg.inv(COVARIANCE)
MEAN = np.array([1.0, -2.0])


def log_normal(x):
    d = x - MEAN
    return -0.5 * np.einsum("...i,ij,...j->...", d, INVERSE, d)


@pytest.mark.parametrize("sampler", [sample_posterior, sample_ensembles])
def test_a_gaussian_is_sampled(sampler):
    draws = sampler(log_normal, MEAN, COVARIANCE, names=["a", "b"], rng=0)
    assert bool(draws.diagnostics["converged"])
    flat = draws.values.reshape(-1, 2)
    ess = draws.diagnostics["ess"].values
    np.testing.assert_allclose(flat.mean(axis=0), MEAN, atol=4 * np.sqrt(np.diag(COVARIANCE) / ess).max())
    np.testing.assert_allclose(np.cov(flat.T), COVARIANCE, atol=4 * 2 * np.sqrt(2 / ess.min()))
    # draws of a walker are kept half an autocorrelation time apart: every eighth is independent enough for a KS test
    walkers = draws.values.reshape(draws.values.shape[0], -1, 16, 2)
    assert kstest(walkers[:, ::8, :, 0].ravel() - MEAN[0], "norm").pvalue > 1e-3


def test_same_seed_same_draws_and_numpy_generators_are_honoured():
    runs = [
        sample_posterior(log_normal, MEAN, COVARIANCE, names="ab", rng=seed, max_steps=100).values
        for seed in (3, np.random.default_rng(3), 4)
    ]
    np.testing.assert_array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0], runs[2])


def test_a_short_chain_says_so():
    draws = sample_posterior(log_normal, MEAN, COVARIANCE, names="ab", rng=0, max_steps=100)
    assert not bool(draws.diagnostics["converged"])
    assert "50 asked for" in str(draws.diagnostics["reason"].values)


def test_chains_in_different_modes_are_not_converged():
    def two(x):
        return np.logaddexp(-0.5 * ((x[:, 0] - 30) / 0.1) ** 2, -0.5 * ((x[:, 0] + 30) / 0.1) ** 2)

    draws = sample_posterior(two, np.array([0.0]), np.array([[900.0]]), names=["x"], rng=2, max_steps=1500)
    assert float(draws.diagnostics["r_hat"][0]) > 1.01 or not bool(draws.diagnostics["converged"])


def test_r_hat_sees_a_shifted_chain():
    x = np.random.default_rng(0).standard_normal((4, 1000, 1))
    assert r_hat(x)[0] < 1.01
    x[0] += 1
    assert r_hat(x)[0] == pytest.approx(np.sqrt(1 + np.var([1, 1, 0, 0, 0, 0, 0, 0], ddof=1)), abs=0.03)


def test_a_resumed_run_gives_the_same_draws(tmp_path):
    class InterruptError(Exception):
        pass

    calls = {"n": 0}

    def stops(x):
        calls["n"] += 1
        if calls["n"] > 700:
            raise InterruptError
        return log_normal(x)

    options = {"names": "ab", "rng": 1, "check_every": 100, "chains": 2}
    whole = sample_posterior(log_normal, MEAN, COVARIANCE, **options)
    with pytest.raises(InterruptError):
        sample_posterior(stops, MEAN, COVARIANCE, store=tmp_path, **options)
    assert any(tmp_path.iterdir())
    again = sample_posterior(log_normal, MEAN, COVARIANCE, store=tmp_path, **options)
    np.testing.assert_array_equal(again.values, whole.values)
    # stopped between the two renames of a save: what was there before is found
    (tmp_path / "chain0").rename(tmp_path / "chain0.old")
    again = sample_posterior(log_normal, MEAN, COVARIANCE, store=tmp_path, **options)
    np.testing.assert_array_equal(again.values, whole.values)
    assert not (tmp_path / "chain0.old").exists()
    with pytest.raises(StoreError, match="16 walkers and 2 coefficients"):
        sample_posterior(log_normal, MEAN, COVARIANCE, store=tmp_path, walkers=20, **options)


def test_options_and_hopeless_starts_are_refused():
    with pytest.raises(ArgumentError, match="unknown moves"):
        sample_posterior(log_normal, MEAN, COVARIANCE, names="ab", rng=0, moves="walk")
    with pytest.raises(ArgumentError, match="at least 2"):
        sample_posterior(log_normal, MEAN, COVARIANCE, names="ab", rng=0, chains=1)
    with pytest.raises(FitError, match="no finite posterior"):
        sample_posterior(lambda x: np.full(len(x), -np.inf), MEAN, COVARIANCE, names="ab", rng=0)


def test_walkers_start_inside_the_prior():
    # half the space is forbidden: emcee would start there without a word
    def half(x):
        return np.where(x[:, 0] > 0, -0.5 * x[:, 0] ** 2, -np.inf)

    draws = sample_posterior(half, np.array([0.01]), np.array([[1.0]]), names=["x"], rng=0)
    assert int(draws.diagnostics["stuck_walkers"]) == 0
    assert draws.values.min() > 0
    assert draws.values.mean() == pytest.approx(np.sqrt(2 / np.pi), abs=0.05)


def test_a_batch_of_problems_is_each_its_own():
    centres = np.arange(5.0)
    start = centres[:, None, None, None] + np.random.default_rng(0).standard_normal((5, 2, 8, 1))
    draws, hats = sample_batch(lambda x: -0.5 * (x[..., 0] - centres[:, None]) ** 2, start, rng=0, steps=3000)
    np.testing.assert_allclose(draws.mean(axis=(1, 2, 3)), centres, atol=0.1)
    np.testing.assert_allclose(draws.std(axis=(1, 2, 3)), 1, atol=0.1)
    assert (hats < 1.05).all()
