r"""Activation functions as mean-field theory sees them: averages over a Gaussian preactivation.

With widths going to infinity the preactivations of a random net are Gaussian of variance :math:`v_l`, so all that
theory needs of an activation :math:`\varphi` is :math:`E\varphi^2`, :math:`E\varphi'^2` and the law of
:math:`\varphi'^2`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special
from scipy.optimize import brentq

from trajstats.errors import ArgumentError, unknown_name_message

# Beyond 8.6 standard deviations the Gaussian weight is below float64 resolution.
_REACH = 8.6
# Nodes whose slope is this small (relative to the steepest) belong to a dead unit: an atom at zero, not a small value.
_DEAD = 1e-150


@dataclass(frozen=True)
class Activation:
    r"""An activation :math:`\varphi`, its derivative and where the derivative jumps."""

    name: str  # For labels
    function: Callable[[np.ndarray], np.ndarray]  # :math:`\varphi` and :math:`\varphi'` on arrays
    derivative: Callable[[np.ndarray], np.ndarray]  # :math:`\varphi` and :math:`\varphi'` on arrays
    kinks: tuple[float, ...] = ()  # Points at which the derivative is discontinuous; quadrature panels end there

    @functools.cached_property
    def _slope_zeros(self) -> tuple[float, ...]:
        """Points where the slope changes sign smoothly."""
        grid = np.linspace(-40.0, 40.0, 4001) + 1e-3
        slope = self.derivative(grid)
        change = np.flatnonzero((slope[:-1] * slope[1:] < 0) & (abs(slope[:-1]) < 0.1) & (abs(slope[1:]) < 0.1))
        return tuple(brentq(lambda h: float(self.derivative(np.array([h]))[0]), *grid[[i, i + 1]]) for i in change)

    def nodes(self, variance: float, *, panels: int = 24) -> tuple[np.ndarray, np.ndarray]:
        """Give quadrature nodes and weights for a Gaussian preactivation."""
        if variance == 0.0:
            return np.zeros(1), np.ones(1)
        scale = math.sqrt(variance)
        bounds = np.linspace(-_REACH, _REACH, panels + 1)
        special_points = [k / scale for k in self.kinks]
        # around a zero of the slope its square reaches zero as a power: panels shrink geometrically towards it
        for zero in self._slope_zeros:
            special_points += [zero / scale, *(zero / scale + side * 10.0**-k for k in range(1, 9) for side in (-1, 1))]
        bounds = np.union1d(bounds, [point for point in special_points if abs(point) < _REACH])
        node, weight = np.polynomial.legendre.leggauss(16)
        half = np.diff(bounds) / 2
        gamma = (bounds[:-1] + half)[:, None] + half[:, None] * node
        density = np.exp(-(gamma**2) / 2) / math.sqrt(2 * math.pi)
        weights = (half[:, None] * weight * density).ravel()
        return scale * gamma.ravel(), weights / weights.sum()

    def second_moment(self, variance: float) -> np.float64:
        r"""Average :math:`\varphi(\sqrt v\gamma)^2`."""
        h, weight = self.nodes(variance)
        return np.float64(weight @ self.function(h) ** 2)

    def slope_moment(self, variance: float, order: int = 1) -> np.float64:
        r"""Average :math:`\varphi'(\sqrt v\gamma)^{2k}`."""
        h, weight = self.nodes(variance)
        return np.float64(weight @ self.derivative(h) ** (2 * order))

    def slope_law(self, variance: float, *, panels: int = 24) -> tuple[np.ndarray, np.ndarray, float]:
        r"""Discretise the law of :math:`\varphi'(\sqrt v\gamma)^2`."""
        h, weight = self.nodes(variance, panels=panels)
        kappa = self.derivative(h) ** 2
        alive = kappa > _DEAD * kappa.max()
        dead = float(weight[~alive].sum())
        order = np.argsort(kappa[alive])
        kappa, weight = kappa[alive][order], weight[alive][order]
        # Even slopes and linear pieces repeat values: merging them halves the cost and makes pieces exact atoms.
        start = np.flatnonzero(np.diff(kappa, prepend=-1.0) > 1e-13 * kappa)
        weight = np.add.reduceat(weight, start)
        return kappa[start], weight / weight.sum(), dead if dead > 1e-14 else 0.0


def _gelu(h: np.ndarray) -> np.ndarray:
    return h * special.ndtr(h)


def _gelu_slope(h: np.ndarray) -> np.ndarray:
    return special.ndtr(h) + h * np.exp(-(h**2) / 2) / math.sqrt(2 * math.pi)


def _tanh_slope(h: np.ndarray) -> np.ndarray:
    # 1 / cosh^2 without overflow, and without the cancellation of 1 - tanh^2
    decay = np.exp(-2 * np.abs(h))
    return 4 * decay / (1 + decay) ** 2


def _sigmoid_slope(h: np.ndarray) -> np.ndarray:
    return special.expit(h) * special.expit(-h)


_LEAK = 0.01
ACTIVATIONS: dict[str, Activation] = {
    a.name: a
    for a in (
        Activation("linear", lambda h: h, np.ones_like),
        Activation("tanh", np.tanh, _tanh_slope),
        Activation("sigmoid", special.expit, _sigmoid_slope),
        Activation("erf", special.erf, lambda h: 2 / math.sqrt(math.pi) * np.exp(-(h**2))),
        Activation("relu", lambda h: np.maximum(h, 0.0), lambda h: (h > 0).astype(np.float64), (0.0,)),
        Activation(
            "leaky_relu", lambda h: np.where(h > 0, h, _LEAK * h), lambda h: np.where(h > 0, 1.0, _LEAK), (0.0,)
        ),
        Activation("hard_tanh", lambda h: np.clip(h, -1, 1), lambda h: (abs(h) < 1).astype(np.float64), (-1.0, 1.0)),
        Activation(
            "elu", lambda h: np.where(h > 0, h, np.expm1(np.minimum(h, 0))), lambda h: np.exp(np.minimum(h, 0)), (0.0,)
        ),
        Activation("gelu", _gelu, _gelu_slope),
        Activation("silu", lambda h: h * special.expit(h), lambda h: special.expit(h) + h * _sigmoid_slope(h)),
        Activation("softplus", lambda h: np.logaddexp(0.0, h), special.expit),
    )
}


def activation(given: str | Activation) -> Activation:
    """Look up an activation by name, or pass one through."""
    if isinstance(given, Activation):
        return given
    if given not in ACTIVATIONS:
        raise ArgumentError(
            unknown_name_message("activation", given, ACTIVATIONS, do="Or give an Activation(name, f, df, kinks).")
        )
    return ACTIVATIONS[given]


def per_layer(name: str, value: float | Sequence[float] | np.ndarray, depth: int) -> np.ndarray:
    """Spread a number, or check a sequence, over the layers."""
    array = np.asarray(value, dtype=np.float64)
    if array.ndim > 1 or (array.ndim == 1 and array.size != depth):
        msg = f"{name} has shape {array.shape}; give one number, or one per layer ({depth})"
        raise ArgumentError(msg)
    if not np.isfinite(array).all() or (array < 0).any():
        msg = f"{name} is {value}; it must be finite and not negative"
        raise ArgumentError(msg)
    return np.broadcast_to(array, (depth,)).copy()


def stationary_second_moment(phi: Activation, sigma_w2: float, sigma_b2: float) -> float:
    r"""Find the second moment of activations that a layer reproduces.

    It solves :math:`q=E\varphi^2(\sqrt{\sigma_w^2q+\sigma_b^2}\gamma)`.
    """
    q = 1.0
    for _ in range(10_000):
        new = float(phi.second_moment(sigma_w2 * q + sigma_b2))
        if not 1e-12 < new < 1e12:
            return 1.0 if new >= 1e12 else new
        if abs(new - q) <= 1e-14 * q:
            return new
        q = new
    return q


def variance_map(
    depth: int,
    *,
    activation: str | Activation = "tanh",
    sigma_w2: float | Sequence[float] | np.ndarray = 1.0,
    sigma_b2: float | Sequence[float] | np.ndarray = 0.0,
    input_second_moment: float = 1.0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    r"""Follow variance and gradient gain through the layers of a random net.

    .. math:: v_l=\sigma_w^2q_{l-1}+\sigma_b^2,\quad q_l=E\varphi^2(\sqrt{v_l}\gamma),\quad
              \chi_l=\sigma_w^2E\varphi'^2(\sqrt{v_l}\gamma)

    Parameters
    ----------
    depth : int
        Number of layers L.
    activation : str or Activation
        The activation.
    sigma_w2, sigma_b2 : float or sequence of float
        Variances of weights (times the width of the layer before) and of biases; one, or one per layer.
    input_second_moment : float
        :math:`q_0=|x|^2/N`; 1 for standardised inputs. See `stationary_second_moment` for the value that layers keep.

    Returns
    -------
    (ndarray, ndarray, ndarray), each (depth,)
        v, q and chi. The net is ordered where chi < 1 and chaotic where chi > 1.

    References
    ----------
    fixedpoints (arXiv:2501.04182); Poole et al. 2016 (arXiv:1606.05340).

    Examples
    --------
    >>> v, q, chi = variance_map(3, activation="relu", sigma_w2=2.0)
    >>> v.round(12).tolist(), chi.round(12).tolist()
    ([2.0, 2.0, 2.0], [1.0, 1.0, 1.0])
    """
    phi = _lookup(activation)
    s, b = per_layer("sigma_w2", sigma_w2, depth), per_layer("sigma_b2", sigma_b2, depth)
    before = float(per_layer("input_second_moment", input_second_moment, 1)[0])
    v, q, chi = np.empty(depth), np.empty(depth), np.empty(depth)
    for layer in range(depth):
        v[layer] = s[layer] * before + b[layer]
        q[layer] = before = float(phi.second_moment(v[layer]))
        chi[layer] = s[layer] * phi.slope_moment(v[layer])
    return v, q, chi


_lookup = activation
