"""What the store costs; every figure is a ratio to something measured in the same run."""

from __future__ import annotations

import os
import time

import numpy as np
import pytest
import zarr

import trajstats as ts
from trajstats.data.sketch import Sketch

N = 1_000_000


def best(function, repeats):
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return times


def test_append_costs_at_most_three_writes(benchmark, tmp_path):
    row = np.random.default_rng(0).standard_normal(N).astype(np.float32)
    raw = row.tobytes()
    handle = os.open(tmp_path / "bare", os.O_CREAT | os.O_WRONLY)
    bare, ours, step = [], [], 0
    writer = ts.TrajectoryWriter(tmp_path / "run.zarr", {"w": (N,)})

    def pair():
        nonlocal step
        start = time.perf_counter()
        os.write(handle, raw)
        os.fsync(handle)
        middle = time.perf_counter()
        writer.append(step, row, loss=0.1)
        bare.append(middle - start)
        ours.append(time.perf_counter() - middle)
        step += 1

    benchmark.pedantic(pair, rounds=50, warmup_rounds=3)
    writer.close()
    os.close(handle)
    ratio = float(np.median(ours) / np.median(bare))
    benchmark.extra_info.update(
        ratio=ratio, append_ms=1e3 * float(np.median(ours)), bare_ms=1e3 * float(np.median(bare))
    )
    benchmark.extra_info["target"] = "at most 3"


def test_column_sweep_is_ten_times_faster_than_one_row_chunks(benchmark, tmp_path):
    rows, n = 512, N
    rng = np.random.default_rng(0)
    walk = rng.standard_normal(n).astype(np.float32)
    plain = zarr.create_array(str(tmp_path / "plain.zarr"), shape=(rows, n), chunks=(1, n), dtype="f4")
    with ts.TrajectoryWriter(tmp_path / "run.zarr", {"w": (n,)}, sync=1e9) as writer:
        for k in range(rows):
            walk += 1e-3 * rng.standard_normal(n, dtype="f4")
            plain[k] = walk
            writer.append(k, walk)
    width = 16_384
    blocks = 4  # of each; one-row chunks take the same time for every block of columns
    run = ts.open_trajectory(tmp_path / "run.zarr")

    def tiles():
        for b in range(blocks):
            np.asarray(run.weights[0, :, b * width : (b + 1) * width].values)

    theirs = min(best(lambda: plain[:, :width], 1))
    benchmark.pedantic(tiles, rounds=5, warmup_rounds=1)
    ours = benchmark.stats.stats.min / blocks
    benchmark.extra_info.update(ratio=theirs / ours, mb_per_s=rows * width * 4e-6 / ours)
    benchmark.extra_info["target"] = "at least 10"


def test_training_slowed_by_one_checkpoint_a_second(benchmark, tmp_path):
    row = np.random.default_rng(0).standard_normal(N).astype(np.float32)
    a = np.random.default_rng(1).standard_normal((400, 400)).astype(np.float32)

    def train(until):
        done = 0
        while time.perf_counter() < until:
            np.tanh(a @ a)
            done += 1
        return done

    # 66 seconds hold one whole slab of 64 rows, and so one compaction in the background.
    seconds, steps = 66, {"without": 0, "with": 0}
    steps["without"] = train(time.perf_counter() + seconds)

    def train_and_record():
        with ts.TrajectoryWriter(tmp_path / "run.zarr", {"w": (N,)}) as writer:
            began = time.perf_counter()
            for k in range(seconds):
                writer.append(k, row)
                steps["with"] += train(began + k + 1)

    benchmark.pedantic(train_and_record, rounds=1)
    benchmark.extra_info.update(slowed_per_cent=100 * (1 - steps["with"] / steps["without"]))


@pytest.mark.parametrize("kind", ["countsketch", "sparse"])
def test_sketch_rate(benchmark, kind):
    n = 20_000_000
    weights = np.random.default_rng(0).standard_normal(n).astype(np.float32)
    sketch = Sketch(buckets=4096, hashes=2, kind=kind)
    spent = []  # CPU time: of one core, whatever else the machine does

    def project():
        start = time.process_time()
        sketch.project(weights, {"w": (n,)}, reference=weights)
        spent.append(time.process_time() - start)

    benchmark.pedantic(project, rounds=3, warmup_rounds=1)
    rate = 2 * n / min(spent) / 1e6
    benchmark.extra_info.update(million_weights_per_second_and_hash=rate)
    benchmark.extra_info["target"] = "countsketch at least 150"
