"""A process that compiles the kernels and one that finds them compiled give the same bits."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SCRIPT = """
import hashlib
import numpy as np, xarray as xr
import trajstats as ts
from tests.reference.numpy_networks import SoftmaxLinear

def told(*arrays):
    print(hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)).hexdigest())

rng = np.random.default_rng(0)
network = SoftmaxLinear(rng.standard_normal((60, 7)), rng.integers(0, 4, 60), n_outputs=4)
run = ts.trajectory_dataset(rng.standard_normal((1, 2, network.n_parameters)), step=[0, 1])
told(ts.hessian_spectrum(network, run, method="lanczos", order=8, probes=10, rng=0)["nodes"])
told(ts.all_pairs(ts.brownian(np.arange(20), rng=0))["msd"])
wait, lag = (a.ravel() for a in np.meshgrid(np.geomspace(100, 1e4, 5), np.geomspace(10, 1e4, 6)))
msd = -np.expm1(-(np.sqrt(wait + lag) - np.sqrt(wait)) / 20) * np.exp(0.02 * rng.standard_normal(wait.size))
times = {"waiting_time": ("pair", wait), "lag": ("pair", lag)}
told(ts.fit_subaging(xr.DataArray(msd, dims="pair", coords=times), rng=0).posterior["mu"])
"""


@pytest.mark.slow
def test_the_first_process_and_the_next_agree_to_the_bit(tmp_path):
    """A compiled function that calls another may be put together in another way when both come from the cache."""
    told = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    first, second = (
        subprocess.run([sys.executable, "-c", SCRIPT], env=told, capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    )
    assert any(tmp_path.rglob("*.nbc"))
    assert first.split() == second.split()
    assert len(first.split()) == 3
