r"""The covariance of two-time data that follows from the data themselves.

For zero-mean Gaussian displacements :math:`\mathrm{Cov}(\Delta_a,\Delta_b)=\frac2{N}\langle d_a\cdot d_b\rangle^2`
(Wick), and by polarisation :math:`\langle d_{st}\cdot
d_{uv}\rangle=\frac12[\Delta(s,v)+\Delta(t,u)-\Delta(s,u)-\Delta(t,v)]`.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import nnls

from trajstats.inference.aging.curves.master_curves import clock

JITTER = 1e-6
_RATES = 24
_SMOOTH_PENALTY = 1.0


def wick_covariances(
    first: np.ndarray, second: np.ndarray, log_u: np.ndarray, log_msd: np.ndarray, mu: float
) -> tuple[np.ndarray, np.ndarray]:
    r"""Covariances of the logarithms of two-time MSDs, for modes that are alike and for modes that differ.

    G follows from a master curve that is a true variogram: a non-negative mixture of :math:`1-e^{-u/\tau}`,
    :math:`1-e^{-u^2/\tau^2}`, :math:`u` and :math:`u^2`. The last is deterministic drift D in the clock, which adds to
    the MSD but does not fluctuate by itself. If every mode has the whole mixture, :math:`\mathrm{Cov}\propto G^2-D^2`
    with :math:`G=\sum_jc_jG_j`; if each term of the mixture is a population of modes of its own,
    :math:`\mathrm{Cov}\propto\sum_jc_jG_j^2+2D(G-D)`, for drift goes on in all of them.

    Terms that start like u^2 are smooth where others are rough: taken where rough ones do as well, they would make
    modes that differ look far less noisy at short lags than they are. They and drift are penalised there. Modes that
    are alike need the sum only, whatever its terms.
    """
    times, index = np.unique(np.concatenate([first, second]), return_inverse=True)
    s, t = index[: first.size], index[first.size :]
    h = clock(times, mu)
    u = np.exp(log_u)
    rates = np.exp(-np.linspace(np.log(u.min() / 4), np.log(u.max() * 4), _RATES))
    gap = np.abs(h[:, None] - h[None, :])
    rows = [a[:, None] * times.size + b for a, b in ((s, t), (s, s), (t, t))]
    # a run that only drifts would have no noise at all: the jitter is what rounding and the rest of the motion leave
    jitter = JITTER * np.eye(s.size)
    design = np.stack([_atom(j, u, rates) for j in range(2 * rates.size + 2)], axis=-1)
    msd = np.exp(log_msd - log_msd.mean())
    total, drift, _ = _overlaps(_mixture(design, msd, 0.0), gap, rates, rows, u.max())
    alike = (total**2 - drift**2) / np.outer(np.diagonal(total), np.diagonal(total))
    total, drift, split = _overlaps(_mixture(design, msd, _SMOOTH_PENALTY), gap, rates, rows, u.max())
    differing = (split + 2 * drift * (total - drift)) / np.outer(np.diagonal(total), np.diagonal(total))
    return alike + jitter, differing + jitter


def _mixture(design: np.ndarray, msd: np.ndarray, penalty: float) -> np.ndarray:
    scale = np.maximum(design.max(axis=0), 1e-300)
    left, right = design / scale / msd[:, None], np.ones(msd.size)
    if penalty:
        smooth = penalty * np.eye(left.shape[1])[[*range(_RATES, 2 * _RATES), -1]]
        left, right = np.concatenate([left, smooth]), np.concatenate([right, np.zeros(len(smooth))])
    weight, _ = nnls(left, right, maxiter=20 * left.shape[1])
    return np.asarray(weight / scale)


def _overlaps(
    weight: np.ndarray, gap: np.ndarray, rates: np.ndarray, rows: list[np.ndarray], longest: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    # overlaps of all displacements, those of drift alone, and the sum of squares if every other term is a population
    across, first_two, last_two = rows
    # terms that never saturate are measured against the largest u seen
    size = np.ones(weight.size)
    size[-2], size[-1] = longest, longest**2
    total, drift, split = (np.zeros(across.shape) for _ in range(3))
    for j in np.flatnonzero(weight).tolist():
        delta = _atom(j, gap, rates).ravel()
        crossed = delta[across]
        product = 0.5 * (crossed + crossed.T - delta[first_two] - delta[last_two])
        total += weight[j] * product
        if j == weight.size - 1:
            drift = weight[j] * product
        else:
            split += weight[j] * product**2 / size[j]
    return total, drift, split * (weight * size)[:-1].sum()


def _atom(j: int, u: np.ndarray, rates: np.ndarray) -> np.ndarray:
    m = rates.size
    if j < 2 * m:
        z = u * rates[j % m]
        return -np.expm1(-z if j < m else -(z**2))
    return u.copy() if j == 2 * m else u**2
