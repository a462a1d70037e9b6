"""Names of the arrays of a pytree: one string for one array, in recorders, networks and recipes."""

from collections import OrderedDict, namedtuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from trajstats_trainers._pytrees import named_leaves
from trajstats_trainers.jax.adapter import JaxNetwork
from trajstats_trainers.jax.sgd import train_jax
from trajstats_trainers.recording import Recorder, flatten, layer_shapes

import trajstats as ts
from trajstats.errors import ArgumentError

Block = namedtuple("Block", ["weight", "bias"])


@jax.tree_util.register_pytree_node_class
class Scaled:
    """A class that JAX was told about, with keys that it numbers."""

    def __init__(self, scale, shift):
        self.scale, self.shift = scale, shift

    def tree_flatten(self):
        return (self.scale, self.shift), None

    @classmethod
    def tree_unflatten(cls, _, leaves):
        return cls(*leaves)


X = np.random.default_rng(0).standard_normal((20, 4))
Y = (X[:, 0] > 0).astype(int)


def made(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "hidden": Block(rng.standard_normal((5, 4)), rng.standard_normal(5)),
        "body": [OrderedDict(w=rng.standard_normal((5, 5)), b=rng.standard_normal(5)), None],
        "norm": Scaled(rng.standard_normal(5), rng.standard_normal(5)),
        "Out": {"weight": rng.standard_normal((2, 5)), "bias": rng.standard_normal(2)},
    }


def apply_fn(params, x):
    z = jnp.tanh(x @ params["hidden"].weight.T + params["hidden"].bias)
    z = jnp.tanh(z @ params["body"][0]["w"].T + params["body"][0]["b"]) * params["norm"].scale + params["norm"].shift
    return z @ params["Out"]["weight"].T + params["Out"]["bias"]


def loss_fn(outputs, targets):
    return -jnp.mean(jax.nn.log_softmax(outputs)[jnp.arange(len(targets)), targets])


def loss_of(params):
    with jax.enable_x64(True):
        return float(loss_fn(apply_fn(params, X), Y))


NAMES = ["hidden.weight", "hidden.bias", "body.0.w", "body.0.b", "norm.0", "norm.1", "Out.weight", "Out.bias"]


def test_recorder_and_network_have_the_same_names():
    params = made()
    network = JaxNetwork(apply_fn, params, loss_fn, (X, Y), dtype="float64")
    assert list(named_leaves(params)) == NAMES == list(network.layers) == list(layer_shapes(params))
    assert network.loss(flatten(params)) == pytest.approx(loss_of(params), rel=1e-12)
    with pytest.raises(ArgumentError, match=r"both be called 'a\.b'"):
        named_leaves({"a": {"b": np.zeros(1)}, "a.b": np.zeros(1)})


def sorted_by_jax(params):
    with jax.enable_x64(True):
        return jax.jit(lambda p: p)(params)


@pytest.mark.parametrize("arrange", [lambda p: p, sorted_by_jax], ids=["own order", "sorted by JAX"])
def test_trees_in_another_order_are_recorded_by_name(tmp_path, arrange):
    with Recorder(tmp_path / "run.zarr", layer_shapes(made()), [0, 1], dtype="float64") as recorder:
        for step in range(2):
            recorder.record(step, arrange(made(step)), loss=loss_of(made(step)))
    run = ts.open_trajectory(tmp_path / "run.zarr")
    # The network's own tree, too, may have come out of a compiled function.
    for template in (made(), sorted_by_jax(made())):
        network = JaxNetwork(apply_fn, template, loss_fn, (X, Y), dtype="float64")
        found = ts.hessian_spectrum(network, run, rng=0)
        np.testing.assert_allclose(found.loss, run.loss, rtol=1e-12)


def test_flat_vectors_and_names_of_jax_are_matched_by_name(tmp_path):
    params = {"out.weight": np.ones((2, 4)), "hidden.weight": np.eye(4), "hidden.bias": np.arange(4.0)}

    def of(p, x):
        return jnp.tanh(x @ p["hidden.weight"].T + p["hidden.bias"]) @ p["out.weight"].T

    leaves = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    assert list(leaves) == ["['hidden.bias']", "['hidden.weight']", "['out.weight']"]
    with jax.enable_x64(True):
        flat, known = np.asarray(ravel_pytree(params)[0]), float(loss_fn(of(params, X), Y))
    with ts.TrajectoryWriter(tmp_path / "run.zarr", layer_shapes(leaves), dtype="float64") as writer:
        writer.append(0, flat)
    network = JaxNetwork(of, params, loss_fn, (X, Y), dtype="float64")
    found = ts.hessian_spectrum(network, ts.open_trajectory(tmp_path / "run.zarr"), rng=0)
    assert found.loss.item() == pytest.approx(known, rel=1e-12)


def test_replicas_start_from_their_own_weights_whatever_their_order(tmp_path):
    paths = [tmp_path / "a.zarr", tmp_path / "b.zarr"]
    starts = [made(0), sorted_by_jax(made(1))]
    train_jax(
        apply_fn, starts, loss_fn, (X.astype("f"), Y), paths, seeds=[0, 1], schedule=[0], learning_rate=0.1,
        batch_size=5, progress=None,
    )  # fmt: skip
    for path, seed in zip(paths, (0, 1), strict=True):
        run = ts.open_trajectory(path)
        np.testing.assert_allclose(run.weights.values[0, 0], flatten(made(seed)), rtol=1e-6)
        assert run.loss.item() == pytest.approx(loss_of(made(seed)), rel=1e-5)
