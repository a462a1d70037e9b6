"""Two-time displacements with a known exponent, for coverage."""

from __future__ import annotations

from functools import cache

import numpy as np
import xarray as xr
from scipy.stats import t as student

from trajstats.inference.aging._pilot import pilot_fit
from trajstats.inference.aging._points import two_time_points
from trajstats.inference.aging._replicas import left_out_error
from trajstats.inference.aging.curves.master_curves import clock, mittag_leffler
from trajstats.inference.aging.fit import PRIOR

WAITING = np.geomspace(100, 10_000, 12)
LAGS = np.geomspace(10, 100_000, 12)
PIVOT = 1000.0

CURVES = {
    "exponential": lambda u: -np.expm1(-u),
    "stretched": lambda u: -np.expm1(-(u**0.6)),
    "mittag_leffler": lambda u: 1 - mittag_leffler(u, 0.7),
    "logarithmic": lambda u: np.log1p(u),
    "linear": lambda u: u,
    "trap": lambda u: (-np.expm1(-u)) ** 0.4,
}


class Process:
    """Gaussian modes whose variogram is a function of the subaging clock."""

    def __init__(self, mu=0.6, curve="exponential", relaxation=(1.0,), waiting=WAITING, lags=LAGS):
        t_w, t = (a.ravel() for a in np.meshgrid(waiting, lags, indexing="ij"))
        self.waiting, self.lag, self.n = t_w, t, t.size
        times, index = np.unique(np.concatenate([t_w, t_w + t]), return_inverse=True)
        self.first, self.second = index[: self.n], index[self.n :]
        self.h = clock(times / PIVOT, mu)
        gap = np.abs(self.h[:, None] - self.h[None, :])
        self.factors = []
        for tau in relaxation:
            gamma = CURVES[curve](gap / tau)
            cov = gamma[:, :1] + gamma[:1, :] - gamma
            self.factors.append(np.linalg.cholesky(cov + 1e-10 * np.eye(times.size) * cov.max()))

    def msd(self, modes, rng, replicas=1, drift=0.0):
        """MSD (replica, pair) of `modes` independent modes (spread evenly over the relaxation times)."""
        total = np.zeros((replicas, self.n))
        each = modes // len(self.factors)
        for factor in self.factors:
            x = np.einsum("st,rtk->rks", factor, rng.standard_normal((replicas, factor.shape[0], each)), optimize=True)
            x = x + drift * self.h * rng.choice([-1.0, 1.0], size=(replicas, each, 1))
            total += ((x[..., self.second] - x[..., self.first]) ** 2).sum(axis=1)
        return total / (each * len(self.factors))

    def delta(self, values):
        return xr.DataArray(
            np.atleast_2d(values),
            dims=("replica", "pair"),
            coords={"waiting_time": ("pair", self.waiting), "lag": ("pair", self.lag)},
        )


BOUNDS = dict(PRIOR)
MU = 0.6

SCENARIOS = {
    "independent weights": {"modes": 400},
    "K = 4 shared modes": {"modes": 4},
    "K = 8 shared modes": {"modes": 8},
    "K = 20 shared modes": {"modes": 20},
    "K = 50 shared modes": {"modes": 50},
    "modes with different relaxation times": {
        "modes": 20,
        "process": {"relaxation": tuple(np.geomspace(0.1, 10, 20))},
    },
    "drift added": {"modes": 50, "drift": 0.3},
    "stretched exponential": {"modes": 50, "process": {"curve": "stretched"}},
    "Mittag-Leffler": {"modes": 50, "process": {"curve": "mittag_leffler"}},
    "logarithmic": {"modes": 50, "process": {"curve": "logarithmic"}},
}
# processes whose exponent is exact, as a run of 50 modes shows them
EXACT = {
    **{f"time-changed OU, mu = {mu:g}": (mu, {}) for mu in (0.3, 0.6, 0.8, 1.0)},
    "Brownian": (0.0, {"curve": "linear"}),
    "stationary OU": (0.0, {"relaxation": (3.0,)}),
    "scaled Brownian, mu = 0.5": (0.5, {"curve": "linear"}),
    "D falling as 1/t, mu = 1": (1.0, {"curve": "linear"}),
    "arcsine law of traps, mu = 1": (1.0, {"curve": "trap"}),
}
SCENARIOS |= {name: {"modes": 50, "mu": mu, "process": how} for name, (mu, how) in EXACT.items()}
SCENARIOS |= {f"8 replicas, {name}": how | {"replicas": 8} for name, how in list(SCENARIOS.items())[:10]}
# seeds whose exponents differ by 0.1 (standard deviation); the truth is their mean
SCENARIOS["8 replicas, exponents that differ"] = {"modes": 50, "replicas": 8, "spread": 0.1}


def rank(grid, truth):
    """Posterior probability below the truth."""
    step = grid.mu[1] - grid.mu[0]
    edges = np.concatenate([[grid.mu[0] - step / 2], grid.mu + step / 2])
    return float(np.interp(truth, edges, np.concatenate([[0.0], np.cumsum(grid.marginal)])))


@cache
def process(mu, curve="exponential", relaxation=(1.0,)):
    """The same process for every simulation of a row."""
    return Process(mu=mu, curve=curve, relaxation=relaxation)


def subaging_posterior(points, bounds=BOUNDS):
    """Posterior of mu, as `fit_subaging` makes it: its grid; for several replicas also the scale of a Student t."""
    grid = pilot_fit(np.log(points.msd.mean(axis=0)), points, bounds, likelihood="wick").grid
    return grid, left_out_error(points, "clock", bounds) if len(points.msd) > 1 else grid.spread[0]


def subaging_simulation(name, seed):
    """Rank of the true mu in its posterior, its rank by independent points, error of the estimate, stated error."""
    scenario = SCENARIOS[name]
    mu, how = scenario.get("mu", MU), scenario.get("process", {})
    rng = np.random.default_rng([seed, list(SCENARIOS).index(name)])
    replicas = scenario.get("replicas", 1)
    if "spread" in scenario:
        own = [Process(mu=m, **how) for m in rng.normal(mu, scenario["spread"], replicas)]
        values = np.concatenate([one.msd(scenario["modes"], rng) for one in own])
    else:
        source = process(mu, **how)
        values = source.msd(scenario["modes"], rng, replicas=replicas, drift=scenario.get("drift", 0.0))
    points = two_time_points(process(mu, **how).delta(values))
    grid, scale = subaging_posterior(points)
    estimate = float(grid.quantile(np.array(0.5)))
    ours = rank(grid, mu) if replicas == 1 else float(student.cdf((mu - estimate) / scale, replicas - 1))
    naive = rank(pilot_fit(np.log(values.mean(axis=0)), points, BOUNDS, likelihood="iid").grid, mu)
    return ours, naive, estimate - mu, scale


def subaging_rank(seed):
    """Rank of an exponent drawn from the prior that the fit is given; the master curves take turns."""
    rng = np.random.default_rng([seed, 1000])
    bounds = {**BOUNDS, "mu": (0.2, 1.0)}
    mu = rng.uniform(*bounds["mu"])
    source = Process(mu=mu, curve=list(CURVES)[seed % 4])
    values = source.msd(50, rng)
    return rank(subaging_posterior(two_time_points(source.delta(values)), bounds)[0], mu)
