"""Curvature products and example gradients of the adapters against the dense matrices."""

import pickle
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from trajstats_trainers.jax.adapter import JaxNetwork, cross_entropy
from trajstats_trainers.torch.adapter import TorchNetwork

from trajstats import ArgumentError, UnsupportedError, hessian_spectrum
from trajstats.data.schema import trajectory_dataset

KINDS = ("hessian", "gauss_newton", "fisher")
RNG = np.random.default_rng(0)
X = RNG.standard_normal((23, 6))
Y = RNG.integers(0, 3, 23)
L2 = 0.01


def module():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3)).double()


def weights_of(m):
    return np.concatenate([p.detach().numpy().ravel() for p in m.parameters()])


def torch_network(m=None, reduction="mean", **options):
    loss = torch.nn.CrossEntropyLoss(reduction=reduction)
    return TorchNetwork(m or module(), loss, (X, Y), reduction=reduction, l2=L2, dtype="float64", **options)


def jax_network(reduction="mean", **options):
    params = {"0.weight": np.zeros((5, 6)), "0.bias": np.zeros(5), "2.weight": np.zeros((3, 5)), "2.bias": np.zeros(3)}

    def apply(p, x):
        return jnp.tanh(x @ p["0.weight"].T + p["0.bias"]) @ p["2.weight"].T + p["2.bias"]

    def loss(z, y):
        return cross_entropy(z, y) * (z.shape[0] if reduction == "sum" else 1)

    return JaxNetwork(apply, params, loss, (X, Y), reduction=reduction, l2=L2, dtype="float64", **options)


def dense(m, kind, reduction="mean"):
    """The matrix by torch.autograd's own dense functions, without the adapter."""
    shapes = [p.shape for p in m.parameters()]
    names = [name for name, _ in m.named_parameters()]
    flat = torch.tensor(weights_of(m))
    x, y = torch.tensor(X), torch.tensor(Y)

    def outputs(u):
        parts = torch.split(u, [s.numel() for s in shapes])
        named = {n: p.reshape(s) for n, p, s in zip(names, parts, shapes, strict=True)}
        return torch.func.functional_call(m, named, (x,))

    scale = 1 if reduction == "sum" else 1 / len(X)
    identity = torch.eye(flat.numel(), dtype=torch.float64)
    if kind == "hessian":
        total = lambda u: torch.nn.functional.cross_entropy(outputs(u), y, reduction=reduction)  # noqa: E731
        return (torch.autograd.functional.hessian(total, flat) + 2 * L2 * identity).numpy()
    if kind == "gauss_newton":
        jacobian = torch.autograd.functional.jacobian(outputs, flat)
        p = torch.softmax(outputs(flat), dim=1)
        curve = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
        return (scale * torch.einsum("aoi,aop,apj->ij", jacobian, curve, jacobian) + 2 * L2 * identity).numpy()
    each = lambda u: torch.nn.functional.cross_entropy(outputs(u), y, reduction="none")  # noqa: E731
    jacobian = torch.autograd.functional.jacobian(each, flat)
    return (scale * jacobian.T @ jacobian).numpy()


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("kind", KINDS)
def test_products_equal_the_dense_matrix_with_ragged_batches(kind, reduction):
    m = module()
    known = dense(m, kind, reduction)
    for network in (torch_network(m, reduction, batch_size=7), jax_network(reduction, batch_size=7)):
        found = network.curvature(weights_of(m), kind).matmat(np.eye(network.n_parameters))
        np.testing.assert_allclose(found, known, atol=1e-12 * np.abs(known).max())


