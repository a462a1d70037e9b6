"""The spherical 2-spin glass at T = 0: exact for an infinite and for a finite system."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from scipy.special import ive

from trajstats.errors import ArgumentError


def spherical_two_spin(
    times: Any, /, *, N: int | None = None, rng: int | np.random.Generator | None = None
) -> xr.Dataset:
    r"""Exact zero-temperature dynamics of the spherical 2-spin glass (J = 1) from a random start.

    Infinite system: :math:`\Gamma(t)=I_1(4t)/2t`, :math:`C(t,t')=\Gamma(\frac{t+t'}2)/\sqrt{\Gamma(t)\Gamma(t')}`,
    :math:`R(t,t')=\sqrt{\Gamma(t')/\Gamma(t)}\,I_1(2(t-t'))/(t-t')`, :math:`\mu=2I_2(4t)/I_1(4t)`, :math:`e=-\mu/2`:
    simple aging (mu = 1) for ever. With `N` spins :math:`\Gamma(t)=\frac1N\sum_i\sigma_i^2e^{2\lambda_it}` over the
    eigenvalues of one symmetric Gaussian matrix (variance 1/N) and one random start: the top eigenvector wins and aging
    stops once :math:`t\gtrsim N^{2/3}`, which passes for subaging before it passes for equilibrium.

    Parameters
    ----------
    times : array, (time,)
        Times >= 0.
    N : int, optional
        Spins of one finite system, >= 2; infinite if not given.
    rng : int or numpy.random.Generator, optional
        Seed of matrix and start; needed with `N`.

    Returns
    -------
    xarray.Dataset
        ``C``, ``R`` (time, time_prime), R being 0 for time < time_prime and 1 on the diagonal; ``energy``, ``mu``
        (time). For finite N, R is the response of the unconstrained part, :math:`\sqrt{\Gamma(t')/\Gamma(t)}
        \frac1N\sum_ie^{\lambda_i(t-t')}`. Units of inverse friction.

    Raises
    ------
    ArgumentError
        If a time is negative, N < 2, or N is given without rng.

    References
    ----------
    glassy: arXiv:1803.06969. Cugliandolo & Dean, J. Phys. A 28, 4213 (1995), arXiv:cond-mat/9502075.

    Examples
    --------
    >>> glass = spherical_two_spin([0.0, 1.0, 10.0])
    >>> round(glass.C.sel(time=10, time_prime=1).item(), 4)
    0.4547
    """
    times = np.atleast_1d(np.asarray(times, dtype=np.float64))
    if times.size == 0 or not (times >= 0).all():
        msg = "times must be >= 0, at least one"
        raise ArgumentError(msg)
    late, early = np.meshgrid(times, times, indexing="ij")
    lag = np.maximum(late - early, 0.0)
    if N is None:
        one = _log_gamma(times)
        middle = _log_gamma(0.5 * (late + early))
        kernel = np.where(lag > 0, ive(1, 2 * lag) / np.where(lag > 0, lag, 1.0), 1.0)
        log_kernel = np.log(kernel) + 2 * lag
        mu = 2 * np.where(times > 0, ive(2, 4 * times) / np.where(times > 0, ive(1, 4 * times), 1.0), 0.0)
    else:
        if N < 2 or rng is None:
            msg = f"N={N}, rng={rng}: a finite system needs N >= 2 and a seed"
            raise ArgumentError(msg)
        values, start = _finite(N, np.random.default_rng(rng))
        one = _log_mean_exp(2 * times, values, start)
        middle = _log_mean_exp(late + early, values, start)
        log_kernel = _log_mean_exp(lag, values, np.ones(N))
        grown = np.exp(2 * times[:, None] * (values - values.max())) * start
        mu = (grown @ values) / grown.sum(axis=1)
    C = np.exp(middle - 0.5 * one[:, None] - 0.5 * one[None, :])
    causal = late >= early
    R = np.where(causal, np.exp(np.where(causal, log_kernel + 0.5 * (one[None, :] - one[:, None]), 0.0)), 0.0)
    result = xr.Dataset(
        {
            "C": (("time", "time_prime"), C, {"long_name": "correlation", "units": "1"}),
            "R": (("time", "time_prime"), R, {"long_name": "response", "units": "1"}),
            "energy": ("time", -mu / 2, {"long_name": "energy per spin", "units": "1"}),
            "mu": ("time", mu, {"long_name": "multiplier of the spherical constraint", "units": "1"}),
        },
        coords={"time": times, "time_prime": times},
        attrs={"long_name": "spherical 2-spin glass, T = 0", "p": 2, "T": 0.0, "N": "infinite" if N is None else N},
    )
    for name in ("time", "time_prime"):
        result[name].attrs = {"long_name": name.replace("_", " "), "units": "inverse friction"}
    return result


def _log_gamma(t: np.ndarray) -> np.ndarray:
    safe = np.where(t > 0, t, 1.0)
    return np.where(t > 0, np.log(ive(1, 4 * safe) / (2 * safe)) + 4 * safe, 0.0)


def _finite(N: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    # Eigenvalues of the matrix and squared components of the start, on the sphere.
    matrix = rng.standard_normal((N, N)) / np.sqrt(N)
    values = np.linalg.eigvalsh(np.triu(matrix, 1) + np.triu(matrix, 1).T)
    start = rng.standard_normal(N) ** 2
    return values, start * (N / start.sum())


def _log_mean_exp(t: np.ndarray, values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    top = values.max()
    return np.log(np.exp(t[..., None] * (values - top)) @ weights / len(values)) + t * top
