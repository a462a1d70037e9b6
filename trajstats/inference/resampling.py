"""Errors from repetition: jackknife, bootstrap and covariance over replicas or blocks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from trajstats.errors import TooFewReplicasError

Statistic = Callable[[np.ndarray], np.ndarray]


def jackknife(samples: np.ndarray, statistic: Statistic, /) -> tuple[np.ndarray, np.ndarray]:
    r"""Bias-corrected estimate and standard error by leaving out one group at a time.

    :math:`\hat\theta_J=n\hat\theta-(n-1)\bar\theta_{(\cdot)}`,
    :math:`s^2=\frac{n-1}n\sum_i(\theta_{(i)}-\bar\theta_{(\cdot)})^2`.

    Parameters
    ----------
    samples : ndarray, (group, ...)
        One entry for each replica, or for each block where blocks are independent (not the blocks of one run's
        weights).
    statistic : callable (m, ...) -> (...)
        Smooth function of the samples.

    Returns
    -------
    tuple of ndarray
        Estimate and standard error.

    Notes
    -----
    Fewer than 2 groups raise TooFewReplicasError.

    Examples
    --------
    >>> value, error = jackknife(np.array([1.0, 2.0, 3.0]), lambda x: x.mean(axis=0))
    >>> float(value), round(float(error), 4)
    (2.0, 0.5774)
    """
    n = _groups(samples, 2)
    mean, error = left_out(samples, statistic)
    return n * np.asarray(statistic(samples)) - (n - 1) * mean, error


def left_out(samples: np.ndarray, statistic: Statistic, /) -> tuple[np.ndarray, np.ndarray]:
    """Mean of a statistic over samples that lack one group each, and the standard error of `jackknife` from them.

    Parameters
    ----------
    samples, statistic
        As in `jackknife`.

    Returns
    -------
    tuple of ndarray
        Mean and standard error.

    Notes
    -----
    Fewer than 2 groups raise TooFewReplicasError.
    """
    n = _groups(samples, 2)
    left = np.stack([np.asarray(statistic(np.delete(samples, i, axis=0))) for i in range(n)])
    mean = left.mean(axis=0)
    return mean, np.sqrt((n - 1) / n * ((left - mean) ** 2).sum(axis=0))


def bootstrap(
    samples: np.ndarray, statistic: Statistic, /, *, rng: int | np.random.Generator | None, draws: int = 1000
) -> np.ndarray:
    """Statistic of groups drawn with replacement.

    Parameters
    ----------
    samples : ndarray, (group, ...)
        As in `jackknife`.
    statistic : callable (m, ...) -> (...)
        Any function of the samples.
    rng : int or numpy.random.Generator
        Seed.
    draws : int
        How many.

    Returns
    -------
    ndarray, (draw, ...)
        Its standard deviation is too small by about sqrt((n-1)/n) for n groups; use `jackknife` below 10 groups.

    Notes
    -----
    Fewer than 3 groups raise TooFewReplicasError.

    Examples
    --------
    >>> bootstrap(np.arange(50.0), lambda x: x.mean(axis=0), rng=0, draws=200).shape
    (200,)
    """
    n = _groups(samples, 3)
    generator = np.random.default_rng(rng)
    return np.stack([np.asarray(statistic(samples[generator.integers(n, size=n)])) for _ in range(draws)])


def replica_covariance(samples: np.ndarray, /) -> tuple[np.ndarray, np.ndarray]:
    r"""Covariance of the mean over replicas, and the unbiased inverse for a chi-square.

    :math:`S/n` and :math:`\frac{n-p-2}{n-1}(S/n)^{-1}` (Hartlap). A chi-square with few replicas has a heavy-tailed
    error all the
    same: covered intervals need the Student-t form, or Wick's covariance.

    Parameters
    ----------
    samples : ndarray, (replica, p)
        Values of each replica.

    Returns
    -------
    tuple of ndarray
        Covariance and inverse, (p, p).

    Notes
    -----
    With p + 2 replicas or fewer the inverse does not exist: TooFewReplicasError.

    References
    ----------
    Hartlap, Simon, Schneider 2007, doi:10.1051/0004-6361:20066170.

    Examples
    --------
    >>> covariance, inverse = replica_covariance(np.random.default_rng(0).normal(size=(400, 2)))
    >>> bool(np.allclose(400 * covariance, np.eye(2), atol=0.2))
    True
    """
    size = samples.shape[1]
    n = _groups(samples, size + 3)
    covariance = np.atleast_2d(np.cov(samples, rowvar=False)) / n
    return covariance, (n - size - 2) / (n - 1) * np.linalg.inv(covariance)


def linear_error(influence: np.ndarray, groups: np.ndarray, mean: np.ndarray) -> float:
    """Estimate the standard error of a coefficient from the scatter of groups, by linearisation (sandwich).

    Parameters
    ----------
    influence : ndarray, (n,)
        Change of the coefficient per change of the logarithm of each point.
    groups : ndarray, (group, n)
        Positive data of each group, in shares of equal weight.
    mean : ndarray, (n,)
        Their mean.

    Returns
    -------
    float

    Notes
    -----
    Fewer than 2 groups raise TooFewReplicasError.
    """
    n = _groups(groups, 2)
    scores = (groups / mean - 1) @ influence
    return float(np.std(scores, ddof=1) / np.sqrt(n))


def _groups(samples: np.ndarray, needed: int) -> int:
    if samples.shape[0] < needed:
        msg = f"{samples.shape[0]} replicas or blocks: this needs at least {needed}"
        raise TooFewReplicasError(msg)
    return int(samples.shape[0])
