"""Processes against the laws they are named after."""

from __future__ import annotations

import numpy as np
import pytest

import trajstats as ts
from trajstats.data.synthetic import processes as synthetic

N = 20_000
STEPS = [0, 1, 3, 10, 31, 100, 316, 1000]


@pytest.mark.parametrize(
    "run",
    [
        synthetic.brownian(STEPS, rng=0, n_parameters=N),
        synthetic.scaled_brownian(STEPS, rng=0, exponent=0.4, n_parameters=N),
        synthetic.scaled_brownian(STEPS, rng=0, exponent=0.0, n_parameters=N),
        synthetic.ornstein_uhlenbeck(STEPS, rng=0, n_parameters=N, variance=3.0),
        synthetic.time_changed_ou(STEPS, rng=0, mu=0.6, n_parameters=N),
        synthetic.time_changed_ou(STEPS, rng=0, mu=1.0, n_parameters=N),
        synthetic.ballistic(STEPS, rng=0, n_parameters=N),
        synthetic.sgd_noise(STEPS, rng=0, n_parameters=N, momentum=0.9),
    ],
    ids=lambda r: r.attrs["process"],
)
def test_msd_is_the_exact_one(run):
    pairs = ts.time_pairs(run)
    got, want = ts.msd(run, pairs, per="all").compute()[0], ts.exact_msd(run, pairs)
    fine = want > 1e-6  # with a = 0, step 0 stands for step 1
    np.testing.assert_allclose(got[fine], want[fine], rtol=5 * np.sqrt(2 / N))


def test_momentum_diffuses_with_the_known_rate():
    run = synthetic.sgd_noise([0, 2000], rng=0, learning_rate=0.1, momentum=0.9, noise=2.0, n_parameters=N)
    got = float(ts.msd(run, ts.time_pairs(run), per="all").compute()[0, 0])
    # eta^2 t D2 / (M (1 - b)^2) with D2 / M = noise^2; the correction at finite t is b (1 + b) / (1 - b^2) / t = 0.5 %.
    assert got == pytest.approx(0.1**2 * 2000 * 2.0**2 / (1 - 0.9) ** 2, rel=5 * np.sqrt(2 / N) + 0.01)


@pytest.mark.parametrize(("mu", "slope"), [(0.3, 0.298), (0.6, 0.592), (0.8, 0.785), (1.0, 1.0)])
def test_aging_time_of_the_time_changed_ou_has_the_exact_slope(mu, slope):
    # Exact MSD at threshold 1 for waiting times 10 to 1e5: finite-range slopes, below mu for all but mu = 1.
    waiting = np.geomspace(10, 1e5, 10)
    age = waiting[:, None] + np.geomspace(1e-3, 1e7, 4000)
    delta = synthetic._exact_time_changed(waiting[:, None], age, {"mu": mu, "variance": 1, "scale": 1})
    crossing = [np.exp(np.interp(1, d, np.log(a - w))) for d, a, w in zip(delta, age, waiting, strict=True)]
    assert np.polyfit(np.log(waiting), np.log(crossing), 1)[0] == pytest.approx(slope, abs=0.001)
