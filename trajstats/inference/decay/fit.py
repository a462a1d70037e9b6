"""fit_decay: how the loss relaxes, and whether to a floor above zero."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr

from trajstats.data._clocks import REASON, choose_clock, default_reason, unit_of
from trajstats.data._inputs import LOSS, accepts
from trajstats.data.schema import REPLICA, STEP
from trajstats.errors import ArgumentError, FitError, NonFiniteError, optional_package, unknown_name_message
from trajstats.inference._options import check_count, check_sampling, check_switches, generator, real_values
from trajstats.inference._priors import Priors, check_free, merged_priors, named_priors
from trajstats.inference._scaling import rounded
from trajstats.inference.decay._likelihood import (
    CURVES,
    SCALE,
    Binned,
    coefficient_names,
    decay_window,
    default_priors,
    log_bins,
    log_decay,
    log_posterior,
)
from trajstats.inference.decay._models import SUPPORT, _evidence, _models, maximum
from trajstats.inference.model_scores import savage_dickey
from trajstats.inference.results import FitResult, check_predicted_clock
from trajstats.inference.sampling._batched_chains import draw_posterior
from trajstats.inference.sampling._emcee_chains import draws_dataset
from trajstats.runtime._threads import one_thread

_MIN_POINTS = 10
_MIN_DECADES = 1.0
_WIDEST = 1e150


@one_thread()
@accepts(LOSS)
def fit_decay(
    loss: xr.DataArray,
    /,
    *,
    rng: int | np.random.Generator | None,
    curve: str = "power_law",
    floor: bool = True,
    clock: str | None = None,
    window: tuple[float, float] | None = None,
    bins_per_decade: int = 20,
    prior: Priors | None = None,
    evidence: bool = False,
    sampler: str = "batched",
    max_steps: int = 20_000,
    progress: bool = False,
) -> FitResult:
    r"""Fit the decay of a training curve to a floor, :math:`L(t)=L_\infty+A\,t^{-\beta}`.

    The curve is averaged in logarithmic bins. Its noise is an Ornstein-Uhlenbeck process in ln t plus white noise,
    which falls as one over the root of what a bin averages, both proportional to (curve)\ :sup:`power`; all of it is
    inferred, so that a correlated training curve does not pretend to be many measurements.

    Parameters
    ----------
    loss : xarray.DataArray
        Along `step` (or the clock); one run: select one replica, or average them.
    rng : int or numpy.random.Generator
        Seed.
    curve : str
        ``"power_law"``, ``"stretched_exponential"``, ``"logarithmic"`` or ``"exponential"``; all four are compared in
        ``tables["models"]``.
    floor : bool
        Let L_inf be positive; the probability that it is, is in ``tables["floor"]``, unless its prior excludes 0.
    clock : str, optional
        Coordinate of the times, by default that of `time_pairs`: ``"step"``, or ``"proper_time"`` where `loss` holds it
        and it is not proportional to the step. Then `window` could mean either, and `clock` is required.
    window : (float, float), optional
        First and last time used. If not given: from where the loss has left the plateau that it starts on, to the end.
        The plateau ends at the first logarithmic bin whose loss (a running median of five bins) lies below the first
        one's by more than a twentieth of the fall to the median of the last tenth of the bins.
    bins_per_decade : int
        Logarithmic bins.
    prior : mapping name -> (lower, upper), optional
        Uniform priors of ``L_inf``, ``beta``, ``log_noise``, ``drift_share``, ``log_range``, ``power``, ``log_middle``
        (ln of the decaying part at the geometric mean of the times; of a stretched exponential at the first),
        ``log_scale`` (ln tau).
    evidence : bool
        Add the evidence of every model to ``tables["models"]`` by nested sampling (the extra ``evidence``; a minute).
    sampler : str
        ``"batched"`` (all ensembles in one NumPy call: the fastest for so few points) or ``"emcee"``; same moves, same
        rules.
    max_steps : int
        Longest chain.
    progress : bool
        Show a progress bar.

    Returns
    -------
    FitResult
        Posterior ``L_inf``, ``A``, ``beta`` and the noise, of :math:`L_\infty+A\,t^{-\beta}`,
        :math:`L_\infty+A\,e^{-(t/\tau)^\beta}` and :math:`L_\infty+A/[1+\beta\ln(1+t/\tau)]` (with ``tau``), or
        :math:`L_\infty+A\,e^{-\beta t/t_p}` (``attrs["pivot"]`` is :math:`t_p`).

    Raises
    ------
    ArgumentError
        If an option or label is unknown, or a prior leaves nothing or is that of a coefficient that is held.
    FitError
        If losses are not positive, times do not increase, or fewer than 10 bins over one decade are left.

    Notes
    -----
    A loss that is NaN or infinite raises NonFiniteError. L_inf and beta are strongly correlated; fixing the floor at 0
    when it is not biases beta down.

    References
    ----------
    chorales (arXiv:2412.10094).

    Examples
    --------
    >>> t = np.geomspace(1, 1e4, 80)
    >>> noise = np.random.default_rng(0).normal(0, 0.01, 80)
    >>> loss = xr.DataArray((0.1 + t**-0.5) * (1 + noise), dims="step", coords={"step": t})
    >>> fit = fit_decay(loss, rng=0)
    >>> bool(abs(fit.summary()["value"].sel(coefficient="beta") - 0.5) < 0.05)
    True
    """
    if curve not in CURVES:
        raise ArgumentError(unknown_name_message("curve", curve, CURVES))
    check_sampling(sampler, max_steps)
    check_switches(floor=floor, evidence=evidence, progress=progress)
    check_count("bins_per_decade", bins_per_decade)
    rng = generator(rng)
    if evidence:
        optional_package("dynesty", "the evidence", "trajstats[evidence]")
    check_free(prior, {} if floor else {"L_inf": "the floor is held at 0 by floor=False"})
    reason = ""
    if clock is None and isinstance(loss, xr.DataArray):
        clock = choose_clock(loss.coords.to_dataset(), None, window=window)
        reason = default_reason(clock)
    clock = STEP if clock is None else clock
    time, losses = _checked(loss, clock)
    chosen = decay_window(time, losses, bins_per_decade) if window is None else _checked_window(window)
    used = (time >= chosen[0]) & (time <= chosen[1])
    if (losses[used] <= 0).any():
        msg = f"{int((losses[used] <= 0).sum())} losses are not positive; a decay to a floor L_inf >= 0 needs them so"
        raise FitError(msg)
    if losses[used].size and losses[used].max() / _WIDEST > losses[used].min():
        msg = (
            f"losses between {losses[used].min():g} and {losses[used].max():g} span more than {_WIDEST:g}, and their "
            "squares overflow: give a shorter window=(first, last)"
        )
        raise FitError(msg)
    data = log_bins(time[used], losses[used], bins_per_decade)
    _check_size(data, chosen)
    data = data.in_own_unit()
    given = _in_unit_of(data, curve, prior)
    priors = merged_priors(default_priors(data, curve), given)
    if not floor:
        scale = float(priors["L_inf"][1])
        priors["L_inf"] = (-1e-9 * scale, 1e-9 * scale)
    best = maximum(data, curve, priors)
    values, diagnostics = draw_posterior(
        lambda theta: log_posterior(theta, data, curve, priors),
        best.vector,
        best.covariance,
        names=coefficient_names(curve),
        fixed={} if floor else {"L_inf": 0.0},
        rng=rng,
        sampler=sampler,
        max_steps=max_steps,
        progress=progress,
    )
    diagnostics = diagnostics.assign(n_given=loss.size, n_used=int(used.sum()))
    fit = _result(data, values, diagnostics, curve, priors, floor, chosen, clock, str(loss.attrs.get("source", "")))
    if reason:
        flag = f"times are in {clock} ({unit_of(clock)}): {reason}"
        fit = replace(fit, flags=(flag, *fit.flags), attrs={**fit.attrs, REASON: reason})
    if evidence:
        models = fit.tables["models"].assign(_evidence(data, given, rng))
        fit = replace(fit, tables={**fit.tables, "models": models})
    return fit


def _in_unit_of(data: Binned, curve: str, prior: Priors | None) -> dict[str, tuple[float, float]]:
    # priors as given are in the unit of the loss as given
    every = default_priors(data, curve)
    merged_priors({**every, "L_inf": (0.0, data.unit * every["L_inf"][1])}, prior, SUPPORT)
    given = named_priors(prior)
    if "L_inf" in given:
        low, high = given["L_inf"]
        top = float(data.loss.max()) * data.unit
        if low >= top:
            msg = f"prior L_inf={given['L_inf']}: the whole loss lies below this floor (at most {top:g})"
            raise ArgumentError(msg)
        given["L_inf"] = (float(rounded(low / data.unit)), float(rounded(high / data.unit)))
    if "log_middle" in given:
        low, high = (float(rounded(edge - np.log(data.unit))) for edge in given["log_middle"])
        given["log_middle"] = (low, high)
    return given


def _checked(loss: Any, clock: Any) -> tuple[np.ndarray, np.ndarray]:
    if not isinstance(loss, xr.DataArray):
        msg = f"loss must be a DataArray along step; got {type(loss).__name__}"
        raise ArgumentError(msg)
    if not isinstance(clock, str):
        msg = f"clock={clock!r}: give the name of a coordinate"
        raise ArgumentError(msg)
    if REPLICA in loss.dims:
        if loss.sizes[REPLICA] != 1:
            msg = (
                f"loss has {loss.sizes[REPLICA]} replicas: fit one (.sel(replica=...)) or their mean, or use fit_batch"
            )
            raise ArgumentError(msg)
        loss = loss.isel({REPLICA: 0})
    if len(loss.dims) != 1 or clock not in loss.coords or loss[clock].dims != loss.dims:
        known = [str(name) for name in loss.coords]
        msg = f"loss has dims {loss.dims} and coords {known}; it needs one dim with the coordinate {clock!r}"
        raise ArgumentError(msg)
    time, values = real_values(loss[clock], clock), real_values(loss, "loss")
    if not np.isfinite(values).all():
        first = float(time[np.argmax(~np.isfinite(values))])
        bad = int((~np.isfinite(values)).sum())
        msg = f"{bad} of {values.size} losses are NaN or infinite (first at {clock} {first:g})"
        raise NonFiniteError(msg)
    if not np.isfinite(time).all():
        msg = f"{int((~np.isfinite(time)).sum())} of {time.size} times ({clock}) are NaN or infinite"
        raise NonFiniteError(msg)
    if (np.diff(time) <= 0).any():
        msg = f"times do not increase near row {int(np.argmax(np.diff(time) <= 0))}; sort them and drop duplicates"
        raise FitError(msg)
    return time[time > 0], values[time > 0]


def _checked_window(window: Any) -> tuple[float, float]:
    try:
        first, last = (float(edge) for edge in window)
    except (TypeError, ValueError):
        first, last = np.nan, np.nan
    if isinstance(window, str) or not first < last:
        msg = f"window={window!r}: give two times (first, last), the first before the last"
        raise ArgumentError(msg)
    return first, last


def _check_size(data: Binned, window: tuple[float, float]) -> None:
    decades = float(np.log10(data.time[-1] / data.time[0])) if data.time.size > 1 else 0.0
    if data.time.size < _MIN_POINTS or decades < _MIN_DECADES:
        msg = (
            f"{data.time.size} bins over {decades:.1f} decades between {window[0]:g} and {window[1]:g}: a decay needs "
            f"{_MIN_POINTS} bins over {_MIN_DECADES:g} decade. Widen window=(first, last) or save more."
        )
        raise FitError(msg)
    if np.ptp(data.loss) == 0:
        msg = "the loss is constant (zero variance): nothing decays"
        raise FitError(msg)
    part = max(data.loss.size // 5, 1)
    early, late = float(np.median(data.loss[:part])), float(np.median(data.loss[-part:]))
    if late >= early:
        msg = (
            f"the loss does not fall between {window[0]:g} and {window[1]:g} (median of the first fifth {early:.4g}, "
            f"of the last {late:.4g}): nothing decays. Choose another window=(first, last)."
        )
        raise FitError(msg)


def _result(
    data: Binned,
    values: Mapping[str, np.ndarray],
    diagnostics: xr.Dataset,
    curve: str,
    priors: Priors,
    floor: bool,
    window: tuple[float, float],
    clock: str,
    source: str,
) -> FitResult:
    theta = np.stack([values[name] for name in coefficient_names(curve)], axis=-1)
    amplitude = np.exp(values["log_middle"] - log_decay(data.anchor(curve), data.pivot, theta, curve)[..., 0])
    columns = {
        "L_inf": values["L_inf"] * data.unit,
        "A": amplitude * data.unit,
        "beta": values["beta"],
        "noise": np.exp(values["log_noise"]),
        "drift_share": values["drift_share"],
        "drift_range": np.exp(values["log_range"]),
        "noise_power": values["power"],
        **({"tau": np.exp(values[SCALE])} if SCALE in values else {}),
    }
    posterior = draws_dataset(columns)
    middle = np.median(theta, axis=(0, 1))
    fallen = log_decay(data.time, data.pivot, middle, curve) - log_decay(data.anchor(curve), data.pivot, middle, curve)
    mean = middle[0] + np.exp(middle[1] + fallen)
    observed = xr.Dataset(
        {
            "loss": (clock, data.loss * data.unit),
            "predicted": (clock, mean * data.unit),
            "residual": (clock, np.log(data.loss / mean)),
            "count": (clock, data.count),
        },
        coords={clock: data.time},
    )
    tables = {"models": _models(data)}
    flags = [f"fitted from {window[0]:g} to {window[1]:g} ({clock}), {data.time.size} logarithmic bins"]
    if floor and priors["L_inf"][0] == 0:
        log_odds = savage_dickey(values["L_inf"].ravel(), 0.0, priors["L_inf"])
        positive = 1 / (1 + np.exp(min(log_odds, 700.0)))
        tables["floor"] = xr.Dataset({"log_bayes_factor_zero": log_odds, "probability_positive": positive})
        flags.append(f"probability of a floor above zero: {positive:.3f} (even prior odds)")
    best = str(tables["models"]["model"].values[int(np.argmin(tables["models"]["bic"].values))])
    if best.split(" ")[0] != curve:
        flags.append(f"by BIC the data prefer the model {best!r} to {curve!r}")
    return FitResult(
        "fit_decay",
        posterior,
        observed,
        diagnostics,
        tables,
        tuple(flags),
        "ok" if bool(diagnostics["converged"]) else "not converged",
        {
            "curve": curve,
            "used": (
                f"{int(diagnostics['n_used'])} of {int(diagnostics['n_given'])} losses, in {data.time.size} "
                "logarithmic bins"
            ),
            "pivot": data.pivot,
            "window": list(window),
            "clock": clock,
            "floor": floor,
            "source": source,
            "priors": _as_given(priors, data.unit),
        },
    )


def _as_given(priors: Priors, unit: float) -> dict[str, list[float]]:
    lists = {name: list(edges) for name, edges in priors.items()}
    lists["L_inf"] = [edge * unit for edge in lists["L_inf"]]
    lists["log_middle"] = [float(edge + np.log(unit)) for edge in lists["log_middle"]]
    return lists


def predict(fit: FitResult, *, time: Any = None, clock: str | None = None) -> xr.DataArray:
    """Noise-free loss at given times, one curve per draw."""
    check_predicted_clock(fit, clock, {"time": time})
    clock = str(fit.data["loss"].dims[0])
    at = fit.data[clock].values if time is None else np.atleast_1d(np.asarray(time, dtype=float))
    pivot, curve = float(fit.attrs["pivot"]), str(fit.attrs["curve"])
    posterior = fit.posterior
    names = coefficient_names(curve)
    theta = np.zeros((*posterior["beta"].shape, len(names)))
    theta[..., names.index("beta")] = posterior["beta"].values
    if SCALE in names:
        theta[..., names.index(SCALE)] = np.log(posterior["tau"].values)
    fallen = np.log(posterior["A"].values[..., None]) + log_decay(at, pivot, theta, curve)
    values = posterior["L_inf"].values[..., None] + np.exp(fallen)
    return xr.DataArray(values, dims=("chain", "draw", clock), coords={clock: at}, name="loss")
