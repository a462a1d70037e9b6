"""Peak memory of curvature products in a process of their own, against the budget they were given."""

import subprocess
import sys

import pytest

CODE = """
import numpy as np, torch
from trainers.torch_adapter import TorchNetwork

torch.set_num_threads(1)
rng = np.random.default_rng(0)
x, y = rng.standard_normal((5000, 64)).astype("f"), rng.integers(0, 10, 5000)
nn = torch.nn
module = nn.Sequential(nn.Linear(64, 256), nn.Tanh(), nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 10))

def peak():
    return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1]) * 1024

def used(examples, memory):
    network = TorchNetwork(module, nn.functional.cross_entropy, (x[:examples], y[:examples]), memory=memory)
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


@pytest.mark.skipif(sys.platform != "linux", reason="reads and resets the peak as Linux tells it")
def test_peak_of_products_is_within_a_fifth_of_the_budget_in_parts_and_at_once():
    run = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    parts, parts_held, whole, whole_held = run.stdout.split()
    assert (parts_held, whole_held) == ("False", "True")
    assert 0.1 < float(parts) < 1.2
    assert 0.1 < float(whole) < 1.2
