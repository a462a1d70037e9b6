"""The Network protocol: what an estimator may ask of a network, with NumPy arrays at the border.

`TorchNetwork` and `JaxNetwork` implement it; anything else with these members works as well. Weights are always the
flat vector of the trajectory store.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from scipy.sparse.linalg import LinearOperator

CurvatureKind = Literal["hessian", "gauss_newton", "fisher"]
CURVATURE_KINDS: tuple[CurvatureKind, ...] = ("hessian", "gauss_newton", "fisher")


@runtime_checkable
class Network(Protocol):
    r"""A network, its loss and its data, as a function of the flat weight vector.

    With :math:`f_w(x)` the outputs, :math:`\ell` the loss of one example and :math:`n` examples,
    :math:`L(w)=\frac1n\sum_a\ell(f_w(x_a),y_a)+\lambda\sum_iw_i^2` (no :math:`1/n` where the loss is a sum).
    Every member takes `weights` as an array (n_parameters,) and returns NumPy arrays in the network's precision.

    Notes
    -----
    ``layers`` is what weights are matched by, never their position: a run whose layers have the same names and shapes
    in another order is reordered, any other is refused. An object without it is taken to have the run's order, with a
    warning.

    Optional members: ``buffers`` (mapping name -> shape, state that is not trained, such as running statistics) and
    ``with_buffers(mapping name -> array)``, which returns the same network with those values and leaves this one as it
    is; estimators give it the buffers of each checkpoint. ``tied`` (mapping of names to names) lists further names of
    tensors that have several. ``jacobian_operator(weights, input)``, ``threads``, ``reduction``.

    An implementation is picklable, builds its computation graph on first use in each process, and does not change the
    process's thread settings beyond its own calls.
    """

    @property
    def n_parameters(self) -> int:
        """Number of weights, the length of the flat vector."""
        ...

    @property
    def n_inputs(self) -> int:
        """Number of input features of one example."""
        ...

    @property
    def n_outputs(self) -> int:
        """Number of outputs of one example."""
        ...

    @property
    def n_examples(self) -> int:
        """Number of examples of the network's data set."""
        ...

    @property
    def layers(self) -> Mapping[str, tuple[int, ...]]:
        """Name -> shape of each weight tensor, in the order of the flat vector."""
        ...

    def loss(self, weights: np.ndarray) -> float:
        """Evaluate the loss over the network's data set, batched inside."""
        ...

    def gradient(self, weights: np.ndarray, indices: np.ndarray | None = None) -> np.ndarray:
        """Differentiate the loss over all examples, or over those at `indices`: (n_parameters,)."""
        ...

    def curvature(self, weights: np.ndarray, kind: CurvatureKind = "hessian") -> LinearOperator:
        """Linearise once at these weights; ``matmat(V)`` takes (n_parameters, k) in one batched call."""
        ...

    def example_gradients(self, weights: np.ndarray, indices: np.ndarray) -> np.ndarray:
        """Differentiate each example's share of the loss: (b, n_parameters), no L2 term; their mean is the gradient."""
        ...

    def outputs(self, weights: np.ndarray, inputs: np.ndarray) -> np.ndarray:
        """Evaluate the network: (b, n_outputs)."""
        ...

    def output_jvp(self, weights: np.ndarray, inputs: np.ndarray, tangents: np.ndarray) -> np.ndarray:
        """Differentiate the outputs along weight directions (k, n_parameters): (k, b, n_outputs)."""
        ...

    def output_vjp(self, weights: np.ndarray, inputs: np.ndarray, cotangents: np.ndarray) -> np.ndarray:
        """Differentiate c_a . f(x_a) with respect to the weights, cotangents c (b, n_outputs): (b, n_parameters)."""
        ...

    def features(self, weights: np.ndarray, inputs: np.ndarray, layer: str) -> np.ndarray:
        """Evaluate the activations of a named layer: (b, width)."""
        ...

    def input_jacobian(self, weights: np.ndarray, inputs: np.ndarray) -> np.ndarray:
        """Differentiate outputs with respect to inputs: (b, n_outputs, n_inputs)."""
        ...

    def jacobian_factors(self, weights: np.ndarray, inputs: np.ndarray) -> Sequence[tuple[np.ndarray, np.ndarray]]:
        """Give the factors of the input Jacobian, first layer first.

        Each is a pair D_l (b, width) and W_l (width, width of the layer before), with J = D_L W_L ... D_1 W_1. Raises
        ``UnsupportedError`` where the architecture has no such product.
        """
        ...
