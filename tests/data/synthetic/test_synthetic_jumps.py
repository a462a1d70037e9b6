"""Jumping processes against their laws."""

from __future__ import annotations

import numpy as np
import pytest

import trajstats as ts
from trajstats.data.synthetic import jumps as synthetic
from trajstats.errors import ArgumentError

N = 20_000


def test_mean_field_traps_age_by_the_arcsine_law():
    from scipy import integrate

    x = 0.5
    steps = np.unique(np.concatenate([[w, 2 * w, 11 * w] for w in (100, 1000, 10_000)]))
    run = synthetic.trap_model(steps, rng=0, x=x, n_parameters=N)
    for waiting in (1000, 10_000):
        for ratio in (1, 10):
            pairs = ts.time_pairs(run, waiting_time=[waiting], lag=[ratio * waiting])
            stay = 1 - float(ts.msd(run, pairs, per="all").compute()[0, 0]) / 2
            law = lambda u: np.sin(np.pi * x) / np.pi * (1 - u) ** (x - 1) * u**-x  # noqa: E731
            want = integrate.quad(law, ratio / (1 + ratio), 1)[0]
            # The MSD of the values that jumped scatters by sqrt(2 / N); the law is for long times.
            assert stay == pytest.approx(want, abs=5 / np.sqrt(N) + 0.01)


@pytest.mark.slow
def test_traps_on_a_line_age_more_slowly():
    x, waiting = 0.5, np.array([100, 1000, 10_000])
    gamma = 1 / (1 + x)
    lag = (waiting**gamma).round().astype(int)
    run = synthetic.trap_model(
        np.unique(np.concatenate([waiting, waiting + lag])), rng=0, x=x, lattice="line", n_parameters=4000
    )
    stay = []
    for w, t in zip(waiting, lag, strict=True):
        pairs = ts.time_pairs(run, waiting_time=[w], lag=[t])
        stay.append(1 - float(ts.msd(run, pairs, per="all").compute()[0, 0]) / 2)
    # The same probability at t = t_w^gamma over two decades; in t / t_w it would have to change.
    assert np.ptp(stay) < 0.08
    assert 0.2 < np.mean(stay) < 0.95


def test_same_seed_same_run_and_bad_names_are_named():
    a, b = (synthetic.displacement_noise([0, 1], rng=3, law="student") for _ in range(2))
    np.testing.assert_array_equal(a.weights, b.weights)
    with pytest.raises(ArgumentError, match="unknown law 'laplac'"):
        synthetic.displacement_noise([0, 1], rng=0, law="laplac")
    with pytest.raises(ArgumentError, match="unknown lattice"):
        synthetic.trap_model([0, 1], rng=0, lattice="cube")
    with pytest.raises(ArgumentError, match="0 < x < 1"):
        synthetic.trap_model([0, 1], rng=0, x=2.0)
    with pytest.raises(ArgumentError, match="closed form"):
        ts.exact_msd(a, ts.time_pairs(a))
