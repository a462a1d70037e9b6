r"""A population of exponents over groups whose own posteriors are not Gaussian.

Given its exponent a group (a depth) knows nothing of the others, so that its posterior under a uniform prior is all
that the hierarchical model needs from it: :math:`p(M,s|y)\propto\prod_d\int p(\nu_d|y_d)\,N(\nu_d|M,s)\,d\nu_d`, the
integral being a mean over the group's own draws. Seeds of one run, whose posteriors are near Gaussian and many, have
the closed form of `replicas`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp, ndtr

_CELLS, _MEANS, _SPREADS = 400, 161, 60
_MOST = 1000


@dataclass(frozen=True)
class Hierarchy:
    """Joint draws of a population and its groups."""

    mean: np.ndarray  # Mean and spread of the population
    spread: np.ndarray  # Mean and spread of the population
    rows: np.ndarray  # For each joint draw, which of a group's own draws (chains laid end to end) belongs to it
    ess: np.ndarray  # How many of a group's own draws still count after they are weighted by the population


def hierarchical_draws(
    draws: np.ndarray, limits: tuple[float, float], spread: tuple[float, float], rng: np.random.Generator
) -> Hierarchy:
    """Draw a normal population and the groups given it, from the groups' own posteriors.

    Source: Hogg, Myers, Bovy 2010, arXiv:1008.4146 (the population from the draws of its members); Gelman 2006,
    doi:10.1214/06-BA117A (a uniform prior of the spread).
    """
    chains, n, groups = draws.shape
    flat = draws.reshape(-1, groups)
    kept = (chains, min(n, _MOST))
    order = np.argsort(flat, axis=0)
    blocks = np.array_split(np.arange(flat.shape[0]), min(_CELLS, flat.shape[0]))
    sorted_draws = np.take_along_axis(flat, order, axis=0)
    centres = np.stack([sorted_draws[block].mean(axis=0) for block in blocks])
    width = 0.9 * _robust_spread(flat) * flat.shape[0] ** -0.2
    means, spreads = _grid(flat, limits, spread)
    table = np.zeros((means.size, spreads.size))
    for k in range(groups):
        scale = np.hypot(spreads, width[k])
        log_density = -0.5 * ((centres[:, k, None, None] - means[:, None]) / scale) ** 2 - np.log(scale)
        within = ndtr((limits[1] - means[:, None]) / scale) - ndtr((limits[0] - means[:, None]) / scale)
        table += logsumexp(log_density, axis=0) - np.log(within)
    weight = np.exp(table - table.max()).ravel()
    cell = rng.choice(weight.size, size=kept[0] * kept[1], p=weight / weight.sum())
    i, j = np.unravel_index(cell, table.shape)
    mean = means[i] + (rng.random(i.size) - 0.5) * (means[1] - means[0])
    size = spreads[j] + (rng.random(j.size) - 0.5) * (spreads[1] - spreads[0])
    rows = np.empty((mean.size, groups), dtype=int)
    ess = np.empty(groups)
    edges = np.array([block[0] for block in blocks] + [flat.shape[0]])
    for k in range(groups):
        scale = np.hypot(size, width[k])
        log_weight = -0.5 * ((centres[:, k] - mean[:, None]) / scale[:, None]) ** 2
        share = np.exp(log_weight - log_weight.max(axis=1, keepdims=True))
        share /= share.sum(axis=1, keepdims=True)
        ess[k] = flat.shape[0] / (len(blocks) * np.sum(share.mean(axis=0) ** 2))
        ladder = np.cumsum(share, axis=1)
        block = np.minimum((ladder < rng.random((mean.size, 1)) * ladder[:, -1:]).sum(axis=1), len(blocks) - 1)
        first, last = edges[block], edges[block + 1]
        rows[:, k] = order[first + (rng.random(mean.size) * (last - first)).astype(int), k]
    return Hierarchy(mean.reshape(kept), size.reshape(kept), rows.reshape(*kept, groups), ess)


def _robust_spread(flat: np.ndarray) -> np.ndarray:
    quartiles = np.subtract(*np.quantile(flat, [0.75, 0.25], axis=0)) / 1.34
    return np.maximum(np.minimum(flat.std(axis=0), quartiles), 1e-9)


def _grid(flat: np.ndarray, limits: tuple[float, float], spread: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    # the population's mean can lie outside all groups by a few of its spreads, never outside its prior
    low = max(limits[0], float(np.quantile(flat, 0.001, axis=0).min()) - 2 * spread[1])
    high = min(limits[1], float(np.quantile(flat, 0.999, axis=0).max()) + 2 * spread[1])
    step, rise = (high - low) / _MEANS, (spread[1] - spread[0]) / _SPREADS
    return low + step * (np.arange(_MEANS) + 0.5), spread[0] + rise * (np.arange(_SPREADS) + 0.5)
