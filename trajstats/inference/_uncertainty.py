"""The uncertainty that a fit states: half the central 68 % interval, which exists whatever the tails of the draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.stats import t as student_t

from trajstats.errors import TooFewReplicasError

Statistic = Callable[[np.ndarray], np.ndarray]
STATED_LEVEL = 0.68
STATED = "half the central 68 % interval"


def half_interval(draws: np.ndarray, axis: int | tuple[int, ...] | None = None) -> Any:
    """Half the central 68 % interval of draws, :math:`(q_{0.84}-q_{0.16})/2`.

    For a Gaussian it is the standard deviation (to 0.6 %). Draws of a Student t with one or two degrees of freedom (two
    or three replicas) have no standard deviation: its estimate from draws depends on the seed, this one does not.
    """
    low, high = np.quantile(draws, [(1 - STATED_LEVEL) / 2, (1 + STATED_LEVEL) / 2], axis=axis)
    return (high - low) / 2


def mean_half_interval(values: np.ndarray) -> float:
    r"""Half the 68 % interval of the mean of independent values, :math:`t_{n-1}(0.84)\,s/\sqrt n`."""
    n = values.size
    return float(np.std(values, ddof=1) / np.sqrt(n) * student_t.ppf((1 + STATED_LEVEL) / 2, n - 1))


def student_t_draws(
    centre: float, scale: float, freedom: int, shape: tuple[int, ...], rng: np.random.Generator
) -> np.ndarray:
    """Draw from a Student t, one draw from each of as many equally probable slices as there are draws.

    The slices are in random order. Quantiles of the draws are those of the distribution to one slice, so that intervals
    of few replicas do not depend on the seed.
    """
    size = int(np.prod(shape))
    slices = (rng.permutation(size) + rng.random(size)) / size
    return centre + scale * student_t.ppf(slices, freedom).reshape(shape)


def left_out(samples: np.ndarray, statistic: Statistic, /) -> tuple[np.ndarray, np.ndarray]:
    """Mean of a statistic over samples that lack one group each, and the standard error by the jackknife."""
    n = _groups(samples, 2)
    left = np.stack([np.asarray(statistic(np.delete(samples, i, axis=0))) for i in range(n)])
    mean = left.mean(axis=0)
    return mean, np.sqrt((n - 1) / n * ((left - mean) ** 2).sum(axis=0))


def linear_error(influence: np.ndarray, groups: np.ndarray, mean: np.ndarray) -> float:
    """Estimate the standard error of a coefficient from the scatter of groups, by linearisation (sandwich)."""
    n = _groups(groups, 2)
    scores = (groups / mean - 1) @ influence
    return float(np.std(scores, ddof=1) / np.sqrt(n))


def _groups(samples: np.ndarray, needed: int) -> int:
    if samples.shape[0] < needed:
        msg = f"{samples.shape[0]} replicas or blocks: this needs at least {needed}"
        raise TooFewReplicasError(msg)
    return int(samples.shape[0])
