"""The deep recurrent net against the equations in plain NumPy, and training it under its constraint."""

from __future__ import annotations

import json

import numpy as np
import pytest
from trajstats_trainers.architectures.deep_rnn import DeepRNN, bits_per_note
from trajstats_trainers.jax.adapter import JaxNetwork
from trajstats_trainers.jax.sgd import train_jax
from trajstats_trainers.recording import batch_order, flatten, unflatten

import trajstats as ts

NET = DeepRNN(n_visible=6, width=4, depth=3)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(3)
    return rng.standard_normal((9, 7, 6)).astype("f4"), np.where(rng.random((9, 7, 6)) < 0.3, 1, -1).astype("i4")


@pytest.fixture(scope="module")
def weights():
    # Away from the start, where K = W = 0 hides the hidden units.
    rng = np.random.default_rng(4)
    return {name: 0.5 * rng.standard_normal(shape) for name, shape in NET.shapes.items()}


def fields(weights, sequence):
    """Evaluate the equations of the paper, one time step and one layer after the other."""
    hidden, out = [np.zeros(NET.width)] * NET.depth, []
    for visible in sequence:
        below = visible
        for layer in range(NET.depth):
            hidden[layer] = np.tanh(weights[f"J{layer}"] @ below + weights[f"M{layer + 1}"] @ hidden[layer])
            below = hidden[layer]
        out.append(weights["K"] @ below + weights["W"] @ visible + weights["h0"])
    return np.array(out)


def bits(weights, data):
    """Minus log2 of the probability of the targets, per note and step."""
    h = np.array([fields(weights, sequence) for sequence in data[0].astype(float)])
    return -np.log2(np.exp(data[1] * h) / (2 * np.cosh(h))).mean()


def test_loss_follows_the_equations(data, weights):
    network = JaxNetwork(NET, NET.init(0), bits_per_note, data, dtype="float64")
    assert network.loss(flatten(weights)) == pytest.approx(bits(weights, data), rel=1e-12)
    expected = np.array([fields(weights, sequence) for sequence in data[0].astype(float)])
    np.testing.assert_allclose(network.outputs(flatten(weights), data[0]), expected.reshape(9, -1), rtol=1e-10)
    top = network.features(flatten(weights), data[0], "mu3").reshape(9, 7, 4)
    np.testing.assert_allclose(
        top @ weights["K"].T + data[0] @ weights["W"].T + weights["h0"], expected, rtol=1e-10, atol=1e-12
    )


def test_gradient_goes_back_through_all_steps(data, weights):
    network = JaxNetwork(NET, NET.init(0), bits_per_note, data, dtype="float64")
    flat, step = flatten(weights), 1e-5
    gradient = network.gradient(flat)
    # Central differences of the plain loss: their error is about step^2 and machine precision / step, both 1e-10.
    for k in np.random.default_rng(5).permutation(flat.size)[:40]:
        shift = np.zeros(flat.size)
        shift[k] = step
        up, down = (bits(unflatten(flat + sign * shift, NET.shapes), data) for sign in (1, -1))
        assert gradient[k] == pytest.approx((up - down) / (2 * step), abs=2e-9)


def test_curvature_by_one_line(data, weights):
    network = JaxNetwork(NET, NET.init(0), bits_per_note, data, dtype="float64")
    flat = flatten(weights)
    vector = np.random.default_rng(6).standard_normal(flat.size)
    vector /= np.linalg.norm(vector)
    product = network.curvature(flat, "hessian").matvec(vector)
    step = 1e-5
    differences = (network.gradient(flat + step * vector) - network.gradient(flat - step * vector)) / (2 * step)
    np.testing.assert_allclose(product, differences, atol=1e-8)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_starts_at_one_bit(data, depth):
    net = DeepRNN(6, 4, depth)
    network = JaxNetwork(net, net.init(0), bits_per_note, data, dtype="float64")
    assert network.n_parameters == net.n_parameters
    assert network.loss(flatten(net.init(7))) == pytest.approx(1, abs=1e-14)  # one bit, to rounding


def test_initial_weights():
    net = DeepRNN(n_visible=46, width=50, depth=3)
    weights = net.init(2)
    assert list(weights) == ["J0", "M1", "J1", "M2", "J2", "M3", "K", "W", "h0"]
    assert all(weights[name].dtype == np.float32 for name in weights)
    # 2,300 draws: the standard deviation of theirs is 1.5 %.
    assert weights["J0"].std() == pytest.approx(np.sqrt(0.1 / 46), rel=0.06)
    for name in ("J1", "J2"):
        np.testing.assert_allclose(weights[name] @ weights[name].T, np.eye(50), atol=1e-5)
        assert weights[name].std() == pytest.approx(1 / np.sqrt(50), rel=1e-3)
    for name in ("M1", "M2", "M3"):
        assert set(np.unique(weights[name])) == {0.0, 1.0}
        assert (weights[name].sum(axis=0) == 1).all()
        assert (weights[name].sum(axis=1) == 1).all()
    assert not any(weights[name].any() for name in ("K", "W", "h0"))
    assert (net.init(2)["J0"] == weights["J0"]).all()
    assert (net.init(3)["J0"] != weights["J0"]).any()


