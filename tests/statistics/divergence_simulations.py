"""Learning times and training curves with known answers, for coverage with the batched kernel."""

from __future__ import annotations

import numpy as np
from scipy.optimize import curve_fit
from scipy.stats import norm

from trajstats.inference._priors import inside
from trajstats.inference.decay import _likelihood as relaxation
from trajstats.inference.sampling._batched_chains import sample_batch
from trajstats.inference.sampling._emcee_chains import scatter_walkers
from trajstats.inference.sampling._maximum import maximise
from trajstats.inference.transition import _likelihood as divergence

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


def training_curves(problems, rng):
    """Decays of `training_curve` as the fit sees them."""
    curves = [training_curve(rng) for _ in range(problems)]
    return [relaxation.Binned(time, loss, np.ones(time.size)) for time, loss in curves]


def decay_draws(data, truths, priors, rng, steps=2500):
    """Posterior draws (problem, draw, coefficient) of decays and R-hat.

    Walkers start about the maximum, which is climbed to from the truth: started at the truth itself, those that hardly
    move would keep it in the middle of the draws.
    """

    def log_prob(theta):
        return np.stack(
            [relaxation.log_posterior(t, d, "power_law", p) for t, d, p in zip(theta, data, priors, strict=True)]
        )

    start = []
    for one, truth, prior in zip(data, truths, priors, strict=True):

        def density(theta, one=one, prior=prior):
            return relaxation.log_posterior(theta, one, "power_law", prior)

        with np.errstate(all="ignore"):
            near = inside(dict(zip(relaxation.NAMES, truth, strict=True)), prior, 0.01)
            top = maximise(lambda v, one=one: float(relaxation.log_likelihood(v[None], one, "power_law")[0]), near)
        start.append([scatter_walkers(density, top.vector, top.covariance, 16, rng) for _ in range(2)])
    draws, r_hat = sample_batch(log_prob, np.array(start), rng=rng, steps=steps, thin=10)
    return draws.reshape(len(data), -1, 7), r_hat


def training_draws(data, rng):
    """Posteriors of `training_curves` under the default priors."""
    truth = np.array([FLOOR, np.log(AMPLITUDE * data[0].pivot ** -BETA), BETA, np.log(0.03), 0.95, np.log(0.45), 1.0])
    priors = [relaxation.default_priors(d, "power_law") for d in data]
    return decay_draws(data, [truth] * len(data), priors, rng)


def naive_divergence(times):
    """Ranks (problem,) of w_c and of nu by least squares in ln T, runs that did not learn dropped."""

    def curve(width, log_a, w_c, nu):
        return log_a - nu * np.log(np.maximum(width - w_c, 1e-9))

    found = []
    for width, log_time, learned in zip(times.width, times.log_time, times.learned, strict=True):
        narrow = width[learned].min()
        found.append(
            _least_squares(
                curve,
                width[learned],
                log_time[learned],
                start=(log_time[learned].max(), 0.8 * narrow, 1.0),
                low=(-20, 0, 0.05),
                high=(20, narrow - 1e-6, 6),
            )
        )
    values, errors = np.moveaxis(np.array(found), 1, 0)
    return [norm.cdf((truth - values[:, k]) / errors[:, k]) for k, truth in ((1, W_C), (2, 1.0))]


def naive_decay(data):
    """Ranks (problem,) of beta by least squares in ln L with independent errors."""

    def curve(time, floor, log_a, beta):
        return np.log(floor + np.exp(log_a) * time**-beta)

    found = []
    for one in data:
        low = one.loss.min()
        start, high = (0.7 * low, 0.0, 0.5), (1.1 * low, 10, 4)
        found.append(_least_squares(curve, one.time, np.log(one.loss), start=start, low=(0, -10, 0.01), high=high))
    values, errors = np.moveaxis(np.array(found), 1, 0)
    return norm.cdf((BETA - values[:, 2]) / errors[:, 2])


def _least_squares(curve, x, y, *, start, low, high):
    values, covariance = curve_fit(curve, x, y, p0=start, bounds=(low, high), maxfev=5000)
    return values, np.sqrt(np.diag(covariance))


# Truths for simulation-based calibration are drawn from these priors, which are given to the fit as well.
DIVERGENCE_PRIOR = {
    "w_c": (1.0, 4.5),
    "nu": (0.5, 2.0),
    "log_sigma": (np.log(0.05), np.log(0.4)),
    "log_delta": (np.log(0.02), np.log(0.5)),
}
DECAY_PRIOR = {
    "L_inf": (0.02, 0.2),
    "log_middle": (np.log(0.03), np.log(0.3)),
    "beta": (0.3, 0.9),
    "log_noise": (np.log(0.01), np.log(0.08)),
    "drift_share": (0.0, 1.0),
    "log_range": (np.log(0.1), np.log(2.0)),
    "power": (0.0, 1.5),
}


