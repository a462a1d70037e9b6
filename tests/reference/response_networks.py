"""Small NumPy networks with derivatives written by hand, for the response, feature-space and fragility estimators."""

from __future__ import annotations

import numpy as np


class LinearNet:
    """f_o(x) = w_o . x: the tangent kernel is x . x' for ever."""

    def __init__(self, n_inputs, n_outputs=1):
        self.n_inputs, self.n_outputs = n_inputs, n_outputs
        self.n_parameters = n_inputs * n_outputs

    def _matrix(self, w):
        return np.asarray(w).reshape(self.n_outputs, self.n_inputs)

    def outputs(self, w, x):
        return x @ self._matrix(w).T

    def output_jvp(self, w, x, tangents):
        return np.stack([x @ self._matrix(v).T for v in tangents])

    def output_vjp(self, w, x, cotangents):
        return np.einsum("bo,bi->boi", cotangents, x).reshape(len(x), -1)

    def input_jacobian(self, w, x):
        return np.broadcast_to(self._matrix(w), (len(x), self.n_outputs, self.n_inputs))

    def features(self, w, x, layer):
        return x @ self._matrix(w).T


class ProductNet:
    """f(x) = a w x with weights (a, w): the kernel is (a^2 + w^2) x x'."""

    n_parameters, n_inputs, n_outputs = 2, 1, 1

    def outputs(self, weights, x):
        return weights[0] * weights[1] * x

    def output_jvp(self, weights, x, tangents):
        a, w = weights
        return np.stack([(v[0] * w + v[1] * a) * x for v in tangents])

    def output_vjp(self, weights, x, cotangents):
        a, w = weights
        return cotangents * x * np.array([[w, a]])


class TanhNet:
    """f(x) = V tanh(U x), weights U then V."""

    def __init__(self, n_inputs, width, n_outputs):
        self.n_inputs, self.width, self.n_outputs = n_inputs, width, n_outputs
        self.n_parameters = width * (n_inputs + n_outputs)
        self.layers = {"U": (width, n_inputs), "V": (n_outputs, width)}
        self.most_vectors = 0

    def _parts(self, w):
        cut = self.width * self.n_inputs
        return np.asarray(w)[:cut].reshape(self.width, -1), np.asarray(w)[cut:].reshape(self.n_outputs, -1)

    def outputs(self, w, x):
        u, v = self._parts(w)
        return np.tanh(x @ u.T) @ v.T

    def features(self, w, x, layer):
        return np.tanh(x @ self._parts(w)[0].T)

    def output_jvp(self, w, x, tangents):
        self.most_vectors = max(self.most_vectors, len(tangents))
        u, v = self._parts(w)
        h = np.tanh(x @ u.T)
        out = []
        for tangent in tangents:
            du, dv = self._parts(tangent)
            out.append(h @ dv.T + ((1 - h**2) * (x @ du.T)) @ v.T)
        return np.stack(out)

    def output_vjp(self, w, x, cotangents):
        self.most_vectors = max(self.most_vectors, len(x))
        u, v = self._parts(w)
        h = np.tanh(x @ u.T)
        back = (cotangents @ v) * (1 - h**2)
        du = np.einsum("bh,bi->bhi", back, x).reshape(len(x), -1)
        dv = np.einsum("bo,bh->boh", cotangents, h).reshape(len(x), -1)
        return np.concatenate([du, dv], axis=1)

    def input_jacobian(self, w, x):
        u, v = self._parts(w)
        h = np.tanh(x @ u.T)
        return np.einsum("oh,bh,hi->boi", v, 1 - h**2, u)
