"""The pilot fit: the covariance of the points from the points themselves, then kept fixed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from trajstats.inference.aging._grid import GridPosterior, grid_posterior
from trajstats.inference.aging._points import Points
from trajstats.inference.aging._wick import wick_covariances
from trajstats.inference.aging.curves._spline import FreeCurve

_SHARES = 5
# ln prior odds of a share of 1 against 0: what the error of the pilot curve takes from the score of modes that differ
# in simulations where they do, and the side on which the interval is not too narrow
_LOG_ODDS = 4.0

Bounds = Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class Pilot:
    """A covariance, the data it whitens and the exact posterior under it."""

    curve: FreeCurve  # Data and covariance
    grid: GridPosterior  # Posterior of (mu, log smoothing)
    # Share of the covariance in which every term of the variogram is a population of modes of its own, 0 to 1
    differing: float

    def with_form(self, form: str, bounds: Bounds) -> Pilot:
        """Take the same data and covariance in another form of the scaling variable."""
        if form == self.curve.form:
            return self
        curve = replace(self.curve, form=form)
        return Pilot(curve, grid_posterior(curve, bounds), self.differing)


def pilot_fit(log_msd: np.ndarray, points: Points, bounds: Bounds, *, likelihood: str, rounds: int = 2) -> Pilot:
    """Iterate between the fit and the covariance that follows from it."""
    waiting, lag = points.scaled
    curve = FreeCurve(log_msd, waiting, lag, np.eye(lag.size))
    grid, share = grid_posterior(curve, bounds), 0.0
    for _ in range(rounds if likelihood == "wick" else 0):
        covariance, share = _covariance(curve, grid, bounds)
        curve = replace(curve, covariance=covariance)
        grid = grid_posterior(curve, bounds)
    return Pilot(curve, grid, share)


def _covariance(curve: FreeCurve, grid: GridPosterior, bounds: Bounds) -> tuple[np.ndarray, float]:
    mu, smooth = np.array([grid.mean]), np.array([grid.mode[1]])
    fitted = curve.fitted(mu, mu, curve.best_coefficients(mu, smooth))[0]
    alike, differing = wick_covariances(
        curve.waiting_time, curve.waiting_time + curve.lag, curve.variable(mu)[0], fitted, grid.mean
    )
    # how alike the modes are is inferred: the posterior mean of the covariance over a grid of mixtures
    smoothings = np.linspace(*bounds["log_smoothing"], 31)[None]
    shares, scores = np.linspace(*bounds["modes_differ"], _SHARES), []
    for share in shares:
        trial = replace(curve, covariance=(1 - share) * alike + share * differing)
        table = trial.log_marginal(mu, smoothings)
        log_det = -2 * np.log(np.diagonal(trial.whiten)).sum()
        scores.append(table.max() + np.log(np.exp(table - table.max()).mean()) - 0.5 * log_det + _LOG_ODDS * share)
    weight = np.exp(np.array(scores) - max(scores))
    mean = float(weight @ shares / weight.sum())
    return (1 - mean) * alike + mean * differing, mean
