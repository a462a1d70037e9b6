"""Many small posteriors at once: one differential-evolution step moves every walker of every problem."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import xarray as xr

from trajstats.inference._options import check_sampling
from trajstats.inference.sampling._emcee_chains import (
    R_HAT_LIMIT,
    TAU_FACTOR,
    Draws,
    autocorrelation_time,
    diagnostics_dataset,
    r_hat,
    sample_posterior,
    scatter_walkers,
)

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
    stacked = np.stack(kept, axis=2)
    draws = stacked.reshape(problems, chains, -1, size)
    return draws, np.stack([r_hat(one) for one in draws])


def sample_ensembles(
    log_prob: Callable[[np.ndarray], np.ndarray],
    start: np.ndarray,
    covariance: np.ndarray,
    /,
    *,
    names: Sequence[str],
    rng: int | np.random.Generator | None,
    chains: int = 4,
    walkers: int | None = None,
    max_steps: int = 20_000,
) -> Draws:
    """Sample one small posterior with the batched kernel: all ensembles move in one call.

    Same rules as `sampling.sample_posterior`; several times cheaper where Python's share of a step dominates (fewer
    than about 100 points).
    """
    generator = np.random.default_rng(rng)
    n = walkers if walkers is not None else max(2 * len(names) + 2, 16)
    state = np.stack([scatter_walkers(log_prob, start, covariance, n, generator) for _ in range(chains)])[None]
    steps = min(1000, max_steps)
    history = np.empty((0, chains, n, len(names)))
    while True:
        draws, _ = sample_batch(lambda x: log_prob(x[0])[None], state, rng=generator, steps=steps, burn=0.0, thin=1)
        block = draws[0].reshape(chains, steps, n, len(names)).swapaxes(0, 1)
        history, state = np.concatenate([history, block]), block[-1][None]
        done = history.shape[0]
        tau = autocorrelation_time(history[done // 4 :].reshape(done - done // 4, chains * n, -1))
        kept = history[done // 4 :].swapaxes(0, 1).reshape(chains, -1, len(names))
        r_hats = r_hat(kept)
        resolved = done - done // 4 > TAU_FACTOR * tau.max() and (r_hats < R_HAT_LIMIT).all()
        if resolved or done >= max_steps:
            break
        steps = min(done, max_steps - done)
    moving = (np.ptp(history[done // 4 :], axis=0) > 0).any(axis=-1)
    stuck = int((~moving).sum())
    thin = max(int(tau.max() / 2), 1) if np.isfinite(tau).all() else 1
    values = history[done // 4 :: thin].swapaxes(0, 1).reshape(chains, -1, len(names))
    changed = (np.diff(history, axis=0) != 0).any(axis=-1)
    reasons = [] if resolved else [f"after {done} steps: longest tau {tau.max():.0f}, largest R-hat {r_hats.max():.3f}"]
    if stuck:
        reasons.append(f"{stuck} walkers never moved")
    return Draws(
        values,
        diagnostics_dataset(
            names,
            r_hats=r_hats,
            ess=kept.shape[0] * kept.shape[1] / tau,
            tau=tau,
            acceptance=changed.mean(axis=(0, 2)),
            stuck=stuck,
            reasons=reasons,
            steps=done,
        ),
    )


def draw_posterior(
    log_prob: Callable[[np.ndarray], np.ndarray],
    start: np.ndarray,
    covariance: np.ndarray,
    /,
    *,
    names: Sequence[str],
    fixed: Mapping[str, float | None],
    rng: int | np.random.Generator | None,
    sampler: str,
    max_steps: int,
    progress: bool,
) -> tuple[dict[str, np.ndarray], xr.Dataset]:
    """Sample by name: the one place where a fit's ``sampler=`` is read."""
    check_sampling(sampler, max_steps)
    held = np.array([np.nan if (value := fixed.get(name)) is None else float(value) for name in names])
    free = np.isnan(held)

    def of_free(theta: np.ndarray) -> np.ndarray:
        whole = np.tile(held, (len(theta), 1))
        whole[:, free] = theta
        return log_prob(whole)

    around = (of_free, start[free], covariance[np.ix_(free, free)])
    known = [name for name, on in zip(names, free, strict=True) if on]
    if sampler == "batched":
        draws = sample_ensembles(*around, names=known, rng=rng, max_steps=max_steps)
    else:
        draws = sample_posterior(*around, names=known, rng=rng, max_steps=max_steps, progress=progress)
    whole = np.broadcast_to(held, (*draws.values.shape[:2], held.size)).copy()
    whole[..., free] = draws.values
    return dict(zip(names, np.moveaxis(whole, -1, 0), strict=True)), draws.diagnostics
