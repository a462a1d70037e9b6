"""Speed of inference, as ratios measured in one run (run with --benchmark-only)."""

from __future__ import annotations

import os
import time
import warnings

import numpy as np
import pytest
import xarray as xr

import trajstats as ts
from trajstats.inference.sampling._batched_chains import sample_batch
from trajstats.inference.sampling._emcee_chains import autocorrelation_time, sample_posterior

X = np.linspace(0, 4, 50)
TRUTH = np.array([2.0, 1.3, 0.5, np.log(0.1)])
DATA = TRUTH[0] * np.exp(-TRUTH[1] * X) + TRUTH[2] + np.exp(TRUTH[3]) * np.random.default_rng(0).standard_normal(X.size)
NAMES = ("a", "b", "c", "log_s")
LOW, HIGH = np.array([0.0, 0.0, -5.0, -6.0]), np.array([10.0, 10.0, 5.0, 2.0])
SPREAD = np.diag([0.05, 0.08, 0.05, 0.1]) ** 2


def log_prob(theta):
    a, b, c, s = (theta[..., k, None] for k in range(4))
    value = -0.5 * (((DATA - a * np.exp(-b * X) - c) / np.exp(s)) ** 2).sum(axis=-1) - X.size * s[..., 0]
    return np.where(((theta > LOW) & (theta < HIGH)).all(axis=-1), value, -np.inf)


def cpu(function):
    start = time.process_time()
    result = function()
    return time.process_time() - start, result


def ess_per_second(moves="de"):
    seconds, draws = cpu(lambda: sample_posterior(log_prob, TRUTH, SPREAD, names=NAMES, rng=0, walkers=32, moves=moves))
    assert bool(draws.diagnostics["converged"])
    return float(draws.diagnostics["ess"].min()) / seconds


def two_time():
    wait, lag = (a.ravel() for a in np.meshgrid(np.geomspace(100, 1e4, 12), np.geomspace(10, 1e5, 12), indexing="ij"))
    noise = np.exp(0.05 * np.random.default_rng(0).standard_normal(wait.size))
    msd = -np.expm1(-(np.sqrt(wait + lag) - np.sqrt(wait)) / 20) * noise
    return xr.DataArray(msd, dims="pair", coords={"waiting_time": ("pair", wait), "lag": ("pair", lag)})


def test_free_master_curve_of_144_points(benchmark):
    delta = two_time()
    ts.fit_subaging(delta, rng=0)
    fit = benchmark.pedantic(lambda: cpu(lambda: ts.fit_subaging(delta, rng=0)), rounds=2)
    benchmark.extra_info["cpu_seconds"] = fit[0]
    benchmark.extra_info["target"] = "at most 10"


def test_ess_per_second_against_lmfit_emcee(benchmark):
    import lmfit

    def theirs():
        start = lmfit.Parameters()
        for name, value, low, high in zip(NAMES, TRUTH, LOW, HIGH, strict=True):
            start.add(name, value=value, min=low, max=high)

        def one(p):
            return float(log_prob(np.array([p[n].value for n in NAMES])))

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fit = lmfit.Minimizer(one, start, nan_policy="omit")
            fit.emcee(steps=1500, nwalkers=32, burn=0, progress=False, float_behavior="posterior", seed=0)
        return fit.sampler.get_chain()[300:]

    ours = benchmark.pedantic(ess_per_second, rounds=1)
    seconds, chain = cpu(theirs)
    rate = chain.shape[0] * chain.shape[1] / autocorrelation_time(chain).max() / (seconds * chain.shape[0] / 1500)
    benchmark.extra_info["ratio"] = ours / rate
    benchmark.extra_info["target"] = "at least 4"


