"""The free master curve: a penalised spline in ln u whose coefficients are integrated out exactly."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy.linalg.lapack import dtrtri

from trajstats.inference.aging.curves._spline_kernels import (
    ROUNDING,
    filled_basis,
    log_marginal,
    normal_equations,
    spline_values,
)
from trajstats.inference.aging.curves.master_curves import scaled_time

INTERVALS = 10
LOG_SMOOTHING = (-18.0, 12.0)
_NULL = 2  # level and slope: what the second-difference penalty leaves free


def spline_basis(position: np.ndarray, intervals: int = INTERVALS) -> np.ndarray:
    """Uniform cubic B-splines."""
    where = np.ascontiguousarray(position, dtype=np.float64)
    return filled_basis(where.ravel(), intervals).reshape(*where.shape, intervals + 3)


@dataclass(frozen=True)
class FreeCurve:
    r"""Marginal likelihood of (mu, log smoothing) of a free curve.

    :math:`\ln\Delta=g(\ln u)+\epsilon`, :math:`\epsilon\sim N(0,\sigma^2R)`.

    g has the prior of a penalised spline, :math:`\exp[-\frac\lambda{2\sigma^2}\int g''^2]`, flat in level and slope; g
    and
    :math:`\sigma` (prior :math:`1/\sigma`) are integrated out.
    """

    log_msd: np.ndarray  # Data
    waiting_time: np.ndarray  # In units of the pivot
    lag: np.ndarray  # In units of the pivot
    covariance: np.ndarray  # R
    form: str = "clock"  # ``"clock"`` or ``"simple"``
    # A scaling variable that does not depend on mu (another clock); `form` is then not used
    fixed: np.ndarray | None = None
    intervals: int = INTERVALS  # Intervals of the spline
    # Waiting times and lags whose range sets the knots, where these are not those of the data
    span: tuple[np.ndarray, np.ndarray] | None = None

    def part(self, keep: np.ndarray) -> FreeCurve:
        """Keep some of the points, with the knots (hence the prior) of all."""
        return replace(
            self,
            log_msd=self.log_msd[keep],
            waiting_time=self.waiting_time[keep],
            lag=self.lag[keep],
            covariance=self.covariance[np.ix_(keep, keep)],
            fixed=None if self.fixed is None else self.fixed[keep],
            span=self.span_arrays,
        )

    @property
    def span_arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Waiting times and lags (or a fixed variable, twice) whose range sets the knots."""
        if self.span is not None:
            return self.span
        return (self.waiting_time, self.lag) if self.fixed is None else (self.fixed, self.fixed)

    def limits(self, mu: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Range of the knots in ln u."""
        if self.fixed is not None:
            x = np.broadcast_to(self.span_arrays[0], (*np.shape(mu), self.span_arrays[0].size))
        else:
            x = scaled_time(*self.span_arrays, mu, form=self.form)
        return x.min(axis=-1, keepdims=True), x.max(axis=-1, keepdims=True)

    @cached_property
    def whiten(self) -> np.ndarray:
        """Matrix that makes the noise white, (n, n): the inverse of the Cholesky factor."""
        inverse, _ = dtrtri(np.linalg.cholesky(self.covariance), lower=1)
        return np.asarray(inverse)

    @cached_property
    def white_data(self) -> np.ndarray:
        """Whitened data, (n,)."""
        return self.whiten @ self.log_msd

    @cached_property
    def penalty(self) -> np.ndarray:
        """Squared second differences of the coefficients, (k, k)."""
        differences = np.diff(np.eye(self.intervals + 3), n=2, axis=0)
        return differences.T @ differences

    def variable(self, mu: np.ndarray) -> np.ndarray:
        """Give the scaling variable (logarithm) of the points."""
        if self.fixed is not None:
            return np.broadcast_to(self.fixed, (*np.shape(mu), self.fixed.size))
        return scaled_time(self.waiting_time, self.lag, mu, form=self.form)

    def position(self, mu: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where the points lie among the knots at each mu."""
        at = np.asarray(mu, dtype=np.float64)
        low, high = self.limits(at)
        width = (high - low) / self.intervals
        return np.ascontiguousarray((self.variable(at) - low) / width), np.ascontiguousarray(width[..., 0])

    def white_design(self, mu: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Whitened spline basis at each mu."""
        position, width = self.position(mu)
        return self.whiten @ spline_basis(position, self.intervals), width

    def normal_equations(self, mu: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Whitened normal equations of the spline at each mu."""
        position, width = self.position(mu)
        gram, right = normal_equations(position, self.precision, self.precise_data, self.intervals)
        return gram, right, width

    def fitted(self, mu: np.ndarray, curve_mu: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
        """Values at the data of a curve found at `curve_mu`, its variable taken at another mu."""
        low, high = self.limits(curve_mu)
        width = (high - low) / self.intervals
        return spline_values((self.variable(mu) - low) / width, coefficients)

    @cached_property
    def precision(self) -> np.ndarray:
        """Inverse of R, (n, n)."""
        return self.whiten.T @ self.whiten

    @cached_property
    def precise_data(self) -> np.ndarray:
        """Inverse of R times the data, (n,)."""
        return self.precision @ self.log_msd

    def log_marginal(self, mu: np.ndarray, log_smoothing: np.ndarray) -> np.ndarray:
        """Log marginal likelihood, up to a constant of the data."""
        position, width = self.position(mu)
        shape = np.shape(log_smoothing)
        grid = np.ascontiguousarray(
            np.reshape(log_smoothing, (width.size, np.size(log_smoothing) // max(width.size, 1))), dtype=np.float64
        )
        square = float(self.log_msd @ self.precise_data)
        return log_marginal(
            position, width, grid, self.precision, self.precise_data, square, self.penalty, self.intervals
        ).reshape(shape)

    def best_coefficients(self, mu: np.ndarray, log_smoothing: np.ndarray) -> np.ndarray:
        """Posterior mean of the spline given (mu, log smoothing)."""
        gram, right, width = self.normal_equations(mu)
        strength = np.exp(log_smoothing) / width**3
        return np.linalg.solve(gram + strength[:, None, None] * self.penalty, right[..., None])[..., 0]

    def best_misfit(self, mu: np.ndarray, log_smoothing: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Penalised whitened sum of squares of the best curve, and what integrating over curves takes."""
        gram, right, width = self.normal_equations(mu)
        matrix = gram + (np.exp(log_smoothing) / width**3)[:, None, None] * self.penalty
        explained = (right * np.linalg.solve(matrix, right[..., None])[..., 0]).sum(axis=-1)
        square = self.white_data @ self.white_data
        return np.maximum(square - explained, ROUNDING * square), np.linalg.slogdet(matrix)[1]

    def draw(
        self, mu: np.ndarray, log_smoothing: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draw the curve and the effective number of samples given (mu, log smoothing)."""
        gram, right, width = self.normal_equations(mu)
        strength = np.exp(log_smoothing) / width**3
        matrix = gram + strength[:, None, None] * self.penalty
        mean = np.linalg.solve(matrix, right[..., None])[..., 0]
        square = self.white_data @ self.white_data
        # data without noise: what is left is rounding
        misfit = np.maximum(square - (right * mean).sum(axis=-1), ROUNDING * square)
        variance = misfit / rng.chisquare(self.log_msd.size - _NULL, size=misfit.shape)
        noise = rng.standard_normal(mean.shape)
        factor = np.linalg.cholesky(matrix)
        spread = np.linalg.solve(factor.mT, noise[..., None])[..., 0]
        return mean + np.sqrt(variance)[:, None] * spread, 2.0 / variance

    def curve(self, mu: np.ndarray, coefficients: np.ndarray, waiting_time: np.ndarray, lag: np.ndarray) -> np.ndarray:
        """Evaluate drawn curves anywhere."""
        low, high = self.limits(mu)
        width = (high - low) / self.intervals
        where = (scaled_time(waiting_time, lag, mu, form=self.form) - low) / width
        inside = np.clip(where, 0.0, self.intervals)
        value = spline_values(inside, coefficients)
        # the slope at an end, where one spline begins and another stops
        first = 0.5 * (coefficients[:, 2] - coefficients[:, 0])
        last = 0.5 * (coefficients[:, -1] - coefficients[:, -3])
        slope = np.where(where > inside, last[:, None], first[:, None])
        return value + (where - inside) * slope
