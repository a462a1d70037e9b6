r"""Random-matrix laws of Jacobians: Marchenko-Pastur, Fuss-Catalan, and deep nets with any activation.

All laws are of squared singular values, normalised over the :math:`\min(N_0,N_L)` singular values of the matrix. They
assume independent entries with a finite fourth moment; heavy tails (Cauchy, Student t with four or fewer degrees of
freedom) are outside, see `trajstats.theory.random_matrix.compare`.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import comb

from trajstats.errors import ArgumentError
from trajstats.theory.random_matrix._activations import Activation, variance_map
from trajstats.theory.random_matrix._law import SpectralLaw
from trajstats.theory.random_matrix.jacobian_law import JacobianLaw

__all__ = ["Activation", "FussCatalan", "JacobianLaw", "MarchenkoPastur", "variance_map"]

_LOWEST_MASS = 1e-7


class MarchenkoPastur(SpectralLaw):
    r"""Law of the eigenvalues of :math:`WW^T`, entries independent with variance `variance` / columns.

    .. math:: \rho(x)=\frac{\sqrt{(b-x)(x-a)}}{2\pi\sigma^2cx},\qquad a,b=\sigma^2(1\mp\sqrt c)^2,\quad
              c=\text{rows}/\text{columns}

    normalised over rows; for :math:`c>1` the mass :math:`1-1/c` sits at zero.

    Parameters
    ----------
    ratio : float
        Rows over columns, c.
    variance : float
        Variance of an entry times the number of columns.

    Raises
    ------
    ArgumentError
        If one of them is not positive.

    References
    ----------
    Marchenko, Pastur 1967, doi:10.1070/SM1967v001n04ABEH001994.

    Examples
    --------
    >>> MarchenkoPastur(0.25).edges
    (0.25, 2.25)
    """

    def __init__(self, ratio: float, *, variance: float = 1.0) -> None:
        if not (ratio > 0 and variance > 0 and math.isfinite(ratio) and math.isfinite(variance)):
            msg = f"ratio and variance must be positive and finite; got {ratio} and {variance}"
            raise ArgumentError(msg)
        self.ratio, self.variance = float(ratio), float(variance)
        self.atom = max(0.0, 1.0 - 1.0 / ratio)

    @property
    def edges(self) -> tuple[float, float]:
        """Lower and upper edge."""
        root = math.sqrt(self.ratio)
        return self.variance * (1 - root) ** 2, self.variance * (1 + root) ** 2

    def density(self, x: np.ndarray | float) -> np.ndarray:
        """Density at x, without the atom.

        Parameters
        ----------
        x : array or float
            Squared singular values.

        Returns
        -------
        ndarray
        """
        x = np.asarray(x, dtype=np.float64)
        low, high = self.edges
        inside = (x > low) & (x < high)
        safe = np.where(inside, x, high)
        root = np.sqrt(np.maximum((high - safe) * (safe - low), 0.0))
        return np.where(inside, root / (2 * np.pi * self.variance * self.ratio * safe), 0.0)

    def moments(self, order: int) -> np.ndarray:
        """Moments 1 to `order`.

        Parameters
        ----------
        order : int
            Highest moment.

        Returns
        -------
        ndarray, (order,)
        """
        return np.array(
            [
                self.variance**k * sum(self.ratio**r / (r + 1) * comb(k, r) * comb(k - 1, r) for r in range(k))
                for k in range(1, order + 1)
            ]
        )

    def _floor(self) -> float:
        return 1e-14 * self.variance


class FussCatalan(SpectralLaw):
    r"""Law of :math:`JJ^T` for a product of `order` square Gaussian matrices with entries of variance 1/N.

    .. math::
        x=\frac{\sin^{s+1}((s+1)t)}{\sin t\,\sin^s(st)},\quad
        \rho=\frac{\sin^2t\,\sin^{s-1}(st)}{\pi\sin^s((s+1)t)},\quad 0<t<\frac\pi{s+1}

    with moments :math:`\frac1{sk+1}\binom{(s+1)k}k` and upper edge :math:`(s+1)^{s+1}/s^s`.

    Parameters
    ----------
    order : int
        Number s of factors.

    Raises
    ------
    ArgumentError
        If the order is not a positive integer.

    References
    ----------
    fixedpoints (arXiv:2501.04182); Penson, Zyczkowski 2011 (arXiv:1103.3453).

    Examples
    --------
    >>> law = FussCatalan(2)
    >>> round(law.edges[1], 9), law.moments(3).tolist()
    (6.75, [1.0, 3.0, 12.0])
    """

    def __init__(self, order: int) -> None:
        if int(order) != order or order < 1:
            msg = f"order must be an integer of at least 1; got {order}"
            raise ArgumentError(msg)
        self.order = int(order)

    @property
    def edges(self) -> tuple[float, float]:
        """Zero and the upper edge."""
        s = self.order
        return 0.0, math.exp((s + 1) * math.log(s + 1) - s * math.log(s))

    def _log_x_of(self, t: np.ndarray, rest: np.ndarray) -> np.ndarray:
        # Log x at angle t, where `rest` = pi/(s+1) - t is known to full precision.
        s = self.order
        return (s + 1) * np.log(np.sin((s + 1) * rest)) - np.log(np.sin(t)) - s * np.log(np.sin(s * t))

    def density(self, x: np.ndarray | float) -> np.ndarray:
        """Density at x.

        Parameters
        ----------
        x : array or float
            Squared singular values.

        Returns
        -------
        ndarray
        """
        x = np.asarray(x, dtype=np.float64)
        s, high = self.order, self.edges[1]
        inside = (x > 0) & (x < high)
        log_x = np.log(np.where(inside, x, high / 2))
        end = math.pi / (s + 1)
        # bisect in the logarithm of the distance to the end of the angle, so that x = 1e-200 is as exact as x = 1
        low, high_log = np.full(log_x.shape, -700.0), np.full(log_x.shape, math.log(end))
        for _ in range(64):
            middle = (low + high_log) / 2
            rest = np.exp(middle)
            smaller = self._log_x_of(np.maximum(end - rest, 1e-300), rest) < log_x
            low, high_log = np.where(smaller, middle, low), np.where(smaller, high_log, middle)
        rest = np.exp((low + high_log) / 2)
        t = end - rest
        log_rho = 2 * np.log(np.sin(t)) + (s - 1) * np.log(np.sin(s * t)) - s * np.log(np.sin((s + 1) * rest))
        return np.where(inside, np.exp(log_rho) / np.pi, 0.0)

    def moments(self, order: int) -> np.ndarray:
        """Moments 1 to `order`.

        Parameters
        ----------
        order : int
            Highest moment.

        Returns
        -------
        ndarray, (order,)
        """
        s = self.order
        return np.array([comb((s + 1) * k, k) / (s * k + 1) for k in range(1, order + 1)])

    def _floor(self) -> float:
        # F(x) is about (s+1) x rho(x) and x rho(x) about x^(1/(s+1)) / pi
        return _LOWEST_MASS ** (self.order + 1)
