"""Families of constant count against brute force, and each architecture in torch against the same in JAX."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from trajstats_trainers.architectures.mlp import (
    JaxMLP,
    constant_count_family,
    equal_dimension_mlp,
    mlp_init,
    mlp_shapes,
    n_parameters,
    torch_mlp,
)
from trajstats_trainers.architectures.smallnet import (
    VARIANTS,
    JaxSmallNet,
    smallnet_init,
    smallnet_shapes,
    torch_smallnet,
)
from trajstats_trainers.jax.adapter import JaxNetwork, cross_entropy
from trajstats_trainers.recording import flatten
from trajstats_trainers.torch.adapter import TorchNetwork

from trajstats.errors import ArgumentError


def test_paper_net_has_its_count():
    assert n_parameters(mlp_shapes((784, 5, 5, 5, 10))) == 4045


@pytest.mark.parametrize(("depth", "target"), [(1, 4_045), (2, 4_045), (4, 4_100), (3, 700), (2, 50_000)])
def test_family_is_nearest_among_nearly_equal_widths(depth, target):
    n_inputs, n_outputs = 30 if target == 700 else 196, 10
    found = constant_count_family(n_inputs, n_outputs, depths=[depth], n_parameters=target)[depth]
    counts = [
        n_parameters(mlp_shapes((n_inputs, *(width + e for e in extra), n_outputs)))
        for width in range(1, 300)
        for extra in itertools.product((0, 1), repeat=depth)
    ]
    assert abs(found.n_parameters - target) == min(abs(count - target) for count in counts)
    assert found.n_parameters == n_parameters(mlp_shapes(found.sizes))
    assert found.deviation == pytest.approx(found.n_parameters / target - 1)
    hidden = found.sizes[1:-1]
    assert len(hidden) == depth
    assert max(hidden) - min(hidden) <= 1


def test_family_that_cannot_be():
    with pytest.raises(ArgumentError, match="ask for more, or fewer layers"):
        constant_count_family(784, 10, depths=[3], n_parameters=500)
    with pytest.raises(ArgumentError, match="depth=0"):
        constant_count_family(784, 10, depths=[0], n_parameters=5_000)


def both(module, model, start, inputs):
    """Outputs and gradient in both frameworks at the same flat vector."""
    data = (inputs, np.arange(len(inputs), dtype=np.int32) % 10)
    in_torch = TorchNetwork(module, torch.nn.functional.cross_entropy, data)
    in_jax = JaxNetwork(model, start, cross_entropy, data)
    flat = flatten(start)
    assert list(in_torch.layers.values()) == list(in_jax.layers.values())
    return [(net.outputs(flat, inputs), net.gradient(flat)) for net in (in_torch, in_jax)]


@pytest.mark.parametrize("activation", ["tanh", "relu", "sigmoid", "linear"])
def test_mlp_is_the_same_in_both_frameworks(activation):
    sizes = (12, 7, 6, 10)
    inputs = np.random.default_rng(0).standard_normal((20, 12)).astype(np.float32)
    one, two = both(torch_mlp(sizes, activation=activation), JaxMLP(sizes, activation), mlp_init(sizes, 1), inputs)
    for a, b in zip(one, two, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_equal_dimension_net_is_the_same_in_both_frameworks():
    model = equal_dimension_mlp(10, 3)
    inputs = np.random.default_rng(0).standard_normal((20, 10)).astype(np.float32)
    module = torch_mlp(model.sizes, activate_output=True)
    one, two = both(module, model, mlp_init(model.sizes, 1), inputs)
    np.testing.assert_allclose(one[0], two[0], rtol=1e-5, atol=1e-5)
    assert np.abs(one[0]).max() < 1  # the last layer is activated


@pytest.mark.parametrize(("variant", "count"), [("mnist", 31_770), ("cifar", 56_890)])
def test_smallnet_is_the_same_in_both_frameworks(variant, count):
    start = smallnet_init(variant, 3)
    assert n_parameters(smallnet_shapes(variant)) == count == sum(w.size for w in start.values())
    module = torch_smallnet(variant)
    assert {n: tuple(p.shape) for n, p in module.named_parameters()} == smallnet_shapes(variant)
    pixels = int(np.prod(VARIANTS[variant].image))
    inputs = np.random.default_rng(0).standard_normal((12, pixels)).astype(np.float32)
    one, two = both(module, JaxSmallNet(variant), start, inputs)
    for a, b in zip(one, two, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_smallnet_features_are_the_layers_of_torch():
    start = smallnet_init("mnist", 0)
    inputs = np.random.default_rng(0).standard_normal((4, 784)).astype(np.float32)
    data = (inputs, np.zeros(4, np.int32))
    flat = flatten(start)
    in_torch = TorchNetwork(torch_smallnet(), torch.nn.functional.cross_entropy, data)
    in_jax = JaxNetwork(JaxSmallNet(), start, cross_entropy, data)
    for in_one, in_other in (("relu1", "conv1"), ("relu2", "conv2"), ("relu3", "fc1"), ("fc2", "fc2")):
        np.testing.assert_allclose(
            in_torch.features(flat, inputs, in_one), in_jax.features(flat, inputs, in_other), rtol=1e-5, atol=1e-5
        )


def test_unknown_variant():
    for make in (smallnet_shapes, JaxSmallNet, torch_smallnet):
        with pytest.raises(ArgumentError, match="mnist"):
            make("imagenet")
