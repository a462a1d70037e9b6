"""A spectral law on the positive half-line: from a density and its edges to the distribution function and quantiles."""

from __future__ import annotations

import abc
import functools
import math

import numpy as np
from scipy.integrate import cumulative_simpson
from scipy.interpolate import CubicHermiteSpline

from trajstats.errors import ArgumentError

_GRID = 601


class SpectralLaw(abc.ABC):
    """A law of squared singular values: an atom at zero and a density between two edges.

    Subclasses give `edges`, `density` and `moments`; the rest follows by integration on a grid in a variable in which
    the density is smooth at both edges (square roots at the soft ones, a power of x at a hard edge at zero).
    """

    #: Mass at zero.
    atom: float = 0.0
    #: Value and mass of an atom elsewhere (orthogonal weights with a piecewise linear activation), or None.
    spike: tuple[float, float] | None = None

    @property
    @abc.abstractmethod
    def edges(self) -> tuple[float, float]:
        """Lower and upper edge of the continuous part."""

    @abc.abstractmethod
    def density(self, x: np.ndarray | float) -> np.ndarray:
        """Density of the continuous part at x."""

    @abc.abstractmethod
    def moments(self, order: int) -> np.ndarray:
        """Moments 1 to `order`."""

    @abc.abstractmethod
    def _floor(self) -> float:
        """Give a point with less than 1e-6 of the mass below it, where the lower edge is zero."""

    @functools.cached_property
    def _grid(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Grid variable s, distribution function and its derivative in s (continuous part only)."""
        s = np.linspace(0.0, 1.0, _GRID)
        log_x, slope = self._log_x(s)
        x = np.exp(log_x[1:-1])
        rate = np.zeros_like(s)
        rate[1:-1] = self.density(x) * x * slope[1:-1]
        # zero at a soft edge; finite where the density diverges as an inverse square root, and at the floor, no edge
        rate[0] = max(3 * rate[1] - 3 * rate[2] + rate[3], 0.0)
        rate[-1] = max(3 * rate[-2] - 3 * rate[-3] + rate[-4], 0.0)
        return s, cumulative_simpson(rate, x=s, initial=0.0), rate

    def _log_x(self, s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        low, high = self.edges
        if low > 0.0:
            width = math.log(high / low)
            return math.log(low) + width * (1 - np.cos(np.pi * s)) / 2, width * np.pi / 2 * np.sin(np.pi * s)
        width = math.log(high / self._floor())
        return math.log(high) - width * (1 - s) ** 2, 2 * width * (1 - s)

    def _s(self, x: np.ndarray) -> np.ndarray:
        low, high = self.edges
        log_x = np.log(np.clip(x, low if low > 0 else np.finfo(float).tiny, high))
        if low > 0.0:
            return np.arccos(np.clip(1 - 2 * (log_x - math.log(low)) / math.log(high / low), -1, 1)) / np.pi
        return 1 - np.sqrt(np.minimum((math.log(high) - log_x) / math.log(high / self._floor()), 1.0))

    @property
    def mass(self) -> float:
        """Total mass found by integration; its distance from one is the error of the solver and the grid."""
        atoms = self.atom + (self.spike[1] if self.spike else 0.0)
        return atoms if atoms > 1 - 1e-9 else atoms + float(self._grid[1][-1])

    def cdf(self, x: np.ndarray | float) -> np.ndarray:
        """Mass at or below x."""
        x = np.asarray(x, dtype=np.float64)
        spike = self.spike[1] if self.spike else 0.0
        inner = np.zeros(x.shape)
        if self.atom + spike < 1 - 1e-9:
            s, cumulative, rate = self._grid
            inner = CubicHermiteSpline(s, cumulative, rate)(self._s(x)) / cumulative[-1]
        value = self.atom * (x >= 0) + (1 - self.atom - spike) * np.where(x > 0, np.clip(inner, 0, 1), 0.0)
        return value + (spike * (x >= self.spike[0] * (1 - 1e-12)) if self.spike else 0.0)

    def quantile(self, p: np.ndarray | float) -> np.ndarray:
        """Smallest x with at least mass p at or below it."""
        p = np.asarray(p, dtype=np.float64)
        if ((p < 0) | (p > 1) | ~np.isfinite(p)).any():
            msg = f"probabilities must lie in [0, 1]; got {p.min()} to {p.max()}"
            raise ArgumentError(msg)
        if self.spike and self.atom + self.spike[1] > 1 - 1e-9:
            return np.where(p <= self.atom, 0.0, self.spike[0])
        low, high = np.zeros_like(p), np.ones_like(p)
        for _ in range(60):
            middle = (low + high) / 2
            below = self.cdf(np.exp(self._log_x(middle)[0])) < p
            low, high = np.where(below, middle, low), np.where(below, high, middle)
        x = np.exp(self._log_x((low + high) / 2)[0])
        if self.spike:
            point, share = self.spike
            x = np.where((p > self.cdf(point * (1 - 1e-9))) & (p <= self.cdf(point)), point, x)
        return np.where(p <= self.atom, 0.0, x)
