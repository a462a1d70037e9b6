"""Both adapters are Networks, and they agree with each other and with finite differences."""

from __future__ import annotations

import functools
import pickle

import numpy as np
import pytest
import torch
from trajstats_trainers.architectures.mlp import JaxMLP, mlp_init, torch_mlp
from trajstats_trainers.jax.adapter import JaxNetwork, cross_entropy
from trajstats_trainers.tasks.digits import mnist_digits
from trajstats_trainers.torch.adapter import TorchNetwork

from trajstats import Network
from trajstats.errors import ArgumentError, SchemaError, UnsupportedError

SIZES = (49, 6, 5, 10)
TOLERANCE = {"float32": 1e-5, "float64": 1e-10}


@functools.cache
def networks(dtype="float64", n=200, l2=1e-3):
    # Kept between tests, since JAX compiles anew for each. Batches of 100, and of 64 with a ragged last one.
    task = mnist_digits(pool=4)
    data = (task.inputs[:n], task.targets[:n])
    return [
        JaxNetwork(JaxMLP(SIZES), mlp_init(SIZES, 0), cross_entropy, data, dtype=dtype, batch_size=100, l2=l2),
        TorchNetwork(torch_mlp(SIZES), torch.nn.functional.cross_entropy, data, dtype=dtype, batch_size=100, l2=l2),
    ]


def weights(seed=3):
    rng = np.random.default_rng(seed)
    return np.concatenate([w.ravel() for w in mlp_init(SIZES, 0).values()]) + 0.05 * rng.standard_normal(395)


def relative(a, b):
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    return np.linalg.norm(a - b) / np.linalg.norm(b)


MEMBERS = {
    "loss": lambda net, w, x: net.loss(w),
    "gradient": lambda net, w, x: net.gradient(w),
    "batch gradient": lambda net, w, x: net.gradient(w, np.array([5, 3, 5])),
    "example gradients": lambda net, w, x: net.example_gradients(w, np.array([0, 7])),
    "outputs": lambda net, w, x: net.outputs(w, x),
    "input Jacobian": lambda net, w, x: net.input_jacobian(w, x),
    "D of layer 1": lambda net, w, x: net.jacobian_factors(w, x)[0][0],
    "D of layer 3": lambda net, w, x: net.jacobian_factors(w, x)[2][0],
    "hessian": lambda net, w, x: net.curvature(w, "hessian") @ np.eye(w.size)[:, :16],
    "gauss_newton": lambda net, w, x: net.curvature(w, "gauss_newton") @ np.eye(w.size)[:, :16],
    "fisher": lambda net, w, x: net.curvature(w, "fisher") @ np.eye(w.size)[:, :16],
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("member", MEMBERS)
def test_torch_and_jax_agree(member, dtype):
    w = weights()
    x = mnist_digits(pool=4).inputs[:9]
    in_jax, in_torch = (MEMBERS[member](net, w, x) for net in networks(dtype))
    assert relative(in_jax, in_torch) < TOLERANCE[dtype]


def test_same_layout():
    in_jax, in_torch = networks()
    assert list(in_jax.layers.values()) == list(in_torch.layers.values())
    for net in (in_jax, in_torch):
        assert isinstance(net, Network)
        assert (net.n_parameters, net.n_inputs, net.n_outputs, net.n_examples) == (395, 49, 10, 200)


@pytest.mark.parametrize("which", [0, 1], ids=["jax", "torch"])
def test_against_finite_differences(which):
    net = networks()[which]
    w, v = weights(), np.random.default_rng(1).standard_normal(395)
    # Central differences in float64: the best step is about eps^(1/3), the error about eps^(2/3) = 4e-11 of the scale.
    h = 1e-5
    slope = (net.loss(w + h * v) - net.loss(w - h * v)) / (2 * h)
    assert abs(slope - net.gradient(w) @ v) < 1e-7 * np.linalg.norm(v)
    bend = (net.gradient(w + h * v) - net.gradient(w - h * v)) / (2 * h)
    assert relative((net.curvature(w) @ np.tile(v[:, None], 16))[:, 7], bend) < 1e-7
    x = mnist_digits(pool=4).inputs[:2].astype(np.float64)
    dx = np.random.default_rng(2).standard_normal(x.shape)
    move = (net.outputs(w, x + h * dx) - net.outputs(w, x - h * dx)) / (2 * h)
    assert relative(np.einsum("boi,bi->bo", net.input_jacobian(w, x), dx), move) < 1e-7


@pytest.mark.parametrize("which", [0, 1], ids=["jax", "torch"])
def test_parts_fit_together(which):
    net, w = networks()[which], weights()
    x = mnist_digits(pool=4).inputs[:4]
    product = np.eye(49)
    for d, matrix in net.jacobian_factors(w, x):
        product = d[:, :, None] * (matrix @ product)
    assert relative(product, net.input_jacobian(w, x)) < 1e-12
    every = net.example_gradients(w, np.arange(200))
    # Example gradients and Fisher leave out the L2 term.
    assert relative(every.mean(axis=0) + 2e-3 * w, net.gradient(w)) < 1e-12
    assert relative(net.curvature(w, "fisher") @ np.eye(395)[:, :16], every.T @ every[:, :16] / 200) < 1e-12


def test_jax_ragged_batches():
    task = mnist_digits(pool=4)
    data = (task.inputs[:50], task.targets[:50])
    whole, ragged = (
        JaxNetwork(JaxMLP(SIZES), mlp_init(SIZES, 0), cross_entropy, data, dtype="float64", batch_size=size)
        for size in (50, 32)
    )
    assert abs(whole.loss(weights()) - ragged.loss(weights())) < 1e-12
    assert relative(ragged.gradient(weights()), whole.gradient(weights())) < 1e-12


@pytest.mark.parametrize("which", [0, 1], ids=["jax", "torch"])
def test_features(which):
    net, w = networks()[which], weights()
    x = mnist_digits(pool=4).inputs[:4]
    name = ["1", "4"][which]
    hidden = net.features(w, x, name)
    assert hidden.shape == (4, 5)
    assert relative(hidden @ w[-60:-10].reshape(10, 5).T + w[-10:], net.outputs(w, x)) < 1e-12
    with pytest.raises(ArgumentError, match="unknown layer"):
        net.features(w, x, "no such layer")


@pytest.mark.parametrize("which", [0, 1], ids=["jax", "torch"])
def test_pickles(which):
    net, w = networks()[which], weights()
    before = net.gradient(w)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(net)).gradient(w), before)


