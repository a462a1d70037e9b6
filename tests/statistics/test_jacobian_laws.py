"""Laws of wide nets against sampled nets: one sample's distance is of the order 1/N by the rigidity of eigenvalues."""

import numpy as np
import pytest

from trajstats import FussCatalan, JacobianLaw, RandomNet
from trajstats.theory.random_matrix.compare import ks_distance


@pytest.mark.slow
@pytest.mark.parametrize("depth", [1, 2, 5, 10])
def test_fuss_catalan_against_products_of_784(depth):
    # at N = 784 the deviation of one sample's distribution function is about 3/N
    net = RandomNet((784,) * (depth + 1), activation="linear", seed=depth)
    x = np.linalg.svd(net.jacobian(np.zeros((1, 784)))[0], compute_uv=False) ** 2
    assert ks_distance(x, FussCatalan(depth)) < 0.01


CASES = [
    ("gaussian", 1, {"activation": "tanh", "sigma_w2": 1.5, "sigma_b2": 0.1}),
    ("gaussian", 10, {"activation": "tanh", "sigma_w2": 1.5, "sigma_b2": 0.1}),
    ("gaussian", 4, {"activation": "relu", "sigma_w2": 2.0, "sigma_b2": 0.0}),
    ("orthogonal", 5, {"activation": "tanh", "sigma_w2": 1.2, "sigma_b2": 0.01}),
    ("orthogonal", 4, {"activation": "hard_tanh", "sigma_w2": 1.1, "sigma_b2": 0.05}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("weights", "depth", "settings"), CASES)
def test_deep_nets_against_the_solver(weights, depth, settings):
    # D depends on the input through N preactivations a layer: the mean over four nets has half of one net's scatter.
    # With flat pieces the rank is the least of `depth` binomial counts of N units of variance at most N/4 each. It
    # lies 1.03 standard deviations (depth four) below its limit: 0.023 of N = 500.
    flat = settings["activation"] in ("relu", "hard_tanh")
    law = JacobianLaw(depth, weights=weights, **settings)
    found = []
    for seed in range(4):
        net = RandomNet(
            (500,) * (depth + 1),
            law=weights,
            scale=np.sqrt(settings["sigma_w2"]),
            bias_scale=np.sqrt(settings["sigma_b2"]),
            activation=settings["activation"],
            seed=seed,
        )
        x = np.random.default_rng(1000 + seed).standard_normal(500)
        x *= np.sqrt(500) / np.linalg.norm(x)
        found.append(np.linalg.svd(net.jacobian(x[None])[0], compute_uv=False) ** 2)
    assert ks_distance(np.concatenate(found), law) < (0.043 if flat else 0.02)


@pytest.mark.slow
@pytest.mark.parametrize("widths", [(1.0, 2.0, 0.5, 0.7), (0.4, 0.7, 0.9, 0.8)])
def test_unequal_widths_and_variances(widths):
    scale2 = np.array([1.2, 2.0, 0.8])
    law = JacobianLaw(widths=widths, activation="tanh", sigma_w2=scale2, sigma_b2=0.05)
    sizes = [int(400 * w) for w in widths]
    found = []
    for seed in range(4):
        net = RandomNet(sizes, scale=np.sqrt(scale2), bias_scale=np.sqrt(0.05), seed=seed)
        x = np.random.default_rng(1000 + seed).standard_normal(sizes[0])
        x *= np.sqrt(sizes[0]) / np.linalg.norm(x)
        found.append(np.linalg.svd(net.jacobian(x[None])[0], compute_uv=False) ** 2)
    assert ks_distance(np.concatenate(found), law) < 0.03