def test_projection_is_the_nearest_orthogonal_matrix(weights):
    projected = NET.orthogonalise({name: w.astype("f4") for name, w in weights.items()})
    rng = np.random.default_rng(8)
    for name in ("M1", "M2", "M3"):
        found = np.asarray(projected[name], dtype=float)
        np.testing.assert_allclose(found @ found.T, np.eye(4), atol=1e-6)
        # Polar decomposition: Q^T M is symmetric and not negative.
        factor = found.T @ weights[name]
        np.testing.assert_allclose(factor, factor.T, atol=1e-5)
        assert np.linalg.eigvalsh(factor).min() > -1e-6
        for _ in range(20):
            other = np.linalg.qr(rng.standard_normal((4, 4)))[0]
            assert np.linalg.norm(found - weights[name]) <= np.linalg.norm(other - weights[name]) + 1e-6
    for name in ("J0", "J1", "K", "W", "h0"):
        np.testing.assert_array_equal(projected[name], weights[name].astype("f4"))


def test_sizes_must_be_positive():
    with pytest.raises(ts.ArgumentError, match="width=0"):
        DeepRNN(5, 0, 1)


SCHEDULE = [0, 1, 3, 6, 7, 12, 20]


def train(data, paths, *, seeds=(0, 5), schedule=SCHEDULE, **options):
    settings = {"learning_rate": 0.5, "batch_size": 3, "warm_up": 8, "project": NET.orthogonalise, "project_every": 6}
    start = [NET.init(seed) for seed in seeds]
    return train_jax(
        NET, start, bits_per_note, data, paths,
        seeds=seeds, schedule=schedule, progress=None, **{**settings, **options},
    )  # fmt: skip


def test_training_follows_warm_up_and_projection(data, tmp_path):
    paths = train(data, [tmp_path / "a.zarr", tmp_path / "b.zarr"])
    run = ts.open_trajectory([str(path) for path in paths])
    network = JaxNetwork(NET, NET.init(0), bits_per_note, data)
    for row, seed in enumerate((0, 5)):
        flat, tau = flatten(NET.init(seed)), 0.0
        for step in range(SCHEDULE[-1] + 1):
            if step in SCHEDULE:
                here = run.isel(replica=row).sel(step=step)
                # float32 in another order of sums: about 1e-7 each, over 20 steps of a stable loop.
                np.testing.assert_allclose(here.weights.values, flat, atol=1e-5)
                assert float(here.proper_time) == pytest.approx(tau, rel=1e-12, abs=0)
            rate = 0.5 * np.sin(np.pi / 2 * min(1, (step + 1) / 8))
            chosen = batch_order("shuffled", 9, seed=seed, epoch=step // 3)[(step % 3) * 3 :][:3]
            flat, tau = flat - rate * network.gradient(flat, chosen), tau + rate
            if (step + 1) % 6 == 0:
                flat = flatten({k: np.asarray(v) for k, v in NET.orthogonalise(unflatten(flat, NET.shapes)).items()})
    settings = json.loads(run.attrs["optimiser"])
    assert settings["warm_up"] == 8
    assert settings["projection"] == {"by": "orthogonalise", "every": 6}
    assert settings["order"] == "shuffled"


def test_resumes_to_the_same_bits(data, tmp_path):
    whole = train(data, [tmp_path / "a.zarr"], seeds=[0])
    train(data, [tmp_path / "b.zarr"], seeds=[0], schedule=SCHEDULE[:4])
    parts = train(data, [tmp_path / "b.zarr"], seeds=[0])
    one, two = (ts.open_trajectory(str(paths[0])) for paths in (whole, parts))
    np.testing.assert_array_equal(one.weights.values, two.weights.values)
    np.testing.assert_array_equal(one.proper_time.values, two.proper_time.values)
    with pytest.raises(ts.StoreError, match="'warm_up': 8"):
        train(data, [tmp_path / "b.zarr"], seeds=[0], warm_up=0)
    with pytest.raises(ts.StoreError, match="projection"):
        train(data, [tmp_path / "b.zarr"], seeds=[0], project=None)


@pytest.mark.parametrize("wrong", [{"warm_up": -1}, {"project_every": 0}])
def test_wrong_steps(data, tmp_path, wrong):
    with pytest.raises(ts.ArgumentError, match="warm_up=.*project_every="):
        train(data, [tmp_path / "a.zarr"], seeds=[0], **wrong)
    assert not (tmp_path / "a.zarr").exists()
