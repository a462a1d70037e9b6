"""All pairs on a cluster of two workers at several sizes, and a model fitted to them that predicts larger ones.

    python tests/benchmarks/scaling_model.py --folder /tmp/scaling --sizes 2e5x128 5e5x512
    python tests/benchmarks/scaling_model.py --folder /tmp/scaling --sizes 1e7x512 --memory 2GiB

Each size N x T is a random walk, kept as a trajectory store in the folder (N T 4 bytes and less; made once). A run of
`all_pairs` is timed from compute to result on a LocalCluster of processes with one thread each, kernels compiled.

- Peak memory: ru_maxrss of the workers. They must be the same processes before and after.
- Overhead: share of the workers' time in which they neither computed nor moved data, from dask's task stream; and CPU
  time of the process that holds scheduler and client, to the wall clock.
- Model: worker seconds = a + r (bytes of weights) + p (pair differences) + s (tasks), by non-negative least squares on
  relative errors; its error is the largest one found when each size is predicted from the others.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import time
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}

import dask.array as da
import numpy as np
from distributed import Client, LocalCluster, get_task_stream
from scipy.optimize import nnls

import trajstats as ts
from trajstats.data.synthetic import brownian


def make(path: Path, n: int, t: int) -> None:
    if path.exists():
        return
    rng = np.random.default_rng(0)
    w = rng.standard_normal(n, dtype=np.float32)
    with ts.TrajectoryWriter(path, {"weight": (n,)}, sync=5.0) as writer:
        for step in range(t):
            writer.append(step, {"weight": w})
            w += np.float32(1e-3) * rng.standard_normal(n, dtype=np.float32)


def incoming(dask_worker: Any) -> int:
    return sum(one["total"] for one in dask_worker.transfer_incoming_log)


def measure(path: Path, client: Client) -> dict[str, Any]:
    pids = client.run(os.getpid)
    moved = client.run(incoming)
    run = ts.open_trajectory(path)
    plan = ts.two_time_plan(run)
    lazy = ts.all_pairs(run)
    cpu, wall = time.process_time(), time.perf_counter()
    with get_task_stream(client) as stream:
        future = client.compute(lazy)
        result = future.result()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    spent = {"compute": 0.0, "transfer": 0.0, "other": 0.0}
    for task in stream.data:
        for part in task["startstops"]:
            kind = part["action"] if part["action"] in spent else "other"
            spent[kind] += part["stop"] - part["start"]
    after = client.run(incoming)
    step = np.arange(run.sizes["step"])
    lag = np.abs(step[:, None] - step)
    assert np.allclose(result["msd"].values[0][lag > 0] / (1e-6 * lag[lag > 0]), 1, rtol=0.2)
    return {
        "parameters": run.sizes["parameter"],
        "checkpoints": run.sizes["step"],
        "bytes": int(run["weights"].nbytes),
        "pairs": plan.n_pairs,
        "tasks": len(stream.data),
        "planned_tasks": plan.n_tasks,
        "wall": wall,
        "worker_seconds": sum(spent.values()),
        "idle_share": 1 - sum(spent.values()) / (len(pids) * wall),
        "scheduler_cpu_share": cpu / wall,
        "moved_bytes": sum(after[w] - moved[w] for w in moved),
        "peak_bytes": client.run(lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024),
        "same_processes": client.run(os.getpid) == pids,
        "load": os.getloadavg()[0],
    }


def features(row: dict[str, Any]) -> np.ndarray:
    return np.array([1.0, row["bytes"], row["pairs"] * row["parameters"], row["planned_tasks"]])


def fit(rows: list[dict[str, Any]]) -> np.ndarray:
    seconds = np.array([row["worker_seconds"] for row in rows])
    design = np.array([features(row) for row in rows]) / seconds[:, None]
    scale = design.max(axis=0)
    return nnls(design / scale, np.ones(len(rows)))[0] / scale


def planned(n: int, t: int) -> dict[str, Any]:
    """What a run of this size would take, from its shape alone: no weight exists."""
    weights = da.empty((1, t, 0), dtype=np.float32)
    run = ts.trajectory_dataset(weights, step=np.arange(t), layers={"weight": (0,)})
    raise NotImplementedError(n, run)


def size(text: str) -> tuple[int, int]:
    n, _, t = text.partition("x")
    return int(float(n)), int(float(t))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("scaling-bench"))
    parser.add_argument("--sizes", type=size, nargs="+", default=[size("2e5x128")])
    parser.add_argument("--predict", type=size, nargs="*", default=[])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--memory", default="2GiB")
    options = parser.parse_args()
    rows = []
    for n, t in options.sizes:
        make(options.folder / f"n{n}-t{t}.zarr", n, t)
    settings = {"n_workers": options.workers, "threads_per_worker": 1, "memory_limit": options.memory}
    with LocalCluster(dashboard_address=None, **settings) as cluster, Client(cluster) as client:
        for worker in client.run(os.getpid):  # load everything, and the compiled kernels
            client.compute(ts.all_pairs(brownian(range(8), rng=0)), workers=[worker]).result()
        for n, t in options.sizes:
            rows.append(measure(options.folder / f"n{n}-t{t}.zarr", client))
            print(json.dumps(rows[-1]), flush=True)


if __name__ == "__main__":
    main()
