"""Which model the data prefer: information criteria, Bayes factors, and leave-one-group-out scores."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.special import logsumexp

from trajstats.errors import ArgumentError

PARETO_LIMIT = 0.7


def information_criteria(log_likelihood: float, n_coefficients: int, n_data: int) -> dict[str, float]:
    r"""AICc and BIC of one maximum-likelihood fit.

    :math:`\mathrm{AICc}=2k-2\ln L+\frac{2k(k+1)}{n-k-1}`, :math:`\mathrm{BIC}=k\ln n-2\ln L`; smaller is better.

    Parameters
    ----------
    log_likelihood : float
        At its maximum.
    n_coefficients : int
        k.
    n_data : int
        n, independent data; AICc is infinite when n <= k + 1.

    Returns
    -------
    dict
        ``log_likelihood``, ``n_coefficients``, ``aicc``, ``bic``.

    Examples
    --------
    >>> round(information_criteria(-10.0, 2, 20)["aicc"], 3)
    24.706
    """
    k, n = n_coefficients, n_data
    correction = 2 * k * (k + 1) / (n - k - 1) if n > k + 1 else float("inf")
    return {
        "log_likelihood": float(log_likelihood),
        "n_coefficients": float(k),
        "aicc": 2 * k - 2 * log_likelihood + correction,
        "bic": k * float(np.log(n)) - 2 * log_likelihood,
    }


def savage_dickey(draws: np.ndarray, value: float, prior: tuple[float, float]) -> float:
    r"""Log Bayes factor of a fixed coefficient against a free one with a uniform prior.

    :math:`\ln[p(\theta=\theta_0|y)/p(\theta=\theta_0)]`, the density by a kernel that is reflected at the ends of the
    prior.

    Parameters
    ----------
    draws : ndarray
        Posterior draws with the coefficient free.
    value : float
        Its fixed value.
    prior : (float, float)
        Bounds of the uniform prior.

    Returns
    -------
    float
        Positive favours the fixed value; -inf when no draw is near it (then only a bound is known: about minus the
        logarithm of the number of draws).

    Examples
    --------
    >>> draws = np.random.default_rng(0).uniform(0, 1, 20_000)
    >>> abs(savage_dickey(draws, 0.0, (0.0, 1.0))) < 0.1
    True
    """
    low, high = prior
    spread = min(float(np.std(draws)), float(np.subtract(*np.quantile(draws, [0.75, 0.25]))) / 1.34)
    width = max(0.9 * spread * draws.size**-0.2, 1e-12 * (high - low))
    density = sum(
        float(np.exp(-0.5 * ((centre - value) / width) ** 2).mean())
        for centre in (draws, 2 * low - draws, 2 * high - draws)
    ) / (width * np.sqrt(2 * np.pi))
    return float(np.log(density * (high - low))) if density > 0 else float("-inf")


def psis_loo(log_likelihood: np.ndarray) -> tuple[float, np.ndarray]:
    r"""Leave-one-group-out score by Pareto-smoothed importance sampling.

    :math:`\sum_g\ln p(y_g|y_{-g})`. Valid only where groups are independent given the coefficients: seeds, runs,
    widths; not the points of one run's MSD.

    Parameters
    ----------
    log_likelihood : ndarray, (draw, group)
        Log likelihood of each group at each draw.

    Returns
    -------
    score : float
        Expected log predictive density, larger is better.
    pareto_k : ndarray, (group,)
        Shape of the tail of the weights; above 0.7 the score of that group is not to be trusted.

    Raises
    ------
    ArgumentError
        If there are fewer than 100 draws.

    References
    ----------
    Vehtari, Gelman, Gabry 2017, arXiv:1507.04544; Vehtari et al. 2024, arXiv:1507.02646.
    """
    draws = log_likelihood.shape[0]
    if draws < 100:
        msg = f"{draws} draws: the tail of the importance weights needs at least 100"
        raise ArgumentError(msg)
    scores, shapes = [], []
    for column in log_likelihood.T:
        weight, k = _smoothed(-column)
        scores.append(logsumexp(weight + column) - logsumexp(weight))
        shapes.append(k)
    return float(np.sum(scores)), np.array(shapes)


def _smoothed(log_weight: np.ndarray) -> tuple[np.ndarray, float]:
    size = log_weight.size
    tail = int(min(np.ceil(0.2 * size), np.ceil(3 * np.sqrt(size))))
    order = np.argsort(log_weight)
    shifted = log_weight - log_weight.max()
    last, cut = order[-tail:], shifted[order[-tail - 1]]
    excess = np.exp(shifted[last]) - np.exp(cut)
    if excess[-1] <= 0 or np.ptp(excess) == 0:
        return shifted, float("-inf")
    k, sigma = _pareto(excess)
    rank = (np.arange(tail) + 0.5) / tail
    quantile = sigma * (-np.log1p(-rank) if abs(k) < 1e-12 else np.expm1(-k * np.log1p(-rank)) / k)
    smooth = shifted.copy()
    smooth[last] = np.minimum(np.log(quantile + np.exp(cut)), 0.0)
    return smooth, k


def _pareto(excess: np.ndarray) -> tuple[float, float]:
    # Zhang & Stephens 2009: an average over a grid of profile likelihoods, with a weak prior on k
    x = np.sort(excess[excess > 0])
    n = x.size
    m = 30 + int(np.sqrt(n))
    grid = 1 / x[-1] + (1 - np.sqrt(m / (np.arange(1, m + 1) - 0.5))) / (3 * x[max(int(n / 4 + 0.5) - 1, 0)])
    shape = np.log1p(-grid[:, None] * x).mean(axis=1)
    profile = n * (np.log(-grid / shape) - shape - 1)
    weight = np.exp(profile - logsumexp(profile))
    theta = float(weight @ grid)
    k = float(np.log1p(-theta * x).mean())
    sigma = -k / theta
    return k * n / (n + 10) + 0.5 * 10 / (n + 10), sigma


def evidence(
    log_likelihood: Callable[[np.ndarray], float],
    prior: dict[str, tuple[float, float]],
    *,
    rng: int,
    live_points: int = 400,
) -> tuple[float, float]:
    """Log evidence by nested sampling (needs the package ``dynesty``).

    Parameters
    ----------
    log_likelihood : callable (coefficient,) -> float
        Log likelihood.
    prior : dict name -> (lower, upper)
        Uniform priors.
    rng : int
        Seed.
    live_points : int
        Live points.

    Returns
    -------
    tuple of float
        ln evidence and its error.

    Raises
    ------
    ArgumentError
        If dynesty is not installed.
    """
    try:
        import dynesty
    except ImportError as error:
        msg = "evidence() needs the package dynesty: pip install dynesty"
        raise ArgumentError(msg) from error
    low = np.array([edge[0] for edge in prior.values()])
    high = np.array([edge[1] for edge in prior.values()])
    sampler = dynesty.NestedSampler(
        log_likelihood, lambda u: low + u * (high - low), low.size, nlive=live_points, rstate=np.random.default_rng(rng)
    )
    sampler.run_nested(print_progress=False)
    return float(sampler.results.logz[-1]), float(sampler.results.logzerr[-1])
