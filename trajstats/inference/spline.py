"""The free master curve: a penalised spline in ln u whose coefficients are integrated out exactly."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from trajstats.inference.models import scaled_time

INTERVALS = 10
LOG_SMOOTHING = (-18.0, 12.0)
_NULL = 2  # level and slope: what the second-difference penalty leaves free


def spline_basis(position: np.ndarray, intervals: int = INTERVALS) -> np.ndarray:
    """Uniform cubic B-splines.

    Parameters
    ----------
    position : array, (..., n)
        Positions in units of one interval, 0 to `intervals`; beyond the ends the last piece is continued.
    intervals : int
        Number of intervals.

    Returns
    -------
    ndarray, (..., n, intervals + 3)
        Rows sum to 1.

    Examples
    --------
    >>> spline_basis(np.array([0.0]), 2).round(3).tolist()
    [[0.167, 0.667, 0.167, 0.0, 0.0]]
    """
    cell = np.clip(np.floor(position).astype(int), 0, intervals - 1)
    f = position - cell
    pieces = np.stack([(1 - f) ** 3, 3 * f**3 - 6 * f**2 + 4, -3 * f**3 + 3 * f**2 + 3 * f + 1, f**3], axis=-1) / 6.0
    basis = np.zeros((*position.shape, intervals + 3))
    np.put_along_axis(basis, cell[..., None] + np.arange(4), pieces, axis=-1)
    return basis


@dataclass(frozen=True)
class FreeCurve:
    r"""Marginal likelihood of (mu, log smoothing) for :math:`\ln\Delta=g(\ln u)+\epsilon`, :math:`\epsilon\sim N(0,\sigma^2R)`.

    g has the prior of a penalised spline, :math:`\exp[-\frac\lambda{2\sigma^2}\int g''^2]`, flat in level and slope; g and
    :math:`\sigma` (prior :math:`1/\sigma`) are integrated out.

    Attributes
    ----------
    log_msd : array, (n,)
        Data.
    waiting_time, lag : array, (n,)
        In units of the pivot.
    covariance : array, (n, n)
        R.
    form : str
        ``"clock"`` or ``"simple"``.
    fixed : array, (n,), optional
        A scaling variable that does not depend on mu (another clock); `form` is then not used.
    """

    log_msd: np.ndarray
    waiting_time: np.ndarray
    lag: np.ndarray
    covariance: np.ndarray
    form: str = "clock"
    fixed: np.ndarray | None = None
    intervals: int = INTERVALS

    @cached_property
    def _whiten(self) -> np.ndarray:
        return np.linalg.inv(np.linalg.cholesky(self.covariance))

    @cached_property
    def _white_data(self) -> np.ndarray:
        return self._whiten @ self.log_msd

    @cached_property
    def _penalty(self) -> np.ndarray:
        differences = np.diff(np.eye(self.intervals + 3), n=2, axis=0)
        return differences.T @ differences

    def variable(self, mu: np.ndarray) -> np.ndarray:
        """Give the scaling variable (logarithm) of the points.

        Parameters
        ----------
        mu : array, (w,)
            Exponents.

        Returns
        -------
        ndarray, (w, n)
        """
        if self.fixed is not None:
            return np.broadcast_to(self.fixed, (*np.shape(mu), self.fixed.size))
        return scaled_time(self.waiting_time, self.lag, mu, form=self.form)

    def normal_equations(self, mu: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Whitened normal equations of the spline at each mu.

        Parameters
        ----------
        mu : array, (w,)
            Exponents.

        Returns
        -------
        tuple of ndarray
            Matrix (w, k, k), right-hand side (w, k) and width of one interval in ln u (w,).
        """
        x = self.variable(mu)
        low = x.min(axis=-1, keepdims=True)
        width = (x.max(axis=-1, keepdims=True) - low) / self.intervals
        design = self._whiten @ spline_basis((x - low) / width, self.intervals)
        return design.mT @ design, self._white_data @ design, width[..., 0]

    def log_marginal(self, mu: np.ndarray, log_smoothing: np.ndarray) -> np.ndarray:
        """Log marginal likelihood, up to a constant of the data.

        Parameters
        ----------
        mu, log_smoothing : array, (w,)
            Points; (w, m) for `log_smoothing` evaluates m values at each mu.

        Returns
        -------
        ndarray
            Shape of `log_smoothing`.
        """
        gram, right, width = self.normal_equations(np.asarray(mu, dtype=float))
        extra = np.ndim(log_smoothing) - np.ndim(mu)
        if extra:
            gram, right, width = gram[:, None], right[:, None], width[:, None]
        strength = np.exp(log_smoothing) / width**3
        factor = np.linalg.cholesky(gram + strength[..., None, None] * self._penalty)
        half = np.linalg.solve(factor, np.broadcast_to(right, strength.shape + right.shape[-1:])[..., None])[..., 0]
        misfit = self._white_data @ self._white_data - (half**2).sum(axis=-1)
        rank = self.intervals + 3 - _NULL
        log_det = 2 * np.log(np.diagonal(factor, axis1=-2, axis2=-1)).sum(axis=-1)
        n_free = self.log_msd.size - _NULL
        return 0.5 * rank * np.log(strength) - np.log(width) - 0.5 * log_det - 0.5 * n_free * np.log(misfit)

    def best_coefficients(self, mu: np.ndarray, log_smoothing: np.ndarray) -> np.ndarray:
        """Posterior mean of the spline given (mu, log smoothing).

        Parameters
        ----------
        mu, log_smoothing : array, (w,)
            Points.

        Returns
        -------
        ndarray, (w, k)
        """
        gram, right, width = self.normal_equations(mu)
        strength = np.exp(log_smoothing) / width**3
        return np.linalg.solve(gram + strength[:, None, None] * self._penalty, right[..., None])[..., 0]

    def draw(
        self, mu: np.ndarray, log_smoothing: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draw the curve and the effective number of samples given (mu, log smoothing).

        Parameters
        ----------
        mu, log_smoothing : array, (w,)
            Draws of the two.
        rng : numpy.random.Generator
            Randomness.

        Returns
        -------
        tuple of ndarray
            Spline coefficients (w, k) and N_eff (w,).
        """
        gram, right, width = self.normal_equations(mu)
        strength = np.exp(log_smoothing) / width**3
        matrix = gram + strength[:, None, None] * self._penalty
        mean = np.linalg.solve(matrix, right[..., None])[..., 0]
        misfit = self._white_data @ self._white_data - (right * mean).sum(axis=-1)
        variance = misfit / rng.chisquare(self.log_msd.size - _NULL, size=misfit.shape)
        noise = rng.standard_normal(mean.shape)
        factor = np.linalg.cholesky(matrix)
        spread = np.linalg.solve(factor.mT, noise[..., None])[..., 0]
        return mean + np.sqrt(variance)[:, None] * spread, 2.0 / variance

    def curve(self, mu: np.ndarray, coefficients: np.ndarray, waiting_time: np.ndarray, lag: np.ndarray) -> np.ndarray:
        """Evaluate drawn curves anywhere.

        Parameters
        ----------
        mu : array, (w,)
            Exponents.
        coefficients : array, (w, k)
            Spline coefficients.
        waiting_time, lag : array, (m,)
            In units of the pivot.

        Returns
        -------
        ndarray, (w, m)
            ln MSD; beyond the range of the data the curve is continued as a power law.
        """
        x = self.variable(mu)
        low, high = x.min(axis=-1, keepdims=True), x.max(axis=-1, keepdims=True)
        width = (high - low) / self.intervals
        where = (scaled_time(waiting_time, lag, mu, form=self.form) - low) / width
        inside = np.clip(where, 0.0, self.intervals)
        value = (spline_basis(inside, self.intervals) @ coefficients[..., None])[..., 0]
        ends = np.where(where > inside, self.intervals, 0.0)
        step = 1e-4
        at = np.clip(ends, step, self.intervals - step)
        rise = spline_basis(at + step, self.intervals) - spline_basis(at - step, self.intervals)
        slope = (rise @ coefficients[..., None])[..., 0] / (2 * step)
        return value + (where - inside) * slope