@pytest.mark.parametrize("which", [0, 1], ids=["jax", "torch"])
def test_bad_input(which):
    net = networks()[which]
    with pytest.raises(SchemaError, match=r"\(3,\).*\(395,\)"):
        net.loss(np.zeros(3))
    with pytest.raises(ArgumentError, match="unknown kind 'hesian'.*did you mean 'hessian'"):
        net.curvature(weights(), "hesian")


def test_no_factors_is_told():
    module = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 3), torch.nn.Flatten(), torch.nn.Linear(4, 2))
    net = TorchNetwork(module, torch.nn.functional.cross_entropy, (np.ones((3, 1, 4, 4), "float32"), np.zeros(3, int)))
    w = np.ones(net.n_parameters)
    assert net.input_jacobian(w, np.ones((2, 1, 4, 4), "float32")).shape == (2, 2, 16)
    with pytest.raises(UnsupportedError, match="Conv2d"):
        net.jacobian_factors(w, np.ones((2, 1, 4, 4), "float32"))
    plain = JaxNetwork(
        lambda p, x: x @ p["w"], {"w": np.zeros((4, 1))}, lambda o, t: (o - t).mean(), (np.ones((3, 4)),) * 2
    )
    with pytest.raises(UnsupportedError, match="jacobian_factors"):
        plain.jacobian_factors(np.zeros(4), np.ones((1, 4)))


def test_torch_threads_are_restored():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        networks()[1].loss(weights())
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_nested_jax_parameters_keep_their_own_order():
    params = {"z": {"w": np.full((2, 3), 1.0), "b": np.full(2, 2.0)}, "a": [np.full(1, 3.0), np.full(1, 4.0)]}

    def apply_fn(p, x):
        return (x @ p["z"]["w"].T + p["z"]["b"]) * p["a"][0] + p["a"][1]

    net = JaxNetwork(
        apply_fn, params, lambda o, t: ((o - t) ** 2).mean(), (np.ones((4, 3)), np.zeros((4, 2))), dtype="float64"
    )
    assert list(net.layers) == ["z.w", "z.b", "a.0", "a.1"]
    flat = np.array([1.0] * 6 + [2.0] * 2 + [3.0, 4.0])
    np.testing.assert_allclose(net.outputs(flat, np.ones((1, 3))), [[19.0, 19.0]])
