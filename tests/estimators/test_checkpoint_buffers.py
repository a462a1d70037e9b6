"""Networks evaluated with the buffers of each checkpoint: running statistics of batch norms, in torch and in JAX."""

import copy
import pickle
import warnings

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.func import functional_call
from trajstats_trainers.jax.adapter import JaxNetwork, cross_entropy
from trajstats_trainers.recording import Recorder
from trajstats_trainers.torch.adapter import TorchNetwork

import trajstats as ts
from trajstats.errors import SchemaError
from trajstats.estimators._checkpoints import match_network, one_checkpoint

LOSS = torch.nn.functional.cross_entropy
X = 3 * np.random.default_rng(0).standard_normal((40, 4)) + 2
Y = (X[:, 0] > 2).astype(int) + (X[:, 1] > 3)


def module():
    torch.manual_seed(0)
    nn = torch.nn
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, 3)).double()


def network(m=None, **options):
    return TorchNetwork(m or module(), LOSS, (X, Y), dtype="float64", **options)


def dense(m):
    """Loss and Hessian of a module as it is, by torch's own dense functions."""
    m = copy.deepcopy(m).eval()
    named = dict(m.named_parameters())
    flat = torch.cat([p.detach().reshape(-1) for p in named.values()])

    def loss(u):
        parts = torch.split(u, [p.numel() for p in named.values()])
        given = {n: part.reshape(p.shape) for (n, p), part in zip(named.items(), parts, strict=True)}
        return LOSS(functional_call(m, given, (torch.tensor(X),)), torch.tensor(Y))

    return float(loss(flat)), torch.autograd.functional.hessian(loss, flat).numpy()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A recorded run whose running statistics move, its modules step by step, and the module at its end."""
    path = tmp_path_factory.mktemp("run") / "bn.zarr"
    m, modules = module(), []
    optimiser = torch.optim.SGD(m.parameters(), 0.2)
    with Recorder(path, m, [0, 3, 30], dtype="float64") as recorder:
        for step in range(31):
            if recorder.due(step):
                recorder.record(step, m)
                modules.append(copy.deepcopy(m))
            rows = np.random.default_rng(step).integers(40, size=10)
            optimiser.zero_grad()
            LOSS(m(torch.tensor(X[rows])), torch.tensor(Y[rows])).backward()
            optimiser.step()
    return ts.open_trajectory(path), modules, m


@pytest.mark.parametrize("options", [{}, {"memory": 20_000}], ids=["traced", "in parts"])
def test_spectra_of_each_checkpoint_have_its_own_statistics(trained, options):
    run, modules, last = trained
    known = [dense(m) for m in modules]
    # A module with other statistics than any checkpoint: they must not matter.
    found = ts.hessian_spectrum(network(last, **options), run, method="exact", rng=0)
    np.testing.assert_allclose(found.loss.values[0], [loss for loss, _ in known], rtol=1e-12)
    for k, (_, hessian) in enumerate(known):
        np.testing.assert_allclose(found.nodes.values[0, k, 0], np.linalg.eigvalsh(hessian), atol=1e-10)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ignored = ts.hessian_spectrum(network(last), run.drop_vars("buffers"), method="exact", rng=0)
    assert abs(ignored.nodes.values[0, 0].max() / found.nodes.values[0, 0].max() - 1) > 0.1


def test_all_estimators_have_them(trained):
    run, modules, last = trained
    net, few = network(last), {"pgd_steps": 2, "sizes": 4}
    calls = {
        "noise": lambda net, r: ts.gradient_noise(net, r, batch_size=5).D2,
        "pairs": lambda net, r: ts.extreme_eigenpairs(net, r, top=1, rng=0).eigenvalue,
        "response": lambda net, r: ts.training_response(net, r, X[:1], X[:2]).response,
        "features": lambda net, r: ts.feature_space(net, r, X[:9], layers=["2"], kernel=False).stable_rank,
        "fragility": lambda net, r: ts.fragility(net, r, X[:2], **few).gradient_norm,
        "jacobian": lambda net, r: ts.jacobian_esd(net, r, X[:2], rng=0).log_singular_values,
    }
    for name, call in calls.items():
        found = call(net, run)
        for k, m in enumerate(modules):
            one = run.isel(step=[k])
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                known = call(network(m), one.drop_vars("buffers"))
            np.testing.assert_allclose(found.isel(step=[k]), known, rtol=1e-8, atol=1e-10, err_msg=name)
    here, w = one_checkpoint(net, run.sel(replica=0, step=3))
    assert here.loss(w) == pytest.approx(dense(modules[1])[0], rel=1e-12)
    here, w = one_checkpoint(net, modules[1].state_dict())
    assert here.loss(w) == pytest.approx(dense(modules[1])[0], rel=1e-12)


def test_a_view_shares_all_but_its_buffers():
    net = network()
    w = np.random.default_rng(1).standard_normal(net.n_parameters)
    before, products = net.outputs(w, X), net.curvature(w).matmat(np.eye(w.size))
    state = {"1.running_mean": np.ones(3), "1.running_var": np.full(3, 9.0)}
    view = net.with_buffers(state)
    assert np.abs(view.outputs(w, X) - before).max() > 1e-3
    changed = view.curvature(w).matmat(np.eye(w.size))
    assert np.abs(changed - products).max() > 1e-3
    np.testing.assert_array_equal(net.outputs(w, X), before)
    np.testing.assert_array_equal(net.curvature(w).matmat(np.eye(w.size)), products)
    again = pickle.loads(pickle.dumps(view))
    np.testing.assert_allclose(again.curvature(w).matmat(np.eye(w.size)), changed, atol=1e-13)
    # One trace serves all views: nothing of the first one's values is in it.
    other = net.with_buffers({name: 2 * value for name, value in state.items()})
    m = copy.deepcopy(net.module)
    with torch.no_grad():
        for name, buffer in m.named_buffers():
            if name in state:
                buffer.copy_(torch.tensor(2 * state[name]))
        for p, part in zip(
            m.parameters(), torch.split(torch.tensor(w), [p.numel() for p in m.parameters()]), strict=True
        ):
            p.copy_(part.reshape(p.shape))
    np.testing.assert_allclose(other.curvature(w).matmat(np.eye(w.size)), dense(m.requires_grad_())[1], atol=1e-10)
    assert sum(key[-1] == tuple(state) for key in net._traced) == 1
    with pytest.raises(SchemaError, match=r"unknown buffer '1\.running_men'.*did you mean '1\.running_mean'"):
        net.with_buffers({"1.running_men": np.ones(3)})
    with pytest.raises(SchemaError, match=r"has shape \(4,\); the network's has \(3,\)"):
        net.with_buffers({"1.running_mean": np.ones(4)})


def small(buffers=None):
    layers = network().layers
    w = np.random.default_rng(2).standard_normal((1, sum(int(np.prod(s)) for s in layers.values())))
    return ts.trajectory_dataset(w, step=[0], layers=layers, buffers=buffers)


STATE = {"1.running_mean": np.ones((1, 3)), "1.running_var": np.full((1, 3), 4.0)}


def test_a_run_without_buffers_warns_and_says_whose_are_used():
    with pytest.warns(
        UserWarning, match=r"'1\.running_mean' \(3,\), '1\.running_var' \(3,\): those of the network that"
    ) as caught:
        ts.hessian_spectrum(network(), small(), rng=0)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match=r"buffers '1\.running_var' \(3,\): those"):
        match_network(network(), small({"1.running_mean": STATE["1.running_mean"]}))
    plain = torch.nn.Sequential(torch.nn.Linear(4, 3))
    run = ts.trajectory_dataset(np.zeros((1, 15)), step=[0], layers={"0.bias": (3,), "0.weight": (3, 4)})
    match_network(TorchNetwork(plain, LOSS, (X, Y)), run)  # nothing to warn of


def test_buffers_are_matched_by_name_and_shape():
    net = network()
    known = net.with_buffers({name: value[0] for name, value in STATE.items()})
    wrapped = {f"module.{name}": value for name, value in reversed(STATE.items())}
    counters = {"module.1.num_batches_tracked": np.array([7]), "module.mask": np.array([[True, False]])}
    run = small({**counters, **wrapped})
    here, fitted = match_network(net, run)
    assert fitted.buffers.attrs["tensors"].count("module") == 0
    w = run.weights.values[0, 0]
    for r in (run, run.chunk(step=1)):
        assert ts.hessian_spectrum(net, r, rng=0).loss.item() == pytest.approx(known.loss(w), rel=1e-12)
    assert here is net
    with pytest.raises(
        SchemaError, match=r"Only in the run: '2\.running_mean' \(3,\).*The network has '1\.running_mean'"
    ):
        match_network(net, small({**STATE, "2.running_mean": np.ones((1, 3))}))
    with pytest.raises(SchemaError, match=r"'1\.running_mean' is \(4,\) in the run and \(3,\) in the network"):
        match_network(net, small({**STATE, "1.running_mean": np.ones((1, 4))}))


def test_a_network_without_buffers():
    class Own:
        n_parameters, layers = 33, network().layers

    with pytest.warns(UserWarning, match="no with_buffers: it uses what it holds itself"):
        match_network(Own(), small(STATE))
    jax_net = JaxNetwork(lambda p, x: x, {k: np.zeros(s) for k, s in Own.layers.items()}, cross_entropy, (X, Y))
    with pytest.raises(SchemaError, match=r"The network has none.*JaxNetwork takes its own as buffers="):
        match_network(jax_net, small(STATE))


def apply_fn(params, state, x):
    z = x @ params["0"]["weight"].T + params["0"]["bias"]
    norm = params["1"]
    z = (z - state["1"]["running_mean"]) / jnp.sqrt(state["1"]["running_var"] + 1e-5) * norm["weight"] + norm["bias"]
    return jnp.tanh(z) @ params["3"]["weight"].T + params["3"]["bias"]


def nested(names):
    tree = {}
    for name, value in names.items():
        head, _, leaf = name.partition(".")
        tree.setdefault(head, {})[leaf] = np.zeros(tuple(value))
    return tree


def test_jax_takes_buffers_of_each_checkpoint(trained):
    run, modules, _ = trained

    net = network()
    state = nested({"1.running_var": (3,), "1.running_mean": (3,)})
    jax_net = JaxNetwork(apply_fn, nested(net.layers), cross_entropy, (X, Y), buffers=state, dtype="float64")
    assert dict(jax_net.layers) == dict(net.layers)
    assert dict(jax_net.buffers) == {"1.running_var": (3,), "1.running_mean": (3,)}
    found = ts.hessian_spectrum(jax_net, run, method="exact", rng=0)
    for k, m in enumerate(modules):
        loss, hessian = dense(m)
        assert found.loss.values[0, k] == pytest.approx(loss, rel=1e-12)
        np.testing.assert_allclose(found.nodes.values[0, k, 0], np.linalg.eigvalsh(hessian), atol=1e-10)
    w = run.weights.values[0, 0]
    view = jax_net.with_buffers({"1.running_mean": np.ones(3), "1.running_var": np.ones(3)})
    one, other = (n.input_jacobian(w, X[:1]) for n in (view, jax_net.with_buffers({"1.running_var": np.full(3, 4.0)})))
    assert np.abs(one - other).max() > 1e-3
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(view)).input_jacobian(w, X[:1]), one)
