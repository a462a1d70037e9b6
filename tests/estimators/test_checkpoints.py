"""Where networks meet runs: layers matched by name and shape, whatever their order, or refused."""

import pickle

import numpy as np
import pytest
import torch
from torch.func import functional_call
from trajstats_trainers.torch.adapter import TorchNetwork

import trajstats as ts
from trajstats.errors import ArgumentError, SchemaError
from trajstats.estimators._checkpoints import match_network, one_checkpoint
from trajstats.estimators._layer_order import match_names

RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((30, 4)), RNG.integers(0, 4, 30)
LOSS = torch.nn.functional.cross_entropy


def module():
    torch.manual_seed(1)
    nn = torch.nn
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 4)).double()


NETWORK = TorchNetwork(module(), LOSS, (X, Y), dtype="float64")
LAYERS = dict(NETWORK.layers)
WEIGHTS = RNG.standard_normal((2, NETWORK.n_parameters))
# Names as three programs write them, each in its own order.
ORDERS = {
    "own": list(LAYERS),
    "sorted": sorted(LAYERS),
    "reversed": list(LAYERS)[::-1],
    "wrapped": [f"module._orig_mod.{name}" for name in sorted(LAYERS)],
    "slashes": [f"params/{name.replace('.', '/')}" for name in sorted(LAYERS)],
    "keys of JAX": ["".join(f"[{part!r}]" for part in name.split(".")) for name in sorted(LAYERS)],
}


def plain(name):
    return next(own for own in LAYERS if name.replace("/", ".").replace("']['", ".").strip("[']").endswith(own))


def run_in(names):
    """The same checkpoints with layers of these names in this order, and where each parameter is in the module."""
    stops = np.cumsum([np.prod(shape) for shape in LAYERS.values()])
    places = {
        name: np.arange(stop)[-np.prod(shape) :] for (name, shape), stop in zip(LAYERS.items(), stops, strict=True)
    }
    index = np.concatenate([places[plain(name)] for name in names])
    layers = {name: LAYERS[plain(name)] for name in names}
    return ts.trajectory_dataset(WEIGHTS[:, index], step=[0, 10], layers=layers), index


def dense_hessian(w):
    m, shapes = module(), list(LAYERS.values())

    def loss(u):
        parts = torch.split(u, [int(np.prod(shape)) for shape in shapes])
        named = {name: part.reshape(shape) for (name, shape), part in zip(LAYERS.items(), parts, strict=True)}
        return LOSS(functional_call(m, named, (torch.tensor(X),)), torch.tensor(Y))

    return torch.autograd.functional.hessian(loss, torch.tensor(w)).numpy()


@pytest.mark.parametrize("order", ORDERS)
def test_curvature_in_the_order_of_the_run(order):
    run, index = run_in(ORDERS[order])
    known = dense_hessian(WEIGHTS[1])[np.ix_(index, index)]
    values, vectors = np.linalg.eigh(known)
    found = ts.hessian_spectrum(NETWORK, run, steps=[10], rng=0)
    np.testing.assert_allclose(found.nodes.values[0, 0, 0], values, atol=1e-10)
    pairs = ts.extreme_eigenpairs(NETWORK, run, steps=[10], top=1, rng=0)
    assert abs(pairs.vector.values[0, 0, 0] @ vectors[:, -1]) == pytest.approx(1, abs=1e-8)
    bias = next(name for name in ORDERS[order] if plain(name) == "2.bias")
    part = slice(*(run.layer_stop.sel(layer=bias).item() - n for n in (5, 0)))
    block = ts.hessian_spectrum(NETWORK, run, steps=[10], layers=[bias], rng=0)
    np.testing.assert_allclose(block.nodes.values[0, 0, 0], np.linalg.eigvalsh(known[part, part]), atol=1e-10)


def test_all_else_is_labelled_by_the_layers_of_the_run():
    names = ORDERS["sorted"]
    run, own = run_in(names)[0], run_in(ORDERS["own"])[0]

    def same(found, known):
        for name in known.data_vars:
            got, want = found[name], known[name]
            if "layer" in want.dims and name != "weight_tail_index":
                want = want.sel(layer=names) if set(names) <= set(want.layer.values) else want
            np.testing.assert_allclose(got, want, rtol=1e-8, atol=1e-12, err_msg=name)

    for options in ({"batch_size": 5}, {"batches": [[0, 1], [5, 7]]}, {"of": "sample", "examples": 9}):
        same(ts.gradient_noise(NETWORK, run, **options), ts.gradient_noise(NETWORK, own, **options))
    for options in ({}, {"per": "layer", "method": "finite_step", "eta": 1e-6}):
        found, known = (ts.training_response(NETWORK, r, X[:1], X[:3], **options) for r in (run, own))
        same(found, known)
    same(ts.feature_space(NETWORK, run, X[:9], layers=["1"]), ts.feature_space(NETWORK, own, X[:9], layers=["1"]))
    few = {"pgd_steps": 2, "sizes": 4}
    same(ts.fragility(NETWORK, run, X[:2], **few), ts.fragility(NETWORK, own, X[:2], **few))
    for method in ("product", "autodiff", "lanczos"):
        found, known = (ts.jacobian_esd(NETWORK, r, X[:2], method=method, order=4, rng=0) for r in (run, own))
        same(found.drop_dims("layer"), known.drop_dims("layer"))
    found, known = (
        ts.fixed_point_census(NETWORK, 4, weights=r.sel(replica=0, step=10), starts=10, max_iterations=40, rng=0)
        for r in (run, own)
    )
    np.testing.assert_allclose(found.point, known.point, atol=1e-9)
    plane = {"origin": np.zeros(4), "first": np.eye(4)[0], "second": np.eye(4)[1], "points": 2, "max_iterations": 40}
    found, known = (ts.attractor_slice(NETWORK, known, weights=r.isel(replica=0, step=1), **plane) for r in (run, own))
    np.testing.assert_array_equal(found.label, known.label)


