"""Learning times and training curves with known answers, for coverage with the batched kernel."""

from __future__ import annotations

import numpy as np

from trajstats.inference import divergence, relaxation
from trajstats.inference.ensemble import sample_batch

LEVELS = np.array([0.68, 0.90, 0.95])
WIDTHS = np.repeat([5.0, 6, 7, 8, 10, 12, 15, 20, 30, 50], 6)
W_C, SIGMA, DELTA = 4.2, 0.15, 0.2


def learning_times(problems, rng, nu=1.0, stuck=0.0, censored=0.3):
    """Learning times (problem, run) with a budget that censors a share of the runs."""
    width = np.broadcast_to(WIDTHS, (problems, WIDTHS.size))
    room = width - W_C
    log_time = np.log(100.0) - nu * np.log(room)
    log_time = log_time + np.sqrt(SIGMA**2 + (nu * DELTA / room) ** 2) * rng.standard_normal(room.shape)
    log_time = np.where(rng.random(room.shape) < stuck, np.inf, log_time)
    budget = np.quantile(log_time[np.isfinite(log_time)], 1 - censored)
    return divergence.LearningTimes(width, np.minimum(log_time, budget), log_time < budget)


def divergence_draws(times, rng, steps=1500):
    """Posterior draws (problem, draw, coefficient) and R-hat."""
    priors = divergence.default_priors(times)
    problems = times.width.shape[0]
    low = times.narrowest[:, None, None]
    u = rng.random((problems, 2, 20, 5))
    start = np.stack(
        [
            low * (0.5 + 0.45 * u[..., 0]),
            0.4 + 1.6 * u[..., 1],
            np.median(times.log_time, axis=-1)[:, None, None] + u[..., 2] - 0.5,
            np.log(0.1 + 0.3 * u[..., 3]),
            np.log((0.02 + 0.1 * u[..., 4]) * low),
        ],
        axis=-1,
    )
    draws, r_hat = sample_batch(
        lambda theta: divergence.log_posterior(theta, times, priors), start, rng=rng, steps=steps, thin=10
    )
    return draws.reshape(problems, -1, 5), r_hat


FLOOR, AMPLITUDE, BETA = 0.1, 1.0, 0.5


def training_curve(rng, points=60, noise=0.03, memory=0.7, additive=False):
    """A decay to a floor with AR(1) noise along points even in ln t."""
    time = np.geomspace(1, 1e4, points)
    ar = np.empty(points)
    ar[0] = rng.standard_normal()
    for i in range(1, points):
        ar[i] = memory * ar[i - 1] + np.sqrt(1 - memory**2) * rng.standard_normal()
    clean = FLOOR + AMPLITUDE * time**-BETA
    return time, clean + noise * ar * (FLOOR if additive else clean)


def decay_draws(problems, rng, steps=2500, curves=None):
    """Posterior draws (problem, draw, coefficient) of decays and R-hat."""
    data = []
    for _ in range(problems):
        time, loss = training_curve(rng) if curves is None else curves(rng)
        data.append(relaxation.Binned(time, loss, np.ones(time.size)))
    priors = [relaxation.default_priors(d, "power_law") for d in data]
    truth = np.array([FLOOR, np.log(AMPLITUDE * data[0].pivot ** -BETA), BETA, np.log(0.05), 0.5, np.log(0.4), 1.0])
    spread = np.array([0.01, 0.05, 0.02, 0.2, 0.2, 0.3, 0.2])
    start = truth + spread * rng.standard_normal((problems, 2, 16, 7))
    start[..., 4] = rng.uniform(0.2, 0.8, start.shape[:-1])
    start[..., 0] = np.minimum(start[..., 0], np.array([p["L_inf"][1] for p in priors])[:, None, None] * 0.98)

    def log_prob(theta):
        return np.stack(
            [relaxation.log_posterior(t, d, "power_law", p) for t, d, p in zip(theta, data, priors, strict=True)]
        )

    draws, r_hat = sample_batch(log_prob, start, rng=rng, steps=steps, thin=10)
    return draws.reshape(problems, -1, 7), r_hat


def hits(draws, truth):
    """Hits (problem, level) of central intervals of draws (problem, draw)."""
    tails = np.stack([(1 - LEVELS) / 2, (1 + LEVELS) / 2])
    low, high = np.moveaxis(np.quantile(draws, tails.ravel(), axis=1).reshape(2, LEVELS.size, -1), -1, 1)
    return (low < truth) & (truth < high)
