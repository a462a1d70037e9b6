"""All pairs of a large run beside what else computes them: one interleaved run, printed as a Markdown table.

    python tests/benchmarks/two_time_at_scale.py --parameters 4e6 --checkpoints 512 --folder /tmp/bench

makes a trajectory store in the folder (8 GB; kept, so that a second run starts at once), then, block by block in turns:
a cold read, one thread's float64 ``X @ X.T``, the pair kernel, and on slices of the same blocks scipy's pdist and a
NumPy double loop. Last the whole job, `all_pairs` on two threads, in a process of its own for its peak memory.
Times are CPU seconds of one thread (a busy machine counts less in them), scaled to the whole run, except where marked.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}

import numpy as np
from scipy.spatial.distance import pdist

import trajstats as ts
from trajstats.estimators.two_time._measurement import prepare
from trajstats.estimators.two_time._sums import contribute

MOMENTS = [
    "kurtosis",
    "correlation",
    "centred_correlation",
    "participation_ratio",
    "non_gaussian_parameter",
    "sign_flips",
]
EVERYTHING = [*MOMENTS, "velocity_correlation", "overlap", "self_intermediate_scattering"]
WHOLE = """
import resource, sys, time, dask, trajstats as ts
from trajstats.data.synthetic import brownian
observables = sys.argv[2].split(",")
options = dict(observables=observables, epsilon=0.01 if "overlap" in observables else None, wavenumber=100.0)
ts.all_pairs(brownian(range(8), rng=0), **options).compute()  # compiles, or loads what is compiled
run = ts.open_trajectory(sys.argv[1])
wall, cpu = time.perf_counter(), time.process_time()
with dask.config.set(scheduler="threads", num_workers=2):
    ts.all_pairs(run, **options).compute()
print(time.perf_counter() - wall, time.process_time() - cpu,
      resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""


def make(path: Path, n: int, t: int) -> None:
    if path.exists():
        return
    rng = np.random.default_rng(0)
    w = rng.standard_normal(n, dtype=np.float32)
    with ts.TrajectoryWriter(path, {"weight": (n,)}) as writer:
        for step in range(t):
            writer.append(step, {"weight": w})
            w += np.float32(1e-3) * rng.standard_normal(n, dtype=np.float32)


def forget(path: Path) -> None:
    """Drop the files from the page cache, so that they are read cold."""
    for file in path.rglob("*"):
        if file.is_file():
            with file.open("rb") as handle:
                os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def cpu(function, *args):
    start = time.thread_time()
    result = function(*args)
    return result, time.thread_time() - start


def double_loop(x):
    out = np.zeros((len(x), len(x)))
    for i in range(len(x)):
        for j in range(i):
            out[i, j] = np.mean((x[i].astype(np.float64) - x[j]) ** 2)
    return out


def interleaved(path: Path, n_blocks: int) -> dict[str, list[float]]:
    run = ts.open_trajectory(path)
    width = ts.two_time_plan(run).width
    n, t = run.sizes["parameter"], run.sizes["step"]
    pairs = np.triu_indices(t, 1)
    jobs = {
        "pair kernel": prepare(run, *pairs),
        "with fourth moments, correlations, flips": prepare(run, *pairs, observables=MOMENTS),
        "with velocity correlations too": prepare(run, *pairs, observables=[*MOMENTS, "velocity_correlation"]),
        "with overlap and scattering too": prepare(run, *pairs, observables=EVERYTHING, epsilon=0.01, wavenumber=100.0),
    }
    limits = {0: np.full(t, 1e-4)}
    starts = np.linspace(0, max(n // width - 1, 0), n_blocks).astype(int) * width
    times: dict[str, list[float]] = {"read, cold (wall)": []}
    for k, start in enumerate(starts):
        wall = time.perf_counter()
        block = run.weights.data[0, :, start : start + width].compute(scheduler="synchronous")
        times["read, cold (wall)"].append((time.perf_counter() - wall) / block.shape[1])
        for name, job in jobs.items():
            if k == 0:
                contribute(job.request, block[:, :4096], 0, limits)
            times.setdefault(name, []).append(cpu(contribute, job.request, block, 0, limits)[1] / block.shape[1])
        wide = block.astype(np.float64)
        times.setdefault("float64 X @ X.T", []).append(cpu(lambda x=wide: x @ x.T)[1] / block.shape[1])
        part = np.ascontiguousarray(wide[:, :2048])
        times.setdefault("scipy pdist (sqeuclidean)", []).append(cpu(pdist, part, "sqeuclidean")[1] / part.shape[1])
        if k % 3 == 0:
            part = np.ascontiguousarray(block[:, :4096])
            times.setdefault("numpy double loop", []).append(cpu(double_loop, part)[1] / part.shape[1])
    return {name: [n * x for x in values] for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=float, default=4e6)
    parser.add_argument("--checkpoints", type=int, default=512)
    parser.add_argument("--blocks", type=int, default=12, help="blocks that are timed in turns")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/trajstats-bench"))
    options = parser.parse_args()
    n, t = int(options.parameters), options.checkpoints
    path = options.folder / f"n{n}-t{t}.zarr"
    make(path, n, t)
    forget(path)
    times = interleaved(path, options.blocks)
    median = {name: float(np.median(values)) for name, values in times.items()}
    print(f"N = {n}, T = {t}, load {os.getloadavg()[0]:.1f}\n")
    print("| | seconds for the run (median; least) | to the pair kernel |")
    print("|---|---|---|")
    for name, value in median.items():
        print(f"| {name} | {value:.1f}; {min(times[name]):.1f} | {value / median['pair kernel']:.2f} |")
    for names in ("msd", ",".join(MOMENTS), ",".join([*MOMENTS, "velocity_correlation"]), ",".join(EVERYTHING)):
        forget(path)
        out = subprocess.run(
            [sys.executable, "-c", WHOLE, str(path), names], check=True, capture_output=True, text=True
        )
        wall, used, rss = map(float, out.stdout.split())
        print(f"| whole job, 2 threads, {len(names.split(','))} observables: wall; CPU; peak RSS | "
              f"{wall:.1f}; {used:.1f}; {rss:.2f} GiB | |")  # fmt: skip


if __name__ == "__main__":
    main()
