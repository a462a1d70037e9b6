"""Scores of groups left out and evidences of master curves, against refits and sums over grids."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from arviz_stats.base import array_stats
from scipy.special import gammaln, logsumexp
from scipy.stats import multivariate_t

import trajstats as ts
from trajstats.errors import ArgumentError, TooFewReplicasError
from trajstats.inference.aging import fit as aging
from trajstats.inference.aging._grid import grid_posterior
from trajstats.inference.aging._pilot import pilot_fit
from trajstats.inference.aging._points import two_time_points
from trajstats.inference.aging._scores import curve_evidence, left_out_replicas
from trajstats.inference.aging.curves.master_curves import MASTER_CURVES, scaled_time
from trajstats.inference.aging.fit import PRIOR

WAIT, LAG = (a.ravel() for a in np.meshgrid(np.geomspace(100, 1e4, 8), np.geomspace(30, 1e4, 4), indexing="ij"))


def two_time(values):
    dims = ("replica", "pair") if np.ndim(values) == 2 else "pair"
    return xr.DataArray(values, dims=dims, coords={"waiting_time": ("pair", WAIT), "lag": ("pair", LAG)})


def power(seed, sd=0.1, mu=0.5):
    # noise smooth in ln t, the same for neighbours: points of one waiting time foretell each other
    rng = np.random.default_rng(seed)
    u = np.exp(scaled_time(WAIT, LAG, mu))
    return u**0.8 * np.exp(sd * rng.standard_normal(WAIT.size))


def pilot_of(delta):
    points = two_time_points(delta)
    return pilot_fit(np.log(points.msd.mean(axis=0)), points, PRIOR, likelihood="wick"), points


def power_grid(data, mus, slopes):
    # ln MSD of every power law but for its level at the middle of the points, (mu * slope, n)
    x = np.stack([scaled_time(data.waiting_time, data.lag, mu) for mu in mus])
    x -= x.mean(axis=1, keepdims=True)
    return (slopes[None, :, None] * x[:, None]).reshape(-1, x.shape[-1])


def test_a_waiting_time_left_out_scores_as_a_refit_without_it():
    fit = ts.fit_subaging(two_time(power(0)), rng=0, estimator="power_law", groups="waiting_time")
    data = pilot_of(two_time(power(0)))[0].curve
    columns = fit.log_likelihood["msd"]
    assert columns.dims == ("chain", "draw", "waiting_time")
    pointwise, pareto, _ = array_stats.loo(np.moveaxis(columns.values, -1, 0))
    trusted = pareto < 0.7
    assert trusted.sum() >= 6
    # refit without each waiting time on a grid of (mu, exponent, level); then the t density of what was left out
    mus, slopes, levels = np.linspace(-0.5, 2, 61), np.linspace(0.2, 1.6, 61), np.linspace(-0.6, 0.6, 25)
    shapes = power_grid(data, mus, slopes)
    shapes = np.concatenate([shapes + level for level in levels + data.log_msd.mean()])
    for k, wait in list(enumerate(np.unique(data.waiting_time)))[::3]:
        out, rest = (np.flatnonzero(data.waiting_time == wait), np.flatnonzero(data.waiting_time != wait))
        inverse = np.linalg.inv(data.covariance[np.ix_(rest, rest)])
        cross = data.covariance[np.ix_(out, rest)] @ inverse
        shape = data.covariance[np.ix_(out, out)] - cross @ data.covariance[np.ix_(rest, out)]
        r = data.log_msd - shapes
        squares = np.einsum("mi,ij,mj->m", r[:, rest], inverse, r[:, rest])
        log_weight = -0.5 * rest.size * np.log(squares)
        likely = log_weight > log_weight.max() - 12
        density = [
            multivariate_t.logpdf(row[out] - cross @ row[rest], shape=q / rest.size * shape, df=rest.size)
            for row, q in zip(r[likely], squares[likely], strict=True)
        ]
        exact = logsumexp(log_weight[likely] + np.array(density)) - logsumexp(log_weight[likely])
        assert pointwise[k] == pytest.approx(exact, abs=0.1) or not trusted[k]


def test_the_free_curve_scores_as_the_sum_over_its_grid():
    # each waiting time left out with everything integrated: the evidence of all points over that of the rest
    fits = {
        name: ts.fit_subaging(two_time(power(1)), rng=0, sampler="grid", estimator=name, groups="waiting_time")
        for name in ("free", "free_simple")
    }
    assert ts.compare_fits(fits).attrs["groups"] == "waiting_time"
    pointwise, pareto, _ = array_stats.loo(np.moveaxis(fits["free"].log_likelihood["msd"].values, -1, 0))
    data = pilot_of(two_time(power(1)))[0].curve
    smoothings = np.broadcast_to(np.linspace(*PRIOR["log_smoothing"], 61), (201, 61))

    def evidence(part):
        n = part.log_msd.size - 2
        table = part.log_marginal(np.linspace(-0.5, 2, 201), smoothings)
        return logsumexp(table) + gammaln(n / 2) - 0.5 * n * np.log(np.pi) + np.log(np.diagonal(part.whiten)).sum()

    exact = [evidence(data) - evidence(data.part(data.waiting_time != w)) for w in np.unique(data.waiting_time)]
    assert (pareto < 0.7).sum() >= 7
    np.testing.assert_allclose(pointwise, exact, atol=0.05)


def test_a_replica_left_out_scores_as_a_refit_without_it():
    rows = np.stack([power(seed) for seed in range(4)])
    fit = ts.fit_subaging(two_time(rows), rng=0, estimator="power_law", groups="replica")
    pilot, points = pilot_of(two_time(rows))
    data, y = pilot.curve, np.log(points.msd)
    pointwise, pareto, _ = array_stats.loo(np.moveaxis(fit.log_likelihood["msd"].values, -1, 0))
    assert (pareto < 0.7).all()
    mus, slopes, levels = np.linspace(0, 1, 51), np.linspace(0.5, 1.1, 51), np.linspace(-0.25, 0.25, 41)
    shapes = power_grid(data, mus, slopes)
    shapes = np.concatenate([shapes + level for level in levels + data.log_msd.mean()])
    squares = np.stack([np.square((row - shapes) @ data.whiten.T).sum(axis=1) for row in y])
    n = data.log_msd.size
    for r in range(len(y)):
        others = np.delete(squares, r, axis=0).sum(axis=0)
        weight = -0.5 * n * (len(y) - 1) * np.log(others)
        likely = np.flatnonzero(weight > weight.max() - 12)
        density = [
            multivariate_t.logpdf(
                y[r] - shapes[m], shape=others[m] / (n * (len(y) - 1)) * data.covariance, df=n * (len(y) - 1)
            )
            for m in likely
        ]
        exact = logsumexp(weight[likely] + np.array(density)) - logsumexp(weight[likely])
        assert pointwise[r] == pytest.approx(exact, abs=0.15)


def test_the_free_curve_of_replicas_is_the_stacked_gaussian():
    # at one (mu, smoothing): a dense Gaussian of all replicas, the level and slope given a very wide prior
    rows = np.stack([power(seed) for seed in range(3)])
    pilot, points = pilot_of(two_time(rows))
    data, y = pilot.curve, np.log(points.msd)
    mu, smooth = pilot.grid.mode[0], 0.0
    draws = {
        name: (("chain", "draw"), np.full((1, 200), value)) for name, value in (("mu", mu), ("log_smoothing", smooth))
    }
    posterior = xr.Dataset(draws, coords={"chain": [0], "draw": np.arange(200)})
    found = left_out_replicas(data, posterior, None, y, points.replica, np.random.default_rng(0))["msd"].values[0, 0]
    design, width = data.white_design(np.array([mu]))
    basis = np.linalg.solve(data.whiten, design[0])
    strength = len(y) * np.exp(smooth) / width[0] ** 3
    prior = np.linalg.inv(strength * data.penalty + 1e-7 * np.eye(len(data.penalty)))

    def log_density(count, chosen):
        signal = np.kron(np.ones((count, count)), basis @ prior @ basis.T)
        noise = np.kron(np.eye(count), data.covariance)
        shape = signal + noise
        values = y[chosen].ravel()
        # the noise level is integrated out over its prior 1 / sigma: two degrees of freedom go to level and slope
        scales = np.exp(np.linspace(-6, 3, 4001))
        inverse, (_, log_det) = np.linalg.inv(shape), np.linalg.slogdet(shape)
        q, n = values @ inverse @ values, values.size
        return logsumexp(-0.5 * q / scales**2 - (n - 2) * np.log(scales) - 0.5 * log_det - 0.5 * n * np.log(2 * np.pi))

    for r in range(3):
        exact = log_density(3, [0, 1, 2]) - log_density(2, np.delete(np.arange(3), r))
        assert found[r] == pytest.approx(exact, abs=0.01)


def test_evidences_of_curves_are_the_integrals():
    # the power law by a sum over a grid; the free curve at infinite smoothing is the power law itself
    data = pilot_of(two_time(power(2)))[0].curve
    bounds = {"mu": (0.0, 1.0), "log_smoothing": (15.9, 16.0)}
    table = curve_evidence(
        data, grid_posterior(data, bounds), bounds, {"power_law": MASTER_CURVES["power_law"]}, np.random.default_rng(0)
    )
    mus, slopes = np.linspace(0, 1, 201), np.linspace(0.01, 3, 401)
    centre = float(np.median(data.log_msd))
    levels = np.linspace(centre - 3, centre + 3, 151)
    wide = 2 * (30 + np.ptp(data.log_msd))
    scales = np.exp(np.linspace(-5, 2, 141))
    n, total = data.log_msd.size, []
    ones = data.whiten @ np.ones(n)
    log_det = 2 * np.log(np.diagonal(data.whiten)).sum()
    for mu in mus:
        x = data.whiten @ scaled_time(data.waiting_time, data.lag, mu)
        a = data.whiten @ data.log_msd
        # squares of a - level * ones - slope * x at all pairs
        part = a[:, None] - slopes * x[:, None]
        squares = (part**2).sum(axis=0)[:, None] - 2 * (ones @ part)[:, None] * levels + (ones @ ones) * levels**2
        total.append(logsumexp(-0.5 * n * np.log(squares)))
    # the noise level once: the integral over ln sigma of exp(-q / 2 sigma^2) / sigma^n, at q = 1, by a sum
    noise = logsumexp(-0.5 / scales**2 - n * np.log(scales)) + np.log(np.log(scales[1] / scales[0]))
    steps = (mus[1] - mus[0]) * (slopes[1] - slopes[0]) * (levels[1] - levels[0])
    exact = logsumexp(total) + np.log(steps / (2.99 * wide)) + noise - 0.5 * n * np.log(2 * np.pi) + 0.5 * log_det
    value = table.sel(curve="power_law")
    # the constant 1/2 of the integral over sigma is left out of every evidence
    assert float(value["log_evidence"]) == pytest.approx(exact + np.log(2), abs=4 * float(value["log_evidence_stderr"]))
    assert float(table["log_evidence"].sel(curve="free")) == pytest.approx(exact + np.log(2), abs=0.05)


@pytest.mark.slow
def test_the_evidence_table_prefers_the_curve_that_made_the_data(monkeypatch):
    # two curves for time's sake: the others are sampled by the same lines
    two = {name: MASTER_CURVES[name] for name in ("logarithmic", "power_law")}
    monkeypatch.setattr(aging, "default_curves", lambda: two)
    fit = ts.fit_subaging(two_time(power(3, sd=0.05)), rng=0, sampler="grid", evidence=True)
    table = fit.tables["evidence"]
    assert table["curve"].values.tolist() == ["free", *two]
    assert np.argmax(table["log_evidence"].values) == 2
    assert float(table["log_bayes_factor"].sel(curve="free")) == 0


def test_scores_that_have_no_likelihood_are_refused():
    delta = two_time(power(0))
    for options in ({"estimator": "threshold"}, {"likelihood": "seeds"}, {"likelihood": "blocks"}):
        with pytest.raises(ArgumentError, match="no likelihood to score groups by"):
            ts.fit_subaging(delta, rng=0, groups="waiting_time", **options)
    with pytest.raises(ArgumentError, match="unknown groups 'pair'"):
        ts.fit_subaging(delta, rng=0, groups="pair")
    with pytest.raises(TooFewReplicasError, match="one replica"):
        ts.fit_subaging(delta, rng=0, groups="replica")
    one, other = (ts.fit_subaging(two_time(power(s)), rng=0, sampler="grid", groups="waiting_time") for s in (0, 1))
    with pytest.raises(ArgumentError, match="other values"):
        ts.compare_fits({"one": one, "other": other})
