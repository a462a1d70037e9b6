r"""The law of a deep random net's input-output Jacobian, for any activation, depth, widths and variances."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from trajstats.errors import ArgumentError, TrajstatsError, unknown_name_message
from trajstats.theory.random_matrix import _activations as activations
from trajstats.theory.random_matrix._activations import Activation, per_layer, variance_map
from trajstats.theory.random_matrix._continuation import real_point, solve_points
from trajstats.theory.random_matrix._law import SpectralLaw

WeightKind = Literal["gaussian", "orthogonal"]
# Panels of 16 quadrature nodes to follow a path with, and to correct its end with; more where slopes span many decades.
_COARSE, _FINE, _MOST = 24, 96, 6000
_LOWEST_MASS = 1e-7
# A path that stops at this share of its way short of the axis gives the density smeared over 3e-5 of x.
_ALMOST = 1e-5


class JacobianLaw(SpectralLaw):
    r"""Law of the squared singular values of :math:`J=\prod_lD_lW_l` for a wide random net.

    :math:`W_l` is Gaussian with entries of variance :math:`\sigma_{w,l}^2/N_{l-1}`, or orthogonal times
    :math:`\sigma_{w,l}`; :math:`D_l=\mathrm{diag}\,\varphi'(\sqrt{v_l}\gamma)` with v from `variance_map`, independent
    of W in the limit. With :math:`m(z)=E[\lambda/(z-\lambda)]`, :math:`m=E[K_l/(u_l-K_l)]` and K the law of
    :math:`\varphi'^2`,

    .. math::
        z&=\frac{1+m}m\prod_l\sigma_{w,l}^2\,m\,u_l(m)&&\text{(Gaussian, equal widths)}\\
        z&=\frac{1+m}m\prod_l\sigma_{w,l}^2\frac{m\,u_l(m)}{1+m}&&\text{(orthogonal)}

    and, for other widths, m in layer l scaled by :math:`N_{ref}/N_l` and the variance by :math:`N_l/N_{l-1}`.

    Parameters
    ----------
    depth : int, optional
        Number of layers; taken from `widths` if not given.
    activation : str or Activation
        As in `variance_map`.
    sigma_w2, sigma_b2 : float or sequence of float
        Variances of weights (times the width of the layer before) and biases; one, or one per layer.
    widths : sequence of float, (depth + 1,), optional
        Widths of input, hidden layers and output, up to a common factor; all equal if not given.
    weights : {"gaussian", "orthogonal"}
        Law of the weight matrices. Any i.i.d. entries with a finite fourth moment share the Gaussian law.
    input_second_moment : float
        :math:`q_0=|x|^2/N_0`; 1 for standardised inputs. See `stationary_second_moment` for the value that layers keep.

    Attributes
    ----------
    variances, second_moments, chi : ndarray, (depth,)
        v, q and chi of `variance_map`.
    atom : float
        Mass at zero: dead units and bottlenecks.

    Raises
    ------
    ArgumentError
        If an argument is out of range, or depth and widths disagree.

    Notes
    -----
    Cost: about 1 ms per point for one slope law, up to 6 ms for 30 different layers. The path is followed from the
    negative axis, where the solution is unique, so a wrong branch cannot be reached by a bad start; steps whose first
    Newton correction exceeds 10 % are halved.

    References
    ----------
    fixedpoints (arXiv:2501.04182); Pennington, Schoenholz, Ganguli 2018 (arXiv:1802.09979); Pastur 2020
    (arXiv:2001.06188).

    Examples
    --------
    >>> law = JacobianLaw(2, activation="linear")
    >>> round(law.edges[1], 9), law.moments(3).round(9).tolist()
    (6.75, [1.0, 3.0, 12.0])
    """

    def __init__(
        self,
        depth: int | None = None,
        *,
        activation: str | Activation = "tanh",
        sigma_w2: float | Sequence[float] = 1.0,
        sigma_b2: float | Sequence[float] = 0.0,
        widths: Sequence[float] | None = None,
        weights: WeightKind = "gaussian",
        input_second_moment: float = 1.0,
    ) -> None:
        self.depth, self.widths = _depth_and_widths(depth, widths)
        if weights not in ("gaussian", "orthogonal"):
            raise ArgumentError(unknown_name_message("weights", weights, ("gaussian", "orthogonal")))
        self.weights = weights
        self.activation = activations.activation(activation)
        self.input_second_moment = float(input_second_moment)
        self.sigma_w2 = per_layer("sigma_w2", sigma_w2, self.depth)
        self.sigma_b2 = per_layer("sigma_b2", sigma_b2, self.depth)
        if not (self.sigma_w2 > 0).all():
            msg = f"sigma_w2 must be positive; got {sigma_w2}"
            raise ArgumentError(msg)
        self.variances, self.second_moments, self.chi = variance_map(
            self.depth,
            activation=self.activation,
            # columns of unit length leave less variance per unit where an orthogonal layer widens
            sigma_w2=self.sigma_w2
            * (1.0 if weights == "gaussian" else np.minimum(1.0, self.widths[:-1] / self.widths[1:])),
            sigma_b2=self.sigma_b2,
            input_second_moment=input_second_moment,
        )
        self._slopes = [self.activation.slope_law(v) for v in self.variances]
        alive = np.array([1.0 - dead for _, _, dead in self._slopes])
        self._live_widths = self.widths[1:] * alive
        self._reference = min(self.widths[0], self._live_widths.min())
        self._scale = self._reference / min(self.widths[0], self.widths[-1])
        self.atom = max(0.0, 1.0 - self._scale)
        if self.depth == 1 and weights == "orthogonal":
            msg = "one orthogonal layer has the law of sigma_w^2 phi'^2 itself; use activation.slope_law(variance)"
            raise ArgumentError(msg)

    @functools.cached_property
    def spike(self) -> tuple[float, float] | None:  # type: ignore[override]
        """Atom off zero, if any: orthogonal weights whose projections and flat pieces of the slope must overlap."""
        if self.weights == "gaussian":
            return None
        share, place = self.widths[0], 1.0
        for layer, (kappa, weight, dead) in enumerate(self._slopes):
            top = int(np.argmax(weight))
            before, width = self.widths[layer], self.widths[layer + 1]
            share -= max(0.0, before - width) + width * (1 - weight[top] * (1 - dead))
            place *= self.sigma_w2[layer] * kappa[top]
        share /= min(self.widths[0], self.widths[-1])
        return (float(place), float(share)) if share > 1e-12 else None

    def _problem(self, panels: int) -> tuple[Any, ...]:
        # Arrays of the equation: nodes of the distinct slope laws, then the terms in q (see `_continuation`).
        groups: dict[tuple[float, float], int] = {}
        kappas, weights, ratio, count = [], [], [], []
        for layer, (v, live) in enumerate(zip(self.variances, self._live_widths, strict=True)):
            key = (float(f"{v:.10g}"), live)
            if key not in groups:
                groups[key] = len(groups)
                spread = np.ptp(np.log(self._slopes[layer][0]))
                # one layer with very spread slopes is nearly diagonal: u then comes as close as 1/spread to the nodes
                wanted = min(panels * max(1.0, spread / 40.0, (spread / 40.0) ** 2 / self.depth), _MOST)
                kappa, weight, _ = self.activation.slope_law(v, panels=int(wanted))
                kappas.append(kappa)
                weights.append(weight)
                ratio.append(live / self._reference)
                count.append(0.0)
            count[groups[key]] += 1.0
        start = np.cumsum([0, *(k.size for k in kappas)])
        before, after = self.widths[:-1], self.widths[1:]
        terms: dict[float, float] = {self.widths[0] / self._reference: 1.0}
        # log m_l = log(N_ref / N_l) - log(q - 1)
        constant = float(np.sum(np.log(self.sigma_w2 * after / before * self._reference / after)))
        power = float(self.depth)
        if self.weights == "orthogonal":
            # divided by 1 + m of the wider of the two layers; a widening layer keeps norms, so no factor right/left
            for left, right in zip(before, after, strict=True):
                wide = max(left, right)
                terms[wide / self._reference] = terms.get(wide / self._reference, 0.0) - 1.0
                power -= 1.0
                constant += math.log(wide / self._reference) - (math.log(right / left) if right > left else 0.0)
        used = [(r, e) for r, e in terms.items() if e]
        return (
            np.concatenate(kappas),
            np.concatenate(weights),
            start,
            np.array(ratio),
            np.array(count),
            np.array([r for r, _ in used], dtype=np.float64),
            np.array([e for _, e in used], dtype=np.float64),
            power,
            constant,
        )

    @functools.cached_property
    def _coarse(self) -> tuple[Any, ...]:
        return self._problem(_COARSE)

    @functools.cached_property
    def _fine(self) -> tuple[Any, ...]:
        return self._problem(_FINE)

    @functools.cached_property
    def edges(self) -> tuple[float, float]:
        """Lower and upper edge of the continuous part."""
        if self.spike and self.spike[1] > 1 - self.atom - 1e-9:
            return self.spike[0], self.spike[0]
        high = self._extremum(lambda t: 1.0 + math.exp(t), -36.0, 60.0)
        orders = self._fine[4][self._fine[3] == 1.0].sum() + self._fine[6][self._fine[5] == 1.0].sum()
        if orders > 1.5 or self._slopes_reach_zero():
            return 0.0, high
        ceiling = min([1.0, *(1 - 1 / r for r in (*self._fine[3], *self._fine[5]) if r > 1.0)])
        low = self._extremum(lambda t: ceiling / (1.0 + math.exp(-t)), -60.0, 30.0)
        return (low if low > 1e-12 * high else 0.0), high

    def _slopes_reach_zero(self) -> bool:
        # Whether the narrowest layer's slopes come arbitrarily close to zero (as those of tanh do, far out).
        kappa, weight, start, ratio = self._fine[:4]
        for g in np.flatnonzero(ratio == 1.0):
            k, w = kappa[start[g] : start[g + 1]], weight[start[g] : start[g + 1]]
            if w[k < 2 * k[0]].sum() < 1e-6:
                return True
        return False

    def _extremum(self, place: Any, first: float, last: float) -> float:
        # Turning point of z(q) on the real axis, where d log z / d log q changes sign: bisection in t, q = place(t).

        def rising(t: float) -> bool:
            return real_point(place(t), self._fine)[1] > 0

        upper = place(first) >= 1.0
        for _ in range(60):
            middle = (first + last) / 2
            if rising(middle) == upper:
                last = middle
            else:
                first = middle
        return float(np.exp(real_point(place((first + last) / 2), self._fine)[0]))

    def _floor(self) -> float:
        return float(np.exp(max(real_point(-_LOWEST_MASS, self._fine)[0], -600.0)))

    def solve(self, log_x: np.ndarray, angle: np.ndarray) -> np.ndarray:
        """Solve for q = (1 + m)/m at z = exp(log_x + i angle).

        Parameters
        ----------
        log_x, angle : ndarray, (n,)
            Logarithm of the modulus and argument in [0, pi] of z.

        Returns
        -------
        ndarray of complex, (n,)

        Raises
        ------
        TrajstatsError
            If a path cannot be followed to its end.
        """
        order = np.argsort(-log_x)
        start = 1e-3
        log_z0, _, u0 = real_point(-1.0 / start, self._coarse)
        q, _, reached = solve_points(
            log_x[order], angle[order], complex(-1.0 / start), u0, complex(log_z0, np.pi), self._coarse, self._fine
        )
        # where next to nothing lies (far out in the slopes' tail) a path may stop just above the axis: that is kept
        if (reached < 1.0 - _ALMOST).any():
            bad = order[int(np.argmin(reached))]
            msg = (
                f"the law could not be followed to x = {np.exp(log_x[bad]):.6g} (got {reached.min():.3g} of the way); "
                "ask at a slightly different x"
            )
            raise TrajstatsError(msg)
        result = np.empty_like(q)
        result[order] = q
        return result

    def density(self, x: np.ndarray | float) -> np.ndarray:
        """Density of the continuous part at x.

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
        result = np.zeros(x.shape)
        if inside.any():
            at = x[inside]
            q = self.solve(np.log(at), np.zeros(at.size))
            # -(1+m)/(pi x) with 1 + m = q/(q-1)
            result[inside] = self._scale * np.maximum(-(q / (q - 1)).imag, 0.0) / (np.pi * at)
        return result

    def stieltjes(self, z: np.ndarray | complex) -> np.ndarray:
        r"""Stieltjes transform :math:`f(z)=\int\nu(d\lambda)/(\lambda-z)`, atoms included.

        Parameters
        ----------
        z : array or complex
            Points off the support.

        Returns
        -------
        ndarray of complex
        """
        z = np.asarray(z, dtype=np.complex128)
        q = self.solve(np.log(np.abs(z)).ravel(), np.abs(np.angle(z)).ravel()).reshape(z.shape)
        q = np.where(z.imag < 0, q.conj(), q)
        return -(self._scale * q / (q - 1) + 1 - self._scale) / z

    def moments(self, order: int) -> np.ndarray:
        r"""Moments 1 to `order`, exactly from the moments of :math:`\varphi'^2` (atoms included).

        Parameters
        ----------
        order : int
            Highest moment.

        Returns
        -------
        ndarray, (order,)
        """
        n = order + 1
        # power series in m (normalised to the reference width) of chi(m) / m, chi = 1/z
        series = np.zeros(n)
        series[0] = 1.0
        series = _divide(series, _linear(1.0, self._reference / self.widths[0], n)) * self._reference / self.widths[0]
        for layer, v in enumerate(self.variances):
            before, after = self.widths[layer], self.widths[layer + 1]
            h, weight = self.activation.nodes(v)
            kappa = self.activation.derivative(h) ** 2
            slope = np.array([weight @ kappa ** (k + 1) for k in range(n)])
            shrink = self._reference / after
            inverse = _reverse(slope) * shrink ** np.arange(n)
            series = np.convolve(series, inverse)[:n] / self.sigma_w2[layer]
            if self.weights == "gaussian":
                series *= before / after
            elif after > before:
                series = np.convolve(series, _linear(1.0, shrink, n))[:n]
            else:
                series = np.convolve(series, _linear(1.0, self._reference / before, n))[:n] * before / after
        return self._scale * _reverse(series)[:order]


