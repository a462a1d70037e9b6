"""Uniform priors: the defaults of a fit, changed by name."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from trajstats.errors import ArgumentError, unknown

Priors = Mapping[str, tuple[float, float]]


def merged_priors(default: Mapping[str, tuple[float, float]], given: Priors | None) -> dict[str, tuple[float, float]]:
    """Change the bounds of some coefficients.

    Parameters
    ----------
    default : mapping name -> (lower, upper)
        Bounds of every coefficient of the fit.
    given : mapping name -> (lower, upper), optional
        Those to change.

    Returns
    -------
    dict name -> (lower, upper)

    Raises
    ------
    ArgumentError
        If a name is not among the defaults, or bounds are not two finite numbers in order.

    Examples
    --------
    >>> merged_priors({"mu": (-0.5, 2.0), "log_smoothing": (-18.0, 12.0)}, {"mu": (0, 1)})
    {'mu': (0.0, 1.0), 'log_smoothing': (-18.0, 12.0)}
    """
    result = {name: (float(low), float(high)) for name, (low, high) in default.items()}
    for name, edges in (given or {}).items():
        if name not in result:
            raise ArgumentError(unknown("prior", name, result))
        result[name] = prior_bounds(name, edges)
    return result


def prior_bounds(name: str, edges: tuple[float, float]) -> tuple[float, float]:
    """Check the bounds of one uniform prior.

    Parameters
    ----------
    name : str
        Coefficient.
    edges : (float, float)
        Lower and upper bound.

    Returns
    -------
    (float, float)

    Raises
    ------
    ArgumentError
        If they are not two finite numbers, the lower below the upper.
    """
    pair = np.asarray(edges, dtype=float)
    if pair.shape != (2,) or not np.isfinite(pair).all() or not pair[0] < pair[1]:
        msg = f"prior {name}={edges}: give two finite numbers (lower, upper), the lower bound below the upper"
        raise ArgumentError(msg)
    return float(pair[0]), float(pair[1])


def inside(values: Mapping[str, float], bounds: Priors, margin: float) -> dict[str, tuple[float, float, float]]:
    """Start values of a search, moved off the bounds.

    Parameters
    ----------
    values : mapping name -> float
        Guesses.
    bounds : mapping name -> (lower, upper)
        Bounds of each.
    margin : float
        Share of the range kept free at either end.

    Returns
    -------
    dict name -> (start, lower, upper)
    """
    start = {}
    for name, value in values.items():
        low, high = bounds[name]
        room = margin * (high - low)
        start[name] = (float(min(max(value, low + room), high - room)), low, high)
    return start
