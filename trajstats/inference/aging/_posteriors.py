"""Posterior draws of a subaging fit: free master curve by emcee or exact grid, parametric curves by emcee."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import xarray as xr

from trajstats.inference.aging._alternatives import fit_parametric, parametric_limits, parametric_log_msd
from trajstats.inference.aging._pilot import Pilot
from trajstats.inference.aging.curves.master_curves import MasterCurve
from trajstats.inference.sampling._emcee_chains import diagnostics_dataset, draws_dataset, sample_posterior

CHAINS, DRAWS_KEPT = 4, 500
# coefficients that are a logarithm of the MSD
_LEVELS = ("curve", "level", "offset")

Bounds = Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class Sampled:
    """Draws and their diagnostics."""

    posterior: xr.Dataset  # Dims (chain, draw)
    diagnostics: xr.Dataset  # As in `FitResult`

    def in_unit(self, unit: float) -> Sampled:
        """Move levels of curves that were drawn for an MSD in units of its own."""
        levels = {name: self.posterior[name] + np.log(unit) for name in _LEVELS if name in self.posterior}
        return replace(self, posterior=self.posterior.assign(levels))

    def with_mu(self, mu: np.ndarray) -> Sampled:
        """Give mu other draws; those that belong to the drawn curves are kept as ``mu_pooled``."""
        posterior = self.posterior.rename(mu="mu_pooled").assign(mu=(("chain", "draw"), mu))
        # the exponent that is asked for stands first
        return replace(self, posterior=posterior[["mu", *(k for k in posterior.data_vars if k != "mu")]])


def sample_free(
    pilot: Pilot, bounds: Bounds, rng: np.random.Generator, *, sampler: str, max_steps: int, progress: bool
) -> Sampled:
    """Draw (mu, log smoothing), then curve and N_eff given them."""
    names = ("mu", "log_smoothing")
    if sampler == "grid":
        kept = pilot.grid.draw(CHAINS * DRAWS_KEPT, rng).reshape(CHAINS, DRAWS_KEPT, 2)
        diagnostics = diagnostics_dataset(
            names,
            r_hats=np.ones(2),
            ess=np.full(2, float(CHAINS * DRAWS_KEPT)),
            tau=np.ones(2),
            acceptance=np.ones(CHAINS),
            stuck=0,
            reasons=(),
            steps=DRAWS_KEPT,
        )
    else:
        low, high = np.array([bounds[n] for n in names]).T

        def log_prob(theta: np.ndarray) -> np.ndarray:
            inside = ((theta > low) & (theta < high)).all(axis=1)
            out = np.full(len(theta), -np.inf)
            out[inside] = pilot.curve.log_marginal(theta[inside, 0], theta[inside, 1])
            return out

        draws = sample_posterior(
            log_prob,
            np.array(pilot.grid.mode),
            np.diag(np.square(pilot.grid.spread)),
            names=names,
            rng=rng,
            walkers=10,
            max_steps=max_steps,
            progress=progress,
        )
        kept, diagnostics = _thin(draws.values), draws.diagnostics
    flat = kept.reshape(-1, 2)
    coefficients, n_eff = pilot.curve.draw(flat[:, 0], flat[:, 1], rng)
    shape = kept.shape[:2]
    posterior = draws_dataset(
        {
            "mu": kept[..., 0],
            "log_smoothing": kept[..., 1],
            "N_eff": n_eff.reshape(shape),
            "curve": (("chain", "draw", "spline"), coefficients.reshape(*shape, -1)),
        }
    )
    return Sampled(posterior, diagnostics)


def _thin(values: np.ndarray) -> np.ndarray:
    return values[:, np.linspace(0, values.shape[1] - 1, min(values.shape[1], DRAWS_KEPT)).astype(int)]


def sample_parametric(
    pilot: Pilot,
    curve: MasterCurve,
    bounds: Bounds,
    rng: np.random.Generator,
    *,
    stationary: bool,
    max_steps: int,
    progress: bool,
) -> Sampled:
    """Draw mu, level and the coefficients of a parametric curve; the noise level is integrated out."""
    data = pilot.curve
    best = fit_parametric(data, curve, pilot.grid.mean, bounds, stationary=stationary)
    names = list(best.values)
    limits = parametric_limits(data, curve, best, bounds)
    low, high = np.array([limits[n] for n in names]).T
    n = data.log_msd.size

    def misfit(vector: np.ndarray) -> float:
        model = parametric_log_msd(
            curve, dict(zip(names, vector.tolist(), strict=True)), data.waiting_time, data.lag, data.form
        )
        return float(np.sum((data.whiten @ (data.log_msd - model)) ** 2))

    def log_prob(theta: np.ndarray) -> np.ndarray:
        inside = ((theta > low) & (theta < high)).all(axis=1)
        out = np.full(len(theta), -np.inf)
        with np.errstate(all="ignore"):
            out[inside] = [-0.5 * n * np.log(misfit(vector)) for vector in theta[inside]]
        return np.where(np.isfinite(out), out, -np.inf)

    start = np.clip(np.array(list(best.values.values())), low + 1e-6 * (high - low), high - 1e-6 * (high - low))
    fallback = np.diag((0.01 * (high - low)) ** 2)
    covariance = best.covariance if np.isfinite(best.covariance).all() else fallback
    draws = sample_posterior(log_prob, start, covariance, names=names, rng=rng, max_steps=max_steps, progress=progress)
    kept = _thin(draws.values)
    squares = np.array([misfit(v) for v in kept.reshape(-1, len(names))]).reshape(kept.shape[:2])
    n_eff = 2 * rng.chisquare(n, size=squares.shape) / squares
    posterior = draws_dataset({**{name: kept[..., k] for k, name in enumerate(names)}, "N_eff": n_eff})
    return Sampled(posterior, draws.diagnostics)
