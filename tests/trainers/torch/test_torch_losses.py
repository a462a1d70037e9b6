"""Losses that people bring: every derivative against dense ones, and nothing depends on how examples are batched."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from trajstats_trainers.jax.adapter import JaxNetwork
from trajstats_trainers.torch.adapter import TorchNetwork

from trajstats import ArgumentError, UnsupportedError, gradient_noise, trajectory_dataset

RNG = np.random.default_rng(0)
X = RNG.standard_normal((7, 4))
REAL, SHARES, LABELS = RNG.standard_normal((7, 3)), RNG.random((7, 3)), RNG.integers(0, 3, 7)
SIGNS = np.where(RNG.random((7, 3)) < 0.5, -1.0, 1.0)
CLASSES = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
IGNORED = np.where(np.arange(7) % 3 == 1, -100, LABELS)


def nll(outputs, targets, class_weights):
    return F.nll_loss(outputs.log_softmax(1), targets, class_weights)


LOSSES = {
    "cross_entropy": (F.cross_entropy, LABELS),
    "mse_loss": (F.mse_loss, REAL),
    "MSELoss": (nn.MSELoss(), REAL),
    "l1_loss": (F.l1_loss, REAL),
    "smooth_l1_loss": (F.smooth_l1_loss, REAL),
    "huber_loss": (F.huber_loss, REAL),
    "bce_with_logits": (F.binary_cross_entropy_with_logits, SHARES),
    "positive weights": (nn.BCEWithLogitsLoss(pos_weight=torch.tensor([1.0, 2.0, 0.5])), SHARES),
    "bce": (lambda o, t: F.binary_cross_entropy(torch.sigmoid(o), t), SHARES),
    "kl_div": (lambda o, t: F.kl_div(o.log_softmax(1), t.softmax(1), reduction="batchmean"), REAL),
    "soft labels": (lambda o, t: F.cross_entropy(o, t.softmax(1)), REAL),
    "nll_loss": (lambda o, t: F.nll_loss(o.log_softmax(1), t), LABELS),
    "one-hot": (lambda o, t: F.mse_loss(o, F.one_hot(t, 3).to(o.dtype)), LABELS),
    "gaussian_nll": (lambda o, t: F.gaussian_nll_loss(o, t, torch.ones_like(o)), REAL),
    "poisson_nll": (F.poisson_nll_loss, SHARES),
    "soft_margin": (F.soft_margin_loss, SIGNS),
    "multilabel_soft_margin": (F.multilabel_soft_margin_loss, SHARES.round()),
    "hinge": (lambda o, t: (1 - o * t).clamp(min=0).pow(2).mean(), SIGNS),
    "hinge_embedding": (F.hinge_embedding_loss, SIGNS),
    "cosine_similarity": (lambda o, t: (1 - F.cosine_similarity(o, t)).mean(), REAL),
    "cosine_embedding": (lambda o, t: F.cosine_embedding_loss(o, t, torch.ones(len(o), dtype=o.dtype)), REAL),
    "label smoothing": (nn.CrossEntropyLoss(label_smoothing=0.1), LABELS),
    "class weights": (nn.CrossEntropyLoss(weight=CLASSES.float()), LABELS),
    "class weights and smoothing": (nn.CrossEntropyLoss(weight=CLASSES.float(), label_smoothing=0.1), LABELS),
    "class weights of nll": (functools.partial(nll, class_weights=CLASSES), LABELS),
    "ignored": (F.cross_entropy, IGNORED),
    "ignored by name": (functools.partial(F.cross_entropy, ignore_index=1), LABELS),
    "in a closure": (lambda o, t: 2 * F.cross_entropy(o, t, weight=CLASSES.to(o.dtype), ignore_index=2), LABELS),
}  # fmt: skip


def module():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3)).double()


def made(loss, targets, **options):
    network = TorchNetwork(module(), loss, (X, targets), **{"dtype": "float64", **options})
    return network, np.concatenate([p.numpy().ravel() for p in network.module.parameters()])


def dense(network, w):
    """Loss, gradient and Hessian of all examples at once, by torch.autograd; and the Jacobian of the outputs."""
    flat = torch.tensor(w)
    x, y = network._inputs, network._targets
    whole = lambda u: network.loss_fn(network._outputs(u, x), y)  # noqa: E731
    hessian = torch.autograd.functional.hessian(whole, flat).numpy()
    jacobian = torch.autograd.functional.jacobian(lambda u: network._outputs(u, x).reshape(-1), flat).numpy()
    curve = torch.autograd.functional.hessian(lambda z: network.loss_fn(z, y), network._outputs(flat, x)).reshape(
        21, 21
    )
    gauss_newton = jacobian.T @ curve.numpy() @ jacobian
    return float(whole(flat)), torch.autograd.functional.jacobian(whole, flat).numpy(), hessian, gauss_newton


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_has_every_derivative_however_it_is_batched(name):
    loss, targets = LOSSES[name]
    network, w = made(loss, targets)
    value, slope, hessian, gauss_newton = dense(network, w)
    each = network.example_gradients(w, np.arange(7))
    np.testing.assert_allclose(each.mean(axis=0), slope, rtol=0, atol=1e-14)
    batched = made(loss, targets, batch_size=3)[0]
    np.testing.assert_allclose([network.loss(w), batched.loss(w)], value, rtol=1e-13)
    for found in (network.gradient(w), batched.gradient(w)):
        np.testing.assert_allclose(found, slope, rtol=0, atol=1e-14)
    eye = np.eye(len(w))[:, ::9]
    parts = made(loss, targets, memory=1)[0]
    for kind, known in (("hessian", hessian), ("gauss_newton", gauss_newton), ("fisher", each.T @ each / 7)):
        for other in (network, parts) if kind == "hessian" else (parts,):
            found = other.curvature(w, kind).matmat(eye)
            np.testing.assert_allclose(found, known @ eye, rtol=0, atol=1e-10 * np.abs(known).max() + 1e-15)


@pytest.mark.parametrize("name", ["mse_loss", "huber_loss", "soft_margin", "class weights", "kl_div", "in a closure"])
def test_losses_in_single_precision(name):
    network, w = made(*LOSSES[name], dtype="float32")
    known = dense(made(*LOSSES[name])[0], w.astype(float))
    found = network.curvature(w).matmat(np.eye(len(w)))
    np.testing.assert_allclose(found, known[2], rtol=0, atol=1e-5 * np.abs(known[2]).max())


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.out = nn.Embedding(5, 3), nn.Linear(3, 5)

    def forward(self, x):
        return self.out(torch.tanh(self.embedding(x)))


IDS = RNG.integers(0, 5, (8, 6))
NEXT = np.where(np.arange(6) < np.array([1, 1, 2, 6, 3, 5, 2, 4])[:, None], np.roll(IDS, -1, axis=1), -100)


def padded(outputs, targets):
    return F.cross_entropy(outputs.reshape(-1, 5), targets.reshape(-1))


def shifted(outputs, targets):
    return F.cross_entropy(outputs[:, :-1].reshape(-1, 5), targets[:, 1:].reshape(-1))


def masked(outputs, targets):
    losses = F.cross_entropy(outputs.transpose(1, 2), targets.clamp(min=0), reduction="none")
    return (losses * (targets != -100)).sum() / (targets != -100).sum()


def count(targets):
    return (targets != -100).sum(1)


TOKEN_LOSSES = {
    "padded": (padded, None),
    "shifted": (shifted, None),
    "masked": (masked, count),
    "array": (masked, (NEXT != -100).sum(1)),
}


def language_model(loss, weight, **options):
    torch.manual_seed(0)
    targets = NEXT if loss is not shifted else np.concatenate([IDS[:, :1], NEXT[:, :-1]], axis=1)
    network = TorchNetwork(Tokens(), loss, (IDS, targets), weight=weight, dtype="float64", **options)
    return network, np.concatenate([p.numpy().ravel() for p in network.module.parameters()])


def real_minibatches(network, w, size, replacement=False):
    """D1 and D2 by the gradients of all minibatches that could be drawn, each normalised by its own tokens."""
    drawn = itertools.product(range(8), repeat=size) if replacement else itertools.combinations(range(8), size)
    gradients = []
    for rows in drawn:
        u = torch.tensor(w, requires_grad=True)
        rows = list(rows)
        loss = network.loss_fn(network._outputs(u, network._inputs[rows]), network._targets[rows])
        gradients.append(torch.autograd.grad(loss, u)[0].numpy())
    mean = np.mean(gradients, axis=0)
    return mean @ mean, np.mean([g @ g for g in gradients]) - mean @ mean


@pytest.mark.parametrize("name", TOKEN_LOSSES)
def test_a_mean_over_tokens_does_not_depend_on_batches(name):
    loss, weight = TOKEN_LOSSES[name]
    network, w = language_model(loss, weight)
    counts = (network._targets[:, 1:] if loss is shifted else network._targets).ne(-100).sum(1).numpy()
    np.testing.assert_allclose(network.example_weights, counts * 8 / counts.sum())
    x, y = network._inputs, network._targets
    whole = lambda u: loss(network._outputs(u, x), y)  # noqa: E731
    hessian = torch.autograd.functional.hessian(whole, torch.tensor(w)).numpy()
    slope = torch.autograd.functional.jacobian(whole, torch.tensor(w)).numpy()
    run = trajectory_dataset(w[None], step=[0], layers=network.layers)
    known = real_minibatches(network, w, 3)
    for options in ({}, {"batch_size": 3}, {"batch_size": 1}, {"memory": 20_000}):
        other = language_model(loss, weight, **options)[0]
        np.testing.assert_allclose(other.loss(w), float(whole(torch.tensor(w))), rtol=1e-13)
        np.testing.assert_allclose(other.gradient(w), slope, atol=1e-14)
        np.testing.assert_allclose(other.curvature(w).matmat(np.eye(len(w))), hessian, atol=1e-13)
        for memory in (2**28, 1):
            noise = gradient_noise(other, run, batch_size=3, per="all", memory=memory)
            np.testing.assert_allclose([noise.D1.values[0, 0], noise.D2.values[0, 0]], known, rtol=1e-10)


@pytest.mark.parametrize(("size", "replacement"), [(1, False), (2, True), (5, False), (8, False)])
def test_noise_of_real_minibatches(size, replacement):
    network, w = language_model(padded, None)
    run = trajectory_dataset(w[None], step=[0], layers=network.layers)
    noise = gradient_noise(network, run, batch_size=size, replacement=replacement)
    found = [float(noise[name].sum()) for name in ("D1", "D2")]
    np.testing.assert_allclose(found, real_minibatches(network, w, size, replacement), rtol=1e-9, atol=1e-15)
    if size == 1:
        sample = gradient_noise(network, run, of="sample")
        np.testing.assert_allclose(sample.D2, noise.D2, rtol=1e-12)


def test_noise_from_some_examples_is_unbiased():
    network, w = language_model(padded, None, l2=0.01)
    run = trajectory_dataset(w[None], step=[0], layers=network.layers)
    whole = gradient_noise(network, run, batch_size=3, per="all")
    found = [gradient_noise(network, run, batch_size=3, per="all", examples=5, rng=rng) for rng in range(60)]
    for name in ("D1", "D2"):
        values = np.array([noise[name].values[0, 0] for noise in found])
        off = (values.mean() - whole[name].values[0, 0]) / (values.std() / 60**0.5)
        assert abs(off) < 4


def test_an_example_without_a_target_counts_nothing():
    targets = NEXT.copy()
    targets[2] = -100
    network = TorchNetwork(Tokens(), padded, (IDS, targets), dtype="float64", batch_size=1)
    w = RNG.standard_normal(network.n_parameters)
    whole = float(padded(network._outputs(torch.tensor(w), network._inputs), network._targets))
    np.testing.assert_allclose(network.loss(w), whole, rtol=1e-13)
    assert not network.example_gradients(w, np.array([2])).any()
    assert np.isfinite(network.curvature(w, "fisher").matmat(np.eye(len(w)))).all()
    with pytest.raises(ArgumentError, match="none of the chosen examples counts"):
        network.gradient(w, np.array([2]))


def test_jax_losses_by_token():
    params = {"e": RNG.standard_normal((5, 3)), "o": RNG.standard_normal((3, 5))}

    def loss(outputs, targets):
        logp = jax.nn.log_softmax(outputs)
        losses = -jnp.take_along_axis(logp, jnp.maximum(targets, 0)[..., None], axis=-1)[..., 0]
        return (losses * (targets != -100)).sum() / (targets != -100).sum()

    def network(**options):
        return JaxNetwork(
            lambda p, x: jnp.tanh(p["e"][x]) @ p["o"], params, loss, (IDS, NEXT), dtype="float64", **options
        )

    whole = network(weight=count)
    w = np.concatenate([p.ravel() for p in params.values()])
    for name, member in {
        "loss": lambda n: n.loss(w),
        "gradient": lambda n: n.gradient(w),
        "examples": lambda n: n.example_gradients(w, np.arange(8)).mean(axis=0),
        "hessian": lambda n: n.curvature(w).matmat(np.eye(30)),
        "fisher": lambda n: n.curvature(w, "fisher").matmat(np.eye(30)),
    }.items():
        known = member(whole)
        for options in ({"batch_size": 3}, {"memory": 1}):
            found = member(network(weight=count, **options))
            np.testing.assert_allclose(found, known, rtol=1e-10, atol=1e-13, err_msg=name)
    np.testing.assert_allclose(whole.example_gradients(w, np.arange(8)).mean(axis=0), whole.gradient(w), atol=1e-13)
    with pytest.raises(ArgumentError, match="not their mean, with each example counting the same.*weight="):
        network()


def test_a_loss_without_a_second_derivative_is_named_and_differences_serve():
    network, w = made(F.multi_margin_loss, LABELS)
    with pytest.raises(UnsupportedError, match="multi_margin_loss_backward.*finite_difference.*1e-9"):
        network.curvature(w)
    each = network.example_gradients(w, np.arange(7))
    np.testing.assert_allclose(each.mean(axis=0), network.gradient(w), atol=1e-15)
    other = made(F.multi_margin_loss, LABELS, products="finite_difference")[0]
    found = other.curvature(w).matmat(np.eye(len(w)))
    np.testing.assert_allclose(found, found.T, atol=1e-8)


def contrastive(outputs, targets):
    z = F.normalize(outputs, dim=1)
    return F.cross_entropy(z @ z.T, torch.arange(len(z)))


@pytest.mark.parametrize(
    ("loss", "options", "message"),
    [
        (contrastive, {}, "compares the examples of a batch with each other"),
        (nn.CrossEntropyLoss(reduction="sum"), {}, "sums over the examples; give reduction='sum'"),
        (F.cross_entropy, {"reduction": "sum"}, "must be the sum of those of its parts; it is their mean"),
        (nn.CrossEntropyLoss(reduction="none"), {}, r"numbers of shape \(7,\).*reduction='mean'"),
        (F.cross_entropy, {"weight": np.arange(7)}, "not their mean, weighted by weight="),
        (F.cross_entropy, {"weight": np.ones(3)}, r"shape \(3,\) for 7 examples"),
        (F.cross_entropy, {"weight": -np.ones(7)}, "at least 0"),
        (nn.CrossEntropyLoss(reduction="sum"), {"weight": np.ones(7), "reduction": "sum"}, "leave it out"),
    ],
)
def test_losses_that_have_no_value_for_a_data_set(loss, options, message):
    with pytest.raises(ArgumentError, match=message):
        made(loss, LABELS, **options)


def test_what_cannot_be_evaluated_is_named():
    weights = CLASSES.float()
    with pytest.raises(UnsupportedError, match=r"cannot be evaluated on 7 examples: .*Float.* computes in float64"):
        made(lambda o, t: F.cross_entropy(o, t, weight=weights), LABELS)
    with pytest.raises(UnsupportedError, match="cannot be evaluated on 7 examples: .*shapes"):
        TorchNetwork(module(), F.cross_entropy, (X[:, :3], LABELS))
