"""Both adapters give the same Jacobians by factors, by differentiation and by products with vectors."""

import numpy as np
import pytest
import torch
from trajstats_trainers.architectures.mlp import JaxMLP, mlp_init, torch_mlp
from trajstats_trainers.jax.adapter import JaxNetwork
from trajstats_trainers.jax.autoencoder import mean_square, train_autoencoder
from trajstats_trainers.torch.adapter import TorchNetwork

from trajstats import fixed_point_census, jacobian_esd, trajectory_dataset
from trajstats.estimators.jacobian._kernels import jacobian_product

SIZES = (6, 9, 6)


def networks():
    x = np.zeros((2, 6))
    made = JaxNetwork(JaxMLP(SIZES), mlp_init(SIZES, 0), mean_square, (x, x), dtype="float64")
    module = torch_mlp(SIZES)
    return {"jax": made, "torch": TorchNetwork(module, torch.nn.functional.mse_loss, (x, x), dtype="float64")}


@pytest.mark.parametrize("framework", ["jax", "torch"])
def test_factors_jacobian_and_operator_agree(framework):
    net = networks()[framework]
    rng = np.random.default_rng(0)
    weights, x = rng.standard_normal(net.n_parameters) / 2, rng.standard_normal((3, 6))
    dense = net.input_jacobian(weights, x)
    np.testing.assert_allclose(jacobian_product(net.jacobian_factors(weights, x), slice(None)), dense, atol=1e-12)
    operator = net.jacobian_operator(weights, x[1])
    np.testing.assert_allclose(operator @ np.eye(6), dense[1], atol=1e-12)
    np.testing.assert_allclose(operator.H @ np.eye(6), dense[1].T, atol=1e-12)


@pytest.mark.parametrize("activation", ["tanh", "sigmoid"])
def test_slopes_of_saturated_units_keep_their_digits(activation):
    # at fields of 25 the slope is 1e-21 or 1e-11: 1 - y^2 would give zero, y (1 - y) five digits
    sizes, x = (3, 3), np.array([[25.0, -25.0, 3.0]])
    start = {"0.weight": np.eye(3), "0.bias": np.zeros(3)}
    model, module = (
        JaxMLP(sizes, activation, activate_output=True),
        torch_mlp(sizes, activation=activation, activate_output=True),
    )
    flat = np.concatenate([np.eye(3).ravel(), np.zeros(3)])
    half = x / 2 if activation == "sigmoid" else x
    expected = (0.25 if activation == "sigmoid" else 1.0) / np.cosh(half) ** 2
    for net in (
        JaxNetwork(model, start, mean_square, (x, x), dtype="float64"),
        TorchNetwork(module, torch.nn.functional.mse_loss, (x, x), dtype="float64"),
    ):
        np.testing.assert_allclose(net.jacobian_factors(flat, x)[0][0], expected, rtol=1e-13)


def test_both_frameworks_have_the_same_spectra_and_fixed_points():
    rng = np.random.default_rng(1)
    jax_net, torch_net = networks()["jax"], networks()["torch"]
    weights = rng.standard_normal(jax_net.n_parameters) * 0.7
    x = rng.standard_normal((2, 6))
    run, same = (trajectory_dataset(weights[None], step=[0], layers=net.layers) for net in (jax_net, torch_net))
    one, two = jacobian_esd(jax_net, run, x, rng=0), jacobian_esd(torch_net, same, x, rng=0)
    np.testing.assert_allclose(one.log_singular_values, two.log_singular_values, atol=1e-10)
    lanczos = jacobian_esd(torch_net, same, x, rng=0, method="lanczos", order=6)
    np.testing.assert_allclose(lanczos.spectral_norm, one.spectral_norm, rtol=1e-8)
    a = fixed_point_census(jax_net, 6, weights=run, starts=60, rng=0)
    b = fixed_point_census(torch_net, 6, weights=same, starts=60, rng=0)
    np.testing.assert_allclose(a.point, b.point, atol=1e-8)


def test_an_autoencoder_learns_its_digits_and_is_a_map(tmp_path):
    net, run, digits = train_autoencoder(
        tmp_path / "ae.zarr", n_examples=4, hidden=(16,), pool=7, steps=300, progress=None
    )
    loss = run.loss.values[0]
    assert loss[-1] < 0.5 * loss[0]
    last = run.isel(replica=0, step=-1)
    census = fixed_point_census(net, digits.shape[1], weights=last, starts=digits, rng=0)
    assert census.sizes["start"] == 4
    assert net.outputs(last.weights.values, digits).dtype == np.float64
