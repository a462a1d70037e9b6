"""Networks whose curvature is known in closed form, in plain NumPy, as the Network protocol wants them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse.linalg import LinearOperator, aslinearoperator


class Dense:
    """A loss w^T A w / 2: its Hessian is A at every weight vector."""

    def __init__(self, matrix, *, loss=0.0):
        self.matrix = np.asarray(matrix)
        self.n_parameters = len(self.matrix)
        self.n_examples = 1
        self.value = loss
        self.products = 0

    def loss(self, weights):
        return self.value

    def gradient(self, weights, indices=None):
        return self.matrix @ weights

    def curvature(self, weights, kind="hessian"):
        def matmat(v):
            self.products += v.shape[1]
            return self.matrix @ v.astype(self.matrix.dtype)

        n = self.n_parameters
        return LinearOperator(
            (n, n), matvec=lambda v: matmat(v.reshape(n, 1))[:, 0], matmat=matmat, dtype=self.matrix.dtype
        )


@dataclass
class _Linear:
    """A model linear in its weights: z = W x, W of shape (outputs, inputs), flattened in C order."""

    x: np.ndarray
    y: np.ndarray
    l2: float = 0.0

    @property
    def n_inputs(self):
        return self.x.shape[1]

    @property
    def n_examples(self):
        return len(self.x)

    @property
    def n_parameters(self):
        return self.n_outputs * self.n_inputs

    def _z(self, weights, indices):
        return self.x[indices] @ weights.reshape(self.n_outputs, self.n_inputs).T

    def loss(self, weights):
        z = self._z(weights, slice(None))
        return float(self.per_example(z, self.y).mean() + self.l2 * weights @ weights)

    def example_gradients(self, weights, indices):
        slope = self.slope(self._z(weights, indices), self.y[indices])
        return np.einsum("ao,ai->aoi", slope, self.x[indices]).reshape(len(slope), -1)

    def gradient(self, weights, indices=None):
        indices = np.arange(self.n_examples) if indices is None else indices
        return self.example_gradients(weights, indices).mean(axis=0) + 2 * self.l2 * weights

    def dense(self, weights, kind="hessian"):
        """The closed form: a sum of Kronecker products of the loss's curvature with x x^T."""
        if kind == "fisher":
            g = self.example_gradients(weights, np.arange(self.n_examples))
            return g.T @ g / self.n_examples
        curve = self.curve(self._z(weights, slice(None)), self.y)
        h = np.einsum("aop,ai,aj->oipj", curve, self.x, self.x) / self.n_examples
        return h.reshape(self.n_parameters, -1) + 2 * self.l2 * np.eye(self.n_parameters)

    def curvature(self, weights, kind="hessian"):
        return aslinearoperator(self.dense(weights, kind))


class LeastSquares(_Linear):
    """Mean over examples of the squared error, halved: y (n, outputs)."""

    @property
    def n_outputs(self):
        return self.y.shape[1]

    def per_example(self, z, y):
        return ((z - y) ** 2).sum(axis=1) / 2

    def slope(self, z, y):
        return z - y

    def curve(self, z, y):
        return np.broadcast_to(np.eye(self.n_outputs), (len(z), self.n_outputs, self.n_outputs))


class Logistic(_Linear):
    """Binary cross-entropy of one logit: y (n,) of 0 and 1."""

    n_outputs = 1

    def per_example(self, z, y):
        return np.logaddexp(0, z[:, 0]) - y * z[:, 0]

    def slope(self, z, y):
        return 1 / (1 + np.exp(-z)) - y[:, None]

    def curve(self, z, y):
        p = 1 / (1 + np.exp(-z))
        return (p * (1 - p))[:, :, None]


@dataclass
class SoftmaxLinear(_Linear):
    """Cross-entropy of a linear classifier: y (n,) of class labels."""

    n_outputs: int = 3

    def _p(self, z):
        e = np.exp(z - z.max(axis=1, keepdims=True))
        return e / e.sum(axis=1, keepdims=True)

    def per_example(self, z, y):
        return -np.log(self._p(z)[np.arange(len(z)), y])

    def slope(self, z, y):
        return self._p(z) - np.eye(self.n_outputs)[y]

    def curve(self, z, y):
        p = self._p(z)
        return np.einsum("ao,op->aop", p, np.eye(self.n_outputs)) - np.einsum("ao,ap->aop", p, p)
