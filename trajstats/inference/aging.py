"""fit_subaging: the exponent of aging from two-time displacements."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from trajstats.data.schema import LAG, PAIR, WAITING_TIME
from trajstats.errors import ArgumentError, unknown
from trajstats.inference.points import Points, two_time_points
from trajstats.inference.results import FitResult
from trajstats.inference.sampling import sample_posterior
from trajstats.inference.spline import LOG_SMOOTHING, FreeCurve
from trajstats.inference.wick import wick_correlation

PRIOR = {"mu": (-0.5, 2.0), "log_smoothing": LOG_SMOOTHING}
LIKELIHOODS = ("wick", "iid")
_DRAWS_KEPT = 500


def fit_subaging(
    delta: xr.DataArray,
    /,
    *,
    rng: int | np.random.Generator | None,
    likelihood: str = "wick",
    over: str = "total",
    prior: Mapping[str, tuple[float, float]] | None = None,
    progress: bool = False,
) -> FitResult:
    """Fit.

    Parameters
    ----------
    delta : xarray.DataArray
        x
    rng : int or Generator
        x
    likelihood : str
        x
    over : str
        x
    prior : mapping
        x
    progress : bool
        x

    Returns
    -------
    FitResult

    Raises
    ------
    ArgumentError
        x
    """
    if likelihood not in LIKELIHOODS:
        raise ArgumentError(unknown("likelihood", likelihood, LIKELIHOODS))
    points = two_time_points(delta, over=over)
    bounds = {**PRIOR, **(prior or {})}
    generator = np.random.default_rng(rng)
    log_msd = np.log(points.msd).mean(axis=0)
    pilot = pilot_fit(log_msd, points, bounds, likelihood=likelihood)
    curve = pilot.curve

    def log_prob(theta: np.ndarray) -> np.ndarray:
        inside = np.all(
            [
                (theta[:, k] > bounds[n][0]) & (theta[:, k] < bounds[n][1])
                for k, n in enumerate(("mu", "log_smoothing"))
            ],
            axis=0,
        )
        out = np.full(len(theta), -np.inf)
        out[inside] = curve.log_marginal(theta[inside, 0], theta[inside, 1])
        return out

    draws = sample_posterior(
        log_prob,
        np.array([pilot.mu, pilot.log_smoothing]),
        np.diag([pilot.spread[0] ** 2, pilot.spread[1] ** 2]),
        names=["mu", "log_smoothing"],
        rng=generator,
        progress=progress,
    )
    posterior = _posterior(curve, draws.values, generator)
    fit = FitResult(
        "fit_subaging",
        posterior,
        xr.Dataset(),
        draws.diagnostics,
        flags=(*points.flags, *(("conditional on the clock of this one run",) if points.msd.shape[0] == 1 else ())),
        attrs={
            "likelihood": likelihood,
            "over": points.over,
            "clock": points.clock,
            "pivot": points.pivot,
            "form": "clock",
        },
    )
    return _with_data(fit, points, log_msd)


@dataclass(frozen=True)
class Pilot:
    curve: FreeCurve
    mu: float
    log_smoothing: float
    spread: tuple[float, float]


def pilot_fit(
    log_msd: np.ndarray, points: Points, bounds: Mapping[str, tuple[float, float]], *, likelihood: str
) -> Pilot:
    waiting, lag = points.scaled
    covariance = np.eye(lag.size)
    mus = np.linspace(*bounds["mu"], 101)[1:-1]
    smooths = np.linspace(*bounds["log_smoothing"], 31)
    for _ in range(3 if likelihood == "wick" else 1):
        curve = FreeCurve(log_msd, waiting, lag, covariance)
        table = curve.log_marginal(mus, np.broadcast_to(smooths, (mus.size, smooths.size)))
        weight = np.exp(table - table.max())
        weight /= weight.sum()
        i, j = np.unravel_index(np.argmax(table), table.shape)
        mean = (weight.sum(1) @ mus, weight.sum(0) @ smooths)
        spread = (
            float(np.sqrt(weight.sum(1) @ (mus - mean[0]) ** 2)) + 1e-4,
            float(np.sqrt(weight.sum(0) @ (smooths - mean[1]) ** 2)) + 1e-2,
        )
        best = Pilot(curve, float(mus[i]), float(smooths[j]), spread)
        if likelihood == "wick":
            smooth = curve.curve(mus[[i]], curve.best_coefficients(mus[[i]], smooths[[j]]), waiting, lag)[0]
            covariance = wick_correlation(waiting, waiting + lag, curve.variable(mus[[i]])[0], smooth, float(mus[i]))
    return best


def _posterior(curve: FreeCurve, values: np.ndarray, rng: np.random.Generator) -> xr.Dataset:
    keep = np.linspace(0, values.shape[1] - 1, min(values.shape[1], _DRAWS_KEPT)).astype(int)
    kept = values[:, keep]
    flat = kept.reshape(-1, 2)
    coefficients, n_eff = curve.draw(flat[:, 0], flat[:, 1], rng)
    shape = kept.shape[:2]
    return xr.Dataset(
        {
            "mu": (("chain", "draw"), kept[..., 0]),
            "log_smoothing": (("chain", "draw"), kept[..., 1]),
            "N_eff": (("chain", "draw"), n_eff.reshape(shape)),
            "curve": (("chain", "draw", "spline"), coefficients.reshape(*shape, -1)),
        },
        coords={"chain": np.arange(shape[0]), "draw": np.arange(shape[1])},
    )


def _with_data(fit: FitResult, points: Points, log_msd: np.ndarray) -> FitResult:
    import dataclasses

    data = xr.Dataset(
        {"msd": (PAIR, np.exp(log_msd))},
        coords={WAITING_TIME: (PAIR, points.waiting_time), LAG: (PAIR, points.lag)},
    )
    fit = dataclasses.replace(fit, data=data)
    mean = np.log(predict(fit)).mean(("chain", "draw"))
    data = data.assign(predicted=np.exp(mean), residual=np.log(data["msd"]) - mean)
    return dataclasses.replace(fit, data=data)


def predict(fit: FitResult, *, waiting_time: Any = None, lag: Any = None) -> xr.DataArray:
    """Predict the MSD from each draw.

    Parameters
    ----------
    fit : FitResult
        x
    waiting_time, lag : array
        x

    Returns
    -------
    xarray.DataArray
    """
    wait = (
        fit.data[WAITING_TIME].values if waiting_time is None else np.atleast_1d(np.asarray(waiting_time, dtype=float))
    )
    lags = fit.data[LAG].values if lag is None else np.atleast_1d(np.asarray(lag, dtype=float))
    wait, lags = np.broadcast_arrays(wait, lags)
    pivot = float(fit.attrs["pivot"])
    own = fit.data
    curve = FreeCurve(
        np.log(own["msd"].values),
        own[WAITING_TIME].values / pivot,
        own[LAG].values / pivot,
        np.eye(1),
        form=fit.attrs["form"],
    )
    mu = fit.posterior["mu"].values
    coefficients = fit.posterior["curve"].values
    log_msd = curve.curve(mu.ravel(), coefficients.reshape(-1, coefficients.shape[-1]), wait / pivot, lags / pivot)
    return xr.DataArray(
        np.exp(log_msd).reshape(*mu.shape, -1),
        dims=("chain", "draw", PAIR),
        coords={WAITING_TIME: (PAIR, wait), LAG: (PAIR, lags)},
        name="msd",
    )
