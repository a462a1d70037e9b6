"""Tails of values that lie on a grid: which grid it is, and the zeta law in place of the continuous power law."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import optimize

from trajstats.errors import FitError
from trajstats.estimators.tails._kernels import Law, PowerLaw, log_truncated_norm

# Ties that chance explains; above it the values lie on a grid or are copies of each other.
FEW_TIES = 0.05
# Float formats of at most this many significant bits (float16 has 11, bfloat16 8) are coarse enough to be seen here.
COARSE_BITS = 11
# Levels of a uniform grid other than the integers: all of int16 and of its negatives.
MOST_LEVELS = 65_536
# Distinct values that a tail on a grid needs: with fewer, any law fits.
FEWEST_LEVELS = 5
# Integers that are all even by chance: fewer than this many.
EVEN_BY_CHANCE = 10
_CANDIDATES = 200
_LARGEST_ALPHA = 50.0
# Terms summed one by one before the Euler-Maclaurin formula takes over.
_TERMS = 24


@dataclass(frozen=True)
class Grid:
    """Where values may lie."""

    # ``"continuous"``, ``"uniform"`` (multiples of `step`) or ``"rounded"`` (floats of `bits` significant bits)
    kind: str
    step: float = math.nan  # Spacing of a uniform grid
    bits: int = 0  # Significant bits of rounded floats


def find_grid(ordered: np.ndarray) -> Grid:
    """Find the grid on which positive values lie, from their ties and their binary digits."""
    distinct = np.unique(ordered)
    ties = 1 - distinct.size / ordered.size
    step = _uniform_step(distinct) if ties > 0.01 else None
    bits = _significant_bits(distinct)
    # A float format is uniform too near zero; then its large values, unlike integers of their size, are all even.
    if step is not None and np.sum(distinct / step >= 2**bits) < EVEN_BY_CHANCE:
        return Grid("uniform", step=step)
    if bits <= COARSE_BITS:
        return Grid("rounded", bits=bits)
    per_level = ordered.size / 2**24
    by_chance = 1 - (-math.expm1(-per_level)) / per_level if bits <= 24 else 0.0
    if ties > max(FEW_TIES, 4 * by_chance):
        msg = (
            f"{ordered.size - distinct.size} of {ordered.size} values repeat another one, and they lie on no grid: "
            "copies (tied weights, a tensor counted twice) are not independent values. Give each value once, e.g. "
            "numpy.unique(values)."
        )
        raise FitError(msg)
    return Grid("continuous")


def _uniform_step(distinct: np.ndarray) -> float | None:
    """Return the spacing if all values are multiples of one number, else None."""
    smallest = float(np.min(np.diff(distinct, prepend=0.0)))
    for divisor in (1, 2, 3, 4):
        step = smallest / divisor
        levels = np.rint(distinct / step)
        step = float(distinct[-1] / levels[-1])  # the largest value fixes it best
        # float32 keeps a multiple to 6e-8 of itself
        if np.all(np.abs(distinct / step - levels) <= 1e-9 + 4e-7 * levels) and (
            levels[-1] <= MOST_LEVELS or np.array_equal(distinct, levels)
        ):
            return step
    return None


def _significant_bits(values: np.ndarray) -> int:
    """Return how many significant bits the values need; 53 if more than 24."""
    mantissa, _ = np.frexp(values)
    for bits in (*range(2, COARSE_BITS + 1), 24):
        scaled = np.ldexp(mantissa, bits)
        if np.array_equal(scaled, np.rint(scaled)):
            return bits
    return 53


def spread_rounded(ordered: np.ndarray, bits: int) -> np.ndarray:
    """Spread values that were rounded to a float format evenly over the interval that was rounded to each."""
    levels, first, counts = np.unique(ordered, return_index=True, return_counts=True)
    mantissa, exponent = np.frexp(levels)
    above = np.ldexp(0.5, exponent - bits)
    below = np.where(mantissa == 0.5, above / 2, above)  # floats lie twice as dense below a power of two
    rank = np.arange(ordered.size) - np.repeat(first, counts)
    share = (rank + 0.5) / np.repeat(counts, counts)
    return ordered - np.repeat(below, counts) + np.repeat(above + below, counts) * share


def log_zeta(alpha: float, q: np.ndarray) -> np.ndarray:
    r"""Evaluate :math:`\ln\sum_{j\ge0}(q+j)^{-\alpha}` without underflow."""
    q = np.asarray(q, dtype=np.float64)
    head = sum((1 + j / q) ** -alpha for j in range(_TERMS))
    last = q + _TERMS
    ratio = (last / q) ** -alpha
    rest = last / (alpha - 1) + 0.5 + alpha / (12 * last) - alpha * (alpha + 1) * (alpha + 2) / (720 * last**3)
    return -alpha * np.log(q) + np.log(head + ratio * rest)


def fit_zeta(
    levels: np.ndarray,
    counts: np.ndarray,
    *,
    min_tail: int,
    k_min: float | None = None,
    alpha_range: tuple[float, float] = (1.0, math.inf),
) -> PowerLaw | None:
    r"""Fit :math:`P(k)=k^{-\alpha}/\zeta(\alpha,k_{min})` by maximum likelihood above the cut-off of least distance.

    Source: Clauset, Shalizi, Newman 2009 (arXiv:0706.1062), appendix B.
    """
    size = np.cumsum(counts[::-1])[::-1]
    log_sum = np.cumsum((counts * np.log(levels))[::-1])[::-1]
    if k_min is None:
        last = min(int(np.sum(size >= min_tail)), levels.size - FEWEST_LEVELS + 1)
        candidates = np.arange(max(last, 0))
        if candidates.size > _CANDIDATES:
            candidates = np.unique(np.geomspace(1, candidates.size, _CANDIDATES).astype(int)) - 1
    else:
        candidates = np.array([np.searchsorted(levels, k_min)])
    best: PowerLaw | None = None
    for c in candidates.tolist():
        first = float(levels[c]) if k_min is None else float(math.ceil(k_min))
        alpha = _most_likely_alpha(first, float(size[c]), float(log_sum[c]))
        if not alpha_range[0] < alpha < min(alpha_range[1], 0.999 * _LARGEST_ALPHA):
            continue
        distance = _zeta_distance(levels[c:], size[c:], counts[c:], first, alpha)
        if best is None or distance < best.distance:
            best = PowerLaw(alpha, first, int(size[c]), distance)
    return best


def _most_likely_alpha(first: float, n: float, log_sum: float) -> float:
    """Maximise the likelihood of the zeta law from `first` on."""
    found = optimize.minimize_scalar(
        lambda alpha: alpha * log_sum / n + float(log_zeta(alpha, np.array(first))),
        bounds=(1 + 1e-6, _LARGEST_ALPHA),
        method="bounded",
        options={"xatol": 1e-9},
    )
    return float(found.x)


def _zeta_distance(levels: np.ndarray, size: np.ndarray, counts: np.ndarray, first: float, alpha: float) -> float:
    """Return the largest difference between the two distributions at every integer, whether it occurs or not."""
    total = float(log_zeta(alpha, np.array(first)))
    at = np.exp(log_zeta(alpha, levels) - total) - size / size[0]
    past = np.exp(log_zeta(alpha, levels + 1) - total) - (size - counts) / size[0]
    return float(max(np.abs(at).max(), np.abs(past).max()))


def zeta_stderr(fit: PowerLaw) -> float:
    r"""Return the standard error of the exponent, :math:`[n\,\partial_\alpha^2\ln\zeta(\alpha,k_{min})]^{-1/2}`."""
    h = 1e-3 * (fit.alpha - 1)
    low, mid, high = (float(log_zeta(fit.alpha + s * h, np.array(fit.x_min))) for s in (-1, 0, 1))
    return float(h / math.sqrt(fit.n_tail * (low - 2 * mid + high)))


def draw_zeta(fit: PowerLaw, n: int, rng: np.random.Generator) -> np.ndarray:
    """Draw integers from a fitted zeta law by inversion, (n,)."""
    table = fit.x_min + np.arange(4096)
    above = np.exp(log_zeta(fit.alpha, table) - log_zeta(fit.alpha, np.array(fit.x_min)))
    u = 1 - rng.random(n)  # P(X >= k) in (0, 1]
    k = fit.x_min + np.searchsorted(-above, -u, side="right") - 1.0
    far = u < above[-1]  # beyond the table the sum is an integral to 1e-7
    k[far] = np.floor((table[-1] - 0.5) * (u[far] / above[-1]) ** (-1 / (fit.alpha - 1)) + 0.5)
    return k


def zeta_p_value(
    k: np.ndarray,
    fit: PowerLaw,
    *,
    draws: int,
    min_tail: int,
    scan: bool,
    alpha_range: tuple[float, float],
    rng: np.random.Generator,
) -> float:
    """Ask how often a true zeta law with the data's own body is as far from its fit as the data are."""
    n, body = k.size, k[: k.size - fit.n_tail]
    hits = 0
    for _ in range(draws):
        m = int(rng.binomial(n, fit.n_tail / n)) if scan and body.size else fit.n_tail
        below = rng.choice(body, n - m) if body.size else np.empty(0)
        sample = np.concatenate([below, draw_zeta(fit, m, rng)])
        again = fit_zeta(
            *np.unique(sample, return_counts=True),
            min_tail=min_tail,
            k_min=None if scan else fit.x_min,
            alpha_range=alpha_range,
        )
        hits += again is None or again.distance >= fit.distance
    return (1 + hits) / (1 + draws)


