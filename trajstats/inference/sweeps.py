"""Divergences of several losses or depths at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from trajstats.errors import FitError
from trajstats.inference.divergence import NAMES, STUCK, log_posterior
from trajstats.inference.ensemble import draw_posterior
from trajstats.inference.replicas import population_mean
from trajstats.inference.results import FitResult
from trajstats.inference.transition import checked_priors, fit_divergence, learning_arrays, maximum, one_sided

Priors = Mapping[str, tuple[float, float]]


def fit_losses(
    table: xr.Dataset,
    /,
    *,
    rng: int | np.random.Generator | None,
    nu: float | None,
    stuck: bool,
    prior: Priors | None,
    sampler: str,
    max_steps: int,
    progress: bool,
) -> FitResult:
    r"""Fit several losses jointly: one exponent and one scatter, an amplitude for each loss.

    :math:`w_c(\ell)=w_c-b\,\ell`; the result's w_c is the limit of loss 0.

    The same runs stand behind every loss: the joint likelihood is raised to the power one over the number of losses.

    Parameters
    ----------
    table : xarray.Dataset
        Learning times along `run` and `loss`.
    rng : int or numpy.random.Generator
        Seed.
    nu : float, optional
        Fixed exponent.
    stuck : bool
        Stuck fraction, common to all losses.
    prior : mapping, optional
        Priors.
    sampler : str
        ``"batched"`` or ``"emcee"``.
    max_steps : int
        Longest chain.
    progress : bool
        Show a bar.

    Returns
    -------
    FitResult
        ``w_c`` is the extrapolation to loss 0, ``slope`` is b; ``tables["losses"]`` has w_c at each loss.

    Raises
    ------
    FitError
        If fewer than two losses can be fitted.
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
    if nu is not None:
        start[2], spread[2] = nu, 3e-7
    draws = draw_posterior(
        log_prob,
        start,
        np.diag(spread**2),
        names=names,
        rng=rng,
        sampler=sampler,
        max_steps=max_steps,
        progress=progress,
    )
    values = dict(zip(names, np.moveaxis(draws.values, -1, 0), strict=True))
    dims = ("chain", "draw")
    first = values["w_c"] - values["slope"] * levels[0]
    posterior = xr.Dataset(
        {
            "w_c": (dims, values["w_c"]),
            "slope": (dims, values["slope"]),
            "nu": (dims, values["nu"]),
            "A": (dims, np.exp(values["log_middle_0"] + values["nu"] * np.log(data[0].middle - first))),
            "sigma": (dims, np.exp(values["log_sigma"])),
            "delta": (dims, np.exp(values["log_delta"])),
            **({STUCK: (dims, values[STUCK])} if stuck else {}),
        }
    )
    each = values["w_c"][..., None] - values["slope"][..., None] * levels
    bounds, identified = one_sided(posterior["w_c"].values, (0.0, float(tops.max())))
    flags = [f"w_c extrapolated to loss 0 from {levels.size} losses; the same runs stand behind all, counted once"]
    status = "ok" if bool(draws.diagnostics["converged"]) else "not converged"
    if not identified:
        status = "not identified"
        flags.append(f"w_c runs into its prior at 0: only w_c < {float(bounds['upper'].sel(level=0.95)):.4g} (95 %)")
    per_loss = xr.Dataset(
        {"w_c": ("loss", np.median(each, axis=(0, 1))), "stderr": ("loss", each.std(axis=(0, 1)))},
        coords={"loss": levels},
    )
    return FitResult(
        "fit_divergence",
        posterior,
        _observed(table),
        draws.diagnostics,
        {"losses": per_loss, "bounds": bounds},
        tuple(flags),
        status,
        {"clock": str(table.attrs.get("clock", "step"))},
    )


def fit_depths(table: xr.Dataset, /, *, rng: int | np.random.Generator | None, **options: Any) -> FitResult:
    r"""Fit each depth, then the population of exponents over depths.

    Parameters
    ----------
    table : xarray.Dataset
        Learning times with the coordinate ``depth`` along `run`.
    rng : int or numpy.random.Generator
        Seed.
    **options
        As `fit_divergence`.

    Returns
    -------
    FitResult
        ``nu`` is the mean of the population over depths (Student t); ``w_c`` and ``A`` have a dim `depth`;
        ``tables["depths"]`` lists the depths with their status.

    Raises
    ------
    FitError
        If fewer than two depths can be fitted.
    """
    generator = np.random.default_rng(rng)
    fits, failed = {}, {}
    for depth in np.unique(table["depth"].values):
        part = table.isel(run=np.flatnonzero(table["depth"].values == depth)).drop_vars("depth")
        try:
            fits[float(depth)] = fit_divergence(part, rng=generator, **options)
        except FitError as error:
            failed[float(depth)] = str(error)
    if len(fits) < 2:
        msg = f"{len(fits)} depths could be fitted; a population over depths needs two. Failed: {failed}"
        raise FitError(msg)
    n_draws = min(fit.posterior.sizes["draw"] for fit in fits.values())
    stacked = {
        name: np.stack([fit.posterior[name].values[:, :n_draws] for fit in fits.values()], axis=-1)
        for name in ("w_c", "A", "nu")
    }
    dims = ("chain", "draw", "depth")
    means, errors = stacked["nu"].mean(axis=(0, 1)), stacked["nu"].std(axis=(0, 1))
    if options.get("nu") is None:
        mean, scale, spread = population_mean(means, errors)
        nu = mean + scale * generator.standard_t(len(fits) - 1, size=stacked["nu"].shape[:2])
    else:
        nu, spread = stacked["nu"][..., 0], 0.0
    posterior = xr.Dataset(
        {
            "nu": (dims[:2], nu),
            "w_c": (dims, stacked["w_c"]),
            "A": (dims, stacked["A"]),
            "nu_depth": (dims, stacked["nu"]),
        },
        coords={"depth": list(fits)},
    )
    worst = max(fits.values(), key=lambda fit: float(fit.diagnostics["r_hat"].max()))
    depths = xr.Dataset(
        {
            "nu": ("depth", means),
            "nu_stderr": ("depth", errors),
            "w_c": ("depth", np.median(stacked["w_c"], axis=(0, 1))),
            "w_c_stderr": ("depth", stacked["w_c"].std(axis=(0, 1))),
            "status": ("depth", np.array([fit.status for fit in fits.values()], dtype=object)),
            "spread_of_nu": spread,
        },
        coords={"depth": list(fits)},
    )
    flags = [f"nu is the mean over {len(fits)} depths, each fitted on its own"]
    flags += [f"depth {depth:g} left out: {why}" for depth, why in failed.items()]
    bad = [fit.status for fit in fits.values() if fit.status != "ok"]
    return FitResult(
        "fit_divergence",
        posterior,
        _observed(table),
        worst.diagnostics,
        {"depths": depths},
        tuple(flags),
        bad[0] if bad else "ok",
        {"clock": str(table.attrs.get("clock", "step"))},
    )


def _observed(table: xr.Dataset) -> xr.Dataset:
    return table[["learning_time", "learned"]]
