"""Peak memory of curvature products in a process of their own, against the budget they were given."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads and resets the peak as Linux tells it")

COMMON = """
import sys
import numpy as np, trajstats as ts

rng = np.random.default_rng(0)
x, y = rng.standard_normal((5000, 64)).astype("f"), rng.integers(0, 10, 5000)
widths = (64, 256, 256, 10)

def in_torch(examples, **options):
    import torch
    from trajstats_trainers.torch.adapter import TorchNetwork

    linear, tanh = torch.nn.Linear, torch.nn.Tanh
    module = torch.nn.Sequential(linear(64, 256), tanh(), linear(256, 256), tanh(), linear(256, 10))
    return TorchNetwork(module, torch.nn.functional.cross_entropy, (x[:examples], y[:examples]), **options)

def in_jax(examples, **options):
    import jax
    from trajstats_trainers.jax.adapter import JaxNetwork, cross_entropy

    def apply(p, z):
        for k in range(2):
            z = jax.numpy.tanh(z @ p[f"w{k}"] + p[f"b{k}"])
        return z @ p["w2"] + p["b2"]

    params = {f"w{k}": np.zeros((a, b), "f") for k, (a, b) in enumerate(zip(widths, widths[1:]))}
    params |= {f"b{k}": np.zeros(b, "f") for k, b in enumerate(widths[1:])}
    return JaxNetwork(apply, params, cross_entropy, (x[:examples], y[:examples]), **options)

def peak():
    return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1]) * 1024

make = {"torch": in_torch, "jax": in_jax}[sys.argv[1]]
"""
PRODUCTS = """
def used(examples, memory):
    network = make(examples, memory=memory)
    w = np.full(network.n_parameters, 0.01, "f")
    open("/proc/self/clear_refs", "w").write("5")
    before = peak()
    operator = network.curvature(w)
    for _ in range(2):
        operator.matmat(np.ones((len(w), 16), "f"))
    return (peak() - before) / memory, operator._held is not None

used(64, 2**28)
print(*used(5000, 100_000_000), *used(5000, 2**28))
"""
WHOLE = """
def used(examples, products, lanczos):
    network = make(examples, memory=products)
    run = ts.trajectory_dataset(np.full((1, network.n_parameters), 0.01, "f"), step=[0], layers=network.layers)
    open("/proc/self/clear_refs", "w").write("5")
    before = peak()
    ts.hessian_spectrum(network, run, probes=5, order=8, deflate=False, memory=lanczos, rng=0)
    assert network._latest[0][1]._held is None or examples == 64
    return (peak() - before) / (products + lanczos)

used(64, 2**28, 2**28)
print(used(5000, 100_000_000, 55_000_000))
"""


def measured(code, framework):
    run = subprocess.run([sys.executable, "-c", COMMON + code, framework], capture_output=True, text=True, check=True)
    return run.stdout.split()


@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_peak_of_products_is_within_a_fifth_of_the_budget_in_parts_and_at_once(framework):
    parts, parts_held, whole, whole_held = measured(PRODUCTS, framework)
    assert (parts_held, whole_held) == ("False", "True")
    assert 0.1 < float(parts) < 1.2
    assert 0.1 < float(whole) < 1.2


@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_peak_of_a_whole_spectrum_is_within_a_fifth_of_both_budgets_together(framework):
    (peak,) = measured(WHOLE, framework)
    assert 0.1 < float(peak) < 1.2
