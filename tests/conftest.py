"""Shared by all tests: one thread per numerical library, a plotting backend without a screen, a small run."""

from __future__ import annotations

import os

for pool in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(pool, "1")
os.environ.setdefault("PJRT_NPROC", "1")
os.environ.setdefault("MPLBACKEND", "agg")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np  # noqa: E402  # the thread counts above are read when the libraries load
import pytest  # noqa: E402
import xarray as xr  # noqa: E402


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    import sys

    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


@pytest.fixture
def small_run() -> xr.Dataset:
    """Two replicas of a random walk of three layers, 40 log-spaced steps, with a loss."""
    from trajstats import trajectory_dataset

    rng = np.random.default_rng(7)
    step = np.unique(np.rint(np.geomspace(1, 2_000, 40)).astype(int))
    jumps = rng.standard_normal((2, step.size, 26)) * np.sqrt(np.diff(step, prepend=0))[None, :, None]
    return trajectory_dataset(
        (1e-3 * np.cumsum(jumps, axis=1)).astype(np.float32),
        step=step,
        layers={"0.weight": (4, 5), "0.bias": (4,), "1.weight": (1, 2)},
        replica=[3, 5],
        series={"loss": 1.0 / np.sqrt(step)},
        clocks={"epoch": step / 100, "proper_time": 0.05 * step},
    )


@pytest.fixture
def no_compute():
    """Make dask raise as soon as anything computes."""
    import dask

    def refuse(*_args: object, **_kwargs: object) -> None:
        msg = "something computed that should have stayed lazy"
        raise AssertionError(msg)

    def guard():
        return dask.config.set(scheduler=refuse)

    return guard
