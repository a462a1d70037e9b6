"""Divergences of several losses, or of several depths, in one posterior."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from trajstats.errors import FitError
from trajstats.inference._identifiability import one_sided, runs_into
from trajstats.inference._priors import Priors, named_priors, prior_bounds
from trajstats.inference._uncertainty import half_interval
from trajstats.inference.results import FitResult
from trajstats.inference.sampling._batched_chains import draw_posterior
from trajstats.inference.sampling._emcee_chains import draws_dataset
from trajstats.inference.transition._likelihood import NAMES, STUCK, group_log_likelihood, log_posterior
from trajstats.inference.transition._population import hierarchical_draws
from trajstats.inference.transition._single import checked_priors, fit_single, maximum, runs_used
from trajstats.inference.transition.learning_times import learning_arrays

NU_SPREAD = (0.0, 1.0)
_FEWEST = 100


def fit_losses(
    table: xr.Dataset,
    /,
    *,
    rng: np.random.Generator,
    nu: float | None,
    stuck: bool,
    prior: Priors | None,
    groups: str,
    sampler: str,
    max_steps: int,
    progress: bool,
) -> FitResult:
    r"""Fit several losses jointly: one exponent and one scatter, an amplitude for each loss.

    :math:`w_c(\ell)=w_c-b\,\ell`; the result's w_c is the limit of loss 0.

    The same runs stand behind every loss: the joint likelihood is raised to the power one over the number of losses.
    """
    losses = table["loss"].values.astype(float)
    data, kept = [], []
    for value in losses:
        try:
            data.append(learning_arrays(table.sel(loss=value)))
            kept.append(value)
        except FitError:
            # a loss that too few runs reach says nothing by itself; the others still do
            continue
    if len(data) < 2:
        msg = f"{len(data)} of {losses.size} losses were reached by enough runs; an extrapolation to loss 0 needs two"
        raise FitError(msg)
    levels = np.array(kept)
    priors = [checked_priors(one, prior) for one in data]
    if nu is not None:
        priors = [{**p, "nu": (nu - 1e-6, nu + 1e-6)} for p in priors]
    tail = [STUCK] if stuck else []
    names = ["w_c", "slope", "nu", "log_sigma", "log_delta", *(f"log_middle_{k}" for k in range(levels.size)), *tail]
    tops = np.array([p["w_c"][1] for p in priors])
    slope_limit = 4 * float(tops.max()) / float(np.ptp(levels))
    w_high = float(tops.max()) + slope_limit * float(levels.max())

    def log_prob(theta: np.ndarray) -> np.ndarray:
        w_c, slope = theta[:, 0], theta[:, 1]
        total = np.where((slope >= 0) & (slope < slope_limit) & (w_c > 0) & (w_c < w_high), 0.0, -np.inf)
        for k, (one, edges) in enumerate(zip(data, priors, strict=True)):
            columns = [w_c - slope * levels[k], theta[:, 2], theta[:, 5 + k], theta[:, 3], theta[:, 4]]
            columns += [theta[:, -1]] if stuck else []
            total = total + log_posterior(np.stack(columns, axis=1), one, edges) / levels.size
        return total

    singles = [maximum(one, edges, [*NAMES, *tail]) for one, edges in zip(data, priors, strict=True)]
    w_each = np.array([s.values["w_c"] for s in singles])
    b = float(np.clip(-np.polyfit(levels, w_each, 1)[0], 1e-3 * slope_limit, 0.9 * slope_limit))
    w_start = float(min(np.mean(w_each + b * levels), 0.95 * (tops + b * levels).min()))
    w_start = max(w_start, 1.02 * b * float(levels.max()))
    start = np.array(
        [w_start, b, singles[0].values["nu"], singles[0].values["log_sigma"], singles[0].values["log_delta"]]
        + [s.values["log_middle"] for s in singles]
        + ([0.05] if stuck else [])
    )
    spread = np.array([0.02 * w_start, 0.1 * b, 0.05, 0.1, 0.2] + [0.05] * levels.size + ([0.02] if stuck else []))
    values, diagnostics = draw_posterior(
        log_prob,
        start,
        np.diag(spread**2),
        names=names,
        fixed={"nu": nu},
        rng=rng,
        sampler=sampler,
        max_steps=max_steps,
        progress=progress,
    )
    each = values["w_c"][..., None] - values["slope"][..., None] * levels
    shared = [values[name] for name in ("log_sigma", "log_delta", *tail)]
    parts = [
        (one, np.stack([each[..., k], values["nu"], values[f"log_middle_{k}"], *shared], axis=-1))
        for k, one in enumerate(data)
    ]
    room = np.array([one.middle for one in data]) - each
    units = np.array([one.unit for one in data])
    log_middle = np.stack([values[f"log_middle_{k}"] for k in range(levels.size)], axis=-1)
    posterior = draws_dataset(
        {
            "w_c": values["w_c"],
            "slope": values["slope"],
            "nu": values["nu"],
            "A": (("chain", "draw", "loss"), np.exp(log_middle + values["nu"][..., None] * np.log(room)) * units),
            "sigma": np.exp(values["log_sigma"]),
            "delta": np.exp(values["log_delta"]),
            **({STUCK: values[STUCK]} if stuck else {}),
        },
        loss=levels,
    )
    lowest = max(p["w_c"][0] for p in priors)
    bounds, reason = one_sided(posterior["w_c"].values, (lowest, float(tops.max())), float(tops.max()))
    why = [reason, runs_into("slope", posterior["slope"].values, (0.0, slope_limit), "upper")]
    why += [] if nu is not None else [runs_into("nu", posterior["nu"].values, priors[0]["nu"])]
    flags = [f"w_c extrapolated to loss 0 from {levels.size} losses; the same runs stand behind all, counted once"]
    status = "ok" if bool(diagnostics["converged"]) else "not converged"
    if any(why):
        status = "not identified"
        flags += [words for words in why if words]
    per_loss = xr.Dataset(
        {"w_c": ("loss", np.median(each, axis=(0, 1))), "stderr": ("loss", half_interval(each, axis=(0, 1)))},
        coords={"loss": levels},
    )
    return FitResult(
        "fit_divergence",
        posterior,
        _observed(table),
        diagnostics,
        {"losses": per_loss, "bounds": bounds},
        tuple(flags),
        status,
        {
            "used": runs_used(table),
            "clock": str(table.attrs.get("clock", "step")),
            "priors": {"w_c": [lowest, float(tops.max())], "slope": [0.0, slope_limit], "nu": list(priors[0]["nu"])},
        },
        group_log_likelihood(parts, groups),
    )


def fit_depths(
    table: xr.Dataset, /, *, rng: np.random.Generator, prior: Priors | None, groups: str, **options: Any
) -> FitResult:
    r"""Fit all depths at once: exponents of the depths are drawn from one population, each depth has its own w_c.

    :math:`\nu_d\sim N(\nu,s^2)` between the bounds of the prior of nu; w_c, A and the scatter are each depth's own. A
    depth with few runs borrows the exponent of the others, and with it their knowledge of w_c.
    """
    single = named_priors(prior)
    spread = prior_bounds("nu_spread", single.pop("nu_spread", NU_SPREAD))
    fits, failed, runs = {}, {}, {}
    for depth in np.unique(table["depth"].values):
        own = np.flatnonzero(table["depth"].values == depth)
        one_fit = fit_losses if "loss" in table.dims else fit_single
        part = table.isel(run=own).drop_vars("depth")
        try:
            fits[float(depth)] = one_fit(part, rng=rng, prior=single, groups=groups, **options)
            runs[float(depth)] = own
        except FitError as error:
            failed[float(depth)] = str(error)
    if len(fits) < 2:
        msg = f"{len(fits)} depths could be fitted; a population over depths needs two. Failed: {failed}"
        raise FitError(msg)
    n_draws = min(fit.posterior.sizes["draw"] for fit in fits.values())
    scalars = [
        name
        for name in ("w_c", "nu", "slope", "sigma", "delta", STUCK)
        if all(name in fit.posterior for fit in fits.values())
    ]
    alone = {
        name: np.stack([fit.posterior[name].values[:, :n_draws] for fit in fits.values()], axis=-1) for name in scalars
    }
    dims = ("chain", "draw", "depth")
    coords = {"depth": list(fits)}
    if options.get("nu") is None:
        limits = tuple(next(iter(fits.values())).attrs["priors"]["nu"])
        joint = hierarchical_draws(alone["nu"], limits, spread, rng)
        rows = joint.rows
        columns = {"nu": joint.mean, "nu_spread": joint.spread}
        ess = joint.ess
    else:
        rows = np.arange(alone["nu"][..., 0].size).reshape(alone["nu"].shape[:2])[..., None].repeat(len(fits), -1)
        columns = {"nu": alone["nu"][..., 0]}
        ess = np.full(len(fits), float(rows[..., 0].size))
    pooled = {
        name: np.take_along_axis(values.reshape(-1, len(fits)), rows.reshape(-1, len(fits)), axis=0).reshape(rows.shape)
        for name, values in alone.items()
    }
    posterior = draws_dataset(
        {
            **columns,
            "w_c": (dims, pooled["w_c"]),
            "A": _pooled_amplitudes(fits, rows, n_draws),
            "nu_depth": (dims, pooled["nu"]),
            **{name: (dims, pooled[name]) for name in ("slope", "sigma", "delta", STUCK) if name in pooled},
        },
        **coords,
    )
    worst = max(fits.values(), key=lambda fit: float(fit.diagnostics["r_hat"].max()))
    depths = xr.Dataset(
        {
            "w_c": ("depth", np.median(pooled["w_c"], axis=(0, 1))),
            "w_c_stderr": ("depth", half_interval(pooled["w_c"], axis=(0, 1))),
            "nu": ("depth", np.median(pooled["nu"], axis=(0, 1))),
            "nu_stderr": ("depth", half_interval(pooled["nu"], axis=(0, 1))),
            "w_c_alone": ("depth", np.median(alone["w_c"], axis=(0, 1))),
            "w_c_alone_stderr": ("depth", half_interval(alone["w_c"], axis=(0, 1))),
            "nu_alone": ("depth", np.median(alone["nu"], axis=(0, 1))),
            "nu_alone_stderr": ("depth", half_interval(alone["nu"], axis=(0, 1))),
            "effective_draws": ("depth", ess),
            "status": ("depth", np.array([fit.status for fit in fits.values()], dtype=object)),
        },
        coords=coords,
    )
    flags = [f"nu is the mean of a population over {len(fits)} depths; each depth has its own w_c and scatter"]
    flags += [f"depth {depth:g} left out: {why}" for depth, why in failed.items()]
    flags += [f"depth {depth:g} alone: {fit.status}" for depth, fit in fits.items() if fit.status != "ok"]
    return FitResult(
        "fit_divergence",
        posterior,
        _observed(table),
        worst.diagnostics,
        {"depths": depths},
        tuple(flags),
        _joint_status(fits, pooled["w_c"], ess),
        {
            "used": runs_used(table),
            "clock": str(table.attrs.get("clock", "step")),
            "priors": {**single, "nu_spread": list(spread)},
        },
        _pooled_groups(fits, rows, n_draws, groups, runs),
    )


def _pooled_amplitudes(fits: Mapping[float, FitResult], rows: np.ndarray, n_draws: int) -> xr.DataArray:
    # Each depth may have been fitted to losses of its own: NaN at those that it did not reach often enough.
    parts = []
    for k, fit in enumerate(fits.values()):
        own = fit.posterior["A"].isel(draw=slice(n_draws)).drop_vars(["chain", "draw"], errors="ignore")
        chosen = xr.DataArray(rows[..., k], dims=("chain", "draw"))
        parts.append(own.stack(row=("chain", "draw"), create_index=False).isel(row=chosen))
    pooled = xr.concat(parts, dim=xr.IndexVariable("depth", list(fits)), join="outer")
    return pooled.transpose("chain", "draw", "depth", ...)


def _pooled_groups(
    fits: Mapping[float, FitResult], rows: np.ndarray, n_draws: int, groups: str, runs: Mapping[float, np.ndarray]
) -> xr.Dataset:
    # given the exponents depths are independent: the log likelihood of a group at the pooled draws of its own depth
    columns, labels = [], []
    for k, (depth, fit) in enumerate(fits.items()):
        own = fit.log_likelihood["learning_time"]
        columns.append(own.values[:, :n_draws].reshape(-1, own.sizes[groups])[rows[..., k]])
        labels += [f"{w:g} (depth {depth:g})" for w in own[groups].values] if groups == "width" else list(runs[depth])
    return xr.Dataset(
        {"learning_time": (("chain", "draw", groups), np.concatenate(columns, axis=-1))},
        coords={"chain": np.arange(rows.shape[0]), "draw": np.arange(rows.shape[1]), groups: labels},
    )


def _joint_status(fits: Mapping[float, FitResult], w_c: np.ndarray, ess: np.ndarray) -> str:
    if not all(fit.converged for fit in fits.values()) or ess.min() < _FEWEST:
        return "not converged"
    # what a depth alone leaves open the others may settle: the pooled draws are asked
    unsettled = [
        runs_into("w_c", w_c[..., k], tuple(fit.attrs["priors"]["w_c"]), "lower") for k, fit in enumerate(fits.values())
    ]
    return "not identified" if any(unsettled) else "ok"


def _observed(table: xr.Dataset) -> xr.Dataset:
    return table[["learning_time", "learned"]]
