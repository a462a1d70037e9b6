"""Time averages, and the test that says whether they may be taken."""

from __future__ import annotations

import numpy as np
import pytest

import trajstats as ts
from trajstats.data.schema import trajectory_dataset
from trajstats.data.synthetic.processes import brownian, ornstein_uhlenbeck, scaled_brownian
from trajstats.errors import ArgumentError


def test_time_average_is_the_mean_over_waiting_times_on_even_and_uneven_grids():
    for steps in (np.arange(30), np.array([0, 1, 2, 5, 6, 9, 20, 21, 40])):
        run = brownian(steps, rng=0, n_parameters=700, replicas=2)
        got = ts.time_averaged_msd(ts.all_pairs(run).msd).compute()
        w = run.weights.values[1].astype(np.float64)
        for lag in got.lag.values:
            pairs = [(i, j) for i in range(steps.size) for j in range(i, steps.size) if steps[j] - steps[i] == lag]
            want = np.mean([np.mean((w[j] - w[i]) ** 2) for i, j in pairs])
            assert float(got.sel(lag=lag)[1]) == pytest.approx(want, rel=1e-6)
            assert int(got.n_pairs.sel(lag=lag)) == len(pairs)


def test_time_average_on_another_clock():
    run = trajectory_dataset(
        np.cumsum(np.ones((5, 3)), axis=0), step=[0, 1, 2, 3, 4], clocks={"epoch": np.arange(5) / 2}
    )
    got = ts.time_averaged_msd(ts.all_pairs(run).msd, clock="epoch")
    assert got.lag.values.tolist() == [0.5, 1.0, 1.5, 2.0]
    np.testing.assert_allclose(got[0], [1, 4, 9, 16], rtol=1e-6)


@pytest.mark.slow
def test_false_alarms_are_as_rare_as_stated():
    # 200 stationary runs at level 0.01 (Bonferroni keeps it below): more than 8 alarms has a probability below 1e-3.
    alarms = 0
    for seed in range(100):
        for make in (brownian, lambda s, **k: ornstein_uhlenbeck(s, time=1.0, **k)):
            run = make(range(60), rng=seed, n_parameters=200)
            alarms += not ts.stationarity_test(ts.all_pairs(run).msd).stationary
    assert alarms <= 8


def test_aging_is_seen():
    run = scaled_brownian(range(1, 101), rng=0, exponent=0.3, n_parameters=500)
    found = ts.stationarity_test(ts.all_pairs(run).msd)
    assert not found.stationary
    assert float(found.tau[0]) < -0.5


def test_too_few_windows_are_refused():
    with pytest.raises(ArgumentError, match="no lag has 6 windows"):
        ts.stationarity_test(ts.all_pairs(brownian([0, 1, 10, 100], rng=0)).msd)
