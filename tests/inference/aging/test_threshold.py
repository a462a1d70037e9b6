"""The slope of crossing times with censored ones, against a simplex search of the likelihood itself."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_ndtr

from trajstats.inference.aging._threshold import crossing_times, threshold_slopes


def by_simplex(x, y, state):
    def cost(c):
        z = (y - c[0] * x - c[1]) / np.exp(c[2])
        each = np.where(state == 0, -0.5 * z**2 - c[2], log_ndtr(np.where(state > 0, -z, z)))
        return -each.sum() + 0.5 * max(-6 - c[2], 0) ** 2

    start = [*np.polyfit(x[state == 0], y[state == 0], 1), -1.0]
    options = {"maxiter": 9000, "maxfev": 9000, "xatol": 1e-9, "fatol": 1e-12}
    return minimize(cost, start, method="Nelder-Mead", options=options).x[0]


def test_censored_slopes_are_those_of_the_likelihood():
    rng = np.random.default_rng(0)
    x = np.sort(rng.uniform(3, 10, 9))
    noise = np.array([0, 0.01, 0.1, 0.5, 0.5, 0.5])[:, None] * rng.standard_normal((6, 9))
    y = 0.6 * x + 1 + noise
    late, early = np.quantile(y, [0.75, 0.2], axis=1)[..., None]
    early[:3] = -np.inf
    state = np.where(y > late, 1, np.where(y < early, -1, 0))
    y = np.clip(y, early, late)
    want = [by_simplex(x, *row) for row in zip(y, state, strict=True)]
    np.testing.assert_allclose(threshold_slopes(x, y, state), want, atol=1e-5)


def test_few_crossings():
    x, y = np.array([1.0, 2.0, 3.0, 4.0]), np.array([[0.5, 1.0, 1.2, 1.2], [1.0, 2.0, 3.0, 4.0], [0.0, 9.0, 9.0, 9.0]])
    state = np.array([[0, 0, 1, 1], [0, 0, 0, 0], [0, 1, 1, 1]])
    np.testing.assert_allclose(threshold_slopes(x, y, state), [0.5, 1.0, np.nan])


def test_thresholds_are_crossed_together_as_one_by_one():
    rng = np.random.default_rng(1)
    wait, lag = (a.ravel() for a in np.meshgrid(np.geomspace(10, 1e3, 5), np.geomspace(1, 1e4, 9), indexing="ij"))
    draws = np.log(lag) + 0.3 * rng.standard_normal((4, lag.size))
    levels = np.array([2.0, 5.0, 9.0])
    x, y, state = crossing_times(wait, lag, draws, levels)
    assert y.shape == state.shape == (3, 4, 5)
    for k, level in enumerate(levels):
        one = crossing_times(wait, lag, draws, level)
        for got, want in zip((x, y[k], state[k]), one, strict=True):
            np.testing.assert_array_equal(got, want)
    assert crossing_times(wait, lag, draws[0], 5.0)[1] == pytest.approx(y[1, 0])
