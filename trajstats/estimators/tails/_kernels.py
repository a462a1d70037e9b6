"""Heavy tails on plain arrays: Hill's index, power laws with a scanned cut-off, and what else a tail may be."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numba import njit
from scipy import optimize, special, stats

# Points at which every candidate cut-off is tried before any is measured in full; a lower bound of its distance.
_PROBES = 48
# More candidates than this are thinned to equal steps in the logarithm of the tail's size.
_CANDIDATES = 20_000
_STABLE = (0.5, 1.98)


@dataclass(frozen=True)
class PowerLaw:
    r"""A power law above `x_min` and its Kolmogorov-Smirnov distance from the data."""

    alpha: float
    x_min: float
    n_tail: int
    distance: float


def hill_index(values: np.ndarray, k: int) -> tuple[float, float]:
    r"""Estimate the tail index :math:`\mu`, :math:`P(X>x)\sim x^{-\mu}`, from the k largest values."""
    top = np.log(np.partition(values, values.size - k - 1)[values.size - k - 1 :])
    mean = float(np.sum(top - top.min()) / k)
    index = 1.0 / mean if mean > 0 else math.inf
    return index, index / math.sqrt(k)


@njit(cache=True)
def _gap(log_x: np.ndarray, left: np.ndarray, i: int, alpha: float, stride: int, stop: float) -> float:
    # Largest distance between the law above point i and the data's distribution, as soon as it exceeds `stop`.
    n = log_x.size
    worst = 0.0
    for j in range(i, n, stride):
        theory = -np.expm1(-(alpha - 1.0) * (log_x[j] - log_x[i]))
        gap = abs(theory - (left[j] - left[i]) / (n - left[i]))
        if gap > worst:
            worst = gap
            if worst > stop:
                return worst
    return worst


@njit(cache=True)
def _scan(
    log_x: np.ndarray,
    left: np.ndarray,
    tail_sum: np.ndarray,
    candidates: np.ndarray,
    alpha_low: float,
    alpha_high: float,
) -> tuple[int, float, float]:
    # The candidate of the smallest distance; exact, because the distance at a few points bounds the whole from below.
    n = log_x.size
    coarse = np.empty(candidates.size)
    alpha = np.empty(candidates.size)
    for c in range(candidates.size):
        i = candidates[c]
        size = n - i
        alpha[c] = 1.0 + size / (tail_sum[i] - size * log_x[i])
        coarse[c] = np.inf
        if alpha_low < alpha[c] < alpha_high:
            coarse[c] = _gap(log_x, left, i, alpha[c], max(1, size // _PROBES), np.inf)
    best = np.inf
    found = candidates.size
    for c in np.argsort(coarse):
        if coarse[c] >= best:
            break
        gap = _gap(log_x, left, candidates[c], alpha[c], 1, best)
        if gap < best or (gap == best and c < found):
            best = gap
            found = c
    return found, best, alpha[found] if found < candidates.size else np.nan


def fit_power_law(
    ordered: np.ndarray,
    *,
    min_tail: int,
    x_min: float | None = None,
    alpha_range: tuple[float, float] = (1.0, math.inf),
) -> PowerLaw | None:
    r"""Fit :math:`\alpha` by maximum likelihood above the cut-off of least Kolmogorov-Smirnov distance.

    Source: Clauset, Shalizi, Newman 2009 (arXiv:0706.1062).
    """
    log_x = np.log(ordered)
    left = np.searchsorted(ordered, ordered, side="left").astype(np.float64)
    tail_sum = np.cumsum(log_x[::-1])[::-1].copy()
    last = ordered.size - min_tail
    if x_min is None:
        first_of_value = np.flatnonzero(left == np.arange(ordered.size))
        # the largest value leaves nothing to fit
        candidates = first_of_value[(first_of_value <= last) & (ordered[first_of_value] < ordered[-1])]
        if candidates.size > _CANDIDATES:
            sizes = np.geomspace(ordered.size - candidates[-1], ordered.size - candidates[0], _CANDIDATES)
            place = np.searchsorted(candidates, ordered.size - sizes, side="left")
            candidates = candidates[np.unique(np.minimum(place, candidates.size - 1))]
    else:
        candidates = np.array([np.searchsorted(ordered, x_min)])
    found, distance, alpha = _scan(log_x, left, tail_sum, candidates, *alpha_range)
    if found == candidates.size:
        return None
    at = int(candidates[found])
    return PowerLaw(float(alpha), float(ordered[at]), ordered.size - at, float(distance))


def bootstrap_p_value(
    ordered: np.ndarray,
    fit: PowerLaw,
    *,
    draws: int,
    min_tail: int,
    scan: bool,
    alpha_range: tuple[float, float],
    rng: np.random.Generator,
) -> float:
    """Ask how often a true power law with the data's own body is as far from its fit as the data are."""
    n = ordered.size
    body = ordered[: n - fit.n_tail]
    hits = 0
    for _ in range(draws):
        m = int(rng.binomial(n, fit.n_tail / n)) if scan else fit.n_tail
        tail = fit.x_min * rng.random(m) ** (-1.0 / (fit.alpha - 1.0))
        below = rng.choice(body, n - m) if body.size else fit.x_min * rng.random(n - m) ** (-1.0 / (fit.alpha - 1.0))
        sample = np.sort(np.concatenate([below, tail]))
        again = fit_power_law(sample, min_tail=min_tail, x_min=None if scan else fit.x_min, alpha_range=alpha_range)
        hits += again is None or again.distance >= fit.distance
    return (1 + hits) / (1 + draws)


