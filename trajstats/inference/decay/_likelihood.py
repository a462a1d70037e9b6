r"""The likelihood of a training curve relaxing to a floor, with noise that is correlated in ln t."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numba import njit
from scipy.ndimage import median_filter

from trajstats.inference._priors import Priors
from trajstats.inference._scaling import own_unit

NAMES = ("L_inf", "log_middle", "beta", "log_noise", "drift_share", "log_range", "power")
SCALE = "log_scale"
CURVES = ("power_law", "stretched_exponential", "logarithmic", "exponential")
_SCALED = ("stretched_exponential", "logarithmic")
_PLATEAU = 0.05
_BEYOND = float(np.log(20.0))


@dataclass(frozen=True)
class Binned:
    """A training curve in logarithmic bins."""

    time: np.ndarray  # Geometric mean time of each bin
    loss: np.ndarray  # Mean loss of the bin, in `unit`
    count: np.ndarray  # Saved points in it
    unit: float = 1.0  # Loss that counts as 1

    @cached_property
    def log_time(self) -> np.ndarray:
        """Logarithms of the times."""
        return np.log(self.time)

    @cached_property
    def gap(self) -> np.ndarray:
        """Differences of successive logarithms of time."""
        return np.diff(self.log_time)

    @cached_property
    def relative_white(self) -> np.ndarray:
        """Variance of a bin's white noise, relative to a bin that holds the geometric mean of the counts."""
        return np.exp(np.log(self.count).mean()) / self.count

    @cached_property
    def pivot(self) -> float:
        """Geometric mean of the times."""
        return float(np.exp(self.log_time.mean()))

    def in_own_unit(self) -> Binned:
        """Take the same losses in a unit of their own: a fit does not depend on that in which they were given."""
        loss, unit = own_unit(self.loss)
        return replace(self, loss=loss, unit=unit)

    def anchor(self, curve: str) -> float:
        """Tell at which time the amplitude is fitted."""
        return float(self.time[0]) if curve == "stretched_exponential" else self.pivot


def log_bins(time: np.ndarray, loss: np.ndarray, per_decade: int) -> Binned:
    """Average a training curve in logarithmic bins of time."""
    _, index, count = np.unique(_cells(time, per_decade), return_inverse=True, return_counts=True)
    return Binned(
        np.exp(np.bincount(index, np.log(time)) / count), np.bincount(index, loss) / count, count.astype(float)
    )


