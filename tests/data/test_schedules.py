"""Schedules, and pairs picked from what was saved."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import trajstats as ts
from trajstats.data.schema import trajectory_dataset
from trajstats.errors import ArgumentError


def saved(steps, **clocks):
    return trajectory_dataset(np.zeros((len(steps), 1)), step=steps, clocks=clocks)


@settings(deadline=None)
@given(st.sets(st.integers(0, 10_000), min_size=2, max_size=40), st.integers(1, 12))
def test_thinned_pairs_are_saved_and_evenly_spaced_in_the_logarithm(steps, per_decade):
    steps = sorted(steps)
    pairs = ts.time_pairs(saved(steps), lags_per_decade=per_decade)
    assert set(pairs["first"].values) | set(pairs["second"].values) <= set(steps)
    np.testing.assert_array_equal(pairs["second"] - pairs["first"], pairs.lag)
    for waiting in np.unique(pairs.waiting_time):
        cell = np.rint(np.log10(pairs.lag.values[pairs.waiting_time == waiting]) * per_decade)
        assert np.unique(cell).size == cell.size


def test_all_pairs_without_thinning():
    pairs = ts.time_pairs(saved([0, 1, 5, 9]))
    assert pairs.sizes["pair"] == 6


def test_lags_on_an_uneven_clock():
    run = saved([0, 10, 20, 40], proper_time=[0.0, 1.0, 1.5, 2.0])
    pairs = ts.time_pairs(run, waiting_time=[1.0], lag=[0.5, 1.0], clock="proper_time")
    assert pairs["second"].values.tolist() == [20, 40]
    assert pairs.attrs["clock"] == "proper_time"


def test_tolerance_is_relative_and_stated():
    run = saved([0, 99, 205])
    with pytest.raises(ArgumentError, match=r"waiting time 100 \(step\) was not saved; the nearest saved one is 99"):
        ts.time_pairs(run, waiting_time=[100])
    pairs = ts.time_pairs(run, waiting_time=[100], lag=[105], tolerance=0.02)
    assert pairs.lag.values.tolist() == [106]
    with pytest.raises(ArgumentError, match="no saved pair has a lag"):
        ts.time_pairs(run, waiting_time=[99], lag=[50])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda r: ts.time_pairs(r, waiting_time=[20]), "no pair of saved times is left"),
        (lambda r: ts.time_pairs(r, lag=[10], lags_per_decade=3), "not both"),
        (lambda r: ts.time_pairs(r, lags_per_decade=0), "at least 1"),
        (lambda r: ts.time_pairs(r, clock="epoch"), "unknown clock 'epoch'"),
        (lambda r: ts.log_schedule(0, 10, 3), "1 <= start"),
        (lambda r: ts.log_schedule(1, 10, 1), "at least 2 points"),
        (lambda r: ts.aging_schedule([], [1]), "at least one of each"),
        (lambda r: ts.aging_schedule([1], [0]), "lags >= 1"),
    ],
)
def test_bad_schedules_are_refused(call, words):
    with pytest.raises(ArgumentError, match=words):
        call(saved([0, 10, 20]))


def test_aging_schedule_serves_its_own_pairs():
    waiting, lags = ts.log_schedule(10, 1000, 5), ts.log_schedule(1, 500, 8)
    pairs = ts.time_pairs(saved(ts.aging_schedule(waiting, lags)), waiting_time=waiting, lag=lags)
    assert pairs.sizes["pair"] >= waiting.size * lags.size
