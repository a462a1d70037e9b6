"""A multilayer perceptron in NumPy with the members of the Network protocol that Jacobians and maps need."""

from __future__ import annotations

import numpy as np

from trajstats.theory.random_matrix._activations import activation


class NumpyMLP:
    """x -> phi(W x + b) layer by layer, the activation on every layer; flat weights W1, b1, W2, b2, ..."""

    def __init__(self, sizes, kind="tanh"):
        self.sizes, self.kind = tuple(sizes), activation(kind)
        self.layers = {}
        for i, (before, after) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
            self.layers[f"{i}.weight"], self.layers[f"{i}.bias"] = (after, before), (after,)
        self.n_inputs, self.n_outputs = sizes[0], sizes[-1]
        self.n_parameters = sum(int(np.prod(shape)) for shape in self.layers.values())

    def pairs(self, weights):
        out, at = [], 0
        for before, after in zip(self.sizes[:-1], self.sizes[1:], strict=True):
            matrix = weights[at : at + before * after].reshape(after, before)
            out.append((matrix, weights[at + before * after : at + before * after + after]))
            at += before * after + after
        return out

    def outputs(self, weights, inputs):
        for matrix, bias in self.pairs(weights):
            inputs = self.kind.function(inputs @ matrix.T + bias)
        return inputs

    def jacobian_factors(self, weights, inputs):
        out = []
        for matrix, bias in self.pairs(weights):
            field = inputs @ matrix.T + bias
            out.append((self.kind.derivative(field), matrix))
            inputs = self.kind.function(field)
        return out

    def input_jacobian(self, weights, inputs):
        step = 1e-6
        columns = [
            (self.outputs(weights, inputs + step * e) - self.outputs(weights, inputs - step * e)) / (2 * step)
            for e in np.eye(self.n_inputs)
        ]
        return np.stack(columns, axis=-1)


def draw(sizes, *, scale=1.0, bias=0.0, law="gaussian", seed=0):
    """Flat random weights, W of scale * N^(-1/2)."""
    rng = np.random.default_rng(seed)
    parts = []
    for before, after in zip(sizes[:-1], sizes[1:], strict=True):
        x = rng.standard_normal((after, before)) if law == "gaussian" else rng.standard_cauchy((after, before))
        parts += [(scale * x / np.sqrt(before)).ravel(), bias * rng.standard_normal(after)]
    return np.concatenate(parts)