def decay_window(time: np.ndarray, loss: np.ndarray, per_decade: int) -> tuple[float, float]:
    """Where a decay begins and ends: from where the loss leaves the plateau that it starts on."""
    if time.size == 0:
        return 0.0, 0.0
    edges = time[np.unique(_cells(time, per_decade), return_index=True)[1]]
    bins = log_bins(time, loss, per_decade).loss
    smooth = median_filter(bins, 5, mode="nearest")
    first, last = float(smooth[0]), float(np.median(bins[-max(bins.size // 10, 1) :]))
    left = int(np.argmax(smooth < first - _PLATEAU * (first - last))) if first > last else 0
    return float(edges[left]), float(time[-1])


def _cells(time: np.ndarray, per_decade: int) -> np.ndarray:
    return np.floor(np.log10(time) * per_decade + 1e-9).astype(int)


def coefficient_names(curve: str) -> tuple[str, ...]:
    """Coefficients of a curve and its noise, in order."""
    return (*NAMES, SCALE) if curve in _SCALED else NAMES


def log_decay(time: np.ndarray | float, pivot: float, theta: np.ndarray, curve: str) -> np.ndarray:
    r"""Logarithm of the decaying part of the loss, of amplitude 1.

    :math:`t^{-\beta}`; :math:`e^{-(t/\tau)^\beta}`; :math:`1/[1+\beta\ln(1+t/\tau)]`; :math:`e^{-\beta t/t_p}`.
    """
    beta = theta[..., 2:3]
    if curve == "power_law":
        return -beta * np.log(time)
    if curve == "exponential":
        return -beta * time / pivot
    since = np.log(time) - theta[..., 7:8]
    return -np.exp(beta * since) if curve == "stretched_exponential" else -np.log1p(beta * np.logaddexp(0, since))


def log_likelihood(theta: np.ndarray, data: Binned, curve: str) -> np.ndarray:
    r"""Log likelihood of a curve with a floor.

    :math:`L_i=c_i+\bar c\,(c_i/\bar c)^p(\eta_i+\xi_i\sqrt{\bar n/n_i})` about the curve :math:`c_i=L_\infty+Af(t_i)`;
    bars are geometric means over the bins. Power p = 1 is noise proportional to the curve, 0 is additive noise.
    :math:`\eta` is an Ornstein-Uhlenbeck process in ln t; :math:`\xi` is white, averaged over the :math:`n_i` saved
    points of a bin.
    """
    fallen = log_decay(data.time, data.pivot, theta, curve) - log_decay(data.anchor(curve), data.pivot, theta, curve)
    mean = theta[:, :1] + np.exp(theta[:, 1:2] + fallen)
    log_mean = np.log(np.maximum(mean, 1e-300))
    middle = log_mean.mean(axis=1, keepdims=True)
    log_scale = middle + theta[:, 6:7] * (log_mean - middle)
    residual = (data.loss - mean) * np.exp(-log_scale)
    noise = np.exp(2 * theta[:, 3])
    drift, white = noise * theta[:, 4], noise * (1 - theta[:, 4])
    kalman = _kalman(residual, data.gap, data.relative_white, drift, np.exp(theta[:, 5]), white)
    return kalman - log_scale.sum(axis=1)


def default_priors(data: Binned, curve: str) -> dict[str, tuple[float, float]]:
    """Uniform priors of a decay."""
    middle = float(np.log(np.median(data.loss) if data.anchor(curve) == data.pivot else data.loss[0]))
    first, last = np.log(data.time[[0, -1]])
    scale = {SCALE: (float(first) - _BEYOND, float(last) + _BEYOND)} if curve in _SCALED else {}
    return {
        "L_inf": (0.0, 1.1 * float(data.loss.min())),
        "log_middle": (middle - 12.0, middle + 6.0),
        "beta": (0.01, 4.0 if curve != "exponential" else 40.0),
        "log_noise": (float(np.log(1e-6)), 0.0),
        "drift_share": (0.0, 1.0),
        "log_range": (float(np.log(0.05)), float(np.log(5.0))),
        "power": (-0.5, 2.0),
        **scale,
    }


def log_posterior(theta: np.ndarray, data: Binned, curve: str, priors: Priors) -> np.ndarray:
    """Log posterior density under uniform priors."""
    low, high = np.array([priors[name] for name in coefficient_names(curve)]).T
    allowed = ((theta > low) & (theta < high)).all(axis=1)
    out = np.full(len(theta), -np.inf)
    if allowed.any():
        with np.errstate(all="ignore"):
            out[allowed] = log_likelihood(theta[allowed], data, curve)
    return np.where(np.isfinite(out), out, -np.inf)


@njit(cache=True, nogil=True)
def _kalman(
    residual: np.ndarray, gap: np.ndarray, alone: np.ndarray, drift: np.ndarray, reach: np.ndarray, white: np.ndarray
) -> np.ndarray:
    # OU + white noise of these variances in O(n): the filter's innovations are independent
    total = np.empty(residual.shape[0])
    for w in range(residual.shape[0]):
        mean, variance, value = 0.0, drift[w], 0.0
        for i in range(residual.shape[1]):
            if i > 0:
                keep = np.exp(-gap[i - 1] / reach[w])
                mean *= keep
                variance = variance * keep * keep + drift[w] * (1 - keep * keep)
            spread = variance + white[w] * alone[i]
            surprise = residual[w, i] - mean
            value -= 0.5 * (surprise * surprise / spread + np.log(2 * np.pi * spread))
            gain = variance / spread
            mean += gain * surprise
            variance *= 1 - gain
        total[w] = value
    return total
