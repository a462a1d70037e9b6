"""A cluster of processes: the same bits as in this process whatever happens to workers; a lost scheduler is told."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from pathlib import Path

import cloudpickle
import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr

import trajstats as ts
from tests.reference.numpy_networks import SoftmaxLinear
from tests.reference.small_fits import decay, fit
from trajstats.estimators.curvature._dask_tasks import at_workers
from trajstats.estimators.two_time._sums import UNIT
from trajstats.runtime._cluster import host

distributed = pytest.importorskip("distributed")
# A worker that is killed leaves half-closed sockets behind, which Python mentions at odd times.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::ResourceWarning")]
MEMORY = 900 * 2**20
SMALL = 400 * 2**20
# Other processes cannot import test modules.
cloudpickle.register_pickle_by_value(sys.modules[__name__])
for shared in (SoftmaxLinear, fit):
    cloudpickle.register_pickle_by_value(sys.modules[shared.__module__])


@pytest.fixture(scope="module")
def clusters():
    """Start clusters of two workers; all of them close at the end."""
    settings = {"n_workers": 2, "threads_per_worker": 1, "memory_limit": MEMORY, "dashboard_address": ":0"}
    with contextlib.ExitStack() as stack:

        def start():
            cluster = stack.enter_context(distributed.LocalCluster(**settings))
            return stack.enter_context(distributed.Client(cluster))

        yield [start()], start


@pytest.fixture
def client(clusters):
    """A cluster with both workers: the last test's, or another one if a killed worker did not come back there."""
    running, start = clusters
    try:
        running[-1].wait_for_workers(2, timeout=30)
    except TimeoutError:  # on a loaded machine the nanny of a killed worker gives up now and then
        running.append(start())
    return running[-1]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A store of 64 steps and 80 units of parameters: 84 MB."""
    path = tmp_path_factory.mktemp("cluster") / "run.zarr"
    rng = np.random.default_rng(0)
    weights = rng.standard_normal(80 * UNIT, dtype=np.float32)
    with ts.TrajectoryWriter(path, {"a": (30 * UNIT + 7,), "b": (50 * UNIT - 7,)}, sync=10.0) as writer:
        for step in range(64):
            writer.append(step, weights)
            weights += np.float32(1e-3) * rng.standard_normal(weights.size, dtype=np.float32)
    return ts.open_trajectory(path)


class Killer(distributed.diagnostics.plugin.SchedulerPlugin):
    """Kills one worker as soon as so many tasks are done, and keeps how many were still to do."""

    name = "killer"

    def __init__(self, client, after):
        self.scheduler = client.cluster.scheduler
        self.victim = next(iter(client.run(os.getpid).values()))
        self.after, self.left = after, 0

    def transition(self, key, start, finish, *args, **kwargs):
        self.after -= start == "processing" and finish == "memory"
        if self.after == 0 and not self.left:
            os.kill(self.victim, signal.SIGKILL)
            states = [task.state for task in self.scheduler.tasks.values()]
            self.left = sum(state in {"waiting", "processing", "queued", "no-worker"} for state in states)

    def __enter__(self):
        self.scheduler.add_plugin(self)
        return self

    def __exit__(self, *error):
        self.scheduler.remove_plugin(self.name)


def test_two_time_survives_a_killed_worker_to_the_bit(client, run):
    pairs = ts.time_pairs(run, lags_per_decade=4)
    lazy = xr.merge(
        [ts.all_pairs(run, block_bytes=64 * 4 * UNIT), ts.msd(run, pairs, block_bytes=64 * 4 * UNIT).rename("listed")],
        compat="override",
        join="outer",
    )
    want = lazy.compute(scheduler="synchronous")
    with Killer(client, 20) as killer:
        got = lazy.compute()
    assert killer.left > 0
    np.testing.assert_array_equal(got["msd"], want["msd"])
    np.testing.assert_array_equal(got["listed"], want["listed"])


class Slow(SoftmaxLinear):
    """Long enough at each loss and product to be killed in between; its inputs are shifted by a buffer."""

    buffers = {"shift": ()}

    def with_buffers(self, buffers):
        return Slow(self.x + buffers["shift"], self.y, n_outputs=self.n_outputs)

    def curvature(self, weights, kind="hessian"):
        time.sleep(0.05)
        return super().curvature(weights, kind)


def test_spectra_survive_a_killed_worker_to_the_bit(client, tmp_path):
    rng = np.random.default_rng(0)
    network = Slow(rng.standard_normal((60, 7)), rng.integers(0, 4, 60), n_outputs=4)
    weights = rng.standard_normal((2, 4, network.n_parameters))
    shifts = rng.standard_normal((2, 4))
    trajectory = ts.trajectory_dataset(weights, step=[0, 1, 2, 3], buffers={"shift": shifts})
    options = {"method": "lanczos", "order": 8, "probes": 10, "rng": 0}
    with dask.config.set(scheduler="synchronous"):
        here = ts.hessian_spectrum(network, trajectory, **options)
    # Undisturbed on the same workers.
    want = ts.hessian_spectrum(network, trajectory, **options)
    np.testing.assert_allclose(want["alpha"], here["alpha"], rtol=1e-12)
    known = network.with_buffers({"shift": shifts[1, 2]}).loss(weights[1, 2])
    np.testing.assert_allclose(want["loss"].values[1, 2], known, rtol=1e-12)
    with Killer(client, 14) as killer:
        got = ts.hessian_spectrum(network, trajectory, store=tmp_path / "tasks", **options)
    assert killer.left > 0
    for name in ("nodes", "weights", "residual", "alpha", "beta"):
        np.testing.assert_array_equal(got[name], want[name])


def test_a_network_is_at_all_workers_before_its_first_task(client):
    rng = np.random.default_rng(0)
    network = SoftmaxLinear(rng.standard_normal((60, 7)), rng.integers(0, 4, 60), n_outputs=4)
    shared = at_workers(network)
    (places,) = client.who_has(shared).values()
    assert len(places) == 2
    # A scheduler that dask was told to use goes before a client that merely exists.
    with dask.config.set(scheduler="synchronous"):
        assert not client.who_has(client.futures_of(at_workers(network)))


def test_spectra_of_weights_that_workers_hold(client, run):
    small = run.isel(parameter=slice(0, 28)).astype(np.float64)
    rng = np.random.default_rng(0)
    network = SoftmaxLinear(rng.standard_normal((60, 7)), rng.integers(0, 4, 60), n_outputs=4)
    options = {"method": "lanczos", "order": 8, "probes": 5, "rng": 0}
    small = ts.trajectory_dataset(small.weights.data[:, :4], step=range(4))
    want = ts.hessian_spectrum(network, small, **options)
    xr.testing.assert_equal(ts.hessian_spectrum(network, small.persist(), **options), want)


def test_a_batch_survives_a_killed_worker_to_the_bit(client, tmp_path):
    cases = {k: decay(k) for k in range(40)}
    want = ts.fit_batch(fit, cases, rng=0, scheduler="synchronous")
    with Killer(client, 8) as killer:
        got = ts.fit_batch(fit, cases, rng=0, store=tmp_path / "fits", per_task=1)
    assert killer.left > 0
    xr.testing.assert_identical(got, want)
    kept = ts.fit_batch(fit, cases, rng=0, store=tmp_path / "fits", scheduler="synchronous")
    xr.testing.assert_identical(kept, want)


def test_a_sweep_on_the_cluster_is_the_sweep_in_this_process(client, run):
    def listed(one):
        return ts.msd(one, ts.time_pairs(one, lags_per_decade=2))

    runs = {f"s{s}": run.isel(step=slice(0, 32 + s)).assign_attrs(seed=s) for s in range(3)}
    want = ts.map_sweep(listed, runs, dims=("seed",), scheduler="synchronous")
    got = ts.map_sweep(listed, runs, dims=("seed",), scheduler="distributed")
    xr.testing.assert_identical(got, want)


def test_a_member_that_kills_every_worker_is_one_failed_row(client):
    def deadly(data, *, rng):
        if int(data.attrs.get("seed", 0)) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return fit(data, rng=rng)

    cases = {k: decay(k).assign_attrs(seed=k) for k in range(6)}
    with dask.config.set({"distributed.scheduler.allowed-failures": 0}):
        client.cluster.scheduler.allowed_failures = 0
        try:
            result = ts.fit_batch(deadly, cases, rng=0, per_task=2)
        finally:
            client.cluster.scheduler.allowed_failures = 3
    bad = result["status"].values == "failed: KilledWorker"
    assert bad[3]


def test_blocks_follow_the_memory_of_the_workers(client, run):
    assert host().threads == 1
    assert host().memory < 0.6 * MEMORY
    wide = ts.trajectory_dataset(np.broadcast_to(np.float32(0), (1, 8192, 40 * UNIT)), step=np.arange(8192))
    plan = ts.two_time_plan(wide, ts.time_pairs(run))
    with dask.config.set(scheduler="threads", num_workers=1):
        alone = ts.two_time_plan(wide, ts.time_pairs(run))
    assert plan.memory_bytes <= host().memory
    assert plan.width <= alone.width
    inside = client.submit(lambda: (host().threads, host().memory), pure=False).result()
    assert inside == (1, host().memory)


@pytest.fixture(scope="module")
def small_client():
    """Two workers of little more than the library itself takes."""
    settings = {"n_workers": 2, "threads_per_worker": 1, "memory_limit": SMALL, "dashboard_address": ":0"}
    # Dask looks at the memory of a worker ten times a second; a block comes every 20 ms, and 100 MB matter here.
    often = {"distributed.worker.memory.monitor-interval": "10ms"}
    with (
        dask.config.set(often),
        distributed.LocalCluster(**settings) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


def peak_bytes():
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of a process is read from /proc")
def test_a_trajectory_larger_than_the_memory_of_the_workers(small_client, tmp_path):
    path, n = tmp_path / "large.zarr", 512 * UNIT
    weights = np.random.default_rng(0).integers(0, 8, n).astype(np.float32)
    with ts.TrajectoryWriter(path, {"a": (n,)}, sync=60.0) as writer:
        for step in range(128):
            writer.append(step, weights)
            weights += np.float32(1)
    run = ts.open_trajectory(path)
    assert run.weights.nbytes > 2.5 * SMALL
    want = ts.all_pairs(run).compute(scheduler="synchronous")
    before = small_client.run(os.getpid)
    got = ts.all_pairs(run).compute()
    np.testing.assert_array_equal(got["msd"], want["msd"])
    assert small_client.run(os.getpid) == before  # a worker that dies comes back as another process
    assert max(small_client.run(peak_bytes).values()) < SMALL


def on_disk(dask_worker):
    return sum(array.nbytes for array in dask_worker.data.disk.values())


def test_workers_whose_memory_is_taken_by_data_spill_and_do_not_die(small_client):
    width, n_blocks, scale = 32768, 48, np.sqrt(np.arange(128, dtype=np.float32))[:, None]

    def block(block_info):
        k = block_info[None]["chunk-location"][2]
        return (scale * np.random.default_rng(k).standard_normal(width, dtype=np.float32))[None]

    chunks = ((1,), (128,), (width,) * n_blocks)
    made = da.map_blocks(block, chunks=chunks, dtype=np.float32, meta=np.empty((0, 0, 0), np.float32))
    assert made.nbytes > 2 * 0.95 * SMALL  # at which a worker is killed
    want = ts.all_pairs(ts.trajectory_dataset(made, step=range(128))).compute(scheduler="synchronous")
    before = small_client.run(os.getpid)
    held = small_client.persist(made)
    distributed.wait(held, timeout=120)
    assert min(small_client.run(on_disk).values()) > 0
    got = ts.all_pairs(ts.trajectory_dataset(held, step=range(128))).compute()
    np.testing.assert_array_equal(got["msd"], want["msd"])
    assert small_client.run(os.getpid) == before