# Laws of the tail: log density of x given x >= x_min, up to parameters in logarithms so that all stay positive.
Law = Callable[[np.ndarray, np.ndarray, float], np.ndarray]


def _power(p: np.ndarray, x: np.ndarray, low: float) -> np.ndarray:
    return p[0] - math.log(low) - (1 + math.exp(p[0])) * np.log(x / low)


def _truncated(p: np.ndarray, x: np.ndarray, low: float) -> np.ndarray:
    alpha, rate = 1 + math.exp(p[0]), math.exp(p[1])
    return -alpha * np.log(x / low) - rate * (x - low) - log_truncated_norm(alpha, rate * low) - math.log(low)


def log_truncated_norm(alpha: float, b: float) -> float:
    """Evaluate the log of the integral over t > 1 of t^-alpha exp(-b (t - 1))."""
    # t = exp(v), trapezium in v
    top = min(50.0 / max(alpha - 1.0, 1e-3), math.log1p(60.0 / max(b, 1e-300)))
    v = np.linspace(0.0, top, 1001)
    f = np.exp(-(alpha - 1.0) * v - b * np.expm1(v))
    return math.log((f.sum() - 0.5 * (f[0] + f[-1])) * (v[1] - v[0]))


def _gaussian(p: np.ndarray, x: np.ndarray, low: float) -> np.ndarray:
    s = math.exp(p[0])
    return stats.norm.logpdf(x / s) - p[0] - special.log_ndtr(-low / s)


def _student(p: np.ndarray, x: np.ndarray, low: float) -> np.ndarray:
    s, freedom = math.exp(p[0]), math.exp(p[1])
    return stats.t.logpdf(x / s, freedom) - p[0] - stats.t.logsf(low / s, freedom)


def _lognormal(p: np.ndarray, x: np.ndarray, low: float) -> np.ndarray:
    s = math.exp(p[1])
    z = (np.log(x) - p[0]) / s
    return stats.norm.logpdf(z) - p[1] - np.log(x) - special.log_ndtr(-(math.log(low) - p[0]) / s)


def _alpha_stable(p: np.ndarray, x: np.ndarray, low: float) -> np.ndarray:
    s, alpha = math.exp(p[0]), _STABLE[0] + (_STABLE[1] - _STABLE[0]) * float(special.expit(p[1]))
    log_pdf, log_tail = _stable_tables()
    u = -math.log(2 - alpha)
    return log_pdf(u, np.log(x / s))[0] - p[0] - float(log_tail(u, math.log(low / s))[0, 0])


@functools.lru_cache(maxsize=1)
def _stable_tables() -> tuple[Callable[..., np.ndarray], Callable[..., np.ndarray]]:
    # Log density and log tail of symmetric stable laws against (-log(2 - alpha), log x).
    from scipy.interpolate import RectBivariateSpline

    u = np.linspace(-math.log(2 - _STABLE[0]), -math.log(2 - _STABLE[1]), 41)
    log_x = np.linspace(-9.0, 25.0, 500)
    pdf, tail = np.empty((u.size, log_x.size)), np.empty((u.size, log_x.size))
    for i, alpha in enumerate(2 - np.exp(-u)):
        f = stable_density(np.exp(log_x), float(alpha))
        pdf[i] = np.log(f)
        mass = f * np.exp(log_x)
        steps = (mass[1:] + mass[:-1]) / 2 * (log_x[1] - log_x[0])
        tail[i] = np.log(mass[-1] / alpha + np.concatenate([np.cumsum(steps[::-1])[::-1], [0.0]]))
    return RectBivariateSpline(u, log_x, pdf), RectBivariateSpline(u, log_x, tail)


