"""The training response: exact kernels, agreement of the two methods, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from tests.reference.response_networks import LinearNet, ProductNet, TanhNet
from trajstats import fit_response_decay, separate_response, training_response
from trajstats.data.schema import trajectory_dataset
from trajstats.errors import ArgumentError, FitError, NonFiniteError, SchemaError


def run_of(weights, step=None, **more):
    weights = np.asarray(weights, dtype=np.float64)
    return trajectory_dataset(weights, step=np.arange(weights.shape[-2]) if step is None else step, **more)


def tanh_run(seed=0, steps=3, replicas=1):
    net = TanhNet(4, 6, 3)
    rng = np.random.default_rng(seed)
    run = run_of(rng.normal(size=(replicas, steps, net.n_parameters)), layers=net.layers)
    return net, run, rng.normal(size=(5, 4)), rng.normal(size=(7, 4))


@pytest.mark.parametrize("method", ["kernel", "finite_step"])
def test_a_linear_model_has_the_kernel_of_its_inputs_for_ever(method):
    rng = np.random.default_rng(0)
    x, probes = rng.normal(size=(3, 5)), rng.normal(size=(4, 5))
    run = run_of(rng.normal(size=(2, 6, 10)))
    found = training_response(LinearNet(5, 2), run, x, probes, method=method, outputs="each", eta=0.01).response
    assert found.dims == ("replica", "step", "input", "probe", "output")
    expected = np.broadcast_to((x @ probes.T)[None, None, :, :, None], found.shape)
    np.testing.assert_allclose(found, expected, atol=1e-11)


def test_the_trace_is_the_sum_over_outputs():
    net, run, x, probes = tanh_run()
    each = training_response(net, run, x, probes, outputs="each").response
    trace = training_response(net, run, x, probes).response
    np.testing.assert_allclose(trace, each.sum("output"), rtol=1e-12)


def test_the_kernel_is_the_product_of_gradients():
    net, run, x, probes = tanh_run()
    w = run.weights.values[0, 1]
    h = 1e-6

    def full(at):
        return np.array([(net.outputs(w + h * e, at) - net.outputs(w - h * e, at)) / (2 * h) for e in np.eye(w.size)])

    expected = np.einsum("pao,pbo->ab", full(x), full(probes))
    found = training_response(net, run, x, probes, steps=[1]).response.values[0, 0]
    np.testing.assert_allclose(found, expected, atol=1e-7)  # central differences: h^2


def test_finite_steps_tend_to_the_kernel_in_proportion_to_eta():
    net, run, x, probes = tanh_run()
    kernel = training_response(net, run, x, probes).response
    gaps, measured = [], []
    for eta in (4e-3, 2e-3, 1e-3):
        step = training_response(net, run, x, probes, method="finite_step", eta=eta)
        gaps.append(float(np.abs(step.response - kernel).max()))
        measured.append(float(step.nonlinearity.max()))
    np.testing.assert_allclose([gaps[0] / gaps[1], gaps[1] / gaps[2]], 2, rtol=0.05)
    np.testing.assert_allclose(measured[0] / measured[1], 2, rtol=0.05)


def test_layers_add_up_to_the_whole():
    net, run, x, probes = tanh_run()
    by_layer = training_response(net, run, x, probes, per="layer").response
    assert by_layer.layer.values.tolist() == ["U", "V"]
    np.testing.assert_allclose(by_layer.sum("layer"), training_response(net, run, x, probes).response, rtol=1e-12)


def test_blocks_bound_what_is_held_and_change_nothing():
    net, run, x, probes = tanh_run()
    whole = training_response(net, run, x, probes).response
    net.most_vectors = 0
    small = training_response(net, run, x, probes, block_bytes=2 * 2 * 8 * net.n_parameters).response
    assert net.most_vectors == 2
    np.testing.assert_allclose(small, whole, rtol=1e-12)  # BLAS sums in another order
    with pytest.raises(ArgumentError, match="block_bytes"):
        training_response(net, run, x, probes, block_bytes=100)


def test_replicas_are_not_mixed():
    net, run, x, probes = tanh_run(replicas=3)
    together = training_response(net, run, x, probes).response
    for r in range(3):
        np.testing.assert_array_equal(together[r], training_response(net, run.isel(replica=[r]), x, probes).response[0])


def product_descent(eta, steps, s=2.0, noise=0.0, seed=0, start=(1.5, 0.2)):
    # Gradient descent on (a w - s)^2 / 2, the label redrawn with noise at every step.
    rng = np.random.default_rng(seed)
    a, w = start
    path = [(a, w)]
    for _ in range(steps):
        error = a * w - s - noise * rng.standard_normal()
        a, w = a - eta * error * w, w - eta * error * a
        path.append((a, w))
    return np.array(path)


def test_two_layer_product_ends_at_the_kernel_its_conserved_quantity_gives():
    eta = 1e-3
    path = product_descent(eta, 8000)
    conserved = path[0, 0] ** 2 - path[0, 1] ** 2
    run = run_of(path[[0, 4000, 8000]], step=[0, 4000, 8000])
    found = training_response(ProductNet(), run, [[2.0]], [[3.0]]).response.values.ravel()
    # Gradient descent keeps a^2 - w^2 up to O(eta); at convergence a w = s.
    assert found[-1] == pytest.approx(6 * np.sqrt(conserved**2 + 4 * 2.0**2), rel=5 * eta)
    np.testing.assert_allclose(found, 6 * (path[[0, 4000, 8000]] ** 2).sum(axis=1), rtol=1e-12)


def test_label_noise_makes_the_conserved_quantity_of_the_product_decay():
    quiet = product_descent(0.02, 4000)
    noisy = product_descent(0.02, 4000, noise=1.0, seed=1)
    gap = lambda path: path[-1, 0] ** 2 - path[-1, 1] ** 2  # noqa: E731
    # Per step (a^2 - w^2) shrinks by eta^2 noise^2: exp(-4000 * 4e-4) = 0.2; descent alone keeps it to O(eta).
    assert abs(gap(quiet)) > 0.9 * (1.5**2 - 0.2**2)
    assert abs(gap(noisy)) < 0.4 * (1.5**2 - 0.2**2)
    x = [[1.0]]
    theta = [
        training_response(ProductNet(), run_of(p[[0, -1]]), x, x).response.values[0, -1, 0, 0] for p in (quiet, noisy)
    ]
    assert theta[1] < theta[0]


def logistic_descent(steps, eta=0.5):
    # One direction of separable data: w grows as ln t and the loss derivative falls as 1 / t.
    w, path = 0.0, []
    for _ in range(steps):
        path.append([w])
        w += eta / (1 + np.exp(w))
    return np.array(path)


def test_logistic_loss_on_separable_data_ages_only_until_the_loss_derivative_is_divided_out():
    steps = np.unique(np.geomspace(1, 20_000, 30).astype(int))
    path = logistic_descent(20_001)[steps]
    run = run_of(path, step=steps)
    x = np.array([[1.0]])
    theta = training_response(LinearNet(1), run, x, x, method="finite_step", eta=0.1).response
    plain = theta.values.ravel() / (1 + np.exp(path[:, 0]))
    np.testing.assert_allclose(theta, 1.0, rtol=1e-12)
    slope = np.polyfit(np.log(steps[-12:]), np.log(plain[-12:]), 1)[0]
    assert slope == pytest.approx(-1, abs=0.05)  # 1 / t up to logarithms
    split = xr_decay(plain, steps)
    law = fit_response_decay(split)
    assert law.law.values[law.weight.argmax("law").item()] == "power_law"
    assert law.exponent.item() == pytest.approx(1, abs=0.1)


def xr_decay(values, steps):
    import xarray as xr

    decay = (("replica", "stage", "step"), np.asarray(values)[None, None])
    return xr.Dataset({"decay": decay}, coords={"step": steps, "stage": ["whole"]})


def test_an_eta_beyond_the_linear_regime_is_measured_and_refused():
    net, run, x, probes = tanh_run()
    with pytest.raises(FitError, match="leaves the linear regime.*try eta"):
        training_response(net, run, x, probes, method="finite_step", eta=5.0)
    found = training_response(net, run, x, probes, method="finite_step", eta=5.0, max_nonlinearity=np.inf)
    assert float(found.nonlinearity.max()) > 0.1


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"method": "kernal"}, ArgumentError, "did you mean 'kernel'"),
        ({"outputs": "all"}, ArgumentError, "unknown outputs"),
        ({"eta": 0.0}, ArgumentError, "eta=0.0"),
        ({"eta": float("nan")}, ArgumentError, "eta=nan"),
        ({"steps": [7]}, ArgumentError, "nearest saved one is 2"),
        ({"steps": []}, ArgumentError, "empty"),
    ],
)
def test_bad_arguments_are_named(change, error, match):
    net, run, x, probes = tanh_run()
    with pytest.raises(error, match=match):
        training_response(net, run, x, probes, **change)


def test_bad_data_are_named():
    net, run, x, probes = tanh_run()
    with pytest.raises(ArgumentError, match="inputs have shape"):
        training_response(net, run, x[:, :2], probes)
    with pytest.raises(NonFiniteError, match="probes"):
        training_response(net, run, x, probes * np.nan)
    with pytest.raises(SchemaError, match="give the network of this run"):
        training_response(LinearNet(4), run, x, probes)
    broken = run.copy(deep=True)
    broken.weights[0, 1, 0] = np.nan
    with pytest.raises(NonFiniteError, match="replica 0, step 1"):
        training_response(net, broken, x, probes)


def test_the_split_of_a_linear_model_is_constant_and_complete():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(6, 4))
    response = training_response(LinearNet(4), run_of(rng.normal(size=(1, 8, 4))), x, x)
    split = separate_response(response)
    assert split.unexplained.item() < 1e-12
    np.testing.assert_allclose(split.decay, float(split.decay[0, 0, 0]), rtol=1e-10)
    assert float((split.kernel**2).mean()) == pytest.approx(1)
    np.testing.assert_allclose((split.decay * split.kernel).sel(stage="whole"), response.response, atol=1e-10)