def test_ess_per_second_against_a_fresh_nuts_call(benchmark):
    numpyro = pytest.importorskip("numpyro")
    import jax

    jax.config.update("jax_enable_x64", True)
    import jax.numpy as jnp
    import numpyro.distributions as dist
    from numpyro.diagnostics import effective_sample_size
    from numpyro.infer import MCMC, NUTS

    def model():
        a, b, c, s = (numpyro.sample(n, dist.Uniform(lo, hi)) for n, lo, hi in zip(NAMES, LOW, HIGH, strict=True))
        numpyro.sample("y", dist.Normal(a * jnp.exp(-b * X) + c, jnp.exp(s)), obs=DATA)

    def theirs():
        run = MCMC(
            NUTS(model), num_warmup=500, num_samples=1000, num_chains=4, chain_method="sequential", progress_bar=False
        )
        run.run(jax.random.PRNGKey(0))
        return run.get_samples(group_by_chain=True)

    ours = benchmark.pedantic(ess_per_second, rounds=1)
    seconds, draws = cpu(theirs)
    rate = min(float(effective_sample_size(np.asarray(v))) for v in draws.values()) / seconds
    benchmark.extra_info["ratio"] = ours / rate
    benchmark.extra_info["target"] = "at least 3"


def test_de_moves_against_the_stretch_move(benchmark):
    ours = benchmark.pedantic(ess_per_second, rounds=1)
    benchmark.extra_info["ratio"] = ours / ess_per_second("stretch")
    benchmark.extra_info["target"] = "at least 1.8"


def test_batched_kernel_against_emcee_per_step(benchmark):
    import emcee

    problems, walkers, steps = 64, 16, 200
    start = TRUTH + 0.05 * np.random.default_rng(0).standard_normal((problems, 1, walkers, 4))
    ours, _ = benchmark.pedantic(lambda: cpu(lambda: sample_batch(log_prob, start, rng=0, steps=steps)), rounds=1)
    sampler = emcee.EnsembleSampler(
        walkers, 4, log_prob, vectorize=True, moves=[(emcee.moves.DEMove(), 0.8), (emcee.moves.DESnookerMove(), 0.2)]
    )
    theirs, _ = cpu(lambda: sampler.run_mcmc(start[0, 0], 1000))
    benchmark.extra_info["ratio"] = (theirs / 1000) / (ours / (steps * problems))
    benchmark.extra_info["target"] = "at least 5"


@pytest.mark.parametrize(("points", "scheduler"), [(29, "threads"), (144, "threads"), (144, "processes")])
def test_dask_overhead_of_200_fits(benchmark, points, scheduler):
    delta = two_time().isel(pair=slice(None, None, 144 // points + (points < 144)))
    cases = {k: delta * (1 + 0.001 * k) for k in range(200)}
    ts.fit_subaging(delta, rng=0)

    def everywhere():  # CPU of this process and of those it has waited for
        return sum(os.times()[:4])

    before = everywhere()
    benchmark.pedantic(lambda: ts.fit_batch(ts.fit_subaging, cases, rng=0, workers=2, scheduler=scheduler), rounds=1)
    batch = everywhere() - before
    serial, _ = cpu(lambda: [ts.fit_subaging(d, rng=k).summary() for k, d in cases.items()])
    assert delta.sizes["pair"] == points
    benchmark.extra_info["ratio"] = batch / serial
    benchmark.extra_info["target"] = "at most 1.15"


def test_200_fits_on_two_processes(benchmark, tmp_path):
    distributed = pytest.importorskip("distributed")
    delta = two_time()
    cases = {k: delta * (1 + 0.001 * k) for k in range(200)}
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        distributed.Client(cluster),
    ):
        # both workers import and compile before the clock starts
        ts.fit_batch(ts.fit_subaging, dict(list(cases.items())[:8]), rng=1)
        start = time.perf_counter()
        table = benchmark.pedantic(
            lambda: ts.fit_batch(ts.fit_subaging, cases, rng=0, store=tmp_path / "fits"), rounds=1
        )
        benchmark.extra_info["seconds"] = time.perf_counter() - start
    assert not table["status"].str.startswith("failed").any()
    benchmark.extra_info["points"] = delta.sizes["pair"]
    benchmark.extra_info["target"] = "at most 60 s"
