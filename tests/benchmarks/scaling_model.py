r"""All pairs on a cluster of two workers at several sizes, and a model fitted to them that predicts larger ones.

    python tests/benchmarks/scaling_model.py --folder /tmp/scaling --sizes 1e6x128 2e6x64 5e5x512 1e6x256 \
        --predict 1e7x512 1e9x1e3
    python tests/benchmarks/scaling_model.py --folder /tmp/scaling --sizes 1e7x512 --memory 2GiB

Each size N x T is a random walk, kept as a trajectory store in the folder (N T 4 bytes and less; made once). A run of
`all_pairs` is timed from compute to result on a LocalCluster of processes with one thread each, kernels compiled.

- Peak memory: ru_maxrss of the workers. They must be the same processes before and after.
- Overhead: share of the workers' time in which they neither computed nor moved data, from dask's task stream; and CPU
  time of the process that holds scheduler and client, to the wall clock.
- Model: CPU seconds of the workers = r (bytes of weights) + p (pair differences) + s (tasks), by non-negative least
  squares on relative errors. Its error is the largest one found when each size is predicted from the others.
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

import numpy as np
from distributed import Client, LocalCluster, get_task_stream
from scipy.optimize import nnls

import trajstats as ts
from trajstats.data.synthetic.processes import brownian
from trajstats.runtime._cluster import host


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
    before = client.run(time.process_time)
    cpu, wall = time.process_time(), time.perf_counter()
    with get_task_stream(client) as stream:
        future = client.compute(lazy)
        result = future.result()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    used = client.run(time.process_time)
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
        "partials": partials(plan),
        "wall": wall,
        "worker_cpu": sum(used[w] - before[w] for w in before),
        "worker_seconds": sum(spent.values()),
        "idle_share": 1 - sum(spent.values()) / (len(pids) * wall),
        "scheduler_cpu_share": cpu / wall,
        "moved_bytes": sum(after[w] - moved[w] for w in moved),
        "peak_bytes": client.run(lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024),
        "same_processes": client.run(os.getpid) == pids,
        "load": os.getloadavg()[0],
    }


def features(row: dict[str, Any]) -> np.ndarray:
    return np.array([row["bytes"], row["pairs"] * row["parameters"], row["planned_tasks"]], dtype=float)


def fit(rows: list[dict[str, Any]]) -> np.ndarray:
    seconds = np.array([row["worker_cpu"] for row in rows])
    design = np.array([features(row) for row in rows]) / seconds[:, None]
    scale = design.max(axis=0)
    return nnls(design / scale, np.ones(len(rows)))[0] / scale


def planned(n: int, t: int, memory: int) -> dict[str, Any]:
    """Plan a run from its shape alone: no weight exists."""
    weights = np.broadcast_to(np.float32(0), (1, t, n))
    plan = ts.two_time_plan(ts.trajectory_dataset(weights, step=np.arange(t)), memory_limit=memory)
    facts = {"parameters": n, "checkpoints": t, "bytes": 4 * n * t, "pairs": plan.n_pairs}
    return facts | {"planned_tasks": plan.n_tasks, "partials": partials(plan)}


def partials(plan: Any) -> int:
    """Bytes of all partial sums, of which some move between workers."""
    return plan.partial_bytes * plan.n_tasks


def report(rows: list[dict[str, Any]], wanted: list[tuple[int, int]], memory: int, workers: int) -> None:
    model = fit(rows)
    errors = [
        float(features(row) @ fit([other for other in rows if other is not row]) / row["worker_cpu"] - 1)
        for row in rows
    ]
    moved = np.array([row["moved_bytes"] / row["partials"] for row in rows])
    print(f"CPU s of the workers = {model[0] * 1e9:.3g} per GB + {model[1] * 1e9:.3g} per 1e9 pair differences + "
          f"{model[2]:.3g} per task")  # fmt: skip
    print("each size predicted from the others, relative error:", ", ".join(f"{e:+.0%}" for e in errors))
    print(f"partial sums that moved: {moved.min():.0%} to {moved.max():.0%}")
    for n, t in wanted:
        row = planned(n, t, memory)
        hours = features(row) @ model / 3600
        print(f"N = {n:.3g}, T = {t}: {row['planned_tasks']} tasks, {row['bytes'] / 1e12:.3g} TB read, "
              f"{row['partials'] * moved.max() / 1e9:.3g} GB moved at most, {hours:.3g} CPU hours "
              f"+- {max(map(abs, errors)):.0%}, on {workers} workers {hours / workers:.3g} h")  # fmt: skip


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
    parser.add_argument("--on", type=int, default=64, help="workers of the prediction")
    options = parser.parse_args()
    rows = []
    for n, t in options.sizes:
        make(options.folder / f"n{n}-t{t}.zarr", n, t)
    settings = {"n_workers": options.workers, "threads_per_worker": 1, "memory_limit": options.memory}
    with LocalCluster(dashboard_address=":0", **settings) as cluster, Client(cluster) as client:
        for worker in client.run(os.getpid):  # load everything, and the compiled kernels
            client.compute(ts.all_pairs(brownian(range(8), rng=0)), workers=[worker]).result()
        for n, t in options.sizes:
            rows.append(measure(options.folder / f"n{n}-t{t}.zarr", client))
            print(json.dumps(rows[-1]), flush=True)
        memory = host().memory
    if len(rows) > 3:
        report(rows, options.predict, memory, options.on)


if __name__ == "__main__":
    main()
