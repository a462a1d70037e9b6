"""The divergence of the learning time fitted to one loss of runs of one depth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr

from trajstats.errors import ArgumentError
from trajstats.inference._identifiability import one_sided, runs_into
from trajstats.inference._priors import Priors, inside, merged_priors, named_priors, prior_bounds
from trajstats.inference._scaling import rounded
from trajstats.inference.model_scores import information_criteria, log_evidence, savage_dickey
from trajstats.inference.results import FitResult
from trajstats.inference.sampling._batched_chains import draw_posterior
from trajstats.inference.sampling._emcee_chains import draws_dataset
from trajstats.inference.sampling._maximum import Maximum, best_maximum
from trajstats.inference.transition._likelihood import (
    NAMES,
    STUCK,
    LearningTimes,
    default_priors,
    group_log_likelihood,
    log_likelihood,
    log_posterior,
)
from trajstats.inference.transition.learning_times import learning_arrays

# where a coefficient means something
SUPPORT = {"nu": (0.0, np.inf), STUCK: (0.0, 1.0)}


def fit_single(
    table: xr.Dataset,
    *,
    rng: np.random.Generator,
    nu: float | None,
    stuck: bool,
    prior: Priors | None,
    groups: str,
    sampler: str,
    max_steps: int,
    progress: bool,
    evidence: bool = False,
) -> FitResult:
    """Fit one curve of learning times against width."""
    data = learning_arrays(table)
    priors = checked_priors(data, prior)
    if nu is not None:
        priors["nu"] = (nu - 1e-6, nu + 1e-6)
    names = [*NAMES, *([STUCK] if stuck else [])]
    best = maximum(data, priors, names)
    values, diagnostics = draw_posterior(
        lambda theta: log_posterior(theta, data, priors),
        best.vector,
        best.covariance,
        names=names,
        fixed={"nu": nu},
        rng=rng,
        sampler=sampler,
        max_steps=max_steps,
        progress=progress,
    )
    fit = _result(table, data, values, diagnostics, priors, nu, groups)
    if evidence:
        table = fit.tables["models"].assign(_evidence(data, priors, names, nu, rng))
        fit = replace(fit, tables={**fit.tables, "models": table})
    return fit


def checked_priors(data: LearningTimes, given: Priors | None) -> dict[str, tuple[float, float]]:
    """Merge the priors given with the defaults."""
    default = {k: (float(a), float(b)) for k, (a, b) in default_priors(data).items()}
    given = named_priors(given)
    if "log_middle" in given:  # of times in the unit in which they were given
        edges = prior_bounds("log_middle", given["log_middle"])
        low, high = (float(rounded(edge - np.log(data.unit))) for edge in edges)
        given["log_middle"] = (low, high)
    priors = merged_priors(default, given, SUPPORT)
    low, high = priors["w_c"]
    if low >= data.narrowest:
        msg = f"prior w_c=({low:g}, {high:g}): width {data.narrowest:g} learned, so that w_c is below it"
        raise ArgumentError(msg)
    return {**priors, "w_c": (low, min(high, float(data.narrowest)))}


def maximum(data: LearningTimes, priors: Priors, names: Sequence[str]) -> Maximum:
    """Most probable coefficients."""
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
    wide = {
        "w_c": (low, high),
        "nu": (0.3, 3.0),
        "log_middle": (guess["log_middle"] - 1.5, guess["log_middle"] + 1.5),
        "log_sigma": (np.log(0.03), 0.0),
        "log_delta": (priors["log_delta"][0], np.log(0.3 * high)),
        STUCK: (0.0, 0.5),
    }
    # runs at the narrowest width can be explained by a large scatter of w_c: a second maximum just below that width
    return best_maximum(lambda theta: log_likelihood(theta, data), start, wide)


def _result(
    table: xr.Dataset,
    data: LearningTimes,
    values: Mapping[str, np.ndarray],
    diagnostics: xr.Dataset,
    priors: Priors,
    nu: float | None,
    groups: str,
) -> FitResult:
    names = list(values)
    posterior = draws_dataset(
        {
            "w_c": values["w_c"],
            "nu": values["nu"],
            "A": np.exp(values["log_middle"] + values["nu"] * np.log(data.middle - values["w_c"])) * data.unit,
            "sigma": np.exp(values["log_sigma"]),
            "delta": np.exp(values["log_delta"]),
            **({STUCK: values[STUCK]} if STUCK in values else {}),
        }
    )
    bounds, open_ended = one_sided(posterior["w_c"].values, priors["w_c"], float(data.narrowest))
    open_nu = "" if nu is not None else runs_into("nu", posterior["nu"].values, priors["nu"])
    flags = [f"{int((~data.learned).sum())} of {data.learned.size} runs did not learn: right-censored"]
    status = "ok" if bool(diagnostics["converged"]) else "not converged"
    if open_ended or open_nu:
        status = "not identified"
        flags += [words for words in (open_ended, open_nu) if words]
    return FitResult(
        "fit_divergence",
        posterior,
        table[["learning_time", "learned"]].reset_coords(drop=False).set_coords("width"),
        diagnostics,
        {"bounds": bounds, "models": _models(data, priors, names, posterior, nu)},
        tuple(flags),
        status,
        {
            "used": runs_used(table),
            "priors": _as_given(priors, data.unit),
            "clock": str(table.attrs.get("clock", "step")),
        },
        group_log_likelihood([(data, np.stack([values[n] for n in names], axis=-1))], groups),
    )


def runs_used(table: xr.Dataset) -> str:
    """Count the runs behind a fit, and those of them that are censored."""
    learned = table["learned"].values
    words = (
        f"{learned.size} learning times of {table.sizes['run']} runs"
        if "loss" in table.dims
        else f"{learned.size} runs"
    )
    return f"{words}, {int((~learned).sum())} of them censored"


def _as_given(priors: Priors, unit: float) -> dict[str, list[float]]:
    lists = {name: list(edges) for name, edges in priors.items()}
    lists["log_middle"] = [float(edge + np.log(unit)) for edge in lists["log_middle"]]
    return lists


def _rivals(priors: Priors, nu: float | None) -> dict[str, dict[str, tuple[float, float]]]:
    return {
        "nu_one": {**priors, "nu": (1 - 1e-6, 1 + 1e-6)},
        "nu_free": {**priors, "nu": (0.05, 6.0) if nu is not None else priors["nu"]},
    }


def _models(
    data: LearningTimes, priors: Priors, names: Sequence[str], posterior: xr.Dataset, nu: float | None
) -> xr.Dataset:
    scores = {
        model: information_criteria(
            maximum(data, edges, names).log_likelihood, len(names) - (model == "nu_one"), data.width.size
        )
        for model, edges in _rivals(priors, nu).items()
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


def _evidence(
    data: LearningTimes, priors: Priors, names: Sequence[str], nu: float | None, rng: np.random.Generator
) -> dict[str, tuple[str, list[float]]]:
    place = list(names).index("nu")

    def at_one(theta: np.ndarray) -> np.ndarray:
        return log_likelihood(np.insert(theta, place, 1.0, axis=1), data)

    found = []
    for model, edges in _rivals(priors, nu).items():
        kept = {name: edges[name] for name in names if name != "nu" or model == "nu_free"}
        function = at_one if model == "nu_one" else lambda theta: log_likelihood(theta, data)
        found.append(log_evidence(function, kept, rng=rng))
    return {
        "log_evidence": ("model", [value for value, _ in found]),
        "log_evidence_stderr": ("model", [error for _, error in found]),
    }


def predict(fit: FitResult, *, width: Any = None) -> xr.DataArray:
    """Median learning time at given widths, one curve per draw."""
    wide = np.unique(fit.data["width"].values) if width is None else np.atleast_1d(np.asarray(width, dtype=float))
    at = xr.DataArray(wide, dims="width", coords={"width": wide})
    posterior = fit.posterior
    w_c = posterior["w_c"] - posterior["slope"] * posterior["loss"] if "slope" in posterior else posterior["w_c"]
    nu = posterior["nu_depth"] if "nu_depth" in posterior else posterior["nu"]
    room = at - w_c
    curve = xr.where(room > 0, posterior["A"] / room.where(room > 0, 1.0) ** nu, np.inf)
    return curve.transpose("chain", "draw", ..., "width").rename("learning_time")
