"""A torch network in use by one thread, and by others or on its way to another process at the same time."""

import pickle
import sys
import threading

import dask
import numpy as np
import pytest
import torch
from trajstats_trainers.torch.adapter import TorchNetwork

import trajstats as ts

RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((40, 6)), RNG.integers(0, 3, 40)


class Scaled(torch.nn.Module):
    """Parameters of its own, a buffer, a submodule used twice and one parameter that another is tied to."""

    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Linear(6, 6)
        self.norm = torch.nn.BatchNorm1d(6)
        self.out = torch.nn.Linear(6, 3)
        self.scale = torch.nn.Parameter(torch.ones(6))
        self.tied = self.scale

    def forward(self, x):
        x = torch.tanh(self.inner(self.norm(x)) * self.scale)
        return self.out(torch.tanh(self.inner(x) * self.tied))


@pytest.fixture(autouse=True)
def threads_take_turns_often():
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(usual)


def made():
    torch.manual_seed(0)
    module = Scaled()
    module.norm.running_var *= 3
    return TorchNetwork(module, torch.nn.functional.cross_entropy, (X, Y), dtype="float64")


@pytest.fixture
def network():
    return made()


def weights_of(network, seed):
    return np.random.default_rng(seed).standard_normal(network.n_parameters)


CALLS = {
    "loss": lambda network, w: network.loss(w),
    "gradient": lambda network, w: network.gradient(w),
    "example_gradients": lambda network, w: network.example_gradients(w, np.arange(5)),
    "outputs": lambda network, w: network.outputs(w, X),
    "features": lambda network, w: network.features(w, X, "inner"),
    "input_jacobian": lambda network, w: network.input_jacobian(w, X[:3]),
    "curvature": lambda network, w: network.curvature(w).matmat(np.eye(len(w))[:, :4]),
}


@pytest.mark.parametrize("name", CALLS)
def test_threads_at_different_weights_do_not_mix_them(network, name):
    call = CALLS[name]
    points = [weights_of(network, seed) for seed in range(4)]
    known = [call(made(), w) for w in points]
    wrong, gate = [], threading.Barrier(4)

    def work(i):
        try:
            gate.wait()
            for _ in range(15):
                found = call(network, points[i])
                if not np.allclose(found, known[i], rtol=1e-12, atol=1e-13):
                    wrong.append(np.abs(np.asarray(found) - known[i]).max())
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_network_in_use_can_be_sent_to_another_process(network):
    # A cluster's worker sends the network on while one of its threads computes with it.
    w = weights_of(network, 0)
    known = network.gradient(w)
    done = threading.Event()

    def work():
        while not done.is_set():
            for call in CALLS.values():
                call(network, w)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        sent = [pickle.dumps(network) for _ in range(300)]
    finally:
        done.set()
        thread.join()
    for one in {sent[0], sent[-1], *sent[::20]}:
        np.testing.assert_array_equal(pickle.loads(one).gradient(w), known)


def test_threads_see_a_module_whose_buffers_were_changed(network):
    w = weights_of(network, 0)
    before = network.outputs(w, X)
    network.module.norm.running_var *= 2
    assert np.abs(network.outputs(w, X) - before).max() > 1e-3


@pytest.mark.filterwarnings("ignore:.*exceed the .* cores")
def test_estimators_in_threads_give_what_they_give_in_one():
    rows = np.stack([weights_of(made(), seed) for seed in range(4)])
    # Running statistics of each checkpoint, which threads must not mix either.
    state = {"norm.running_mean": RNG.standard_normal((4, 6)), "norm.running_var": RNG.uniform(1, 9, (4, 6))}
    run = ts.trajectory_dataset(rows, step=range(4), layers=made().layers, buffers=state)

    def found(scheduler):
        network = made()
        with dask.config.set(scheduler=scheduler, num_workers=4):
            spectrum = ts.hessian_spectrum(network, run, method="lanczos", order=8, rng=0)
            noise = ts.gradient_noise(network, run, batch_size=10, rng=0)
        return spectrum, noise

    for one, other in zip(found("synchronous"), found("threads"), strict=True):
        for name in one.data_vars:
            np.testing.assert_allclose(other[name], one[name], rtol=1e-9, atol=1e-12, err_msg=name)
