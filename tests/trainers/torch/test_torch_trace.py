"""Traced products against plain forward mode, and graphs that no trace can hold."""

import pickle
import threading

import numpy as np
import pytest
import torch
from torch.func import grad, jvp
from trajstats_trainers.torch import _curvature as torch_curvature
from trajstats_trainers.torch._curvature import TorchCurvature
from trajstats_trainers.torch._trace import Traced
from trajstats_trainers.torch.adapter import TorchNetwork

RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((12, 1, 6, 6)), RNG.integers(0, 3, 12)


class Attention(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = torch.nn.MultiheadAttention(6, 2, batch_first=True)
        self.out = torch.nn.Linear(36, 3)

    def forward(self, x):
        return self.out(self.attention(x[:, 0], x[:, 0], x[:, 0], need_weights=True)[0].flatten(1))


class Branch(torch.nn.Module):
    """Control flow on values: what was traced at one point is wrong at another."""

    def __init__(self):
        super().__init__()
        self.out = torch.nn.Linear(36, 3)

    def forward(self, x):
        z = self.out(x.flatten(1))
        return torch.tanh(z) if self.out.bias.sum() > 0 else torch.sigmoid(z)


def conv():
    nn = torch.nn
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 3))


def norms():
    nn = torch.nn
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.GELU(), nn.Flatten(), nn.LayerNorm(64), nn.Linear(64, 3)
    )


def mlp():
    nn = torch.nn
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 5), nn.Softplus(), nn.Linear(5, 4), nn.Sigmoid(), nn.Linear(4, 3))


def network_of(make, **options):
    torch.manual_seed(0)
    module = make()
    network = TorchNetwork(module, torch.nn.functional.cross_entropy, (X, Y), dtype="float64", **options)
    return network, np.concatenate([p.detach().numpy().ravel() for p in module.parameters()]).astype(float)


def known_products(network, w, vectors):
    """One vector after the other by plain forward mode over the gradient, without the adapter's products."""
    flat = torch.from_numpy(w)
    of = lambda u: grad(network._data_loss)(u, network._inputs, network._targets)  # noqa: E731
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        return np.stack([jvp(of, (flat,), (torch.from_numpy(v),))[1].numpy() for v in vectors.T], axis=1)


@pytest.mark.parametrize("make", [mlp, conv, norms, Attention])
def test_one_trace_gives_the_products_of_every_checkpoint(make):
    network, w = network_of(make)
    for shift in (0.0, 0.05):
        operator = network.curvature(w + shift)
        vectors = RNG.standard_normal((len(w), 3))
        known = known_products(network, w + shift, vectors)
        for _ in range(2):
            np.testing.assert_allclose(operator.matmat(vectors), known, rtol=0, atol=1e-13 * np.abs(known).max())
    assert len(network._traced) == 1
    assert all(traced is not None for traced in network._traced.values())


def test_control_flow_on_values_is_evaluated_at_each_checkpoint():
    network, w = network_of(Branch)
    vectors = RNG.standard_normal((len(w), 2))
    for bias in (0.5, -0.5):
        w[-3:] = bias
        found = network.curvature(w).matmat(vectors)
        np.testing.assert_allclose(found, known_products(network, w, vectors), rtol=0, atol=1e-14)


def test_numbers_of_vectors_that_do_not_fill_the_calls():
    network, w = network_of(mlp)
    vectors = RNG.standard_normal((len(w), 35))
    found = network.curvature(w).matmat(vectors)
    np.testing.assert_allclose(found, known_products(network, w, vectors), rtol=0, atol=1e-14)
    assert {key[1] for key in network._traced} == {12}