def test_a_page_is_refused_before_any_work(tmp_path):
    run, _ = run_in(ORDERS["sorted"])
    renamed = run.assign_coords(layer=["else", *sorted(LAYERS)[1:]])
    with pytest.raises(SchemaError, match="Only in the run: 'else'"):
        ts.analyze(renamed, tmp_path / "no.html", network=NETWORK, progress=False)
    assert not (tmp_path / "no.html").exists()


SAME_SHAPES = {"0.weight": (3, 3), "1.weight": (3, 3)}
REFUSED = {
    "other names, same shapes": (
        {"a": (3, 3), "b": (3, 3)},
        r"Only in the run: 'a' \(3, 3\), 'b' \(3, 3\)\. Only in the",
    ),
    "one other name": ({"0.weight": (3, 3), "2.weight": (3, 3)}, r"Only in the run: '2\.weight'.*network: '1\.weight'"),
    "transposed": ({"0.weight": (9, 1), "1.weight": (3, 3)}, r"'0\.weight' is \(9, 1\) in the run and \(3, 3\) in the"),
    "fewer": ({"0.weight": (3, 3)}, r"Only in the network: '1\.weight'.*9 weights in 1 layers.*18 weights in 2"),
    "more": ({**SAME_SHAPES, "c": (2,)}, r"Only in the run: 'c' \(2,\)\..*20 weights in 3"),
    "no names": ({"all": (18,)}, r"layers=network\.layers"),
    "no names, another number": ({"all": (7,)}, "the network has 18 weights and the trajectory 7"),
    "another model's prefix": ({f"decoder.{name}": s for name, s in SAME_SHAPES.items()}, r"Only in the run: 'decoder"),
}


class Named:
    """A network of two square matrices that is never evaluated."""

    n_parameters, n_inputs, n_outputs, n_examples = 18, 3, 3, 1
    layers = SAME_SHAPES
    loss = gradient = curvature = None


@pytest.mark.parametrize("case", REFUSED)
def test_other_layers_are_refused_with_both_lists(case):
    layers, match = REFUSED[case]
    run = ts.trajectory_dataset(np.zeros((1, sum(int(np.prod(s)) for s in layers.values()))), step=[0], layers=layers)
    calls = [
        lambda: ts.hessian_spectrum(Named(), run, rng=0),
        lambda: ts.extreme_eigenpairs(Named(), run, rng=0),
        lambda: ts.gradient_noise(Named(), run, batch_size=1),
        lambda: ts.jacobian_esd(Named(), run, np.ones((1, 3)), rng=0),
        lambda: ts.training_response(Named(), run, np.ones((1, 3)), np.ones((1, 3))),
        lambda: ts.feature_space(Named(), run, np.ones((8, 3))),
        lambda: ts.fragility(Named(), run, np.ones((1, 3))),
        lambda: one_checkpoint(Named(), run),
    ]
    for call in calls:
        with pytest.raises(SchemaError, match=match) as caught:
            call()
        assert len(str(caught.value)) < 1200


def test_a_message_about_hundreds_of_layers_is_short():
    many = {f"blocks.{k}.attention.weight": (2, 2) for k in range(300)}
    run = ts.trajectory_dataset(np.zeros((1, 1200)), step=[0], layers={f"h.{k}.w": (2, 2) for k in range(300)})
    network = Named()
    network.layers, network.n_parameters = many, 1200
    with pytest.raises(SchemaError, match=r"and 294 more\. Only in the network") as caught:
        match_network(network, run)
    assert len(str(caught.value)) < 2000


