"""Products with the derivative of the outputs by the weights: against finite differences, alike in both frameworks."""

import jax
import numpy as np
import pytest
import torch
from trajstats_trainers.architectures.mlp import JaxMLP, mlp_init
from trajstats_trainers.jax.adapter import JaxNetwork, cross_entropy
from trajstats_trainers.torch.adapter import TorchNetwork

from trajstats.network import Network

SIZES = (5, 4, 3)


def _torch(x, y):
    module = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3))
    return TorchNetwork(module, torch.nn.functional.cross_entropy, (x, y), dtype="float64")


def _jax(x, y):
    return JaxNetwork(JaxMLP(SIZES), mlp_init(SIZES, 0), cross_entropy, (x, y), dtype="float64")


@pytest.fixture(params=[_torch, _jax], ids=["torch", "jax"])
def network(request):
    rng = np.random.default_rng(0)
    return request.param(rng.normal(size=(6, 5)), rng.integers(3, size=6))


def _weights(network):
    return np.random.default_rng(1).normal(size=network.n_parameters) * 0.5


def test_both_adapters_satisfy_the_protocol(network):
    assert isinstance(network, Network)


def test_jvp_is_the_directional_derivative(network):
    rng = np.random.default_rng(2)
    w, x = _weights(network), rng.normal(size=(4, 5))
    v = rng.normal(size=(20, network.n_parameters))  # more than one call's worth of vectors
    h = 1e-5
    expected = [(network.outputs(w + h * d, x) - network.outputs(w - h * d, x)) / (2 * h) for d in v]
    found = network.output_jvp(w, x, v)
    assert found.shape == (20, 4, 3)
    np.testing.assert_allclose(found, expected, atol=1e-8)  # central difference: h^2 truncation


class InPlace(torch.nn.Module):
    """Changes a constant in place: torch.func.linearize alone is silently wrong here from its second call on."""

    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Linear(5, 4), torch.nn.Linear(4, 3)

    def forward(self, x):
        scale = torch.ones(4, dtype=x.dtype)
        scale.mul_(2.0)
        return self.second(torch.tanh(self.first(x)) * scale)


def test_jvp_is_right_beyond_the_first_call():
    rng = np.random.default_rng(5)
    x = rng.normal(size=(6, 5))
    network = TorchNetwork(InPlace(), torch.nn.functional.cross_entropy, (x, rng.integers(3, size=6)), dtype="float64")
    w, c = _weights(network), rng.normal(size=(6, 3))
    v = rng.normal(size=(40, network.n_parameters))  # three calls' worth of vectors
    found = np.einsum("kao,ao->ka", network.output_jvp(w, x, v), c)
    np.testing.assert_allclose(found, v @ network.output_vjp(w, x, c).T, atol=1e-12)


def test_vjp_is_the_transpose_of_jvp(network):
    rng = np.random.default_rng(3)
    w, x, c = _weights(network), rng.normal(size=(4, 5)), rng.normal(size=(4, 3))
    v = rng.normal(size=(2, network.n_parameters))
    rows = network.output_vjp(w, x, c)
    assert rows.shape == (4, network.n_parameters)
    np.testing.assert_allclose(v @ rows.T, np.einsum("kao,ao->ka", network.output_jvp(w, x, v), c), atol=1e-12)


def test_the_frameworks_agree():
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(6, 5)), rng.integers(3, size=6)
    one, other = _torch(x, y), _jax(x, y)
    w, c = _weights(one), rng.normal(size=(6, 3))
    np.testing.assert_allclose(one.output_vjp(w, x, c), other.output_vjp(w, x, c), atol=1e-12)


def test_x64_stays_local():
    before = jax.config.jax_enable_x64
    net = _jax(np.ones((2, 5)), np.zeros(2, dtype=int))
    net.output_jvp(_weights(net), np.ones((1, 5)), np.ones((1, net.n_parameters)))
    assert jax.config.jax_enable_x64 == before
