"""Pools of numerical libraries: one thread inside a task, as they were after it, in workers of every scheduler."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import dask
import numpy as np
import pytest
import xarray as xr
from threadpoolctl import threadpool_info, threadpool_limits

import trajstats as ts
from trajstats.estimators.curvature._dask_tasks import at_workers, checkpoints, run_losses
from trajstats.runtime._cluster import computing, warn_if_oversubscribed
from trajstats.runtime._threads import on_one_thread, one_thread, torch_threads


def pools(api="blas"):
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == api}


@pytest.fixture
def two():
    """Pools of two threads, so that one is a change."""
    with threadpool_limits(2):
        if pools() != {2}:
            pytest.skip("this BLAS has one thread only")
        yield


@pytest.fixture
def torch(monkeypatch):
    """A stand-in: sizes belong to threads, and a thread that comes new takes the size that was set last."""
    last, here = [4], threading.local()

    def get():
        if not hasattr(here, "count"):
            here.count = last[0]
        return here.count

    def put(count):
        here.count = last[0] = count

    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(get_num_threads=get, set_num_threads=put))
    return SimpleNamespace(get=get, put=put)


@pytest.mark.usefixtures("two")
class TestOneThread:
    def test_one_inside_and_as_before_after(self):
        with one_thread():
            assert pools() | pools("openmp") == {1}
            with one_thread():
                assert pools() == {1}
            assert pools() == {1}
        assert pools() == {2}

    def test_a_fit_holds_them_for_its_small_matrices(self):
        """With two threads each product of 144 rows waits for the other core: five times the time on a busy machine."""
        seen = set()

        def log_curve(x, values):
            seen.update(pools())
            return values["power"] * x

        curve = ts.MasterCurve("my power", log_curve, {"power": (0.7, 0.1, 2.0)})
        wait, lag = (a.ravel() for a in np.meshgrid(np.geomspace(10, 1e3, 5), np.geomspace(1, 1e3, 5)))
        times = {"waiting_time": ("pair", wait), "lag": ("pair", lag)}
        delta = xr.DataArray((lag / wait**0.6) ** 0.5, dims="pair", coords=times)
        ts.fit_subaging(delta, rng=0, estimator=curve, max_steps=20)
        assert seen == {1}
        assert pools() == {2}

    def test_as_before_after_an_error(self):
        with pytest.raises(ZeroDivisionError):
            on_one_thread(lambda: 1 / 0)
        assert pools() == {2}

    def test_tasks_side_by_side_do_not_restore_each_others_limit(self, torch):
        entered, leave = threading.Event(), threading.Event()
        seen = []

        def second():
            with one_thread():
                entered.set()
                leave.wait()
                seen.append((pools(), torch.get()))
            seen.append(torch.get())

        other = threading.Thread(target=second)
        with one_thread():
            other.start()
            entered.wait()
        assert torch.get() == 4
        leave.set()
        other.join()
        assert seen == [({1}, 1), 4]
        assert pools() == {2}

    def test_torch_is_held_without_being_imported(self, torch):
        with one_thread():
            assert torch.get() == 1
            with torch_threads(3):
                assert torch.get() == 3
            assert torch.get() == 1
            with torch_threads(None):
                assert torch.get() == 1
        assert torch.get() == 4


def test_real_torch_is_held_and_given_back():
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert on_one_thread(torch.get_num_threads) == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_torch_is_not_imported():
    code = "import sys, trajstats.runtime._threads as t; t.on_one_thread(int); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


XLA = """
import pickle, sys
from pathlib import Path

network = pickle.load(sys.stdin.buffer)  # as a worker does
import jax
import jax.numpy as jnp

def ticks():  # CPU time of each thread
    stats = {task.name: (task / "stat").read_text() for task in Path("/proc/self/task").iterdir()}
    return {name: sum(map(int, stat.rpartition(")")[2].split()[11:13])) for name, stat in stats.items()}

square = jax.jit(lambda x: x @ x)
matrix = jnp.ones((1500, 1500))
square(matrix).block_until_ready()
before = ticks()
for _ in range(6):
    square(matrix).block_until_ready()