def log_zeta_law(alpha: float, k: np.ndarray, k_min: float) -> np.ndarray:
    """Evaluate the log probability of integers under the zeta law from `k_min` on."""
    return -alpha * np.log(k) - float(log_zeta(alpha, np.array(k_min)))


def truncated_zeta(p: np.ndarray, k: np.ndarray, k_min: float) -> np.ndarray:
    r"""Evaluate ln P(k) for :math:`P\propto k^{-\alpha}e^{-\lambda k}`, :math:`p=(\ln(\alpha-1),\ln\lambda)`."""
    alpha, rate = 1 + math.exp(p[0]), math.exp(p[1])
    terms = k_min + np.arange(_TERMS)
    last = k_min + _TERMS
    log_last = -alpha * math.log(last) - rate * (last - k_min)
    slope = alpha / last + rate
    # the rest: integral, half of its first term, a twelfth of its slope (Euler-Maclaurin)
    integral = log_truncated_norm(alpha, rate * last) + math.log(last)
    rest = math.exp(log_last) * (math.exp(integral) + 0.5 + slope / 12)
    norm = float(np.sum(terms**-alpha * np.exp(-rate * (terms - k_min)))) + rest
    return -alpha * np.log(k) - rate * (k - k_min) - math.log(norm)


def on_integers(density: Law) -> Law:
    """Turn a log density above a cut-off into the log probability of integers, half a unit around each."""
    nodes, weights = np.polynomial.legendre.leggauss(8)

    def log_probability(p: np.ndarray, k: np.ndarray, k_min: float) -> np.ndarray:
        levels, where = np.unique(k, return_inverse=True)
        values = density(p, (levels[:, None] + nodes / 2).ravel(), k_min - 0.5).reshape(levels.size, nodes.size)
        top = values.max(axis=1, keepdims=True)
        return (top[:, 0] + np.log(np.exp(values - top) @ (weights / 2)))[where]

    return log_probability
