"""Populations over groups against the closed form for Gaussian groups."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import kstest, norm

from trajstats.errors import ArgumentError
from trajstats.inference._priors import merged_priors
from trajstats.inference.transition._population import hierarchical_draws

LIMITS, SPREAD = (0.0, 3.0), (0.0, 1.0)


def exact(centres, errors):
    """Moments of mean, spread and group coefficients under the same priors, by quadrature."""
    mean, spread = np.meshgrid(np.linspace(0, 3, 601), (np.arange(400) + 0.5) / 400, indexing="ij")
    log_post = np.zeros_like(mean)
    shrunk = []
    for m, e in zip(centres, errors, strict=True):
        scale = np.hypot(e, spread)
        room = norm.cdf((LIMITS[1] - mean) / spread) - norm.cdf((LIMITS[0] - mean) / spread)
        log_post += norm.logpdf(m, mean, scale) - np.log(room)
        shrunk.append((m * spread**2 + mean * e**2) / scale**2)
    weight = np.exp(log_post - log_post.max())
    weight /= weight.sum()
    first = float((weight * mean).sum())
    return {
        "mean": first,
        "error": float(np.sqrt((weight * (mean - first) ** 2).sum())),
        "spread": float((weight * spread).sum()),
        "groups": [float((weight * s).sum()) for s in shrunk],
    }


@pytest.mark.parametrize(
    ("centres", "errors"),
    [
        ([1.0, 1.2, 1.4, 1.1], [0.1, 0.1, 0.1, 0.4]),
        ([1.0, 1.01, 0.99, 1.02, 1.0], [0.05] * 5),
        ([0.8, 1.6], [0.05, 0.3]),
    ],
)
def test_gaussian_groups_give_the_closed_form(centres, errors):
    rng = np.random.default_rng(0)
    own = np.array(centres) + np.array(errors) * rng.standard_normal((4, 4000, len(centres)))
    found = hierarchical_draws(own, LIMITS, SPREAD, rng)
    known = exact(centres, errors)
    # 4000 joint draws: three Monte-Carlo errors, and 2 % for the kernel's width
    tolerance = 3 * known["error"] / np.sqrt(4000) + 0.02 * known["error"]
    assert found.mean.mean() == pytest.approx(known["mean"], abs=tolerance)
    assert found.mean.std() == pytest.approx(known["error"], rel=0.06)
    assert found.spread.mean() == pytest.approx(known["spread"], rel=0.06)
    flat = own.reshape(-1, len(centres))
    pooled = np.take_along_axis(flat, found.rows.reshape(-1, len(centres)), axis=0)
    for k, value in enumerate(known["groups"]):
        assert pooled[:, k].mean() == pytest.approx(value, abs=0.08 * errors[k])


def test_a_vague_group_borrows_and_says_how_many_of_its_draws_count():
    rng = np.random.default_rng(1)
    own = np.stack([rng.normal(1, 0.05, (4, 3000)), rng.normal(1, 0.05, (4, 3000)), rng.uniform(0, 3, (4, 3000))], -1)
    found = hierarchical_draws(own, LIMITS, (0.0, 0.1), rng)
    pooled = own[..., 2].reshape(-1)[found.rows[..., 2]]
    assert pooled.std() < 0.2 < own[..., 2].std()
    assert found.ess[2] < 0.3 * own[..., 2].size
    assert found.ess[0] > 0.5 * own[..., 0].size


def test_a_prior_that_fixes_the_spread_apart_leaves_groups_alone():
    rng = np.random.default_rng(2)
    own = rng.normal([1.0, 1.5], 0.02, (4, 3000, 2))
    found = hierarchical_draws(own, LIMITS, (0.9, 1.0), rng)
    pooled = np.take_along_axis(own.reshape(-1, 2), found.rows.reshape(-1, 2), axis=0)
    assert kstest((pooled[::4, 0] - 1.0) / 0.02, "norm").pvalue > 1e-3


@pytest.mark.parametrize("edges", [(1.0, 0.0), (0.0, np.inf), (0.0, np.nan), (0.0, 1.0, 2.0)])
def test_priors_are_two_finite_numbers_in_order(edges):
    with pytest.raises(ArgumentError, match="below the upper"):
        merged_priors({"a": (0.0, 1.0)}, {"a": edges})
