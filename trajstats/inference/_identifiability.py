"""Whether the data set a coefficient, or its prior does."""

from __future__ import annotations

import numpy as np
import xarray as xr

_EDGE = 0.02


def runs_into(name: str, draws: np.ndarray, prior: tuple[float, float], ends: str = "both") -> str:
    """Word it when a posterior runs into the prior of its coefficient.

    It does where its 2.5 % or 97.5 % quantile lies within 2 % of the prior's range of an end.
    """
    low, high = prior
    edge = _EDGE * (high - low)
    words = []
    if ends != "upper" and np.quantile(draws, 0.025) <= low + edge:
        words.append(f"{name} runs into its prior at {low:g}: only {name} < {np.quantile(draws, 0.95):.4g} (95 %)")
    if ends != "lower" and np.quantile(draws, 0.975) >= high - edge:
        words.append(f"{name} runs into its prior at {high:g}: only {name} > {np.quantile(draws, 0.05):.4g} (95 %)")
    return "; ".join(words)


def one_sided(w_c: np.ndarray, prior: tuple[float, float], narrowest: float) -> tuple[xr.Dataset, str]:
    """One-sided bounds of w_c, and why the data do not identify it."""
    levels = np.array([0.68, 0.90, 0.95])
    bounds = xr.Dataset(
        {"upper": ("level", np.quantile(w_c, levels)), "lower": ("level", np.quantile(w_c, 1 - levels))},
        coords={"level": levels},
    )
    return bounds, runs_into("w_c", w_c, prior, "both" if prior[1] < narrowest else "lower")
