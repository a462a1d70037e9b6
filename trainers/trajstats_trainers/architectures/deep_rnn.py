r"""The deep recurrent net of the chorales paper in JAX, with its initialisation and its orthogonal projection."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from trajstats.errors import ArgumentError

INPUT_VARIANCE = 0.1  # of J_0, summed over the visible units


@dataclass(frozen=True)
class DeepRNN:
    r"""Layers of tanh units, each recurrent, that predict the next binary pattern of a sequence.

    .. math::
       \mu^1_t=\tanh(J_0S_t+M_1\mu^1_{t-1}),\quad \mu^l_t=\tanh(J_{l-1}\mu^{l-1}_t+M_l\mu^l_{t-1}),\quad
       H_t=K\mu^d_t+WS_t+h_0

    with :math:`\mu^l_0=0` before the first pattern of each sequence, and
    :math:`P(S_{t+1,i}=\pm1)=e^{\pm H_{t,i}}/2\cosh H_{t,i}`.

    Parameters
    ----------
    n_visible : int
        Visible units :math:`N_v`.
    width : int
        Hidden units w of a layer.
    depth : int
        Layers d.

    Raises
    ------
    ArgumentError
        If a size is below 1.

    Notes
    -----
    Gradients go back through all steps of a sequence. What does not depend on the step before (:math:`J_0S_t`, ...) is
    one matrix product for the whole sequence; only :math:`M_l\mu^l_{t-1}` is a scan.

    References
    ----------
    Paper key *chorales*: Hertz, Tyrcha 2025, PRE 111, 055307, arXiv:2412.10094. That :math:`H` is a field, not a logit
    (a factor 2), is this module's convention.

    Examples
    --------
    >>> net = DeepRNN(n_visible=5, width=3, depth=2)
    >>> net(net.init(seed=0), np.ones((4, 7, 5), "float32")).shape
    (4, 7, 5)
    """

    n_visible: int
    width: int
    depth: int

    def __post_init__(self) -> None:
        if min(self.n_visible, self.width, self.depth) < 1:
            msg = f"n_visible={self.n_visible}, width={self.width}, depth={self.depth}: all must be at least 1"
            raise ArgumentError(msg)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of the weights, in the order of the flat vector."""
        shapes: dict[str, tuple[int, ...]] = {}
        for layer in range(1, self.depth + 1):
            shapes[f"J{layer - 1}"] = (self.width, self.n_visible if layer == 1 else self.width)
            shapes[f"M{layer}"] = (self.width, self.width)
        return {
            **shapes,
            "K": (self.n_visible, self.width),
            "W": (self.n_visible, self.n_visible),
            "h0": (self.n_visible,),
        }

    @property
    def n_parameters(self) -> int:
        """Number of weights."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    def init(self, seed: int) -> dict[str, np.ndarray]:
        r"""Draw initial weights as the paper does.

        :math:`J_0\sim N(0,0.1/N_v)`, :math:`J_{l\ge1}` Haar orthogonal, :math:`M_l` random permutations, :math:`K=W=0`,
        :math:`h_0=0`: the first loss is exactly one bit.

        Parameters
        ----------
        seed : int
            Seed of the draw.

        Returns
        -------
        dict name -> ndarray of float32
        """
        rng = np.random.default_rng(seed)
        weights = {}
        for name, shape in self.shapes.items():
            if name == "J0":
                drawn = rng.standard_normal(shape) * math.sqrt(INPUT_VARIANCE / self.n_visible)
            elif name.startswith("J"):
                q, r = np.linalg.qr(rng.standard_normal(shape))
                # QR fixes signs: without undoing it the matrix would not be Haar-distributed.
                drawn = q * np.sign(np.diag(r))
            elif name.startswith("M"):
                drawn = np.eye(self.width)[rng.permutation(self.width)]
            else:
                drawn = np.zeros(shape)
            weights[name] = drawn.astype(np.float32)
        return weights

    def __call__(self, params: dict[str, Any], inputs: Any) -> Any:
        """Evaluate the fields: (b, steps, n_visible) -> (b, steps, n_visible)."""
        top = self.features(params, inputs)[f"mu{self.depth}"]
        return top @ params["K"].T + inputs @ params["W"].T + params["h0"]

    def features(self, params: dict[str, Any], inputs: Any) -> dict[str, Any]:
        """Evaluate the hidden units: ``mu1``, ``mu2``, ..., each (b, steps, width)."""
        below, found = inputs, {}
        for layer in range(1, self.depth + 1):
            below = _recur(below @ params[f"J{layer - 1}"].T, params[f"M{layer}"])
            found[f"mu{layer}"] = below
        return found

    def orthogonalise(self, params: dict[str, Any]) -> dict[str, Any]:
        r"""Replace each :math:`M_l` by the nearest orthogonal matrix (of its polar decomposition).

        Parameters
        ----------
        params : dict name -> array
            Weights.

        Returns
        -------
        dict name -> array
        """
        return {name: _nearest_orthogonal(w) if name.startswith("M") else w for name, w in params.items()}


def _recur(drive: Any, matrix: Any) -> Any:
    # drive (b, steps, width) -> hidden units of the same shape.
    def step(before: Any, pushed: Any) -> tuple[Any, Any]:
        now = jnp.tanh(pushed + before @ matrix.T)
        return now, now

    start = jnp.zeros_like(drive[:, 0])
    return jnp.swapaxes(lax.scan(step, start, jnp.swapaxes(drive, 0, 1))[1], 0, 1)


def _nearest_orthogonal(matrix: Any) -> Any:
    u, _, vt = jnp.linalg.svd(matrix, full_matrices=False)
    return u @ vt


def bits_per_note(fields: Any, targets: Any) -> Any:
    r"""Mean code length of the next pattern, in bits per note and time step.

    :math:`\langle\log_2(1+e^{-2S_{t+1,i}H_{t,i}})\rangle` over sequences, steps and notes; 1 for :math:`H=0`.

    Parameters
    ----------
    fields : array, (b, steps, n_visible)
        H.
    targets : array of -1 and 1, (b, steps, n_visible)
        The next patterns.

    Returns
    -------
    scalar array
    """
    return jnp.mean(jax.nn.softplus(-2 * targets * fields)) / math.log(2)