def stable_density(x: np.ndarray, alpha: float) -> np.ndarray:
    r"""Evaluate the symmetric stable density with characteristic function :math:`e^{-|t|^\alpha}` at x > 0."""
    if abs(alpha - 1.0) < 1e-3:
        return 1.0 / (np.pi * (1.0 + x**2))
    # double-exponential nodes: the integrand is a narrow peak anywhere in the interval, often at an end
    t = np.linspace(-4.2, 4.2, 1401)
    half = np.pi / 2 * np.sinh(t)
    left = 1.0 / (1.0 + np.exp(-2 * half))
    right = 1.0 / (1.0 + np.exp(2 * half))
    theta, rest = np.pi / 2 * left, np.pi / 2 * right
    weight = np.pi / 2 * 2 * left * right * (np.pi / 2 * np.cosh(t)) * (t[1] - t[0])
    power = alpha / (alpha - 1.0)
    log_v = (
        power * (np.log(np.sin(rest)) - np.log(np.sin(alpha * theta)))
        + np.log(np.abs(np.cos((alpha - 1.0) * theta)))
        - np.log(np.sin(rest))
    )
    log_arg = power * np.log(x)[:, None] + log_v
    with np.errstate(over="ignore"):
        value = np.exp(log_arg - np.exp(np.minimum(log_arg, 700.0))) @ weight
    return alpha * value / (np.pi * abs(alpha - 1.0) * x)


@dataclass(frozen=True)
class TailLaw:
    """A law for the tail, with starting points for its parameters given the tail's values."""

    log_density: Law
    names: tuple[str, ...]
    starts: Callable[[np.ndarray], list[list[float]]]
    natural: Callable[[np.ndarray], np.ndarray] = np.exp

    def scaled(self, step: float) -> list[float]:
        """Return by what each parameter grows when the values are multiplied by `step`; NaN where there is none."""
        powers = [{"scale": 1.0, "rate": -1.0}.get(name, 0.0) for name in self.names]
        return [step**power for power in powers] + [math.nan] * (2 - len(powers))

    def shifted(self, step: float) -> list[float]:
        """Return what is added to each parameter when the values are multiplied by `step`."""
        return [math.log(step) if name == "mean_log" else 0.0 for name in self.names] + [math.nan] * (
            2 - len(self.names)
        )


def _scale(x: np.ndarray) -> float:
    return 0.5 * math.log(float(np.mean(x**2))) if float(x.max()) < 1e100 else math.log(float(np.median(x)))


LAWS: dict[str, TailLaw] = {
    "truncated_power_law": TailLaw(
        _truncated,
        ("alpha", "rate"),
        lambda x: [[0.3, -math.log(float(x.max()))], [0.3, -math.log(float(x.mean())) - 2]],
        lambda p: np.array([1 + math.exp(p[0]), math.exp(p[1])]),
    ),
    "gaussian": TailLaw(_gaussian, ("scale",), lambda x: [[_scale(x)], [math.log(float(x[0]))]]),
    "student_t": TailLaw(
        _student, ("scale", "freedom"), lambda x: [[math.log(float(x[0])) - 1, 0.7], [_scale(x) - 0.5, 2.0]]
    ),
    "lognormal": TailLaw(
        _lognormal,
        ("mean_log", "sd_log"),
        lambda x: [[float(np.log(x).mean()), math.log(float(np.log(x).std()))], [math.log(float(x[0])) - 2, 0.5]],
        lambda p: np.array([p[0], math.exp(p[1])]),
    ),
    "alpha_stable": TailLaw(
        _alpha_stable,
        ("scale", "alpha"),
        lambda x: [[math.log(float(x[0])) - 1, 0.0], [math.log(float(x[0])), 2.0]],
        lambda p: np.array([math.exp(p[0]), _STABLE[0] + (_STABLE[1] - _STABLE[0]) * float(special.expit(p[1]))]),
    ),
}


def fit_law(law: TailLaw, tail: np.ndarray, x_min: float) -> tuple[np.ndarray, np.ndarray]:
    """Fit a law to the values above a cut-off, given that they are above it."""

    def cost(p: np.ndarray) -> float:
        if np.abs(p).max() > 200:
            return 1e300
        with np.errstate(all="ignore"):
            value = -float(np.sum(law.log_density(p, tail, x_min)))
        return value if math.isfinite(value) else 1e300

    fits = [
        optimize.minimize(cost, start, method="Nelder-Mead", options={"xatol": 1e-5, "fatol": 1e-6, "maxiter": 600})
        for start in law.starts(tail)
    ]
    best = min(fits, key=lambda fit: fit.fun).x
    return law.natural(best), law.log_density(best, tail, x_min)


def power_law_log_density(fit: PowerLaw, tail: np.ndarray) -> np.ndarray:
    """Evaluate the log density of a fitted power law."""
    return _power(np.array([math.log(fit.alpha - 1.0)]), tail, fit.x_min)
