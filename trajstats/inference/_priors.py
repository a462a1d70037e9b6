"""Uniform priors: the defaults of a fit, changed by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from trajstats.errors import ArgumentError, unknown_name_message

Priors = Mapping[str, tuple[float, float]]


def merged_priors(
    default: Mapping[str, tuple[float, float]], given: Priors | None, support: Priors | None = None
) -> dict[str, tuple[float, float]]:
    """Change the bounds of some coefficients."""
    result = {name: (float(low), float(high)) for name, (low, high) in default.items()}
    for name, edges in named_priors(given).items():
        if name not in result:
            raise ArgumentError(unknown_name_message("prior", name, result))
        low, high = result[name] = prior_bounds(name, edges)
        least, most = (support or {}).get(name, (low, high))
        if low < least or high > most:
            words = f"at least {least:g}" if most == np.inf else f"{least:g} to {most:g}"
            msg = f"prior {name}={edges}: {name} is {words}"
            raise ArgumentError(msg)
    return result


def named_priors(given: Any) -> dict[str, tuple[float, float]]:
    """Take priors by name."""
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        msg = f"prior={given!r}: give a mapping from the name of a coefficient to (lower, upper)"
        raise ArgumentError(msg)
    return dict(given)


def check_free(given: Any, held: Mapping[str, str]) -> None:
    """Refuse a prior of a coefficient that is not fitted: it would be ignored."""
    for name in named_priors(given):
        if name in held:
            msg = f"prior {name}: {held[name]}, so that its prior would do nothing"
            raise ArgumentError(msg)


def prior_bounds(name: str, edges: tuple[float, float]) -> tuple[float, float]:
    """Check the bounds of one uniform prior."""
    try:
        pair = np.asarray(edges, dtype=float)
    except (TypeError, ValueError):
        pair = np.array(np.nan)
    if isinstance(edges, str) or pair.shape != (2,) or not np.isfinite(pair).all() or not pair[0] < pair[1]:
        msg = f"prior {name}={edges}: give two finite numbers (lower, upper), the lower bound below the upper"
        raise ArgumentError(msg)
    return float(pair[0]), float(pair[1])


def inside(values: Mapping[str, float], bounds: Priors, margin: float) -> dict[str, tuple[float, float, float]]:
    """Start values of a search, moved off the bounds."""
    start = {}
    for name, value in values.items():
        low, high = bounds[name]
        room = margin * (high - low)
        start[name] = (float(min(max(value, low + room), high - room)), low, high)
    return start
