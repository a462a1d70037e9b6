"""The exact posterior of (mu, smoothing) on a grid: start values, evidence, and fits too many for a sampler."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from trajstats.inference._uncertainty import STATED_LEVEL
from trajstats.inference.aging.curves._spline import FreeCurve

_COARSE, _FINE, _SMOOTHINGS = 101, 81, 31
_REACH = 6.0


@dataclass(frozen=True)
class GridPosterior:
    """Posterior of mu and log smoothing on a grid, the curve and the noise integrated out."""

    mu: np.ndarray  # Nodes, evenly spaced
    log_smoothing: np.ndarray  # Nodes, evenly spaced
    log_density: np.ndarray  # Log posterior density (normalised over the two priors)
    log_evidence: float  # Log marginal likelihood under the uniform priors, up to a constant of the data
    prior: tuple[float, float]  # Bounds of mu

    @property
    def marginal(self) -> np.ndarray:
        """Probability of each node of mu, (m,)."""
        weight = np.exp(self.log_density - self.log_density.max()).sum(axis=1)
        return weight / weight.sum()

    @property
    def mode(self) -> tuple[float, float]:
        """Most probable (mu, log smoothing)."""
        i, j = np.unravel_index(np.argmax(self.log_density), self.log_density.shape)
        return float(self.mu[i]), float(self.log_smoothing[j])

    @property
    def mean(self) -> float:
        """Posterior mean of mu."""
        return float(self.marginal @ self.mu)

    @property
    def spread(self) -> tuple[float, float]:
        """Posterior standard deviations of mu and log smoothing, never below half a grid step."""
        table = np.exp(self.log_density - self.log_density.max())
        sizes = []
        for nodes, axis in ((self.mu, 1), (self.log_smoothing, 0)):
            weight = table.sum(axis=axis)
            weight /= weight.sum()
            sizes.append(float(np.sqrt(max(weight @ (nodes - weight @ nodes) ** 2, ((nodes[1] - nodes[0]) / 2) ** 2))))
        return sizes[0], sizes[1]

    @property
    def half_interval(self) -> float:
        """Half the central 68 % interval of mu, never below half a grid step."""
        low, high = self.quantile(np.array([(1 - STATED_LEVEL) / 2, (1 + STATED_LEVEL) / 2]))
        return float(max(high - low, self.mu[1] - self.mu[0]) / 2)

    def quantile(self, q: np.ndarray) -> np.ndarray:
        """Quantiles of mu."""
        step = self.mu[1] - self.mu[0]
        edges = np.concatenate([[self.mu[0] - step / 2], self.mu + step / 2])
        return np.interp(q, np.concatenate([[0.0], np.cumsum(self.marginal)]), edges)

    def log_density_at(self, mu: float) -> float:
        """Log marginal posterior density of mu at one value (minus infinity outside the grid)."""
        density = np.log(self.marginal / (self.mu[1] - self.mu[0]) + 1e-300)
        return float(np.interp(mu, self.mu, density, left=-np.inf, right=-np.inf))

    def draw(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """Independent draws of (mu, log smoothing), uniform within a cell."""
        table = np.exp(self.log_density - self.log_density.max()).ravel()
        cell = rng.choice(table.size, size=n, p=table / table.sum())
        i, j = np.unravel_index(cell, self.log_density.shape)
        nodes = np.stack([self.mu[i], self.log_smoothing[j]], axis=1)
        steps = np.array([self.mu[1] - self.mu[0], self.log_smoothing[1] - self.log_smoothing[0]])
        return nodes + (rng.random((n, 2)) - 0.5) * steps


def grid_posterior(curve: FreeCurve, bounds: Mapping[str, tuple[float, float]]) -> GridPosterior:
    """Evaluate the posterior on a coarse grid, then on a fine one around its mass."""
    low, high = bounds["mu"]
    smoothings = np.linspace(*bounds["log_smoothing"], _SMOOTHINGS)
    coarse = _evaluate(curve, _midpoints(low, high, _COARSE), smoothings, (low, high))
    # a posterior narrower than the coarse step shows in one node: widen by the step itself
    reach = _REACH * max(coarse.spread[0], 0.5 * (coarse.mu[1] - coarse.mu[0]))
    left, right = max(low, coarse.mean - reach), min(high, coarse.mean + reach)
    fine = _evaluate(curve, _midpoints(left, right, _FINE), smoothings, (low, high))
    if fine.spread[0] < 3 * (fine.mu[1] - fine.mu[0]):
        reach = _REACH * fine.spread[0]
        left, right = max(low, fine.mean - reach), min(high, fine.mean + reach)
        fine = _evaluate(curve, _midpoints(left, right, _FINE), smoothings, (low, high))
    return fine


def _midpoints(low: float, high: float, n: int) -> np.ndarray:
    step = (high - low) / n
    return low + step * (np.arange(n) + 0.5)


def _evaluate(curve: FreeCurve, mu: np.ndarray, smoothings: np.ndarray, prior: tuple[float, float]) -> GridPosterior:
    table = curve.log_marginal(mu, np.broadcast_to(smoothings, (mu.size, smoothings.size)))
    top = table.max()
    total = top + np.log(np.exp(table - top).mean(axis=1).sum() * (mu[1] - mu[0]))
    return GridPosterior(mu, smoothings, table - total, float(total - np.log(prior[1] - prior[0])), prior)
