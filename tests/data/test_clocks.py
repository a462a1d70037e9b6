"""Which clock is taken when none is given, and that pairs and results carry it."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

import trajstats as ts
from trajstats.data._clocks import clock_of, default_clock
from trajstats.errors import ArgumentError

STEPS = np.unique(np.rint(np.geomspace(1, 20_000, 40)).astype(int))
RATES = 1 / np.arange(1, STEPS[-1] + 1)


def run_with(proper_time=None, step=STEPS, **clocks):
    clocks |= {} if proper_time is None else {"proper_time": proper_time}
    walk = np.cumsum(np.random.default_rng(0).standard_normal((len(step), 30)), axis=0)
    return ts.trajectory_dataset(walk, step=step, layers={"a": (20,), "b": (10,)}, clocks=clocks)


@pytest.fixture(scope="module")
def scheduled():
    """A learning rate that falls as one over the step."""
    return run_with(np.cumsum(RATES)[STEPS - 1])


def in_single(rate, n):
    return np.cumsum(np.full(n, rate, "float32"), dtype="float32")


@pytest.mark.parametrize(
    "proper_time",
    [
        None,
        0.05 * STEPS,
        0.05 * (STEPS - 1),
        0.05 * (STEPS + 1),
        (0.05 * STEPS).astype("float32"),
        np.cumsum(np.full(STEPS[-1], 0.1))[STEPS - 1],
        in_single(0.1, STEPS[-1])[STEPS - 1],
        np.zeros(STEPS.size),
        np.full(STEPS.size, np.nan),
        np.where(np.arange(STEPS.size) < 3, np.nan, 0.05 * STEPS),
    ],
    ids=[
        "none",
        "exact",
        "less a step",
        "plus a step",
        "single",
        "summed",
        "single sum",
        "zero",
        "nan",
        "partly",
    ],
)
def test_a_constant_learning_rate_changes_nothing(proper_time):
    run = run_with(proper_time)
    assert default_clock(run) == "step"
    pairs = ts.time_pairs(run, waiting_time=STEPS[[3, 9]], lags_per_decade=3)
    assert pairs.attrs["clock"] == "step"
    assert "clock_reason" not in pairs.attrs


def test_a_long_sum_in_single_precision_is_still_constant():
    step = np.unique(np.rint(np.geomspace(1, 1_000_000, 60)).astype(int))
    drifted = in_single(0.1, 1_000_000)[step - 1]
    assert abs(drifted[-1] / 1e5 - 1) > 5e-3
    assert default_clock(run_with(drifted, step=step)) == "step"


@pytest.mark.parametrize(
    "proper_time",
    [
        np.cumsum(RATES)[STEPS - 1],
        np.cumsum(RATES)[STEPS - 1].astype("float32"),
        np.cumsum(0.05 * (1 + np.cos(np.pi * np.arange(STEPS[-1]) / STEPS[-1])))[STEPS - 1],
        np.cumsum(np.minimum(np.arange(STEPS[-1]) / 100, 1))[STEPS - 1],
        np.where(STEPS < 10_000, 0.1 * STEPS, 1_000 + 0.01 * (STEPS - 10_000)),
        0.05 * (STEPS + 500),
        0.05 * STEPS**1.01,
    ],
    ids=["1/t", "1/t in single", "cosine", "warm-up", "drop", "offset", "slow"],
)
def test_a_schedule_makes_proper_time_the_default(proper_time):
    pairs = ts.time_pairs(run_with(proper_time))
    assert pairs.attrs["clock"] == "proper_time"
    assert "not proportional to the step" in pairs.attrs["clock_reason"]
    assert (pairs.lag > 0).all()


@pytest.mark.parametrize("numbers", [{"waiting_time": [1000]}, {"lag": [1000]}, {"min_lag": 1000}])
def test_numbers_that_could_be_on_two_clocks_are_refused(scheduled, numbers):
    name = next(iter(numbers))
    with pytest.raises(
        ArgumentError,
        match=rf"{name}=1000 could mean 1000 optimiser steps or a sum of learning rates of 1000.*clock='step' or",
    ):
        ts.time_pairs(scheduled, **numbers)


def test_numbers_on_a_clock_that_is_given_are_taken(scheduled):
    wait = int(STEPS[20])
    assert ts.time_pairs(scheduled, waiting_time=[wait], clock="step").waiting_time.values[0] == wait
    own = float(scheduled.proper_time[20])
    pairs = ts.time_pairs(scheduled, waiting_time=[own], min_lag=1.0, clock="proper_time")
    assert pairs["first"].values[0] == wait
    assert pairs.lag.min() >= 1.0


def test_shortest_lag_is_on_the_clock_and_before_thinning(scheduled):
    pairs = ts.time_pairs(scheduled, min_lag=100, lags_per_decade=2, clock="step")
    assert (pairs.lag >= 100).all()
    with pytest.raises(ArgumentError, match="no pair of saved times is left with a lag of 1e"):
        ts.time_pairs(scheduled, min_lag=1e9, clock="step")
    for bad in (0, -1, np.inf, "10", [10]):
        with pytest.raises(ArgumentError, match="min_lag"):
            ts.time_pairs(scheduled, min_lag=bad, clock="step")
    with pytest.raises(ArgumentError, match="below min_lag"):
        ts.time_pairs(scheduled, lag=[10], min_lag=100, clock="step")


def test_pairs_carry_their_clock_into_what_is_measured(scheduled):
    pairs = ts.time_pairs(scheduled, lags_per_decade=3)
    few = pairs.isel(pair=slice(0, 5))
    times = scheduled.proper_time.values
    delta = ts.msd(scheduled, pairs)
    for result in (delta, ts.two_time(scheduled, few), ts.van_hove(scheduled, few, bins=4), ts.local_exponent(delta)):
        assert result.attrs["clock"] == "proper_time"
        for name in ("waiting_time", "lag"):
            assert result[name].attrs["units"] == "sum of learning rates"
    first, second = (np.searchsorted(STEPS, pairs[end].values) for end in ("first", "second"))
    np.testing.assert_array_equal(delta.waiting_time, times[first])
    np.testing.assert_array_equal(delta.lag, times[second] - times[first])
    np.testing.assert_array_equal(delta["second"] - delta["first"], STEPS[second] - STEPS[first])


def test_another_clock_can_be_asked_for(scheduled):
    pairs = ts.time_pairs(scheduled)
    delta = ts.msd(scheduled, pairs, clock="step")
    assert delta.attrs["clock"] == "step"
    assert "clock_reason" not in delta.attrs
    assert delta.lag.attrs["units"] == "optimiser steps"
    np.testing.assert_array_equal(delta.lag, pairs["second"] - pairs["first"])


def test_a_clock_survives_selection_arithmetic_and_lost_attributes(scheduled):
    pairs = ts.time_pairs(scheduled, lags_per_decade=3)
    some = pairs.isel(pair=slice(3, 20))
    joined = xr.concat([some, pairs.isel(pair=slice(20, 30))], "pair")
    bare = pairs.copy()
    bare.attrs = {}
    stripped = bare.copy()
    for name in ("waiting_time", "lag"):
        stripped[name].attrs = {}
    for one in (some, joined, bare, stripped):
        assert ts.msd(scheduled, one).attrs["clock"] == "proper_time"
    delta = ts.msd(scheduled, pairs).compute()
    total = (delta * delta.n_parameters).sum("layer") / delta.n_parameters.sum()
    total.attrs = {}
    assert clock_of(total) == "proper_time"
    assert clock_of(ts.local_exponent(total.drop_attrs(deep=False))) == "proper_time"


def test_pairs_made_by_hand_take_the_default(scheduled):
    by_hand = xr.Dataset({"first": ("pair", STEPS[[0, 3]]), "second": ("pair", STEPS[[5, 9]])})
    delta = ts.msd(scheduled, by_hand)
    assert delta.attrs["clock"] == "proper_time"
    assert "clock_reason" in delta.attrs
    assert ts.msd(run_with(0.1 * STEPS), by_hand).attrs["clock"] == "step"


def test_pairs_of_a_run_with_a_clock_that_this_run_lacks(scheduled):
    with pytest.raises(ArgumentError, match="the pairs count in 'proper_time', which this run does not have"):
        ts.msd(run_with(), ts.time_pairs(scheduled))


def test_a_clock_of_ones_own_is_named_with_its_unit(scheduled):
    noise = xr.DataArray(np.sqrt(STEPS), dims="step", attrs={"units": "noise units"})
    run = scheduled.assign_coords(tau=noise)
    delta = ts.msd(run, ts.time_pairs(run, clock="tau", lags_per_decade=2))
    assert delta.attrs["clock"] == "tau"
    assert delta.lag.attrs["units"] == "noise units"


def test_a_clock_that_stands_still_gives_no_pair_without_a_lag():
    proper_time = np.minimum(np.cumsum(RATES)[STEPS - 1], 6.0)
    pairs = ts.time_pairs(run_with(proper_time), lags_per_decade=4)
    assert (pairs.lag > 0).all()
    assert np.isfinite(pairs.lag).all()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda t: np.where(np.arange(t.size) == 4, np.nan, t), "NaN or infinite at 1 of 40 saved steps"),
        (lambda t: np.concatenate([t[:20], t[20:] - 3]), "runs backwards"),
        (lambda t: -t, "runs backwards"),
    ],
)
def test_a_clock_that_is_broken_is_refused(scheduled, spoil, words):
    times = scheduled.proper_time.values
    steps = STEPS if words != "NaN or infinite at 1 of 40 saved steps" else STEPS[: len(times)]
    broken = run_with(spoil(times), step=steps)
    words = words.replace("40", str(len(steps)))
    with pytest.raises(ArgumentError, match=words):
        ts.time_pairs(broken)
    assert ts.time_pairs(broken, clock="step").attrs["clock"] == "step"


def test_lags_on_a_clock_of_real_numbers_are_found_despite_rounding():
    run = run_with(step=np.arange(20), epoch=np.arange(20) * 0.1)
    pairs = ts.time_pairs(run, waiting_time=[0.3], lag=[0.3, 0.7], clock="epoch")
    assert pairs["second"].values.tolist() == [6, 10]


def test_the_length_of_an_epoch_names_its_clock(scheduled):
    step = np.arange(61)
    run = run_with(np.cumsum(1 / (1 + step)), step=step)
    delta = ts.msd(run, ts.time_pairs(run), per="all")
    with pytest.raises(ArgumentError, match="epoch=10 could mean 10 optimiser steps"):
        ts.epoch_echo(delta, epoch=10)
    echo = ts.epoch_echo(delta, epoch=10, clock="step")
    assert echo.attrs["clock"] == "step"
    assert set(np.unique(echo.lag)) <= {10, 20, 30, 40, 50}
    assert ts.epoch_echo(delta, epoch=1.0, clock="proper_time").attrs["clock"] == "proper_time"


def test_joined_runs_with_different_clocks_are_not_mixed(tmp_path, scheduled):
    times = scheduled.proper_time.values
    for seed, factor in enumerate((1.0, 2.0)):
        with ts.TrajectoryWriter(tmp_path / f"{seed}.zarr", {"w": (3,)}, replica=seed) as writer:
            for step, time in zip(STEPS, factor * times, strict=True):
                writer.append(int(step), np.full(3, step + seed, "f4"), proper_time=float(time))
    joined = ts.open_trajectory([tmp_path / "0.zarr", tmp_path / "1.zarr"])
    with pytest.raises(ArgumentError, match="proper_time is not the same in the 2 replicas"):
        ts.time_pairs(joined)
    assert ts.time_pairs(joined, clock="step").sizes["pair"] > 0
    alone = ts.time_pairs(joined.isel(replica=[1]))
    assert alone.attrs["clock"] == "proper_time"
    assert float(alone.waiting_time.max()) > times.max()


def test_a_run_without_the_clock_is_not_joined_silently(tmp_path, scheduled):
    for seed in (0, 1):
        with ts.TrajectoryWriter(tmp_path / f"{seed}.zarr", {"w": (3,)}, replica=seed) as writer:
            for step, time in zip(STEPS, scheduled.proper_time.values, strict=True):
                clock = {"proper_time": float(time)} if seed else {}
                writer.append(int(step), np.full(3, step + seed, "f4"), **clock)
    for order in ([0, 1], [1, 0]):
        joined = ts.open_trajectory([tmp_path / f"{seed}.zarr" for seed in order])
        with pytest.raises(ArgumentError, match="proper_time is not the same in the 2 replicas"):
            ts.time_pairs(joined)


def evenly(scheduled=True, n=41):
    step = np.arange(n)
    rate = 1 / (1 + step) if scheduled else np.full(n, 0.1)
    return run_with(np.cumsum(rate) - rate, step=step)


@pytest.mark.parametrize("average", [ts.time_averaged_msd, ts.stationarity_test])
def test_averages_over_waiting_times_ask_for_the_clock(average):
    delta = ts.all_pairs(evenly()).msd
    with pytest.raises(ArgumentError, match="equal lags could be in optimiser steps or in proper time"):
        average(delta)
    given = average(delta, clock="step")
    assert given.attrs["clock"] == "step"
    assert given.lag.attrs["units"] == "optimiser steps"
    assert average(ts.all_pairs(evenly(scheduled=False)).msd).attrs["clock"] == "step"
    with pytest.raises(ArgumentError, match="unknown clock 'epoch'"):
        average(delta, clock="epoch")


def test_lags_that_differ_by_rounding_are_one_lag():
    delta = ts.all_pairs(evenly(scheduled=False)).msd
    by_step = ts.time_averaged_msd(delta, clock="step")
    by_time = ts.time_averaged_msd(delta, clock="proper_time")
    np.testing.assert_allclose(by_time.lag, 0.1 * by_step.lag)
    np.testing.assert_allclose(by_time, by_step)
    tests = [ts.stationarity_test(delta, clock=clock) for clock in ("step", "proper_time")]
    np.testing.assert_allclose(tests[0].tau, tests[1].tau)


def test_regimes_of_the_loss_are_on_the_clock_of_the_pairs(scheduled):
    time = scheduled.proper_time.values
    run = scheduled.assign(loss=(("replica", "step"), np.interp(np.log(time), np.log([2, 6]), [2.0, 0.5])[None]))
    regimes = ts.loss_regimes(run, rng=0, bins=20)
    assert regimes.attrs["clock"] == ts.time_pairs(run).attrs["clock"] == "proper_time"
    assert 1 < regimes.t1.item() < 4
    ax = ts.plot_loss(run, regimes)
    assert ax.get_xlabel() == "time $t$ (proper time: sum of learning rates)"
    with pytest.raises(ArgumentError, match="the regimes are on 'proper_time'"):
        ts.plot_loss(run, regimes, clock="step")
    assert ts.loss_regimes(run, rng=0, bins=20, clock="step").attrs["units"] == "optimiser steps"


def test_noise_is_integrated_over_a_clock_that_is_named(scheduled):
    strength = xr.DataArray(np.ones((1, STEPS.size)), dims=("replica", "step"))
    noise = xr.Dataset({"D2": strength}, coords={"step": STEPS, "proper_time": scheduled.proper_time})
    with pytest.raises(ArgumentError, match="Give clock='step' or clock='proper_time'"):
        ts.noise_clock(noise)
    over = ts.noise_clock(noise, clock="proper_time")
    np.testing.assert_allclose(over[0], scheduled.proper_time - scheduled.proper_time[0])
    assert over.attrs["units"] == "(loss / weight)^2 x sum of learning rates"


def test_stages_are_told_apart_on_their_own_clock():
    from trajstats.inference.response.separation import _stage_clock

    stages = xr.Dataset({"t1": 1.0, "t2": 2.0}, attrs={"clock": "proper_time"})
    assert _stage_clock(stages, None) == "proper_time"
    assert _stage_clock(None, None) == "step"
    with pytest.raises(ArgumentError, match="stages are on 'proper_time'"):
        _stage_clock(stages, "step")


def test_learning_times_of_seeds_with_clocks_of_their_own(tmp_path):
    for seed, factor in enumerate((1.0, 2.0)):
        with ts.TrajectoryWriter(tmp_path / f"{seed}.zarr", {"w": (3,)}, replica=seed, attrs={"width": 4}) as writer:
            for step in range(1, 30):
                series = {"loss": (1 + seed / 1000) / step, "proper_time": factor * step}
                writer.append(step, np.full(3, step + seed, "f4"), **series)
    joined = ts.open_trajectory([tmp_path / "0.zarr", tmp_path / "1.zarr"])
    times = ts.learning_times({"both": joined}, loss=0.1, width={"both": 4})
    assert times.attrs["clock"] == "proper_time"
    np.testing.assert_allclose(times.learning_time, [10, 20.02], rtol=1e-9)
