"""fit_divergence: the width below which a network does not learn, from learning times that diverge there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from trajstats.errors import ArgumentError, FitError, NonFiniteError
from trajstats.inference.comparison import information_criteria, savage_dickey
from trajstats.inference.divergence import (
    NAMES,
    STUCK,
    LearningTimes,
    default_priors,
    log_likelihood,
    log_posterior,
)
from trajstats.inference.ensemble import draw_posterior
from trajstats.inference.fitting import Maximum, maximise
from trajstats.inference.priors import Priors, inside, merged_priors
from trajstats.inference.results import FitResult
from trajstats.inference.sampling import Draws

_EDGE = 0.02
_MIN_WIDTHS = 3
_MIN_LEARNED = 4


def fit_divergence(
    times: xr.Dataset | xr.DataArray,
    /,
    *,
    rng: int | np.random.Generator | None,
    nu: float | None = None,
    stuck: bool = False,
    budget: float | None = None,
    prior: Priors | None = None,
    sampler: str = "batched",
    max_steps: int = 20_000,
    progress: bool = False,
) -> FitResult:
    r"""Fit the divergence of the learning time, :math:`T(w)=A/(w-w_c)^\nu`.

    Log-normal scatter over seeds, wider near w_c (a scatter :math:`\delta` of w_c from seed to seed):
    :math:`\ln T_{ij}\sim N(m_i,\sigma^2+(\nu\delta/(w_i-w_c))^2)`. Runs that did not learn are right-censored; none is
    dropped.

    Parameters
    ----------
    times : Dataset of `learning_times`, or DataArray
        ``learning_time`` and ``learned`` along `run` with coordinate ``width``. A DataArray has a coordinate ``width``;
        runs at infinity, or at or above `budget`, count as not learned. With a dim `loss` the losses are fitted
        jointly and w_c is extrapolated to loss 0; with a coordinate ``depth`` of several values, each depth has its
        own w_c and their exponents are drawn from one population (``nu``, ``nu_spread``).
    rng : int or numpy.random.Generator
        Seed.
    nu : float, optional
        Fix the exponent (1 is the usual hypothesis); free if not given. Both are compared in ``tables["models"]``.
    stuck : bool
        Let a fraction of the runs never learn whatever the width.
    budget : float, optional
        Largest time watched; needed with infinite times and no ``budget`` variable.
    prior : mapping name -> (lower, upper), optional
        Uniform priors of ``w_c``, ``nu``, ``log_middle``, ``log_sigma``, ``log_delta``, ``stuck_fraction`` (with
        several depths ``nu_spread`` too); defaults in `default_priors`.
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
        Posterior ``w_c``, ``nu``, ``A``, ``sigma``, ``delta`` (and ``stuck_fraction``). Where the posterior of w_c
        runs into its prior, ``status`` is ``"not identified"`` and ``tables["bounds"]`` has one-sided bounds.

    Notes
    -----
    Errors: ArgumentError for missing labels; NonFiniteError for a time that is NaN; FitError if no run learned, fewer
    than 3 widths are distinct, or times are not positive.

    w_c and nu are strongly anti-correlated: report them jointly. Several losses come from the same runs; their joint
    likelihood is raised to the power one over their number, so that a run counts once.

    References
    ----------
    chorales (arXiv:2412.10094).

    Examples
    --------
    >>> width = np.repeat([6.0, 8.0, 12.0, 20.0, 40.0], 4)
    >>> noise = np.random.default_rng(0).normal(0, 0.05, 20)
    >>> times = xr.DataArray(100 / (width - 4) * np.exp(noise), dims="run", coords={"width": ("run", width)})
    >>> fit = fit_divergence(times, rng=0)
    >>> bool(abs(fit.summary()["value"].sel(coefficient="w_c") - 4) < 0.5)
    True
    """
    table = _as_table(times, budget)
    if "depth" in table.coords and np.unique(table["depth"].values).size > 1:
        from trajstats.inference.joint_divergence import fit_depths

        return fit_depths(
            table, rng=rng, nu=nu, stuck=stuck, prior=prior, sampler=sampler, max_steps=max_steps, progress=progress
        )
    if "loss" in table.dims:
        from trajstats.inference.joint_divergence import fit_losses

        return fit_losses(
            table, rng=rng, nu=nu, stuck=stuck, prior=prior, sampler=sampler, max_steps=max_steps, progress=progress
        )
    data = learning_arrays(table)
    priors = checked_priors(data, prior)
    if nu is not None:
        priors["nu"] = (nu - 1e-6, nu + 1e-6)
    names = [*NAMES, *([STUCK] if stuck else [])]
    best = maximum(data, priors, names)
    free = np.array([name != "nu" or nu is None for name in names])

    def log_prob(theta: np.ndarray) -> np.ndarray:
        whole = np.full((len(theta), len(names)), 0.0 if nu is None else nu)
        whole[:, free] = theta
        return log_posterior(whole, data, priors)

    draws = draw_posterior(
        log_prob,
        best.vector[free],
        best.covariance[np.ix_(free, free)],
        names=[name for name, on in zip(names, free, strict=True) if on],
        rng=rng,
        sampler=sampler,
        max_steps=max_steps,
        progress=progress,
    )
    return _result(table, data, draws, priors, names, nu)


def _as_table(times: xr.Dataset | xr.DataArray, budget: float | None) -> xr.Dataset:
    if isinstance(times, xr.DataArray):
        if "width" not in times.coords:
            msg = "the learning times need a coordinate 'width'"
            raise ArgumentError(msg)
        other = [d for d in times.dims if d not in ("run", "loss")]
        if other:
            flat = times.stack(run=other).reset_index("run") if "run" not in times.dims else times
            times = flat.transpose("run", ...)
        times = times.to_dataset(name="learning_time")
    if "learning_time" not in times or "width" not in times.coords:
        msg = (
            "learning times need the variable 'learning_time' and the coordinate 'width'; use trajstats.learning_times"
        )
        raise ArgumentError(msg)
    values = times["learning_time"]
    if "run" not in values.dims:
        times = times.rename({values.dims[0]: "run"})
        values = times["learning_time"]
    if np.isnan(values.values).any():
        bad = int(np.isnan(values.values).sum())
        msg = f"{bad} learning times are NaN; mark runs that did not learn with learned=False"
        raise NonFiniteError(msg)
    limit = times["budget"] if "budget" in times else (xr.full_like(values, np.inf) if budget is None else budget)
    learned = times["learned"].astype(bool) if "learned" in times else (values < limit) & np.isfinite(values)
    capped = xr.where(learned, values, np.minimum(values, limit) if "learned" in times else limit)
    if not np.isfinite(capped.values).all():
        msg = "runs that did not learn have no finite budget; give budget=largest time watched"
        raise ArgumentError(msg)
    return times.assign(learning_time=capped.transpose(*values.dims), learned=learned.transpose(*values.dims))


def learning_arrays(table: xr.Dataset) -> LearningTimes:
    """Check a table of learning times and take its arrays.

    Parameters
    ----------
    table : xarray.Dataset
        ``learning_time`` and ``learned`` along `run`, coordinate ``width``.

    Returns
    -------
    LearningTimes

    Raises
    ------
    FitError
        If the data cannot support the fit.
    """
    width, time = table["width"].values.astype(float), table["learning_time"].values.astype(float)
    learned = table["learned"].values.astype(bool)
    if (time <= 0).any():
        msg = f"{int((time <= 0).sum())} learning times are not positive"
        raise FitError(msg)
    if not learned.any():
        msg = f"none of {learned.size} runs learned: w_c is above every width, or the budget is too short"
        raise FitError(msg)
    widths = np.unique(width[learned])
    if widths.size < _MIN_WIDTHS or learned.sum() < _MIN_LEARNED:
        msg = (
            f"{int(learned.sum())} runs learned at {widths.size} distinct widths {widths.tolist()}: a divergence with "
            f"three coefficients needs {_MIN_LEARNED} runs at {_MIN_WIDTHS} widths"
        )
        raise FitError(msg)
    if np.ptp(np.log(time[learned])) == 0:
        msg = "all learning times are equal (zero variance): nothing diverges"
        raise FitError(msg)
    return LearningTimes(width, np.log(time), learned)


def checked_priors(data: LearningTimes, given: Priors | None) -> dict[str, tuple[float, float]]:
    """Merge the priors given with the defaults.

    Parameters
    ----------
    data : LearningTimes
        Data.
    given : mapping, optional
        Bounds to change.

    Returns
    -------
    dict name -> (lower, upper)

    Raises
    ------
    ArgumentError
        If a name is unknown or w_c may reach a width that learned.
    """
    priors = merged_priors({k: (float(a), float(b)) for k, (a, b) in default_priors(data).items()}, given)
    low, high = priors["w_c"]
    if low >= data.narrowest:
        msg = f"prior w_c=({low:g}, {high:g}): width {data.narrowest:g} learned, so that w_c is below it"
        raise ArgumentError(msg)
    return {**priors, "w_c": (low, min(high, float(data.narrowest)))}


def maximum(data: LearningTimes, priors: Priors, names: Sequence[str]) -> Maximum:
    """Most probable coefficients.

    Parameters
    ----------
    data : LearningTimes
        Data.
    priors : mapping
        Bounds.
    names : sequence of str
        Coefficients that are free.

    Returns
    -------
    Maximum
    """
    low, high = priors["w_c"]
    guess = {
        "w_c": 0.3 * low + 0.7 * high,
        "nu": 1.0,
        "log_middle": float(np.median(data.log_time)),
        "log_sigma": np.log(0.3),
        "log_delta": np.log(0.05 * max(high, 1e-9)),
        STUCK: 0.05,
    }
    start = inside({name: guess[name] for name in names}, priors, 0.01)

    def one(vector: np.ndarray) -> float:
        with np.errstate(all="ignore"):
            return float(log_likelihood(vector[None], data)[0])

    return maximise(one, start)


def _result(
    table: xr.Dataset, data: LearningTimes, draws: Draws, priors: Priors, names: Sequence[str], nu: float | None
) -> FitResult:
    columns = iter(np.moveaxis(draws.values, -1, 0))
    values = {n: next(columns) if n != "nu" or nu is None else np.full(draws.values.shape[:2], nu) for n in names}
    dims = ("chain", "draw")
    posterior = xr.Dataset(
        {
            "w_c": (dims, values["w_c"]),
            "nu": (dims, values["nu"]),
            "A": (dims, np.exp(values["log_middle"] + values["nu"] * np.log(data.middle - values["w_c"]))),
            "sigma": (dims, np.exp(values["log_sigma"])),
            "delta": (dims, np.exp(values["log_delta"])),
            **({STUCK: (dims, values[STUCK])} if STUCK in values else {}),
        },
        coords={"chain": np.arange(draws.values.shape[0]), "draw": np.arange(draws.values.shape[1])},
    )
    bounds, identified = one_sided(posterior["w_c"].values, priors["w_c"])
    flags = [f"{int((~data.learned).sum())} of {data.learned.size} runs did not learn: right-censored"]
    status = "ok" if bool(draws.diagnostics["converged"]) else "not converged"
    if not identified:
        status = "not identified"
        flags.append(
            f"w_c runs into its prior at {priors['w_c'][0]:g}: "
            f"only w_c < {float(bounds['upper'].sel(level=0.95)):.4g} (95 %)"
        )
    return FitResult(
        "fit_divergence",
        posterior,
        table[["learning_time", "learned"]].reset_coords(drop=False).set_coords("width"),
        draws.diagnostics,
        {"bounds": bounds, "models": _models(data, priors, names, posterior, nu)},
        tuple(flags),
        status,
        {"priors": {k: list(v) for k, v in priors.items()}, "clock": str(table.attrs.get("clock", "step"))},
    )


def one_sided(w_c: np.ndarray, prior: tuple[float, float]) -> tuple[xr.Dataset, bool]:
    """One-sided bounds of w_c and whether the data identify it.

    Not identified: the lower 2.5 % quantile lies within 2 % of the prior's range of its lower end.

    Parameters
    ----------
    w_c : ndarray
        Draws.
    prior : (float, float)
        Its bounds.

    Returns
    -------
    bounds : xarray.Dataset
        ``upper`` and ``lower`` one-sided bounds along `level`.
    identified : bool
        Whether both sides are set by the data.
    """
    levels = np.array([0.68, 0.90, 0.95])
    bounds = xr.Dataset(
        {"upper": ("level", np.quantile(w_c, levels)), "lower": ("level", np.quantile(w_c, 1 - levels))},
        coords={"level": levels},
    )
    return bounds, bool(np.quantile(w_c, 0.025) > prior[0] + _EDGE * (prior[1] - prior[0]))


def _models(
    data: LearningTimes, priors: Priors, names: Sequence[str], posterior: xr.Dataset, nu: float | None
) -> xr.Dataset:
    others = [name for name in names if name != "nu"]
    one = {**priors, "nu": (1 - 1e-6, 1 + 1e-6)}
    free = {**priors, "nu": (0.05, 6.0) if nu is not None else priors["nu"]}
    scores = {
        "nu_one": information_criteria(maximum(data, one, names).log_likelihood, len(others), data.width.size),
        "nu_free": information_criteria(maximum(data, free, names).log_likelihood, len(names), data.width.size),
    }
    result = xr.Dataset(
        {
            key: ("model", [scores[m][key] for m in scores])
            for key in ("log_likelihood", "n_coefficients", "aicc", "bic")
        },
        coords={"model": list(scores)},
    )
    if nu is None:
        result["log_bayes_factor_nu_one"] = savage_dickey(posterior["nu"].values.ravel(), 1.0, priors["nu"])
        result.attrs["log_bayes_factor_nu_one"] = (
            "ln of evidence(nu = 1) / evidence(nu free), Savage-Dickey; -inf: no draw near 1"
        )
    return result


def predict(fit: FitResult, *, width: Any = None) -> xr.DataArray:
    """Median learning time at given widths, one curve per draw.

    Parameters
    ----------
    fit : FitResult
        Of `fit_divergence`.
    width : array, optional
        Widths; those of the data if not given.

    Returns
    -------
    xarray.DataArray
        Dims (chain, draw, width), infinite at and below w_c.
    """
    wide = np.unique(fit.data["width"].values) if width is None else np.atleast_1d(np.asarray(width, dtype=float))
    at = xr.DataArray(wide, dims="width", coords={"width": wide})
    room = at - fit.posterior["w_c"]
    curve = xr.where(room > 0, fit.posterior["A"] / room.where(room > 0, 1.0) ** fit.posterior["nu"], np.inf)
    return curve.transpose("chain", "draw", "width").rename("learning_time")
