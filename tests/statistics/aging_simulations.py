"""Two-time displacements with a known exponent, for coverage."""

from __future__ import annotations

import numpy as np
import xarray as xr

from trajstats.inference.models import clock, mittag_leffler

WAITING = np.geomspace(100, 10_000, 12)
LAGS = np.geomspace(10, 100_000, 12)
PIVOT = 1000.0

CURVES = {
    "exponential": lambda u: -np.expm1(-u),
    "stretched": lambda u: -np.expm1(-(u**0.6)),
    "mittag_leffler": lambda u: 1 - mittag_leffler(u, 0.7),
    "logarithmic": lambda u: np.log1p(u),
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


LEVELS = np.array([0.68, 0.90, 0.95])
BOUNDS = {"mu": (-0.5, 2.0), "log_smoothing": (-18.0, 12.0)}
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
    "8 replicas, K = 20": {"modes": 20, "replicas": 8},
    "8 replicas, different relaxation times": {
        "modes": 20,
        "replicas": 8,
        "process": {"relaxation": tuple(np.geomspace(0.1, 10, 20))},
    },
}


def rank(grid, truth):
    """Posterior probability below the truth."""
    step = grid.mu[1] - grid.mu[0]
    edges = np.concatenate([[grid.mu[0] - step / 2], grid.mu + step / 2])
    return float(np.interp(truth, edges, np.concatenate([[0.0], np.cumsum(grid.marginal)])))


def subaging_ranks(n, seed=0):
    """Ranks of exponents drawn from the prior that the fit is given, over all master curves."""
    from trajstats.inference.pilot import pilot_fit
    from trajstats.inference.points import two_time_points

    rng = np.random.default_rng(seed)
    bounds = {**BOUNDS, "mu": (0.2, 1.0)}
    ranks = []
    for k in range(n):
        mu = rng.uniform(*bounds["mu"])
        process = Process(mu=mu, curve=list(CURVES)[k % len(CURVES)])
        values = process.msd(50, rng)
        points = two_time_points(process.delta(values))
        ranks.append(rank(pilot_fit(np.log(values[0]), points, bounds, likelihood="wick").grid, mu))
    return np.array(ranks)


def subaging_coverage(name, n, seed=0):
    """Hits (n, level) of Wick and of i.i.d. intervals, rank of the truth in the posterior (n,) and estimate (n,)."""
    from scipy.stats import t as student

    from trajstats.inference.pilot import pilot_fit
    from trajstats.inference.points import two_time_points
    from trajstats.inference.replicas import population_mean

    scenario = SCENARIOS[name]
    process = Process(mu=MU, **scenario.get("process", {}))
    rng = np.random.default_rng([seed, list(SCENARIOS).index(name)])
    wick, iid, ranks, estimates = [], [], [], []
    tails = np.stack([(1 - LEVELS) / 2, (1 + LEVELS) / 2])
    for _ in range(n):
        replicas = scenario.get("replicas", 1)
        values = process.msd(scenario["modes"], rng, replicas=replicas, drift=scenario.get("drift", 0.0))
        points = two_time_points(process.delta(values))
        if replicas == 1:
            grid = pilot_fit(np.log(values[0]), points, BOUNDS, likelihood="wick").grid
            low, high = grid.quantile(tails)
            ranks.append(rank(grid, MU))
            estimates.append(float(grid.quantile(np.array(0.5))))
        else:
            grids = [pilot_fit(np.log(v), points, BOUNDS, likelihood="wick").grid for v in values]
            mean, scale, _ = population_mean(np.array([g.mean for g in grids]), np.array([g.spread[0] for g in grids]))
            low, high = mean + scale * student.ppf(tails, replicas - 1)
            ranks.append(float(student.cdf((MU - mean) / scale, replicas - 1)))
            estimates.append(mean)
        wick.append((low < MU) & (high > MU))
        low, high = pilot_fit(np.log(values.mean(axis=0)), points, BOUNDS, likelihood="iid").grid.quantile(tails)
        iid.append((low < MU) & (high > MU))
    return np.array(wick), np.array(iid), np.array(ranks), np.array(estimates)
