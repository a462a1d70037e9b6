"""fit_subaging: the exponent of aging from two-time displacements."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr

from trajstats.data._clocks import CLOCK, REASON, carried_clock, clock_attrs
from trajstats.data._inputs import DELTA, accepts
from trajstats.data.schema import LAG, PAIR, REPLICA, STEP, WAITING_TIME
from trajstats.errors import ArgumentError, TooFewReplicasError, optional_package, unknown_name_message
from trajstats.inference._identifiability import runs_into
from trajstats.inference._options import check_sampling, check_switches, generator
from trajstats.inference._priors import Priors, merged_priors
from trajstats.inference._uncertainty import half_interval, student_t_draws
from trajstats.inference.aging._alternatives import (
    WRONG_CURVE_RATIO,
    default_curves,
    estimator_table,
    free_grids,
    model_table,
    parametric_log_msd,
)
from trajstats.inference.aging._clock_readings import clock_flag, clock_readings, time_coords
from trajstats.inference.aging._errors import with_errors
from trajstats.inference.aging._pilot import Pilot, pilot_fit
from trajstats.inference.aging._points import MAX_POINTS, Points, clock_differences, two_time_points
from trajstats.inference.aging._posteriors import Sampled, sample_free, sample_parametric
from trajstats.inference.aging._residuals import overlap_gap, residual_check, structured, window_scan
from trajstats.inference.aging._scores import GROUPS, curve_evidence, left_out_replicas, left_out_waiting_times
from trajstats.inference.aging._threshold import threshold_scan
from trajstats.inference.aging.curves._spline import LOG_SMOOTHING, FreeCurve
from trajstats.inference.aging.curves.master_curves import MASTER_CURVES, MasterCurve
from trajstats.inference.results import FitResult, check_predicted_clock
from trajstats.runtime._threads import one_thread

PRIOR = {"mu": (-0.5, 2.0), "log_smoothing": LOG_SMOOTHING, "modes_differ": (0.0, 1.0)}
LIKELIHOODS = ("wick", "iid", "seeds", "blocks")
ESTIMATORS = ("free", "free_simple", "threshold", *MASTER_CURVES)
_NOISE_DRAWS = 60
# half a 68 % interval of mu above this share of the width of its prior (0.34 for the prior itself): not identified
_WIDE = 0.17


@one_thread()
@accepts(DELTA)
def fit_subaging(
    delta: xr.DataArray,
    /,
    *,
    rng: int | np.random.Generator | None,
    estimator: str | MasterCurve = "free",
    likelihood: str = "wick",
    over: str = "total",
    stationary: bool = False,
    clocks: Mapping[str, xr.DataArray] | None = None,
    prior: Priors | None = None,
    sampler: str = "grid",
    max_steps: int = 20_000,
    groups: str | None = None,
    evidence: bool = False,
    on_nan: str = "raise",
    progress: bool = False,
) -> FitResult:
    r"""Fit the exponent of aging, :math:`t^*\propto t_w^\mu`.

    :math:`\ln\Delta(t_w,t_w+t)=g(\ln u)+\epsilon`, :math:`u=\int_{t_w}^{t_w+t}s^{-\mu}ds` (the clock form; the simple
    :math:`t/t_w^\mu` agrees with it only for :math:`t\ll t_w`), g free: a penalised spline that is integrated out. The
    noise has the Wick covariance that follows from the MSD itself, up to an effective number of samples that is
    integrated out too.

    Parameters
    ----------
    delta : xarray.DataArray, (replica, pair, layer)
        Two-time MSD of `msd`, lazy or not; coords ``waiting_time``, ``lag``; it is computed once. `replica` and
        `layer` may be absent.
    rng : int or numpy.random.Generator
        Seed; the same seed gives the same draws.
    estimator : str or MasterCurve
        Whose posterior is returned: ``"free"`` (default), ``"free_simple"`` (the variable t/t_w^mu), ``"threshold"``
        (crossing of the middle threshold), ``"power_law"``, ``"stretched_exponential"``, ``"mittag_leffler"``,
        ``"logarithmic"``, or a curve of your own. All are listed in ``tables["estimators"]`` whatever is chosen here.
    likelihood : str
        ``"wick"``: one run by its Wick covariance; several replicas by the Wick fit of their mean MSD, with the error
        of leaving out one replica at a time (jackknife, Student t). ``"seeds"``: each replica by its own Wick fit, then
        a normal population over seeds, whose mean is ``mu`` (free curves only). ``"blocks"``: error from the scatter
        over layers, allowed only where motion is local. ``"iid"``: independent points, to see how much too narrow.
    over : str
        ``"total"``: layers combined with weights ``n_parameters``; or the name of one layer.
    stationary : bool
        Parametric curves only: add a part that does not age.
    clocks : mapping name -> DataArray along step, optional
        Other clocks, such as the integral of the noise strength: each becomes a competing model in
        ``tables["models"]``. Needs the coords ``first`` and ``second`` of `delta`.
    prior : mapping name -> (lower, upper), optional
        Priors, uniform: ``mu`` (-0.5, 2), ``log_smoothing`` (-18, 12); and ``modes_differ`` (0, 1), the share of modes
        whose relaxation times differ, with odds of e^4 for all against none: the wider error unless the data speak.
    sampler : str
        How a free curve's posterior of ``mu`` and ``log_smoothing`` is drawn: ``"grid"`` (default): independent draws
        from quadrature on a grid; ``"emcee"``: the same posterior by Markov chains, at ten times the cost. Parametric
        curves are always sampled by emcee.
    max_steps : int
        Longest chain of the sampler.
    groups : str, optional
        Keep, for `compare_fits`, the log density of each ``"waiting_time"`` given the others (exact under the Wick
        covariance, which ties them), or of each ``"replica"`` given the others (all share one curve and one mu).
        Needs ``likelihood="wick"`` or ``"iid"``; a second or two.
    evidence : bool
        Add ``tables["evidence"]``: the evidence of every master curve beside that of the free one, by nested sampling
        (the extra ``evidence``; a minute).
    on_nan : {"raise", "skip"}
        What NaN or infinity in the MSD does: an error that says where, or to be left out: replicas of which more than
        half is not finite, then pairs that are not finite in one of the others. A flag says how many.
    progress : bool
        Show a progress bar.

    Returns
    -------
    FitResult
        Posterior ``mu``, ``N_eff``, ``log_smoothing``, ``curve``. Tables: ``estimators``, ``models``, ``window_scan``,
        ``threshold_scan``, ``predictive_check``, ``seeds`` for several replicas, ``evidence`` where asked, and
        ``clocks`` where times are not in steps: mu on their clock and on optimiser steps. `flags` say what the error
        rests on, and name a clock that was taken because none was given. ``attrs["clock"]`` is the clock of `delta`.

    Notes
    -----
    Errors: ArgumentError for an unknown option or label; NonFiniteError for NaN; FitError for data that cannot support
    the fit (one waiting time, too few points, values that are not positive, an MSD that falls with the lag at most
    waiting times, replicas that are copies of each other, blocks that are not local);
    TooFewReplicasError for ``likelihood="seeds"`` with one replica.

    Cost: 0.3 s of CPU for 144 points, 0.1 s more for each replica, some 3 s with ``sampler="emcee"``; BLAS is held at
    one thread. Bias of mu below 0.003 on exact curves, in noise of the order of the square of the error. With one run
    the error is conditional on the clock of that run. Coverage is tabulated in the documentation under "what the error
    bars mean".

    References
    ----------
    subaging (arXiv:2209.02517); glassy (arXiv:1803.06969).

    Examples
    --------
    >>> wait, lag = (a.ravel() for a in np.meshgrid(np.geomspace(100, 1e4, 6), np.geomspace(10, 1e4, 8)))
    >>> msd = 1 - np.exp(-(np.sqrt(wait + lag) - np.sqrt(wait)) / 20)
    >>> delta = xr.DataArray(msd, dims="pair", coords={"waiting_time": ("pair", wait), "lag": ("pair", lag)})
    >>> fit = fit_subaging(delta, rng=0)
    >>> bool(abs(fit.summary()["value"].sel(coefficient="mu") - 0.5) < 0.01)
    True
    """
    name, curve_chosen = _check_options(estimator, likelihood)
    check_sampling(sampler, max_steps, ("emcee", "grid"))
    check_switches(stationary=stationary, evidence=evidence, progress=progress)
    rng = generator(rng)
    if evidence:
        optional_package("dynesty", "the evidence", "trajstats[evidence]")
    bounds = merged_priors(PRIOR, prior, {"modes_differ": (0.0, 1.0)})
    points = two_time_points(delta, over=over, on_nan=on_nan)
    if groups is not None:
        _check_groups(groups, name, likelihood, points)
    if likelihood == "seeds":
        _check_seeds(name, points)
    differences = clock_differences(delta, points, clocks)
    log_msd = np.log(points.msd.mean(axis=0))
    pilot = pilot_fit(log_msd, points, bounds, likelihood="iid" if likelihood == "iid" else "wick")
    if name == "free_simple":
        pilot = pilot.with_form("simple", bounds)
    if curve_chosen is not None:
        sampled = sample_parametric(
            pilot, curve_chosen, bounds, rng, stationary=stationary, max_steps=max_steps, progress=progress
        )
    else:
        sampled = sample_free(pilot, bounds, rng, sampler=sampler, max_steps=max_steps, progress=progress)
    tables, noise = _tables(pilot, points, bounds, differences, rng, curve_chosen, name)
    readings = clock_readings(delta, points, pilot, bounds, likelihood="iid" if likelihood == "iid" else "wick")
    tables |= {} if readings is None else {"clocks": readings}
    flags, status = [*clock_flag(delta, points, readings), *points.flags], "ok"
    scores = xr.Dataset()
    if groups == WAITING_TIME:
        scores = left_out_waiting_times(pilot.curve, sampled.posterior, curve_chosen)
        scores = scores.assign_coords({WAITING_TIME: np.unique(points.waiting_time)})  # on the clock of the data
    elif groups == REPLICA:
        rows = np.log(points.msd)
        scores = left_out_replicas(pilot.curve, sampled.posterior, curve_chosen, rows, points.replica, rng)
    if evidence:
        base = pilot.with_form("clock", bounds)
        own = default_curves() | ({name: curve_chosen} if curve_chosen is not None else {})
        tables["evidence"] = curve_evidence(base.curve, base.grid, bounds, own, rng)
    if name == "threshold":
        sampled = _from_threshold(sampled, tables["threshold_scan"], points, pilot, noise, rng)
    sampled = with_errors(sampled, delta, points, pilot, bounds, likelihood, rng, tables, flags, name)
    status = _judge(sampled, pilot, tables, bounds, flags, name)
    fit = FitResult(
        "fit_subaging",
        sampled.in_unit(points.unit).posterior,
        _observed(points, log_msd),
        sampled.diagnostics.assign(n_given=points.given, n_used=points.lag.size),
        tables,
        tuple(flags),
        status,
        {
            "estimator": name,
            "likelihood": likelihood,
            "over": points.over,
            **clock_attrs(points.clock, carried_clock(delta).get(REASON, "")),
            "source": points.source,
            "pivot": points.pivot,
            "form": pilot.curve.form,
            "used": _used(points),
            "n_points": points.lag.size,
            "n_replicas": points.msd.shape[0],
            "priors": {k: list(v) for k, v in bounds.items()},
            "modes_differ": pilot.differing,
            "sampler": sampler,
            "mu_simple": float(tables["estimators"]["mu"].sel(estimator="free_simple")),
        },
        scores,
    )
    predicted = predict(fit, curve=curve_chosen)
    mean = predicted.copy(data=np.log(predicted.values)).mean(("chain", "draw"))
    data = fit.data.assign(predicted=np.exp(mean), residual=np.log(fit.data["msd"]) - mean)
    return replace(fit, data=data)


def _used(points: Points) -> str:
    words = f"{points.lag.size} of {points.given} pairs"
    return words if points.lag.size == points.given else f"{words}, thinned to {MAX_POINTS} at most"


def _check_options(estimator: str | MasterCurve, likelihood: str) -> tuple[str, MasterCurve | None]:
    if likelihood not in LIKELIHOODS:
        raise ArgumentError(unknown_name_message("likelihood", likelihood, LIKELIHOODS))
    if isinstance(estimator, MasterCurve):
        return estimator.name, estimator
    if estimator not in ESTIMATORS:
        raise ArgumentError(
            unknown_name_message("estimator", estimator, ESTIMATORS, do="Or give a MasterCurve of your own.")
        )
    return estimator, MASTER_CURVES.get(estimator)


def _check_seeds(name: str, points: Points) -> None:
    if name not in ("free", "free_simple"):
        msg = f"likelihood='seeds' with estimator={name!r}: seeds are fitted by the free curve; use estimator='free'"
        raise ArgumentError(msg)
    if points.msd.shape[0] < 2:
        msg = "likelihood='seeds' with one replica: a population needs at least 2, 5 are asked for; use 'wick'"
        raise TooFewReplicasError(msg)


def _check_groups(groups: str, name: str, likelihood: str, points: Points) -> None:
    if groups not in GROUPS:
        raise ArgumentError(unknown_name_message("groups", groups, GROUPS))
    if likelihood not in ("wick", "iid") or name == "threshold":
        msg = (
            f"groups={groups!r} with estimator={name!r}, likelihood={likelihood!r}: an error from scatter or from a "
            "threshold has no likelihood to score groups by; use a curve with likelihood='wick'"
        )
        raise ArgumentError(msg)
    if groups == REPLICA and points.msd.shape[0] < 2:
        msg = "groups='replica' with one replica: no other data can predict it; use groups='waiting_time'"
        raise TooFewReplicasError(msg)


def _tables(
    pilot: Pilot,
    points: Points,
    bounds: Priors,
    differences: Mapping[str, np.ndarray],
    rng: np.random.Generator,
    chosen: MasterCurve | None,
    name: str,
) -> tuple[dict[str, xr.Dataset], np.ndarray]:
    waiting, lag = points.scaled
    base = pilot.with_form("clock", bounds)
    mu, smooth = pilot.grid.mode
    _, n_eff = pilot.curve.draw(np.full(_NOISE_DRAWS, mu), np.full(_NOISE_DRAWS, smooth), rng)
    factor = np.linalg.cholesky(pilot.curve.covariance)
    noise = np.sqrt(2 / n_eff)[:, None] * (rng.standard_normal((_NOISE_DRAWS, lag.size)) @ factor.T)
    scan = threshold_scan(points.waiting_time, points.lag, pilot.curve.log_msd, noise)
    curves = default_curves() | ({name: chosen} if chosen is not None else {})
    estimators = estimator_table(base.curve, free_grids(base.curve, base.grid, bounds), bounds, curves)
    middle = scan.isel(threshold=_middle(scan))
    m, e = float(middle["mu"]), float(middle["stderr"])
    row = {"mu": m, "stderr": e, "lower": m - 1.96 * e, "upper": m + 1.96 * e, "misfit_ratio": np.nan}
    more = xr.Dataset({k: ("estimator", [v]) for k, v in row.items()}, coords={"estimator": ["threshold"]})
    tables = {
        "estimators": xr.concat([estimators, more], "estimator"),
        "threshold_scan": scan.assign_coords(threshold=scan["threshold"] * points.unit),
        "models": model_table(base.curve, base.grid, bounds, differences),
        "window_scan": window_scan(pilot.curve, bounds),
        "predictive_check": residual_check(pilot.curve, mu, smooth, waiting, lag, rng),
    }
    return tables, noise


def _middle(scan: xr.Dataset) -> int:
    # of the thresholds that most waiting times reach, the middle one
    best = np.flatnonzero(scan["reached"].values == scan["reached"].values.max())
    return int(best[best.size // 2])


def _from_threshold(
    sampled: Sampled, scan: xr.Dataset, points: Points, pilot: Pilot, noise: np.ndarray, rng: np.random.Generator
) -> Sampled:
    k = _middle(scan)
    value, error = float(scan["mu"][k]), float(scan["stderr"][k])
    freedom = max(int(scan["reached"][k]) - 2, 1)
    return sampled.with_mu(student_t_draws(value, error, freedom, sampled.posterior["mu"].shape, rng))


def _judge(
    sampled: Sampled, pilot: Pilot, tables: Mapping[str, xr.Dataset], bounds: Priors, flags: list[str], name: str
) -> str:
    status = "ok" if bool(sampled.diagnostics["converged"]) else "not converged"
    word = structured(tables["predictive_check"])
    if word:
        flags.append(word)
        status = "structured residuals"
    estimators = tables["estimators"]
    if name in MASTER_CURVES and float(estimators["misfit_ratio"].sel(estimator=name)) > WRONG_CURVE_RATIO:
        flags.append(
            f"the {name} curve needs {float(estimators['misfit_ratio'].sel(estimator=name)):.2g} times the noise of "
            "the free curve: it is wrong"
        )
    draws = np.clip(sampled.posterior["mu"].values, *bounds["mu"])
    low, high = bounds["mu"]
    if half_interval(draws) > _WIDE * (high - low) or runs_into("mu", draws, bounds["mu"]):
        flags.append(f"mu is not identified: its posterior runs into the prior ({low:g}, {high:g})")
        status = "not identified"
    if gap := overlap_gap(pilot.curve, pilot.grid.mode[0]):
        flags.append(gap)
        status = "not identified"
    spread = estimators["mu"].sel(estimator=["free_clock", "free_simple", "threshold"])
    flags.append(
        f"mu by free curve {float(spread[0]):.3f} (clock form), {float(spread[1]):.3f} (simple t/t_w^mu), "
        f"by threshold {float(spread[2]):.3f}"
    )
    return status


def _observed(points: Points, log_msd: np.ndarray) -> xr.Dataset:
    return xr.Dataset(
        {"msd": (PAIR, np.exp(log_msd) * points.unit)},
        coords=time_coords(points.waiting_time, points.lag, points.clock),
    )


def predict(
    fit: FitResult,
    *,
    waiting_time: Any = None,
    lag: Any = None,
    clock: str | None = None,
    curve: MasterCurve | None = None,
) -> xr.DataArray:
    """Predict the MSD from each draw."""
    check_predicted_clock(fit, clock, {WAITING_TIME: waiting_time, LAG: lag})
    wait = (
        fit.data[WAITING_TIME].values if waiting_time is None else np.atleast_1d(np.asarray(waiting_time, dtype=float))
    )
    lags = fit.data[LAG].values if lag is None else np.atleast_1d(np.asarray(lag, dtype=float))
    wait, lags = np.broadcast_arrays(wait, lags)
    pivot, form, name = float(fit.attrs["pivot"]), str(fit.attrs["form"]), str(fit.attrs["estimator"])
    own, posterior = fit.data, fit.posterior
    mu = posterior["mu_pooled" if "mu_pooled" in posterior else "mu"].values
    if "curve" in posterior:
        data = FreeCurve(
            np.log(own["msd"].values), own[WAITING_TIME].values / pivot, own[LAG].values / pivot, np.eye(1), form=form
        )
        coefficients = posterior["curve"].values
        log_msd = data.curve(mu.ravel(), coefficients.reshape(-1, coefficients.shape[-1]), wait / pivot, lags / pivot)
    else:
        master = curve if curve is not None else MASTER_CURVES.get(name)
        if master is None:
            msg = f"this fit used the curve {name!r} of your own: give fit.predict(curve=...)"
            raise ArgumentError(msg)
        names = [str(k) for k in posterior.data_vars if k not in ("mu", "N_eff", "mu_pooled")]
        log_msd = np.stack(
            [
                parametric_log_msd(
                    master,
                    {"mu": m, **{k: float(posterior[k].values.ravel()[i]) for k in names}},
                    wait / pivot,
                    lags / pivot,
                    form,
                )
                for i, m in enumerate(mu.ravel())
            ]
        )
    return xr.DataArray(
        np.exp(log_msd).reshape(*mu.shape, -1),
        dims=("chain", "draw", PAIR),
        coords=time_coords(wait, lags, str(fit.attrs.get(CLOCK, STEP))),
        name="msd",
    )
