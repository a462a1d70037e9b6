"""Many small posteriors at once: one differential-evolution step moves every walker of every problem."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from trajstats.inference.sampling import r_hat

_JUMP_SHARE = 0.1


def sample_batch(
    log_prob: Callable[[np.ndarray], np.ndarray],
    start: np.ndarray,
    /,
    *,
    rng: int | np.random.Generator | None,
    steps: int = 1000,
    burn: float = 0.4,
    thin: int = 5,
) -> tuple[np.ndarray, np.ndarray]:
    r"""Sample many posteriors of the same shape with differential-evolution moves.

    Walkers of one half move by :math:`\gamma(x_j-x_k)`, j and k of the other half of their own ensemble, with
    :math:`\gamma=2.38/\sqrt{2d}` and, one time in ten, 1. The cost of a step in Python is shared by all problems.

    Parameters
    ----------
    log_prob : callable (problem, point, coefficient) -> (problem, point)
        Log posterior densities; -inf outside the prior.
    start : ndarray, (problem, chain, walker, coefficient)
        Where walkers start; walkers even in number, chains are independent ensembles.
    rng : int or numpy.random.Generator
        Seed.
    steps : int
        Steps of every walker; their number is fixed, `r_hat` says whether they were enough.
    burn : float
        Share of the steps that is dropped.
    thin : int
        Keep every `thin`-th step.

    Returns
    -------
    draws : ndarray, (problem, chain, draw, coefficient)
        Draws in order of time.
    r_hat : ndarray, (problem, coefficient)
        Split R-hat over the independent ensembles.

    Examples
    --------
    >>> start = np.random.default_rng(0).normal(size=(3, 2, 8, 1))
    >>> draws, r_hat = sample_batch(lambda x: -0.5 * (x[..., 0] - np.arange(1, 4)[:, None]) ** 2, start, rng=0)
    >>> draws.mean(axis=(1, 2)).round(1).ravel().tolist()
    [1.0, 2.0, 3.0]
    """
    generator = np.random.default_rng(rng)
    state = np.array(start, dtype=float)
    problems, chains, walkers, size = state.shape
    half = walkers // 2

    def density(points: np.ndarray) -> np.ndarray:
        return log_prob(points.reshape(problems, -1, size)).reshape(points.shape[:-1])

    density_now = density(state)
    first = int(burn * steps)
    kept = []
    gamma = 2.38 / np.sqrt(2 * size)
    for step in range(steps):
        for side in (0, 1):
            mine, other = slice(side * half, (side + 1) * half), slice((1 - side) * half, (2 - side) * half)
            shape = (problems, chains, half)
            one = generator.integers(half, size=shape)
            two = (one + generator.integers(1, half, size=shape)) % half
            pool = state[:, :, other]
            difference = np.take_along_axis(pool, one[..., None], 2) - np.take_along_axis(pool, two[..., None], 2)
            jump = np.where(
                generator.random(shape) < _JUMP_SHARE, 1.0, gamma * np.exp(0.05 * generator.standard_normal(shape))
            )
            trial = state[:, :, mine] + jump[..., None] * difference
            there = density(trial)
            accept = np.log(generator.random(shape)) < there - density_now[:, :, mine]
            state[:, :, mine] = np.where(accept[..., None], trial, state[:, :, mine])
            density_now[:, :, mine] = np.where(accept, there, density_now[:, :, mine])
        if step >= first and (step - first) % thin == 0:
            kept.append(state.copy())
    draws = np.stack(kept, axis=2).reshape(problems, chains, -1, size)
    return draws, np.stack([r_hat(one) for one in draws])
