r"""The likelihood of learning times near a transition, with runs that did not learn right-censored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from scipy.special import log_ndtr

NAMES = ("w_c", "nu", "log_middle", "log_sigma", "log_delta")
STUCK = "stuck_fraction"


@dataclass(frozen=True)
class LearningTimes:
    """Learning times as arrays; leading axes are problems."""

    width: np.ndarray  # Widths
    log_time: np.ndarray  # ln T, or ln of the budget where a run did not learn, T in `unit`
    learned: np.ndarray  # Whether it did
    unit: float = 1.0  # Time that counts as 1

    @property
    def narrowest(self) -> np.ndarray:
        """Narrowest width that learned, (...)."""
        return np.where(self.learned, self.width, np.inf).min(axis=-1)

    @property
    def middle(self) -> np.ndarray:
        """Pivot of the amplitude: the geometric mean of the narrowest and the widest width that learned, (...)."""
        return np.sqrt(self.narrowest * np.where(self.learned, self.width, -np.inf).max(axis=-1))


def default_priors(times: LearningTimes) -> dict[str, tuple[np.ndarray | float, np.ndarray | float]]:
    """Uniform priors of the coefficients of the divergence."""
    low = times.narrowest
    return {
        "w_c": (0.0 * low, low),
        "nu": (0.05, 6.0),
        "log_middle": (times.log_time.min(axis=-1) - 6, times.log_time.max(axis=-1) + 6),
        "log_sigma": (np.log(0.003), np.log(3.0)),
        "log_delta": (np.log(1e-3 * low), np.log(low)),
        STUCK: (0.0, 1.0),
    }


def log_likelihood(theta: np.ndarray, times: LearningTimes) -> np.ndarray:
    """Log likelihood of the divergence: the sum over runs."""
    return run_log_likelihood(theta, times).sum(axis=-1)


def run_log_likelihood(theta: np.ndarray, times: LearningTimes) -> np.ndarray:
    r"""Log likelihood of each run.

    :math:`\ln T_{ij}\sim N(m_i,\sigma^2+(\nu\delta/(w_i-w_c))^2)`, :math:`m_i=\ln
    T_{mid}-\nu\ln\frac{w_i-w_c}{w_{mid}-w_c}`; a censored run contributes :math:`(1-q)P(T>T_{max})+q`, and 1 for
    :math:`w\le w_c`.
    """
    w_c, nu, middle, log_sigma, log_delta = (theta[..., k, None] for k in range(5))
    width, log_time, learned = times.width[..., None, :], times.log_time[..., None, :], times.learned[..., None, :]
    pivot = times.middle[..., None, None]
    room = width - w_c
    above = room > 0
    safe = np.where(above, room, 1.0)
    span = pivot - w_c
    mean = middle - nu * (np.log(safe) - np.log(np.where(span > 0, span, 1.0)))
    scale = np.sqrt(np.exp(2 * log_sigma) + (nu * np.exp(log_delta) / safe) ** 2)
    z = (log_time - mean) / scale
    density = -0.5 * z**2 - np.log(scale) - 0.5 * np.log(2 * np.pi)
    censored = log_ndtr(-z)
    if theta.shape[-1] > 5:
        q = theta[..., 5, None]
        with np.errstate(divide="ignore"):
            density = density + np.log1p(-q)
            censored = np.logaddexp(np.log1p(-q) + censored, np.log(q))
    impossible = np.where(learned, -np.inf, 0.0)
    return np.where(above, np.where(learned, density, censored), impossible)


def log_posterior(
    theta: np.ndarray, times: LearningTimes, priors: Mapping[str, tuple[np.ndarray | float, np.ndarray | float]]
) -> np.ndarray:
    """Log posterior density under uniform priors."""
    names = (*NAMES, STUCK)[: theta.shape[-1]]
    inside = np.ones(theta.shape[:-1], dtype=bool)
    for k, name in enumerate(names):
        low, high = (np.asarray(edge)[..., None] for edge in priors[name])
        inside &= (theta[..., k] > low) & (theta[..., k] < high)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        value = log_likelihood(theta, times)
    return np.where(inside & np.isfinite(value), value, -np.inf)


def group_log_likelihood(parts: Sequence[tuple[LearningTimes, np.ndarray]], groups: str) -> xr.Dataset:
    r"""Log likelihood of what may be left out: runs are independent given the coefficients, whatever their width.

    Of several losses the likelihood is the product of theirs to the power one over their number (the same runs stand
    behind all of them), and so is the part of a run: :math:`\frac1{n_\ell}\sum_\ell\ln p(y_{r\ell}|\theta)`.
    """
    with np.errstate(all="ignore"):
        values = sum(
            np.stack([run_log_likelihood(chain, data) for chain in theta]) / len(parts) for data, theta in parts
        )
    data, theta = parts[0]
    labels: np.ndarray = np.arange(data.width.size)
    if groups == "width":
        labels, index = np.unique(data.width, return_inverse=True)
        values = values @ np.eye(labels.size)[index]
    return xr.Dataset(
        {"learning_time": (("chain", "draw", groups), values)},
        coords={"chain": np.arange(len(theta)), "draw": np.arange(theta.shape[1]), groups: labels},
    )
