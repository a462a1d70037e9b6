"""Exponents of exact processes, what the fit refuses, and what it says about data it cannot describe."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

import trajstats as ts
from trajstats.errors import ArgumentError, FitError, NonFiniteError, TooFewReplicasError
from trajstats.inference.aging.curves.master_curves import MasterCurve, clock, mittag_leffler

WAIT, LAG = (a.ravel() for a in np.meshgrid(np.geomspace(100, 1e4, 12), np.geomspace(10, 1e5, 12), indexing="ij"))


def two_time(msd, wait=WAIT, lag=LAG):
    values = np.asarray(msd, dtype=float)
    dims = ("pair",) if values.ndim == 1 else ("replica", "pair")
    return xr.DataArray(values, dims=dims, coords={"waiting_time": ("pair", wait), "lag": ("pair", lag)})


def clock_gap(mu, wait=WAIT, lag=LAG, pivot=1000.0):
    return clock((wait + lag) / pivot, mu) - clock(wait / pivot, mu)


def gaussian_run(mu, modes, seed, wait=WAIT, lag=LAG):
    times, index = np.unique(np.concatenate([wait, wait + lag]), return_inverse=True)
    h = clock(times / 1000, mu)
    cov = np.exp(-np.abs(h[:, None] - h)) + 1e-10 * np.eye(times.size)
    x = np.linalg.cholesky(cov) @ np.random.default_rng(seed).standard_normal((times.size, modes))
    return ((x[index[wait.size :]] - x[index[: wait.size]]) ** 2).mean(axis=1)


def value(fit, name="mu"):
    return float(fit.summary()["value"].sel(coefficient=name))


EXACT = {
    "time-changed OU 0.3": (0.3, lambda: 2 * -np.expm1(-clock_gap(0.3))),
    "time-changed OU 0.6": (0.6, lambda: 2 * -np.expm1(-clock_gap(0.6))),
    "time-changed OU 0.8": (0.8, lambda: 2 * -np.expm1(-clock_gap(0.8))),
    "time-changed OU 1": (1.0, lambda: 2 * -np.expm1(-clock_gap(1.0))),
    "D ~ 1/t": (1.0, lambda: 2 * np.log1p(LAG / WAIT)),
    "scaled Brownian 0.5": (0.5, lambda: (WAIT + LAG) ** 0.5 - WAIT**0.5),
    "Brownian": (0.0, lambda: 2 * LAG),
    "stationary OU": (0.0, lambda: -np.expm1(-LAG / 3000)),
    "trap model, full aging": (1.0, lambda: (LAG / (WAIT + LAG)) ** 0.4),
    "Mittag-Leffler": (0.6, lambda: 1 - mittag_leffler(clock_gap(0.6), 0.7)),
}


@pytest.mark.parametrize("name", EXACT)
def test_bias_on_exact_processes_is_at_most_a_hundredth(name):
    mu, msd = EXACT[name]
    fit = ts.fit_subaging(two_time(msd()), rng=0, sampler="grid")
    assert abs(value(fit) - mu) <= 0.01


def test_one_dimensional_trap_scales_as_simple_power():
    # no-jump probability of the 1-D trap model: a function of t / t_w^gamma, gamma = 1 / (1 + x)
    gamma = 1 / (1 + 0.5)
    fit = ts.fit_subaging(two_time(LAG / (LAG + 30 * WAIT**gamma)), rng=0, estimator="free_simple", sampler="grid")
    assert abs(value(fit) - gamma) <= 0.01


@pytest.mark.parametrize(("mu", "exact"), [(0.3, 0.298), (0.6, 0.592), (0.8, 0.785), (1.0, 1.0)])
def test_threshold_slope_is_the_exact_finite_range_slope(mu, exact):
    wait, lag = (a.ravel() for a in np.meshgrid(np.geomspace(1e3, 1e5, 12), np.geomspace(0.1, 1e7, 400), indexing="ij"))
    from trajstats.inference.aging._threshold import crossing_times, threshold_slopes

    msd = 2 * -np.expm1(-(clock(wait + lag, mu) - clock(wait, mu)))
    x, y, state = crossing_times(wait, lag, np.log(msd), np.array([0.0]))
    assert threshold_slopes(x, y, state)[0] == pytest.approx(exact, abs=0.01)


def test_the_readme_flow_runs_on_three_waiting_times_and_layers():
    wait, lag = (a.ravel() for a in np.meshgrid([100.0, 1000, 10000], np.geomspace(1, 1e5, 35), indexing="ij"))
    runs = np.stack([gaussian_run(0.7, n, n, wait, lag) for n in (20, 40)], axis=-1)[None]
    delta = xr.DataArray(
        runs,
        dims=("replica", "pair", "layer"),
        coords={
            "waiting_time": ("pair", wait),
            "lag": ("pair", lag),
            "layer": ["a", "b"],
            "n_parameters": ("layer", [20, 40]),
        },
    )
    fit = ts.fit_subaging(delta.chunk(), rng=0)
    row = fit.summary().sel(coefficient="mu")
    assert fit.converged
    assert abs(float(row["value"]) - 0.7) < 4 * float(row["stderr"])
    assert fit.attrs["over"] == "total"
    assert any("conditional on the clock" in flag for flag in fit.flags)
    np.testing.assert_allclose(fit.data["msd"], delta.isel(replica=0).dot(xr.DataArray([1 / 3, 2 / 3], dims="layer")))
    alone = ts.fit_subaging(delta, rng=0, over="b", sampler="grid")
    assert alone.attrs["over"] == "b"
    with pytest.raises(ArgumentError, match="unknown over 'c'"):
        ts.fit_subaging(delta, rng=0, over="c")


def test_emcee_and_the_exact_grid_agree_and_seeds_repeat():
    delta = two_time(gaussian_run(0.6, 30, 1))
    exact = ts.fit_subaging(delta, rng=0, sampler="grid")
    one, two = (ts.fit_subaging(delta, rng=5, sampler="emcee") for _ in range(2))
    xr.testing.assert_equal(one.posterior, two.posterior)
    spread = float(exact.summary()["stderr"].sel(coefficient="mu"))
    assert abs(value(one) - value(exact)) < 0.15 * spread
    assert float(one.summary()["stderr"].sel(coefficient="mu")) == pytest.approx(spread, rel=0.1)
    assert float(one.diagnostics["r_hat"].max()) < 1.01


def test_iid_is_several_times_too_narrow_and_says_so():
    delta = two_time(gaussian_run(0.6, 20, 3))
    wick, iid = (ts.fit_subaging(delta, rng=0, likelihood=name, sampler="grid") for name in ("wick", "iid"))
    ratio = wick.summary()["stderr"].sel(coefficient="mu") / iid.summary()["stderr"].sel(coefficient="mu")
    assert 1.3 < float(ratio) < 5
    assert any("too narrow" in flag for flag in iid.flags)


def test_every_estimator_is_reported_beside_the_others():
    fit = ts.fit_subaging(two_time(gaussian_run(0.6, 50, 4)), rng=0, sampler="grid")
    names = set(fit.tables["estimators"]["estimator"].values)
    assert {"free_clock", "free_simple", "power_law", "mittag_leffler", "logarithmic", "threshold"} <= names
    # the true curve needs no more noise than the free one; the power law saturates nowhere and is marked wrong
    ratio = fit.tables["estimators"]["misfit_ratio"]
    assert float(ratio.sel(estimator="stretched_exponential")) < 1.3
    assert float(ratio.sel(estimator="power_law")) > 1.3
    scan = fit.tables["threshold_scan"]
    assert ((scan["reached"] + scan["censored"]) == 12).all()
    assert float(fit.tables["window_scan"]["mu"].sel(window="all")) == pytest.approx(value(fit), abs=0.02)


def test_the_right_model_of_aging_wins():
    aged = ts.fit_subaging(two_time(gaussian_run(1.0, 100, 5)), rng=0, sampler="grid").tables["models"]
    still = ts.fit_subaging(two_time(gaussian_run(0.0, 100, 6)), rng=0, sampler="grid").tables["models"]
    assert float(aged["log_bayes_factor"].sel(model="full_aging")) > 0
    assert float(aged["log_bayes_factor"].sel(model="no_aging")) < -10
    assert float(still["log_bayes_factor"].sel(model="no_aging")) > 0
    assert float(still["score_difference"].sel(model="full_aging")) < -10


def test_another_clock_competes_with_the_power():
    steps = np.unique(np.concatenate([[1.0], WAIT, WAIT + LAG]))
    # a clock that is no power of time
    noise_time = xr.DataArray(np.log1p(steps / 500) + 0.3 * np.sqrt(steps / 500), dims="step", coords={"step": steps})
    gap = np.interp(WAIT + LAG, steps, noise_time) - np.interp(WAIT, steps, noise_time)
    noise = 1 + 0.01 * np.random.default_rng(0).standard_normal(gap.size)
    delta = two_time(-np.expm1(-gap) * noise).assign_coords(first=("pair", WAIT), second=("pair", WAIT + LAG))
    fit = ts.fit_subaging(delta, rng=0, clocks={"noise_time": noise_time}, sampler="grid", likelihood="iid")
    assert float(fit.tables["models"]["score_difference"].sel(model="noise_time")) > 10


def test_two_steps_with_two_exponents_are_flagged():
    msd = 0.3 * -np.expm1(-8 * clock_gap(0.1)) + -np.expm1(-0.3 * clock_gap(1.2))
    rng = np.random.default_rng(0)
    fit = ts.fit_subaging(two_time(msd * (1 + 0.01 * rng.standard_normal(msd.size))), rng=0, sampler="grid")
    assert fit.status == "structured residuals"
    assert any("one curve with one exponent" in flag for flag in fit.flags)
    sound = ts.fit_subaging(two_time(gaussian_run(0.6, 50, 4)), rng=0, sampler="grid")
    assert sound.status == "ok"


def test_replicas_are_pooled_with_the_error_of_leaving_one_out():
    rng = np.random.default_rng(0)
    seeds = rng.normal(0.6, 0.1, 6)
    delta = two_time(np.stack([gaussian_run(mu, 200, k) for k, mu in enumerate(seeds)]))
    fit = ts.fit_subaging(delta, rng=0)
    row = fit.summary().sel(coefficient="mu")
    assert abs(float(row["value"]) - seeds.mean()) < 0.02
    left = [
        float(ts.fit_subaging(delta.isel(replica=np.arange(6) != r).mean("replica"), rng=0).posterior["mu"].mean())
        for r in range(6)
    ]
    upper, lower = (float(row["interval"].sel(level=0.95, bound=end)) for end in ("upper", "lower"))
    # Student's 97.5 % quantile with 5 degrees of freedom
    assert upper - lower == pytest.approx(2 * 2.571 * np.sqrt(5 * np.var(left)), rel=0.1)
    assert any("leaving out one at a time" in flag for flag in fit.flags)
    # each seed by itself stands beside it, and tells that seeds differ
    assert fit.tables["seeds"].sizes["replica"] == 6
    np.testing.assert_allclose(fit.tables["seeds"]["mu"], seeds, atol=0.06)
    assert any("seeds differ in mu" in flag for flag in fit.flags)


def test_seeds_give_the_mean_of_their_population():
    seeds = np.random.default_rng(0).normal(0.6, 0.1, 6)
    delta = two_time(np.stack([gaussian_run(mu, 200, k) for k, mu in enumerate(seeds)]))
    row = ts.fit_subaging(delta, rng=0, likelihood="seeds").summary().sel(coefficient="mu")
    assert abs(float(row["value"]) - seeds.mean()) < 0.02
    # the spread between seeds is in the error: sd/sqrt(6) with Student's 5 degrees of freedom
    half = float(row["interval"].sel(level=0.68, bound="upper") - row["value"])
    assert half == pytest.approx(seeds.std(ddof=1) / np.sqrt(6) * 1.1, rel=0.25)
    with pytest.raises(TooFewReplicasError, match="at least 2"):
        ts.fit_subaging(delta.isel(replica=[0]), rng=0, likelihood="seeds")
    with pytest.raises(ArgumentError, match="free curve"):
        ts.fit_subaging(delta, rng=0, likelihood="seeds", estimator="power_law")


def test_seeds_too_noisy_for_a_curve_each_are_said_to_bias_their_mean():
    for modes, noisy in ((4, True), (200, False)):
        delta = two_time(np.stack([gaussian_run(0.6, modes, k) for k in range(8)]))
        seeds, pooled = (ts.fit_subaging(delta, rng=0, likelihood=how) for how in ("seeds", "wick"))
        assert any("a single seed determines" in flag for flag in seeds.flags) == noisy
        assert not any("seeds differ in mu" in flag for flag in pooled.flags)


def test_how_far_modes_differ_is_inferred_and_can_be_set():
    delta = two_time(gaussian_run(0.6, 20, 3))
    free = ts.fit_subaging(delta, rng=0)
    alike, differing = (
        ts.fit_subaging(delta, rng=0, prior={"modes_differ": share}) for share in ((0.0, 0.01), (0.99, 1.0))
    )
    errors = [float(fit.summary()["stderr"].sel(coefficient="mu")) for fit in (alike, free, differing)]
    assert errors[0] < errors[2]
    assert errors[0] <= errors[1] * 1.02
    assert differing.attrs["modes_differ"] > 0.98
    with pytest.raises(ArgumentError, match="modes_differ is 0 to 1"):
        ts.fit_subaging(delta, rng=0, prior={"modes_differ": (0.0, 2.0)})


def test_blocks_are_refused_where_motion_is_global_and_given_where_it_is_local():
    rng = np.random.default_rng(0)
    shared = gaussian_run(0.6, 10, 2)

    def layered(values):
        return xr.DataArray(
            values,
            dims=("layer", "pair"),
            coords={"waiting_time": ("pair", WAIT), "lag": ("pair", LAG), "n_parameters": ("layer", np.ones(16))},
        )

    global_motion = layered(shared * (1 + 0.01 * rng.standard_normal((16, 1))))
    local = layered(np.stack([gaussian_run(0.6, 10, 100 + k) for k in range(16)]))
    with pytest.raises(FitError, match="not an error bar"):
        ts.fit_subaging(global_motion, rng=0, likelihood="blocks", sampler="grid")
    by_blocks = ts.fit_subaging(local, rng=0, likelihood="blocks", sampler="grid")
    wick = ts.fit_subaging(local, rng=0, sampler="grid")
    assert float(wick.tables["locality"]["ratio"]) < 1.5
    ratio = by_blocks.summary()["stderr"].sel(coefficient="mu") / wick.summary()["stderr"].sel(coefficient="mu")
    assert 0.5 < float(ratio) < 2


def test_a_curve_of_your_own_gets_a_posterior():
    mine = MasterCurve(
        "saturating", lambda x, c: x - np.log1p(np.exp(x - c["log_scale"])), {"log_scale": (0.0, -20.0, 20.0)}
    )
    u = clock_gap(0.6)
    msd = u / (1 + u) * np.exp(0.02 * np.random.default_rng(0).standard_normal(u.size))
    fit = ts.fit_subaging(two_time(msd), rng=0, estimator=mine, likelihood="iid", max_steps=500)
    row = fit.summary().sel(coefficient="mu")
    assert abs(float(row["value"]) - 0.6) < 4 * float(row["stderr"])
    assert fit.predict(curve=mine).sizes["pair"] == 144
    with pytest.raises(ArgumentError, match="of your own"):
        fit.predict()


def test_predictions_cover_new_pairs():
    fit = ts.fit_subaging(two_time(2 * -np.expm1(-clock_gap(0.6))), rng=0, sampler="grid")
    curve = fit.predict(waiting_time=500.0, lag=[50.0, 5000.0]).mean(("chain", "draw"))
    exact = 2 * -np.expm1(-clock_gap(0.6, np.array([500.0]), np.array([50.0, 5000.0])))
    np.testing.assert_allclose(curve, exact, rtol=0.02)


def test_one_waiting_time_is_refused():
    here = WAIT[0] == WAIT
    with pytest.raises(FitError, match="not identifiable from one"):
        ts.fit_subaging(two_time(LAG[here], WAIT[here], LAG[here]), rng=0)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda v: np.where(np.arange(v.size) == 7, np.nan, v), NonFiniteError, "not finite"),
        (lambda v: np.where(np.arange(v.size) == 7, -v, v), FitError, "negative"),
        (lambda v: np.where(np.arange(v.size) == 7, 0.0, v), FitError, "zero"),
        (np.ones_like, FitError, "zero variance"),
    ],
)
def test_bad_values_are_named(change, error, words):
    with pytest.raises(error, match=words):
        ts.fit_subaging(two_time(change(2.0 * LAG)), rng=0)


def test_two_points_and_copies_and_wrong_options_are_refused():
    with pytest.raises(FitError, match="2 points"):
        ts.fit_subaging(two_time(LAG[[0, 13]], WAIT[[0, 13]], LAG[[0, 13]]), rng=0)
    with pytest.raises(FitError, match="copies"):
        ts.fit_subaging(two_time(np.tile(gaussian_run(0.6, 20, 1), (3, 1))), rng=0, sampler="grid")
    for options, words in (
        ({"estimator": "fre"}, "did you mean 'free'"),
        ({"likelihood": "wic"}, "did you mean 'wick'"),
        ({"prior": {"nu": (0, 1)}}, "unknown prior"),
        ({"prior": {"mu": (1, 0)}}, "below the upper"),
        ({"sampler": "nuts"}, "unknown sampler"),
    ):
        with pytest.raises(ArgumentError, match=words):
            ts.fit_subaging(two_time(LAG), rng=0, **options)
    with pytest.raises(ArgumentError, match="listed pairs"):
        ts.fit_subaging(xr.DataArray(LAG, dims="pair"), rng=0)


def test_times_and_repeated_pairs_are_checked():
    msd = gaussian_run(0.6, 20, 1)
    with pytest.raises(FitError, match="two lags or more"):
        ts.fit_subaging(two_time(msd[::12], WAIT[::12], LAG[::12]), rng=0)
    for wait, lag in ((WAIT, -LAG), (np.where(np.arange(144) == 2, np.nan, WAIT), LAG), (-WAIT, LAG)):
        with pytest.raises(ArgumentError, match="no valid times"):
            ts.fit_subaging(two_time(msd, wait, lag), rng=0)
    with pytest.raises(ArgumentError, match="complex128"):
        ts.fit_subaging(two_time(msd).astype(complex), rng=0)
    # a pair given twice is one measurement: it does not narrow the interval
    once = ts.fit_subaging(two_time(msd), rng=0, sampler="grid")
    twice = ts.fit_subaging(two_time(*(np.concatenate([a, a]) for a in (msd, WAIT, LAG))), rng=0, sampler="grid")
    xr.testing.assert_equal(once.summary(), twice.summary().assign_attrs(once.summary().attrs))
    assert any("144 repeated pairs" in flag for flag in twice.flags)


def test_waiting_times_that_do_not_overlap_do_not_identify_mu():
    # each waiting time sees its own stretch of a free curve: any mu fits
    wait = np.repeat([100.0, 10000.0], 8)
    lag = np.concatenate([np.geomspace(1, 2, 8), np.geomspace(1e6, 2e6, 8)])
    noise = np.exp(0.05 * np.random.default_rng(0).standard_normal(16))
    fit = ts.fit_subaging(two_time(np.sqrt(lag) * noise, wait, lag), rng=0, sampler="grid")
    assert fit.status == "not identified"
    assert any("not identified" in flag for flag in fit.flags)


def test_the_prior_can_be_changed():
    fit = ts.fit_subaging(two_time(gaussian_run(0.6, 4, 1)), rng=0, prior={"mu": (0.5, 0.7)}, sampler="grid")
    draws = fit.posterior["mu"].values
    assert draws.min() >= 0.5
    assert draws.max() <= 0.7