@pytest.mark.parametrize("kind", ["hessian", "gauss_newton"])
def test_products_equal_those_of_curvlinops(kind):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        curvlinops = pytest.importorskip("curvlinops")
    peer = {"hessian": curvlinops.HessianLinearOperator, "gauss_newton": curvlinops.GGNLinearOperator}[kind]
    m = module()
    data = [(torch.tensor(X[a : a + 7]), torch.tensor(Y[a : a + 7])) for a in range(0, 23, 7)]
    vectors = np.random.default_rng(1).standard_normal((len(weights_of(m)), 9))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peer(m, torch.nn.CrossEntropyLoss(), list(m.parameters()), data) @ torch.tensor(vectors)
    known = theirs.detach().numpy() + 2 * L2 * vectors
    for network in (torch_network(m), jax_network()):
        found = network.curvature(weights_of(m), kind).matmat(vectors)
        np.testing.assert_allclose(found, known, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_torch_and_jax_give_the_same_spectrum(kind):
    checkpoints = weights_of(module()) + 0.3 * np.random.default_rng(2).standard_normal((1, 2, 53))
    run = trajectory_dataset(checkpoints[0], step=[0, 10], layers=torch_network().layers)
    one, other = (
        hessian_spectrum(make(), run, kind=kind, method="exact", rng=0) for make in (torch_network, jax_network)
    )
    np.testing.assert_allclose(one.nodes, other.nodes, rtol=0, atol=1e-10)
    assert float(one.nodes.max()) > 0.1


@pytest.mark.parametrize("kind", ["hessian", "gauss_newton"])
@pytest.mark.parametrize("make", [torch_network, jax_network])
def test_a_small_budget_changes_the_parts_and_not_the_product(make, kind):
    m = module()
    tight = make(memory=3_000).curvature(weights_of(m), kind)
    assert tight._examples < 23
    ample = make().curvature(weights_of(m), kind)
    assert ample._held is not None
    vectors = RNG.standard_normal((len(weights_of(m)), 20))
    np.testing.assert_allclose(tight.matmat(vectors), ample.matmat(vectors), atol=1e-13)
    starved = make(memory=100).curvature(weights_of(m), kind)
    assert starved._held is None
    np.testing.assert_allclose(starved.matmat(vectors), ample.matmat(vectors), atol=1e-13)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", [torch_network, jax_network])
def test_finite_differences_agree_to_their_accuracy(make, kind):
    m = module()
    found = make(products="finite_difference").curvature(weights_of(m), kind).matmat(np.eye(len(weights_of(m))))
    known = dense(m, kind)
    assert np.abs(found - known).max() < 1e-8 * np.abs(known).max()
    zero = make(products="finite_difference").curvature(weights_of(m), kind).matvec(np.zeros(len(known)))
    np.testing.assert_array_equal(zero, 0)


@pytest.mark.parametrize("make", [torch_network, jax_network])
def test_example_gradients_average_to_the_gradient(make):
    w = weights_of(module())
    network = make()
    each = network.example_gradients(w, np.arange(23))
    np.testing.assert_allclose(each.mean(axis=0) + 2 * L2 * w, network.gradient(w), atol=1e-14)
    part = network.gradient(w, np.array([3, 3, 8]))
    np.testing.assert_allclose(each[[3, 3, 8]].mean(axis=0) + 2 * L2 * w, part, atol=1e-14)


def test_frozen_and_unused_parameters_are_zero_blocks():
    class Partly(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.frozen, self.unused = (torch.nn.Linear(*s) for s in ((5, 3), (6, 5), (2, 2)))
            self.frozen.requires_grad_(False)

        def forward(self, x):
            return self.used(torch.tanh(self.frozen(x)))

    torch.manual_seed(1)
    m = Partly().double()
    network = TorchNetwork(m, torch.nn.functional.cross_entropy, (X, Y), dtype="float64")
    matrix = network.curvature(weights_of(m)).matmat(np.eye(network.n_parameters))
    assert np.abs(matrix[:18, :18]).max() > 1e-3
    matrix[:18, :18] = 0
    np.testing.assert_array_equal(matrix, 0)
    run = trajectory_dataset(weights_of(m)[None], step=[0], layers=network.layers)
    spectrum = hessian_spectrum(network, run, rng=0)
    assert (np.abs(spectrum.nodes) < 1e-15).sum() >= 41


@pytest.mark.parametrize("kind", KINDS)
def test_pooling_nets_take_several_vectors_at_once(kind):
    # torch.func.linearize keeps the views of Flatten, which fail where pooling has changed the strides.
    torch.manual_seed(3)
    m = torch.nn.Sequential(
        torch.nn.Unflatten(1, (1, 6, 6)), torch.nn.Conv2d(1, 2, 3), torch.nn.MaxPool2d(2), torch.nn.ReLU(),
        torch.nn.Conv2d(2, 3, 1), torch.nn.MaxPool2d(2), torch.nn.Flatten(), torch.nn.Linear(3, 3),
    ).double()  # fmt: skip
    data = (RNG.standard_normal((12, 36)), RNG.integers(0, 3, 12))
    loss = torch.nn.functional.cross_entropy
    w = weights_of(m)
    found = TorchNetwork(m, loss, data, dtype="float64").curvature(w, kind).matmat(np.eye(len(w)))
    slow = TorchNetwork(m, loss, data, dtype="float64", products="finite_difference").curvature(w, kind)
    assert np.abs(found - slow.matmat(np.eye(len(w)))).max() < 1e-7 * np.abs(found).max()


class Attention(torch.nn.Module):
    def __init__(self, backend=None):
        super().__init__()
        self.project = torch.nn.Linear(4, 12)
        self.out = torch.nn.Linear(4, 3)
        self.backend = backend

    def forward(self, x):
        q, k, v = self.project(x.reshape(-1, 1, 3, 4)).chunk(3, dim=-1)
        if self.backend is None:
            mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        else:
            with torch.nn.attention.sdpa_kernel(self.backend):
                mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        return self.out(mixed).mean(dim=(1, 2))


def test_fused_attention_has_the_products_of_plain_attention():
    data = (RNG.standard_normal((10, 12)), RNG.integers(0, 3, 10))
    torch.manual_seed(2)
    fused = Attention().double()
    loss = torch.nn.functional.cross_entropy
    w = weights_of(fused)
    plain = Attention(torch.nn.attention.SDPBackend.MATH).double()
    for kind in KINDS:
        known = TorchNetwork(plain, loss, data, dtype="float64").curvature(w, kind).matmat(np.eye(len(w)))
        # torch.func.linearize alone is silently wrong here from its second call on.
        np.testing.assert_allclose(known, known.T, atol=1e-14)
        exact = TorchNetwork(fused, loss, data, dtype="float64").curvature(w, kind).matmat(np.eye(len(w)))
        np.testing.assert_allclose(exact, known, atol=1e-14)
        network = TorchNetwork(fused, loss, data, dtype="float64", products="finite_difference")
        found = network.curvature(w, kind).matmat(np.eye(len(w)))
        assert np.abs(found - known).max() < 1e-7 * np.abs(known).max()


class Cube(torch.autograd.Function):
    """One derivative alone."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return 3 * ctx.saved_tensors[0] ** 2 * g


class Cubed(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Linear(6, 4), torch.nn.Linear(4, 3)

    def forward(self, x):
        return self.second(self.first(x) ** 3)


def test_an_operation_with_one_derivative_is_named_and_differences_work(monkeypatch):
    torch.manual_seed(4)
    m = Cubed().double()
    data, loss = (X, Y), torch.nn.functional.cross_entropy
    w = weights_of(m)
    known = TorchNetwork(m, loss, data, dtype="float64").curvature(w).matmat(np.eye(len(w)))
    monkeypatch.setattr(Cubed, "forward", lambda self, x: self.second(Cube.apply(self.first(x))))
    with pytest.raises(UnsupportedError, match=r"once_differentiable.*finite_difference.*1e-9"):
        TorchNetwork(m, loss, data, dtype="float64").curvature(w).matmat(np.eye(len(w)))
    network = TorchNetwork(m, loss, data, dtype="float64", products="finite_difference")
    found = network.curvature(w).matmat(np.eye(len(w)))
    assert np.abs(found - known).max() < 1e-7 * np.abs(known).max()


def test_jax_function_without_a_jvp_names_the_remedy():
    @jax.custom_vjp
    def squash(x):
        return jnp.tanh(x)

    squash.defvjp(lambda x: (jnp.tanh(x), x), lambda x, g: (g * (1 - jnp.tanh(x) ** 2),))

    def apply(p, x):
        return squash(x @ p["w"])

    options = {"loss_fn": cross_entropy, "data": (X, Y), "dtype": "float64"}
    params = {"w": np.zeros((6, 3))}
    w = RNG.standard_normal(18)
    # The Hessian differentiates the rule for the gradient, and works; Gauss-Newton needs the outputs' own derivative.
    kind = "gauss_newton"
    with pytest.raises(UnsupportedError, match=r"custom_jvp.*finite_difference"):
        JaxNetwork(apply, params, **options).curvature(w, kind).matmat(np.eye(18))
    found = JaxNetwork(apply, params, **options, products="finite_difference").curvature(w, kind).matmat(np.eye(18))
    known = JaxNetwork(lambda p, x: jnp.tanh(x @ p["w"]), params, **options).curvature(w, kind).matmat(np.eye(18))
    assert np.abs(found - known).max() < 1e-8 * np.abs(known).max()


def test_jax_compiles_once_for_all_checkpoints():
    network = jax_network()
    for _ in range(3):
        network.curvature(RNG.standard_normal(len(weights_of(module())))).matmat(np.eye(53)[:, :5])
    assert network._compiled[("linearise", "hessian")]._cache_size() == 1
    assert network._compiled[("apply", "hessian")]._cache_size() == 1


@pytest.mark.parametrize("make", [torch_network, jax_network])
def test_networks_travel_to_workers_after_use(make):
    if make is jax_network:
        network = JaxNetwork(_apply, {"w": np.zeros((6, 3))}, cross_entropy, (X, Y), dtype="float64")
    else:
        network = make()
    w = RNG.standard_normal(network.n_parameters)
    vectors = RNG.standard_normal((network.n_parameters, 3))
    found = network.curvature(w).matmat(vectors)
    again = pickle.loads(pickle.dumps(network)).curvature(w).matmat(vectors)
    np.testing.assert_array_equal(found, again)


def _apply(p, x):
    return jnp.tanh(x @ p["w"])


@pytest.mark.parametrize("make", [torch_network, jax_network])
def test_an_unknown_way_of_making_products_is_named(make):
    with pytest.raises(ArgumentError, match="did you mean 'finite_difference'"):
        make(products="finite_diference")


@pytest.mark.parametrize("make", [torch_network, jax_network])
@pytest.mark.parametrize("name", ["batch_size", "memory"])
def test_settings_of_nothing_are_named(make, name):
    with pytest.raises(ArgumentError, match=f"{name}=0: give an integer of at least 1"):
        make(**{name: 0})