spent = sorted(count - before.get(name, 0) for name, count in ticks().items())
print(spent[-1] / sum(spent))
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="CPU time of threads is read from /proc")
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="XLA has one thread here anyway")
def test_a_network_of_jax_starts_xla_with_one_thread_in_a_worker():
    pytest.importorskip("jax")
    from trajstats_trainers.architectures.mlp import JaxMLP, mlp_init
    from trajstats_trainers.jax.adapter import JaxNetwork, cross_entropy

    data = np.ones((3, 2), dtype=np.float32), np.zeros(3, dtype=int)
    network = pickle.dumps(JaxNetwork(JaxMLP((2, 1)), mlp_init((2, 1), 0), cross_entropy, data))

    def share_of_the_busiest(**variables):
        environment = {k: v for k, v in os.environ.items() if k != "PJRT_NPROC"} | variables
        done = subprocess.run([sys.executable, "-c", XLA], input=network, capture_output=True, env=environment)
        return float(done.stdout)

    assert share_of_the_busiest() > 0.95
    assert share_of_the_busiest(PJRT_NPROC="2") < 0.9  # else this measures nothing


class Pools:
    """A network whose loss is the size of the largest pool; where it is unpickled, pools have two threads."""

    n_parameters = 1

    def loss(self, weights):
        return float(max(pools() | pools("openmp")))

    def __setstate__(self, state):
        threadpool_limits(2)
        self.__dict__.update(state)


def losses():
    run = ts.trajectory_dataset(np.zeros((3, 1)), step=range(3))
    return run_losses(at_workers(Pools()), run, checkpoints(run, range(3))).ravel().tolist()


@pytest.mark.parametrize("scheduler", ["synchronous", "threads", "processes"])
@pytest.mark.usefixtures("two")
def test_workers_of_local_schedulers(scheduler):
    with dask.config.set(scheduler=scheduler, num_workers=2):
        assert losses() == [1.0, 1.0, 1.0]
    assert pools() == {2}


def test_workers_of_a_cluster():
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(n_workers=1, threads_per_worker=2, dashboard_address=":0") as cluster,
        distributed.Client(cluster),
    ):
        assert losses() == [1.0, 1.0, 1.0]


def test_a_setting_that_oversubscribes_is_told(monkeypatch):
    monkeypatch.setattr("trajstats.runtime._cluster._workers", lambda *_: {"here": (4, 4)})
    warn_if_oversubscribed(1)
    with pytest.warns(RuntimeWarning, match="4 dask workers x 2 threads exceed the 4 cores of here"):
        warn_if_oversubscribed(2)
    with pytest.warns(RuntimeWarning, match="4 dask workers x 4 threads"):
        warn_if_oversubscribed(None)


def test_more_workers_than_cores_are_told():
    with pytest.warns(RuntimeWarning, match="10000 dask workers x 1 threads"), computing(workers=10_000):
        pass


def mean(data, **_):
    return xr.Dataset({"mean": data.mean()})


@pytest.mark.parametrize("scheduler", ["threads", "processes"])
def test_more_workers_than_cores_are_told_by_a_batch(scheduler, monkeypatch):
    def here(_, tasks, finished):
        for k, task in enumerate(tasks):
            finished(k, task.run())

    monkeypatch.setattr("trajstats.inference.batch._engine._Local.run", here)
    with pytest.warns(RuntimeWarning, match="10000 dask workers x 1 threads") as caught:
        ts.map_sweep(mean, {"a": ts.brownian([0, 1], rng=0)}, scheduler=scheduler, workers=10_000)
    assert caught[0].filename == __file__


def test_a_cluster_of_too_many_workers_is_told_by_a_batch():
    distributed = pytest.importorskip("distributed")
    run = xr.DataArray([1.0], dims="step")
    many = 10 * (os.cpu_count() or 1)
    settings = {"n_workers": 1, "threads_per_worker": many, "processes": False, "dashboard_address": ":0"}
    with (
        distributed.LocalCluster(**settings) as cluster,
        distributed.Client(cluster),
        pytest.warns(RuntimeWarning, match=f"{many} dask workers x 1 threads exceed"),
    ):
        ts.fit_batch(mean, {"a": run}, rng=0)
