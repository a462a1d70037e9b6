"""Other estimators of the exponent of aging, and other models of aging, side by side on the same points."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import xarray as xr

from trajstats.inference.aging._grid import GridPosterior, grid_posterior
from trajstats.inference.aging.curves._spline import FreeCurve
from trajstats.inference.aging.curves.master_curves import FORMS, MASTER_CURVES, MasterCurve, scaled_time

WRONG_CURVE_RATIO = 1.3

Bounds = Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class ParametricFit:
    """A parametric master curve fitted by whitened least squares."""

    curve: MasterCurve  # Which
    # Coefficients, ``mu`` and ``level`` (ln amplitude) included, ``offset`` too with a stationary part
    values: dict[str, float]
    covariance: np.ndarray  # Of the coefficients in order
    misfit: float  # Whitened sum of squares

    @property
    def stderr(self) -> float:
        """Standard error of mu; NaN where the curvature is not defined."""
        return float(np.sqrt(self.covariance[0, 0]))


def parametric_log_msd(
    curve: MasterCurve, values: Mapping[str, float], waiting: np.ndarray, lag: np.ndarray, form: str
) -> np.ndarray:
    """Evaluate ln MSD of a parametric master curve, its stationary part added where there is one."""
    x = scaled_time(waiting, lag, values["mu"], form=form)
    aging = values["level"] + curve.log_curve(x, dict(values))
    return np.logaddexp(aging, values["offset"]) if "offset" in values else aging


def fit_parametric(
    data: FreeCurve, curve: MasterCurve, mu: float, bounds: Bounds, *, stationary: bool = False
) -> ParametricFit:
    """Fit a parametric master curve with the covariance of the data."""
    import lmfit

    x = data.variable(np.array([mu]))[0]
    starts = lmfit.Parameters()
    low, high = bounds["mu"]
    starts.add("mu", value=min(max(mu, low + 1e-3), high - 1e-3), min=low, max=high)
    starts.add("level", value=float(np.median(data.log_msd)))
    for name, (value, lower, upper) in curve.start.items():
        at = float(np.median(x)) if name == "log_scale" else value
        starts.add(name, value=min(max(at, lower + 1e-3), upper - 1e-3), min=lower, max=upper)
    if stationary:
        starts.add("offset", value=float(data.log_msd.min() - 2), max=float(data.log_msd.min()))

    def residual(trial: lmfit.Parameters) -> np.ndarray:
        model = parametric_log_msd(curve, trial.valuesdict(), data.waiting_time, data.lag, data.form)
        return np.nan_to_num(data.whiten @ (data.log_msd - model), nan=1e6, posinf=1e6, neginf=-1e6)

    # a curvature that cannot be inverted is reported below as NaN, not as a warning of lmfit's
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = lmfit.minimize(residual, starts, method="leastsq", max_nfev=200 * (len(starts) + 1))
    size = len(found.params)
    # lmfit reports stderr 0 where it has no degree of freedom left, and none where the curvature is singular
    fine = found.covar is not None and found.nfree > 0
    covariance = np.asarray(found.covar) if fine else np.full((size, size), np.nan)
    misfit = float(np.sum(residual(found.params) ** 2))
    return ParametricFit(curve, {k: float(v) for k, v in found.params.valuesdict().items()}, covariance, misfit)


def parametric_limits(data: FreeCurve, curve: MasterCurve, best: ParametricFit, bounds: Bounds) -> Bounds:
    """Bounds of the uniform priors of a parametric curve."""
    wide = 30.0 + float(np.ptp(data.log_msd))
    lowest = float(data.log_msd.min())
    return {
        "mu": bounds["mu"],
        "level": (best.values["level"] - wide, best.values["level"] + wide),
        "offset": (lowest - wide, lowest),
        **{name: (low, high) for name, (_, low, high) in curve.start.items()},
    }


def estimator_table(
    data: FreeCurve, grids: Mapping[str, GridPosterior], bounds: Bounds, curves: Mapping[str, MasterCurve]
) -> xr.Dataset:
    """Estimates of mu by every master curve."""
    names, rows = [], []
    reference = _variance(data, grids["free_clock"], "clock")
    for name, grid in grids.items():
        form = "simple" if "simple" in name else "clock"
        lower, upper = grid.quantile(np.array([0.025, 0.975]))
        names.append(name)
        rows.append((grid.mean, grid.half_interval, lower, upper, _variance(data, grid, form) / reference))
    for name, curve in curves.items():
        fit = fit_parametric(data, curve, grids["free_clock"].mean, bounds)
        n_free = max(data.log_msd.size - len(fit.values), 1)
        mu, error = fit.values["mu"], fit.stderr
        names.append(name)
        rows.append((mu, error, mu - 1.96 * error, mu + 1.96 * error, fit.misfit / n_free / reference))
    table = np.array(rows)
    columns = ("mu", "stderr", "lower", "upper", "misfit_ratio")
    return xr.Dataset({c: ("estimator", table[:, k]) for k, c in enumerate(columns)}, coords={"estimator": names})


def _variance(data: FreeCurve, grid: GridPosterior, form: str) -> float:
    part = replace(data, form=form)
    mu, smooth = (np.array([v]) for v in grid.mode)
    fitted = part.fitted(mu, mu, part.best_coefficients(mu, smooth))[0]
    residual = data.whiten @ (data.log_msd - fitted)
    gram, _, width = part.normal_equations(mu)
    used = np.trace(np.linalg.solve(gram[0] + np.exp(smooth[0]) / width[0] ** 3 * part.penalty, gram[0])) + 1
    return float(residual @ residual / max(data.log_msd.size - used, 1))


def model_table(data: FreeCurve, grid: GridPosterior, bounds: Bounds, clocks: Mapping[str, np.ndarray]) -> xr.Dataset:
    """Competing models of aging: their evidence, and their scores on waiting times left out.

    ``free``: mu free; ``full_aging``: mu = 1; ``no_aging``: mu = 0, which is time-translation invariance (a function
    of the lag alone); one model for each other clock, in which the MSD is a function of the difference of that clock.
    """
    models: dict[str, tuple[FreeCurve, np.ndarray]] = {
        "free": (data, np.linspace(float(grid.mu[0]), float(grid.mu[-1]), 41)),
        "full_aging": (data, np.array([1.0])),
        "no_aging": (data, np.array([0.0])),
    }
    for name, difference in clocks.items():
        models[name] = (replace(data, fixed=np.log(difference)), np.array([0.0]))
    smoothings = np.linspace(*bounds["log_smoothing"], 31)
    # the evidence of the free model is averaged over its prior, whatever the range of its nodes
    evidence = {
        name: grid.log_evidence if name == "free" else _log_mean(curve, mus, smoothings)
        for name, (curve, mus) in models.items()
    }
    scores = {name: _left_out_score(curve, mus, smoothings) for name, (curve, mus) in models.items()}
    return xr.Dataset(
        {
            "log_bayes_factor": ("model", [evidence[m] - evidence["free"] for m in models]),
            "score": ("model", [scores[m] for m in models]),
            "score_difference": ("model", [scores[m] - scores["free"] for m in models]),
        },
        coords={"model": list(models)},
    )


def _log_mean(curve: FreeCurve, mus: np.ndarray, smoothings: np.ndarray) -> float:
    table = curve.log_marginal(mus, np.broadcast_to(smoothings, (mus.size, smoothings.size)))
    return float(table.max() + np.log(np.exp(table - table.max()).mean()))


def _left_out_score(curve: FreeCurve, mus: np.ndarray, smoothings: np.ndarray) -> float:
    # p(y_w | y_-w) = p(y) / p(y_-w): exact, with the curve, the noise and the smoothing integrated out
    waits = np.unique(curve.waiting_time)
    if waits.size < 3:
        return float("nan")
    whole = _log_mean(curve, mus, smoothings) + _constant(curve)
    total = 0.0
    for level in waits:
        keep = curve.waiting_time != level
        part = curve.part(keep)
        total += whole - _log_mean(part, mus, smoothings) - _constant(part)
    return total


def _constant(curve: FreeCurve) -> float:
    from scipy.special import gammaln

    n_free = curve.log_msd.size - 2
    log_det = -2 * np.log(np.diagonal(curve.whiten)).sum()
    return float(gammaln(n_free / 2) - 0.5 * n_free * np.log(np.pi) - 0.5 * log_det)


def default_curves() -> dict[str, MasterCurve]:
    """Give the parametric master curves that every fit lists."""
    return dict(MASTER_CURVES)


def free_grids(data: FreeCurve, grid: GridPosterior, bounds: Bounds) -> dict[str, GridPosterior]:
    """Free-curve posteriors in every form of the scaling variable."""
    result = {}
    for form in FORMS:
        result[f"free_{form}"] = grid if form == data.form else grid_posterior(replace(data, form=form), bounds)
    return result
