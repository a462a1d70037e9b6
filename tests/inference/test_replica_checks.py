"""Copies among replicas and falling displacements are refused, another level is flagged, NaN can be left out."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

import trajstats as ts
from trajstats.data._replicas import copied_rows
from trajstats.errors import ArgumentError, FitError, NonFiniteError
from trajstats.inference._replica_checks import falling_waiting_times, finite_part
from trajstats.inference.aging._points import two_time_points
from trajstats.inference.aging._replicas import population_mean

WAIT, LAG = (a.ravel() for a in np.meshgrid(np.geomspace(100, 1e4, 5), np.geomspace(10, 1e4, 7), indexing="ij"))
CURVE = -np.expm1(-(np.sqrt(WAIT + LAG) - np.sqrt(WAIT)) / 20)


def replicas(*rows, **coords):
    own = {"waiting_time": ("pair", WAIT), "lag": ("pair", LAG), "replica": np.arange(len(rows)) + 5, **coords}
    return xr.DataArray(np.stack(rows), dims=("replica", "pair"), coords=own)


def noisy(seed, size=0.03):
    return CURVE * np.exp(size * np.random.default_rng(seed).standard_normal(WAIT.size))


ONE = noisy(0)


@pytest.mark.parametrize(
    "other",
    [ONE, ONE * (1 + 1e-12), ONE.astype(np.float32), ONE * (1 + 3e-8 * np.random.default_rng(1).normal(size=35))],
)
def test_copies_are_refused_exact_or_up_to_rounding(other):
    for likelihood in ("wick", "seeds"):
        with pytest.raises(FitError, match="replica 7 is a copy of replica 5: copies are no independent runs"):
            ts.fit_subaging(replicas(ONE, noisy(1), other), rng=0, likelihood=likelihood)


def test_replicas_of_large_networks_are_no_copies():
    assert copied_rows(np.stack([ONE, ONE * (1 + 1e-4 * np.random.default_rng(0).normal(size=WAIT.size))])) == []
    assert copied_rows(np.array([[0.5], [0.5]])) == []  # one number
    assert copied_rows(np.zeros((2, 9))) == []  # weights that did not move
    gaps = np.where(np.arange(9) < 4, np.nan, np.arange(9.0))
    assert copied_rows(np.stack([gaps, np.arange(9.0)])) == []
    assert copied_rows(np.stack([gaps, gaps])) == [(1, 0)]


def test_the_mean_of_equal_estimates_has_no_error():
    with pytest.raises(FitError, match="the 3 estimates are equal to rounding"):
        population_mean(np.array([0.7, 0.7 + 1e-16, 0.7]), np.full(3, 0.1))


@pytest.mark.parametrize(("factor", "words"), [(14.0, "times the others' MSD"), (1 / 14, "of the others' MSD")])
def test_a_replica_of_another_level_is_flagged(factor, words):
    flags = two_time_points(replicas(noisy(0), noisy(1), factor * noisy(2))).flags
    assert [flag for flag in flags if words in flag and flag.startswith("replica 7 has")]
    assert not two_time_points(replicas(noisy(0), noisy(1), 5 * noisy(2))).flags
    pair = two_time_points(replicas(noisy(0), factor * noisy(2))).flags
    assert len(pair) == 1


@pytest.mark.parametrize("power", [-1.0, -0.3, -0.1])
def test_an_msd_that_falls_is_refused(power):
    with pytest.raises(FitError, match="the MSD falls with the lag at 5 of 5 waiting times"):
        ts.fit_subaging(replicas(LAG**power), rng=0)


def test_local_dips_and_noise_on_a_plateau_are_not_refused():
    echo = CURVE * np.where(np.arange(WAIT.size) % 3 == 2, 0.3, 1.0)
    assert two_time_points(replicas(echo)).flags == []
    for seed in range(20):
        plateau = np.exp(0.1 * np.random.default_rng(seed).standard_normal(WAIT.size))
        falling, judged = falling_waiting_times(WAIT, LAG, np.log(plateau))
        assert judged == 5
        assert falling <= 2
    at_one = np.where(WAIT[0] == WAIT, LAG**-0.5, CURVE)
    assert falling_waiting_times(WAIT, LAG, np.log(at_one)) == (1, 5)
    assert two_time_points(replicas(at_one)).lag.size == WAIT.size


def test_one_replica_that_falls_is_flagged():
    flags = two_time_points(replicas(10 * noisy(0), 10 * noisy(1), 5 * LAG**-0.1)).flags
    assert "replica 7 falls with the lag at 5 of 5 waiting times" in flags


def test_nan_is_refused_by_default_and_left_out_when_asked():
    lost = np.full(WAIT.size, np.nan)
    broken = np.where(np.arange(WAIT.size) == 3, np.inf, noisy(2))
    delta = replicas(noisy(0), lost, broken, noisy(3))
    with pytest.raises(NonFiniteError, match=r"trajstats.check_finite\(run\).*on_nan='skip'"):
        two_time_points(delta)
    points = two_time_points(delta, on_nan="skip")
    assert points.replica.tolist() == [5, 7, 8]
    assert points.lag.size == WAIT.size - 1
    assert points.flags == [
        "replicas left out: 6; more than half of their MSD is not finite",
        "1 of 35 pairs left out: their MSD is not finite in a replica",
    ]
    assert points.given == WAIT.size
    with pytest.raises(NonFiniteError):
        two_time_points(replicas(lost, lost), on_nan="skip")
    with pytest.raises(ArgumentError, match="unknown on_nan 'omit'; allowed: 'raise', 'skip'"):
        ts.fit_subaging(delta, rng=0, on_nan="omit")


def test_skipping_a_lost_replica_gives_the_fit_of_the_others():
    rows = noisy(0), noisy(1)
    skipped = ts.fit_subaging(replicas(*rows, np.full(WAIT.size, np.nan)), rng=0, on_nan="skip")
    plain = ts.fit_subaging(replicas(*rows), rng=0)
    np.testing.assert_array_equal(skipped.posterior["mu"], plain.posterior["mu"])
    assert skipped.flags[0].startswith("replicas left out: 7")


def test_points_are_kept_before_replicas_where_few_are_missing():
    values = np.ones((3, 10))
    values[0, :6] = np.nan
    values[1, :2] = np.nan
    rows, columns = finite_part(values)
    assert rows.tolist() == [False, True, True]
    assert columns.sum() == 8


def test_a_layer_without_weights_does_not_spread():
    layers = xr.concat(
        [replicas(noisy(0)), replicas(noisy(0)) * np.nan], xr.DataArray(["w", "none"], dims="layer", name="layer")
    )
    delta = layers.assign_coords(n_parameters=("layer", [4, 0]))
    np.testing.assert_allclose(np.log(two_time_points(delta).msd * two_time_points(delta).unit), np.log([noisy(0)]))
    with pytest.raises(FitError, match="layer 'none' has no weights"):
        two_time_points(delta, over="none")


def test_a_fit_says_how_many_of_the_pairs_it_uses():
    wait, lag = (a.ravel() for a in np.meshgrid(np.geomspace(100, 1e4, 15), np.geomspace(10, 1e4, 12), indexing="ij"))
    msd = np.sqrt(wait + lag) - np.sqrt(wait)
    fit = ts.fit_subaging(
        xr.DataArray(msd, dims="pair", coords={"waiting_time": ("pair", wait), "lag": ("pair", lag)}), rng=0
    )
    n = fit.data.sizes["pair"]
    assert fit.attrs["used"] == f"{n} of 180 pairs, thinned to 144 at most"
    assert f"\n  used: {fit.attrs['used']}\n" in str(fit)
    assert fit.summary().attrs["used"] == fit.attrs["used"]
    assert fit.diagnostics["n_given"] == 180
    assert fit.diagnostics["n_used"] == n
    assert ts.fit_subaging(replicas(noisy(0)), rng=0).attrs["used"] == "35 of 35 pairs"