def test_a_network_that_does_not_name_its_layers():
    network = Named()
    network.layers = None
    flat = ts.trajectory_dataset(np.zeros((1, 18)), step=[0])
    assert match_network(network, flat)[0] is network
    run = ts.trajectory_dataset(np.zeros((1, 18)), step=[0], layers=SAME_SHAPES)
    with pytest.warns(UserWarning, match=r"taken to be the run's: 0\.weight, 1\.weight") as caught:
        assert match_network(network, run)[0] is network
    assert caught[0].filename == __file__
    network.layers = {"all": (18,)}
    with pytest.warns(UserWarning, match="cannot be compared"):
        match_network(network, run)
    assert match_network(network, flat)[0] is network
    network.layers = {"w": (9, 2)}  # one tensor has one order
    assert match_network(network, flat)[0] is network
    network.layers = {"w": (9, 3)}
    with pytest.raises(SchemaError, match="27 weights and its n_parameters is 18"):
        match_network(network, run)


def test_names_that_wrappers_would_make_equal_must_agree_as_they_are():
    own = ["model.weight", "weight"]
    assert match_names(["weight", "model.weight"], own) == {"weight": "weight", "model.weight": "model.weight"}
    assert match_names(["module.weight", "module.model.weight"], own) == {}
    twice = ts.trajectory_dataset(np.zeros((1, 18)), step=[0], layers=SAME_SHAPES).assign_coords(layer=["a", "a"])
    with pytest.raises(SchemaError, match="two layers of the run are called 'a'"):
        match_network(Named(), twice)


def test_tied_weights_are_known_by_each_of_their_names():
    class Tied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = torch.nn.Embedding(7, 4), torch.nn.Linear(4, 7, bias=False)
            self.head.weight = self.embed.weight
            self.scale = torch.nn.Parameter(torch.ones(4))

        def forward(self, x):
            return self.head(self.embed(x).mean(1) * self.scale)

    torch.manual_seed(0)
    data = (RNG.integers(0, 7, (20, 3)), RNG.integers(0, 7, 20))
    network = TorchNetwork(Tied(), LOSS, data, dtype="float64")
    assert (dict(network.layers), network.tied) == (
        {"scale": (4,), "embed.weight": (7, 4)},
        {"head.weight": "embed.weight"},
    )
    w = RNG.standard_normal(32)
    run = ts.trajectory_dataset(w[None, np.r_[4:32, :4]], step=[0], layers={"head.weight": (7, 4), "scale": (4,)})
    assert ts.hessian_spectrum(network, run, rng=0).loss.item() == pytest.approx(network.loss(w))
    both = {"embed.weight": (7, 4), "head.weight": (7, 4), "scale": (4,)}
    with pytest.raises(SchemaError, match="'embed.weight', 'head.weight' are one tied tensor"):
        match_network(network, ts.trajectory_dataset(np.zeros((1, 60)), step=[0], layers=both))


def test_one_checkpoint_of_every_kind():
    run, index = run_in(ORDERS["sorted"])
    stops = np.cumsum([np.prod(s) for s in LAYERS.values()])
    state = {n: part.reshape(s) for (n, s), part in zip(LAYERS.items(), np.split(WEIGHTS[1], stops[:-1]), strict=True)}
    for given in (run.sel(replica=0, step=10), run.isel(step=[1]), dict(reversed(state.items()))):
        net, w = one_checkpoint(NETWORK, given)
        assert net.loss(w) == pytest.approx(NETWORK.loss(WEIGHTS[1]), rel=1e-12)
    with pytest.warns(UserWarning, match=r"plain array, taken in the order of the network's layers: '0\.weight'"):
        net, w = one_checkpoint(NETWORK, WEIGHTS[1])
    np.testing.assert_array_equal(w[index], run.weights.values[0, 1])
    with pytest.raises(ArgumentError, match=r"run\.sel\(replica=\.\.\., step=\.\.\.\)"):
        one_checkpoint(NETWORK, run.weights.sel(replica=0, step=10))
    with pytest.raises(ArgumentError, match="1 replicas and 2 steps"):
        one_checkpoint(NETWORK, run)


def test_a_reordered_network_is_sent_to_other_processes_and_states_its_settings():
    run, _ = run_in(ORDERS["reversed"])
    net, _ = match_network(NETWORK, run)
    w = run.weights.values[0, 0]
    again = pickle.loads(pickle.dumps(net))
    np.testing.assert_array_equal(again.gradient(w), net.gradient(w))
    assert isinstance(net, ts.Network)
    assert (net.threads, net.reduction, list(net.layers)) == (1, "mean", ORDERS["reversed"])
    assert not hasattr(net, "anything else")
    one = net.jacobian_operator(w, X[0]).matmat(np.eye(4))
    np.testing.assert_allclose(one, net.input_jacobian(w, X[:1])[0], atol=1e-12)
    tangents = RNG.standard_normal((3, w.size))
    along = np.einsum("kp,aop->kao", tangents, np.stack([net.output_vjp(w, X[:2], c) for c in _units()], axis=1))
    np.testing.assert_allclose(net.output_jvp(w, X[:2], tangents), along, atol=1e-10)


def _units():
    return np.repeat(np.eye(4)[:, None], 2, axis=1)
