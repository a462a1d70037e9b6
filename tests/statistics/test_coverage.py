"""Coverage of the stated intervals, at a size for every run; the table of the documentation is coverage_table.py's."""

from __future__ import annotations

import numpy as np
import pytest
from aging_simulations import LEVELS, SCENARIOS, subaging_coverage, subaging_ranks
from divergence_simulations import (
    BETA,
    FLOOR,
    W_C,
    decay_draws,
    decay_ranks,
    divergence_draws,
    divergence_ranks,
    hits,
    learning_times,
    naive_decay,
    naive_divergence,
    training_curves,
)
from scipy.stats import kstest

pytestmark = pytest.mark.slow


def assert_covers(table):
    """Rates within three binomial standard errors of the nominal ones."""
    n = table.shape[0]
    error = np.sqrt(LEVELS * (1 - LEVELS) / n)
    np.testing.assert_array_less(np.abs(table.mean(axis=0) - LEVELS) / error, 3)


def test_mu_is_covered_by_one_run_and_not_by_iid():
    names = [name for name, scenario in SCENARIOS.items() if "replicas" not in scenario]
    parts = [subaging_coverage(name, 16, seed=1) for name in names]
    wick, iid = np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])
    assert_covers(wick)
    # the likelihood everybody uses, beside it: its 95 % interval does not hold 85 %
    assert iid[:, 2].mean() < 0.85
    ranks = np.concatenate([p[2] for p in parts])
    assert kstest(ranks, "uniform").pvalue > 0.01


def test_mu_is_covered_by_eight_replicas():
    parts = [subaging_coverage(name, 8, seed=2) for name, scenario in SCENARIOS.items() if "replicas" in scenario]
    assert_covers(np.concatenate([p[0] for p in parts]))
    assert kstest(np.concatenate([p[2] for p in parts]), "uniform").pvalue > 0.01


def test_w_c_and_nu_are_covered_with_a_third_censored():
    rng = np.random.default_rng(3)
    times = learning_times(60, rng)
    draws, r_hat = divergence_draws(times, rng)
    assert np.median(r_hat) < 1.05
    for k, truth in ((0, W_C), (1, 1.0)):
        assert_covers(hits(draws[..., k], truth))
    # beside it: dropping the runs that did not learn
    assert naive_divergence(times)[0][:, 0].mean() < 0.6
    assert abs(np.median(draws[..., 0], axis=1).mean() - W_C) < 0.3


def test_the_decay_exponent_is_covered_under_correlated_noise():
    data = training_curves(40, np.random.default_rng(4))
    draws, r_hat = decay_draws(data, np.random.default_rng(5))
    assert np.median(r_hat) < 1.1
    assert_covers(hits(draws[..., 2], BETA))
    assert_covers(hits(draws[..., 0], FLOOR))
    # beside it: independent errors
    assert naive_decay(data)[:, 2].mean() < 0.8


def test_ranks_of_truths_drawn_from_the_prior_are_uniform():
    rng = np.random.default_rng(6)
    # eleven ranks are looked at; each of the three fits as a whole may fail one time in a hundred
    for ranks in (subaging_ranks(120)[:, None], divergence_ranks(40, rng, steps=1500), decay_ranks(40, rng)):
        p = [kstest(column, "uniform").pvalue for column in ranks.T]
        assert min(p) > 0.01 / len(p)
