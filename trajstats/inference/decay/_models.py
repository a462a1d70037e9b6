"""Maxima of the rival curves of a decay, and their scores."""

from __future__ import annotations

import numpy as np
import xarray as xr

from trajstats.inference._priors import Priors, inside, merged_priors, named_priors
from trajstats.inference.decay._likelihood import (
    CURVES,
    SCALE,
    Binned,
    coefficient_names,
    default_priors,
    log_likelihood,
)
from trajstats.inference.model_scores import information_criteria, log_evidence
from trajstats.inference.sampling._maximum import Maximum, best_maximum

# where a coefficient means something
SUPPORT = {"L_inf": (0.0, np.inf), "beta": (0.0, np.inf), "drift_share": (0.0, 1.0)}


def maximum(data: Binned, curve: str, priors: Priors) -> Maximum:
    """Most probable coefficients."""
    low, high = priors["L_inf"]
    guess = {
        "L_inf": low + 0.5 * (high - low),
        "log_middle": float(np.log(np.median(data.loss) - 0.5 * data.loss.min())),
        "beta": 0.5,
        "log_noise": np.log(0.05),
        "drift_share": 0.5,
        "log_range": -0.5,
        "power": 1.0,
        SCALE: np.log(data.pivot),
    }
    if data.anchor(curve) != data.pivot:
        guess["log_middle"] = float(np.log(max(data.loss[0] - 0.5 * data.loss.min(), 0.1 * data.loss[0])))
    names = coefficient_names(curve)
    start = inside({name: float(guess[name]) for name in names}, priors, 0.02)
    wide = {
        "L_inf": (low, high),
        "log_middle": (guess["log_middle"] - 1.5, guess["log_middle"] + 1.5),
        "beta": (0.05, 2.0),
        "log_noise": (np.log(1e-3), 0.0),
        **{name: priors[name] for name in ("drift_share", "log_range", "power", SCALE) if name in names},
    }
    return best_maximum(lambda theta: log_likelihood(theta, data, curve), start, wide, trials=4096, climbs=2)


_NO_FLOOR = "power_law without floor"


def _rivals(data: Binned) -> dict[str, tuple[str, dict[str, tuple[float, float]]]]:
    # curve and priors of each model
    top = 1.1 * float(data.loss.min())
    rows = {name: (name, {**default_priors(data, name), "L_inf": (0.0, top)}) for name in CURVES}
    rows[_NO_FLOOR] = ("power_law", {**default_priors(data, "power_law"), "L_inf": (-1e-9 * top, 1e-9 * top)})
    return rows


def _models(data: Binned) -> xr.Dataset:
    rows = {}
    for name, (curve, bounds) in _rivals(data).items():
        best = maximum(data, curve, bounds)
        rows[name] = information_criteria(
            best.log_likelihood, len(coefficient_names(curve)) - (name == _NO_FLOOR), data.time.size
        )
    return xr.Dataset(
        {
            key: ("model", [row[key] for row in rows.values()])
            for key in ("log_likelihood", "n_coefficients", "aicc", "bic")
        },
        coords={"model": list(rows)},
    )


def _evidence(data: Binned, prior: Priors | None, rng: np.random.Generator) -> dict[str, tuple[str, list[float]]]:
    found = []
    for name, (curve, bounds) in _rivals(data).items():
        # a time scale is a coefficient of some curves only
        changed = merged_priors(bounds, {k: v for k, v in named_priors(prior).items() if k in bounds})
        if name == _NO_FLOOR:
            del changed["L_inf"]

        def function(theta: np.ndarray, curve: str = curve, fixed: bool = name == _NO_FLOOR) -> np.ndarray:
            whole = np.column_stack([np.zeros(len(theta)), theta]) if fixed else theta
            return log_likelihood(whole, data, curve)

        found.append(log_evidence(function, changed, rng=rng))
    return {
        "log_evidence": ("model", [value for value, _ in found]),
        "log_evidence_stderr": ("model", [error for _, error in found]),
    }