def _linear(constant: float, slope: float, n: int) -> np.ndarray:
    return np.array([constant, slope, *[0.0] * n])[:n]


def _divide(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    result = np.zeros_like(top)
    for k in range(top.size):
        result[k] = (top[k] - result[:k] @ bottom[k:0:-1]) / bottom[0]
    return result


def _reverse(a: np.ndarray) -> np.ndarray:
    # Lagrange: b with y = sum b_k x^(k+1) the inverse series of x = sum a_k y^(k+1).
    n = a.size
    one = np.zeros(n)
    one[0] = 1.0
    inverse = _divide(one, a)
    power, result = one, np.zeros(n)
    for k in range(1, n + 1):
        power = np.convolve(power, inverse)[:n]
        result[k - 1] = power[k - 1] / k
    return result


def _depth_and_widths(depth: int | None, widths: Sequence[float] | None) -> tuple[int, np.ndarray]:
    if widths is None:
        if depth is None or int(depth) != depth or depth < 1:
            msg = f"give depth as an integer of at least 1, or widths; got depth={depth}"
            raise ArgumentError(msg)
        return int(depth), np.ones(int(depth) + 1)
    array = np.asarray(widths, dtype=np.float64)
    if array.ndim != 1 or array.size < 2 or not (np.isfinite(array).all() and (array > 0).all()):
        msg = f"widths must be at least two positive numbers, input first; got {widths}"
        raise ArgumentError(msg)
    if depth is not None and depth != array.size - 1:
        msg = f"depth={depth} disagrees with {array.size} widths (input, hidden layers, output); leave one of them out"
        raise ArgumentError(msg)
    return array.size - 1, array
