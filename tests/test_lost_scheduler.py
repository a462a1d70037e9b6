"""A scheduler that is killed in the middle: how to go on is told, what is finished is kept, the rest is done again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import cloudpickle
import dask
import numpy as np
import pytest
import xarray as xr

import trajstats as ts
from tests.reference.numpy_networks import SoftmaxLinear
from tests.reference.small_fits import decay, fit
from trajstats.errors import ClusterError
from trajstats.estimators.two_time._sums import UNIT

distributed = pytest.importorskip("distributed")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::ResourceWarning")]
# Other processes cannot import test modules.
cloudpickle.register_pickle_by_value(sys.modules[__name__])
for shared in (SoftmaxLinear, fit):
    cloudpickle.register_pickle_by_value(sys.modules[shared.__module__])
SECONDS = 60


@pytest.fixture
def client(tmp_path):
    """A client of a scheduler and a worker in processes of their own; the scheduler may be killed."""
    address = tmp_path / "scheduler.json"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    scheduler = subprocess.Popen(
        [sys.executable, "-m", "distributed.cli.dask_scheduler", "--port", "0", "--no-dashboard",
         "--host", "127.0.0.1", "--scheduler-file", str(address)], **quiet
    )  # fmt: skip
    worker = subprocess.Popen(
        [sys.executable, "-m", "distributed.cli.dask_worker", "--scheduler-file", str(address), "--nthreads", "1",
         "--no-dashboard", "--no-nanny", "--death-timeout", "20"], **quiet
    )  # fmt: skip
    try:
        until = time.monotonic() + SECONDS
        while not address.exists() and time.monotonic() < until:
            time.sleep(0.05)
        with distributed.Client(scheduler_file=str(address), timeout=30, set_as_default=False) as client:
            client.wait_for_workers(1, timeout=30)
            client.kill_scheduler = scheduler.kill
            yield client
    finally:
        for process in (worker, scheduler):
            process.kill()
            process.wait()


@contextmanager
def killed_once(client, begun):
    """Kill the scheduler as soon as `begun` says so."""

    ended = threading.Event()

    def watch():
        while not ended.wait(0.01):
            if begun():
                client.kill_scheduler()
                return

    thread = threading.Thread(target=watch)
    with client.as_current():
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


class Suicide(distributed.diagnostics.plugin.SchedulerPlugin):
    """Ends the process of the scheduler as soon as so many sums of blocks are done."""

    name = "suicide"

    def __init__(self, after):
        self.after = after

    def transition(self, key, start, finish, *args, **kwargs):
        self.after -= start == "processing" and finish == "memory" and str(key).startswith("sums-")
        if self.after == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def times(paths):
    return {path: path.stat().st_mtime_ns for path in paths}


def finished_members(store):
    # A member that was cut short has no mark; that of one being written may be empty for a moment.
    return times(path for path in store.glob("*/zarr.json") if '"finished"' in path.read_text(encoding="utf-8"))


def test_a_batch(client, tmp_path):
    cases = {k: decay(k) for k in range(30)}
    store = tmp_path / "fits"
    address = client.scheduler.address
    with (
        pytest.raises(ClusterError, match=r"(?s)scheduler was lost.*kept in .*fits; the same call again"),
        killed_once(client, lambda: len(finished_members(store)) >= 5),
    ):
        ts.fit_batch(fit, cases, rng=0, store=store, per_task=1, scheduler="distributed")
    with pytest.raises(ClusterError, match="no dask scheduler answers at 'tcp://"):
        ts.fit_batch(fit, cases, rng=0, store=store, scheduler=address)
    kept = finished_members(store)
    assert 5 <= len(kept) < 30
    rest = ts.fit_batch(fit, cases, rng=0, store=store, scheduler="synchronous")
    assert times(kept) == kept
    xr.testing.assert_identical(rest, ts.fit_batch(fit, cases, rng=0, scheduler="synchronous"))


class Slow(SoftmaxLinear):
    """Long enough at each loss and product to lose the scheduler in between."""

    pause = 0.1

    def curvature(self, weights, kind="hessian"):
        time.sleep(self.pause)
        return super().curvature(weights, kind)


def test_spectra(client, tmp_path):
    rng = np.random.default_rng(0)
    network = Slow(rng.standard_normal((60, 7)), rng.integers(0, 4, 60), n_outputs=4)
    trajectory = ts.trajectory_dataset(rng.standard_normal((2, 4, network.n_parameters)), step=[0, 1, 2, 3])
    options = {"method": "lanczos", "order": 8, "probes": 10, "rng": 0}
    store = tmp_path / "tasks"

    def tasks():
        return list(store.glob("replica*"))

    with (
        pytest.raises(ClusterError, match=r"(?s)scheduler was lost.*kept in .*tasks\. The same call again does"),
        killed_once(client, lambda: len(tasks()) >= 4),
    ):
        ts.hessian_spectrum(network, trajectory, store=store, **options)
    kept = times(tasks())
    network.pause = 0.0
    # In a process of its own, as the lost one was.
    with dask.config.set(scheduler="processes", num_workers=1):
        resumed = ts.hessian_spectrum(network, trajectory, store=store, **options)
        assert 4 <= len(kept) < len(tasks())
        assert times(kept) == kept
        whole = ts.hessian_spectrum(network, trajectory, **options)
    for name in ("nodes", "weights", "residual", "alpha", "beta"):
        np.testing.assert_array_equal(resumed[name], whole[name])


def test_a_call_to_the_scheduler_itself(client):
    """Not of a task: which machines its workers are on is asked before the first one."""
    network = SoftmaxLinear(np.ones((6, 2)), np.arange(6) % 3, n_outputs=3)
    trajectory = ts.trajectory_dataset(np.ones((1, 1, network.n_parameters)), step=[0])
    with dask.config.set({"distributed.comm.timeouts.connect": "2s"}), client.as_current():
        client.kill_scheduler()
        with pytest.raises(ClusterError, match="scheduler was lost"):
            ts.hessian_spectrum(network, trajectory, rng=0)


PAIRS = {"block_bytes": 128 * 4 * UNIT}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A store of 128 steps and 100 units of parameters: 200 MB."""
    path = tmp_path_factory.mktemp("lost") / "run.zarr"
    weights = np.random.default_rng(0).standard_normal(100 * UNIT, dtype=np.float32)
    with ts.TrajectoryWriter(path, {"a": (100 * UNIT,)}, sync=10.0) as writer:
        for step in range(128):
            writer.append(step, weights)
            weights[step::7] += np.float32(1e-3)
    return ts.open_trajectory(path)


def test_pairs_that_are_kept(client, run, tmp_path):
    path = tmp_path / "pairs.zarr"
    ts.cached_pairs(run.isel(step=slice(0, 8)), path, **PAIRS)
    before = times(path.rglob("*"))
    client.register_plugin(Suicide(2))
    with (
        pytest.raises(ClusterError, match=r"(?s)scheduler was lost.*pairs.zarr is as it was\. The same call again"),
        client.as_current(),
    ):
        ts.cached_pairs(run, path, **PAIRS)
    assert times(path.rglob("*")) == before
    assert sorted(entry.name for entry in tmp_path.glob("pairs*")) == ["pairs.zarr"]
    again = ts.cached_pairs(run, path, **PAIRS)
    np.testing.assert_array_equal(again["msd"], ts.all_pairs(run, **PAIRS)["msd"])


def test_a_lazy_result_raises_what_dask_raises(client, run):
    lazy = ts.all_pairs(run, **PAIRS)
    client.register_plugin(Suicide(20))
    with pytest.raises(distributed.client.FutureCancelledError), client.as_current():
        lazy.compute()
    np.testing.assert_array_equal(lazy.compute()["msd"], ts.all_pairs(run, **PAIRS)["msd"])