def test_a_copy_from_another_call_is_not_traced_again_unless_it_was_changed(monkeypatch):
    network, w = network_of(norms)
    vectors = RNG.standard_normal((len(w), 3))
    known = network.curvature(w).matmat(vectors)
    traced = []
    trace = TorchCurvature._trace
    monkeypatch.setattr(TorchCurvature, "_trace", lambda self, *given: traced.append(self) or trace(self, *given))
    again = pickle.loads(pickle.dumps(network))
    np.testing.assert_array_equal(again.curvature(w).matmat(vectors), known)
    assert not traced
    changed = pickle.loads(pickle.dumps(network))
    changed.module[1].running_var *= 2
    found = changed.curvature(w).matmat(vectors)
    assert len(traced) == 1
    np.testing.assert_allclose(found, known_products(changed, w, vectors), rtol=0, atol=1e-13 * np.abs(found).max())
    assert np.abs(found - known).max() > 1e-3 * np.abs(known).max()
    assert len(torch_curvature.TRACES) <= torch_curvature.MOST_TRACES


def test_threads_at_one_checkpoint_do_not_share_memory():
    network, w = network_of(mlp)
    operator = network.curvature(w)
    vectors = [RNG.standard_normal((len(w), 4)) for _ in range(4)]
    known = [operator.matmat(v) for v in vectors]
    wrong = []

    def work(i):
        wrong.extend(i for _ in range(50) if not np.array_equal(operator.matmat(vectors[i]), known[i]))

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def traced(function, x, rows):
    return Traced(function, (x,), rows)


@pytest.mark.parametrize(
    "function",
    [
        lambda x, v: (v * x.exp()).cumsum(1) + (v.T.contiguous().T * 2 - v),
        # a constant that an operation on the rows changes in place
        lambda x, v: torch.zeros(4, 6).add_(v).mul_(x) + x * v,
        # what is changed in place is read through another view before and after
        lambda x, v: (lambda z: (z[:, ::2].clone(), z.add_(v * x), z[:, ::2])[2].repeat(1, 2))(v * 3),
        # one argument of an operation is another's transpose
        lambda x, v: (lambda z: z + z.T)((v * x)[:, :4].contiguous()),
        # parts of one array end at different times
        lambda x, v: (
            torch.cat([p.sin() * q for p, q in zip((x * v).split(2, 1), (v + x).split(2, 1), strict=True)], 1) * v
        ),
        lambda x, v: v,
        # a product on top of an array that ends there, that is read again, and that is a factor too
        lambda x, v: (v * x).sin() + (v @ v.T) @ (v + x),
        lambda x, v: (lambda z: (z + (v @ v.T) @ v) * z)(v * x),
        lambda x, v: (lambda z: (z + z @ z).repeat(1, 2)[:, :6])(v[:, :4] * 2),
        lambda x, v: (lambda z: (z + (z.T @ z).T).repeat(1, 2)[:, :6])(v[:, :4] * 2),
    ],
)
def test_arrays_are_used_again_only_where_nothing_reads_them(function):
    x, rows = torch.randn(6, dtype=torch.float64), torch.randn(4, 6, dtype=torch.float64)
    held = traced(function, x, rows)
    for at in (x, x + 1):
        program = held.at(at)
        for v in (rows, rows + 1, torch.zeros_like(rows)):
            torch.testing.assert_close(program(v).clone(), function(at, v.clone()), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(
    ("function", "message"),
    [(lambda x, v: v * torch.rand(6), "random numbers"), (lambda x, v: x.add_(v.sum()) * v, "in place")],
)
def test_graphs_that_cannot_be_run_again_are_refused(function, message):
    with pytest.raises(RuntimeError, match=message):
        traced(function, torch.ones(6), torch.ones(4, 6))


def test_calls_after_the_first_allocate_no_array_of_the_examples(monkeypatch):
    network, w = network_of(mlp)
    operator = network.curvature(w)
    vectors = RNG.standard_normal((len(w), 5))
    operator.matmat(vectors)
    (programs,) = operator._idle
    ((_, program),) = programs.parts
    rows = torch.from_numpy(vectors.T.copy())
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        program(rows)
    taken = sum(e.self_cpu_memory_usage for e in profile.key_averages() if e.self_cpu_memory_usage > 0)
    ((_, plain),) = operator._plain()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        plain(rows)
    assert taken < 0.2 * sum(e.self_cpu_memory_usage for e in profile.key_averages() if e.self_cpu_memory_usage > 0)
