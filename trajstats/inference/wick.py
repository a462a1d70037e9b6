r"""The covariance of two-time data that follows from the data themselves.

For zero-mean Gaussian displacements :math:`\mathrm{Cov}(\Delta_a,\Delta_b)=\frac2{N}\langle d_a\cdot d_b\rangle^2` (Wick), and by
polarisation :math:`\langle d_{st}\cdot d_{uv}\rangle=\frac12[\Delta(s,v)+\Delta(t,u)-\Delta(s,u)-\Delta(t,v)]`.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import nnls

from trajstats.inference.models import clock

JITTER = 1e-6


def wick_correlation(
    first: np.ndarray, second: np.ndarray, log_u: np.ndarray, log_msd: np.ndarray, mu: float
) -> np.ndarray:
    r"""Correlation matrix of the logarithms of two-time MSDs.

    :math:`R_{ab}=(G_{ab}^2-D_{ab}^2)/\ldots` with G from a master curve that is a true variogram: a non-negative mixture of
    :math:`1-e^{-u/\tau}`, :math:`1-e^{-u^2/\tau^2}`, :math:`u` and :math:`u^2`. The last is deterministic drift D in the clock,
    which adds to the MSD but does not fluctuate by itself.

    Parameters
    ----------
    first, second : array, (n,)
        The two times of each point, positive, in units of the pivot.
    log_u : array, (n,)
        Scaling variable (logarithm) of each point at `mu`.
    log_msd : array, (n,)
        Pilot ln MSD at the points (smooth).
    mu : float
        Pilot exponent: sets the clock.

    Returns
    -------
    ndarray, (n, n)
        Covariance of ln MSD for N = 2 effective samples (multiply by 2/N_eff), jitter included: positive definite.
    """
    times, index = np.unique(np.concatenate([first, second]), return_inverse=True)
    s, t = index[: first.size], index[first.size :]
    h = clock(times, mu)
    gap = np.abs(h[:, None] - h[None, :])
    u = np.exp(log_u)
    rates, atoms = _variogram(u, np.exp(log_msd - log_msd.mean()))
    delta = _evaluate(gap, rates, atoms)
    product = 0.5 * (delta[np.ix_(s, t)] + delta[np.ix_(t, s)] - delta[np.ix_(s, s)] - delta[np.ix_(t, t)])
    drift = atoms[-1] * np.outer(h[t] - h[s], h[t] - h[s])
    size = np.diagonal(product)
    covariance = (product**2 - drift**2) / np.outer(size, size)
    # a run that only drifts would have no noise at all: rounding of the weights and the rest of the motion stay
    return covariance + JITTER * np.eye(size.size)


def _variogram(u: np.ndarray, msd: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    rates = np.exp(-np.linspace(np.log(u.min() / 4), np.log(u.max() * 4), 24))
    design = _atoms(u, rates)
    scale = np.maximum(design.max(axis=0), 1e-300)
    weight, _ = nnls(design / scale / msd[:, None], np.ones(u.size), maxiter=20 * design.shape[1])
    return rates, weight / scale


def _atoms(u: np.ndarray, rates: np.ndarray) -> np.ndarray:
    z = u[..., None] * rates
    return np.concatenate([-np.expm1(-z), -np.expm1(-(z**2)), u[..., None], u[..., None] ** 2], axis=-1)


def _evaluate(gap: np.ndarray, rates: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return _atoms(gap, rates) @ weights
