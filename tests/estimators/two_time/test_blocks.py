"""Sums over blocks on a cluster: the same bits whatever happens to the workers."""

from __future__ import annotations

import os
import signal
import time

import numpy as np
import pytest

import trajstats as ts
from trajstats.data.synthetic.processes import brownian
from trajstats.estimators.two_time._sums import UNIT, block_of, merge


def test_absent_groups_are_zero_and_inputs_are_kept():
    a, b = {0: {"x": np.ones(2)}}, {0: {"x": np.ones(2), "y": np.ones(1)}, 3: {"x": np.zeros(2)}}
    got = merge(a, b)
    assert got[0]["x"].tolist() == [2, 2]
    assert got[0]["y"].tolist() == [1]
    assert set(got) == {0, 3}
    assert a[0]["x"].tolist() == [1, 1]


def test_random_blocks_do_not_depend_on_the_platform():
    assert block_of(np.arange(12), 32, 0).tolist() == block_of(np.arange(12), 32, 0).tolist()
    np.testing.assert_array_equal(block_of(np.array([0, 1, 10**12]), 1000, 7), TEST_VECTOR)


# Of splitmix64 in exact integer arithmetic.
def _mix(index, seed, n):
    m = 2**64 - 1
    z = (index + seed * 0xD1342543DE82EF95 + 0x9E3779B97F4A7C15) & m
    z = (z * 0x9E3779B97F4A7C15) & m
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & m
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & m
    return (z ^ (z >> 31)) % n


TEST_VECTOR = [_mix(i, 7, 1000) for i in (0, 1, 10**12)]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_worker_that_dies_changes_no_bit():
    distributed = pytest.importorskip("distributed")
    run = brownian(range(64), rng=0, n_parameters=40 * UNIT + 99, start=1.0, diffusion=1e-6)
    run = run.assign(weights=run.weights.chunk({"parameter": 3 * UNIT}))
    lazy = ts.all_pairs(run, observables="kurtosis", block_bytes=64 * 4 * UNIT)
    want = lazy.compute(scheduler="synchronous")
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        distributed.Client(cluster) as client,
    ):
        pids = list(client.run(os.getpid).values())
        future = client.compute(lazy)
        until = time.monotonic() + 60
        while not client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.transition_counter > 60):
            assert time.monotonic() < until
            time.sleep(0.02)
        os.kill(pids[0], signal.SIGKILL)
        got = future.result(timeout=120)
        again = client.compute(lazy).result(timeout=120)
        client.wait_for_workers(2, timeout=60)
    np.testing.assert_array_equal(got.msd, want.msd)
    np.testing.assert_array_equal(got.kurtosis, want.kurtosis)
    np.testing.assert_array_equal(again.msd, want.msd)