def divergence_ranks(problems, rng, steps=2500):
    """Ranks (problem, coefficient) of w_c, nu, ln sigma and ln delta drawn from their priors."""
    truth = {k: rng.uniform(low, high, (problems, 1)) for k, (low, high) in DIVERGENCE_PRIOR.items()}
    width = np.broadcast_to(WIDTHS, (problems, WIDTHS.size))
    room = width - truth["w_c"]
    spread = np.sqrt(np.exp(2 * truth["log_sigma"]) + (truth["nu"] * np.exp(truth["log_delta"]) / room) ** 2)
    log_time = 4 - truth["nu"] * np.log(room / (15.8 - truth["w_c"])) + spread * rng.standard_normal(room.shape)
    # watched until four fifths have learned: a budget between two times would tell more than that a run is beyond it
    budget = np.sort(log_time, axis=1)[:, [WIDTHS.size * 4 // 5 - 1]]
    times = divergence.LearningTimes(width, np.minimum(log_time, budget), log_time <= budget)
    priors = divergence.default_priors(times) | {
        k: (np.full(problems, low), np.full(problems, high)) for k, (low, high) in DIVERGENCE_PRIOR.items()
    }
    order = ("w_c", "nu", "log_sigma", "log_delta")
    start = np.empty((problems, 2, 20, 5))
    for column, name in zip((0, 1, 3, 4), order, strict=True):
        start[..., column] = rng.uniform(*DIVERGENCE_PRIOR[name], start.shape[:-1])
    start[..., 2] = 4 + 0.3 * rng.standard_normal(start.shape[:-1])
    draws, _ = sample_batch(lambda t: divergence.log_posterior(t, times, priors), start, rng=rng, steps=steps, thin=10)
    draws = draws.reshape(problems, -1, 5)[..., [0, 1, 3, 4]]
    return (draws < np.concatenate([truth[k] for k in order], axis=1)[:, None]).mean(axis=1)


def decay_ranks(problems, rng, steps=3000):
    """Ranks (problem, coefficient) of all seven coefficients of a decay, drawn from their priors."""
    low, high = np.array(list(DECAY_PRIOR.values())).T
    truth = rng.uniform(low, high, (problems, 7))
    time = np.geomspace(1, 1e4, 60)
    data = []
    for floor, log_middle, beta, log_noise, share, log_range, power in truth:
        clean = floor + np.exp(log_middle) * (time / 100) ** -beta
        typical = np.exp(np.log(clean).mean())
        keep = np.exp(-np.diff(np.log(time)) / np.exp(log_range))
        drift = rng.standard_normal(time.size)
        for i, k in enumerate(keep):
            drift[i + 1] = k * drift[i] + np.sqrt(1 - k**2) * drift[i + 1]
        noise = np.exp(log_noise) * (np.sqrt(share) * drift + np.sqrt(1 - share) * rng.standard_normal(time.size))
        data.append(relaxation.Binned(time, clean + typical * (clean / typical) ** power * noise, np.ones(time.size)))
    draws, _ = decay_draws(data, truth, [DECAY_PRIOR] * problems, rng, steps)
    return (draws < truth[:, None]).mean(axis=1)


def divergence_block(problems, seed):
    """Rank, naive rank and error of the posterior median for w_c and nu: {row: (problem, 3)}."""
    rng = np.random.default_rng([seed, 1])
    times = learning_times(problems, rng)
    draws, _ = divergence_draws(times, rng)
    naive = naive_divergence(times)
    truths = {"w_c, 30 % censored": W_C, "nu, 30 % censored": 1.0}
    return {k: _judged(draws[..., i], truth, naive[i]) for i, (k, truth) in enumerate(truths.items())}


def decay_block(problems, seed):
    """As `divergence_block`, for the exponent of a decay."""
    rng = np.random.default_rng([seed, 2])
    data = training_curves(problems, rng)
    draws, _ = training_draws(data, rng)
    return {"beta of a decay, AR(1) noise": _judged(draws[..., 2], BETA, naive_decay(data))}


def _judged(draws, truth, naive):
    return np.stack([(draws < truth).mean(axis=1), naive, np.median(draws, axis=1) - truth], axis=1)
