"""A sweep of widths on a cluster: train, open as one sweep, fit every run, label the results by width and seed.

Nets 196-w-w-10 on MNIST digits, several widths and seeds, each run in its own store. `map_sweep` fits the exponent of
aging to every run, one task a run, on a dask cluster: here two processes of this machine. What is finished is kept in
one zarr store: kill the example in the middle and call it again, and it does only what is missing.

    python examples/batch_fits_on_a_cluster.py [--quick] [--out FOLDER]

For a Slurm cluster change three lines, those that make the cluster (pip install dask-jobqueue):

    from dask_jobqueue import SLURMCluster
    cluster = SLURMCluster(cores=16, processes=16, memory="64GB", walltime="02:00:00")
    cluster.scale(jobs=4)

and for Kubernetes (pip install dask-kubernetes; the image holds trajstats, and all see the runs):

    from dask_kubernetes.operator import KubeCluster
    cluster = KubeCluster(name="sweep", image="registry.example.org/trajstats:latest")
    cluster.scale(64)
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from _common import conclude, parse
from distributed import Client, LocalCluster

import trajstats as ts

FULL = {"widths": (4, 8, 16, 32, 64), "seeds": 4, "last": 31_623}
QUICK = {"widths": (4, 8, 16), "seeds": 2, "last": 3_162}


def train(folder: Path, width: int, seeds: int, steps: np.ndarray) -> None:
    """Train the nets of one width, every seed into its own store; finished ones are left as they are."""
    from trajstats_trainers.architectures.mlp import JaxMLP, mlp_init
    from trajstats_trainers.jax.adapter import cross_entropy
    from trajstats_trainers.jax.sgd import train_jax
    from trajstats_trainers.tasks.digits import mnist_digits

    task, sizes = mnist_digits(pool=2), (196, width, width, 10)
    train_jax(
        JaxMLP(sizes),
        [mlp_init(sizes, seed) for seed in range(seeds)],
        cross_entropy,
        (task.inputs, task.targets),
        [folder / f"w{width}_seed{seed}.zarr" for seed in range(seeds)],
        seeds=range(seeds),
        schedule=steps,
        learning_rate=0.05,
        batch_size=50,
        l2=1e-4,
        attrs={"task": task.describe(), "architecture": {"kind": "mlp", "width": width, "sizes": list(sizes)}},
        progress=f"train width {width}",
    )


def aging(run, *, rng, waiting):
    """Fit the exponent of aging of one run: what happens to every member of the sweep."""
    pairs = ts.time_pairs(run, waiting_time=waiting, lags_per_decade=6)
    delta = ts.msd(run, pairs.isel(pair=pairs["lag"].values >= 10))
    return ts.fit_subaging(delta, rng=rng)


def plot(result, path: Path) -> None:
    """Draw the exponent of every run, with its 95 % interval, against the width."""
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots(figsize=(5.2, 3.6), layout="constrained")
    mu = result.sel(coefficient="mu")
    low, high = (mu["interval"].sel(level=0.95, bound=bound) for bound in ("lower", "upper"))
    seeds = result["seed"].values
    colours = plt.get_cmap("viridis")(np.linspace(0, 0.85, seeds.size))
    for k, (seed, colour) in enumerate(zip(seeds, colours, strict=True)):
        one = mu["value"].sel(seed=seed)
        errors = np.abs(np.stack([one - low.sel(seed=seed), high.sel(seed=seed) - one]))
        beside = result["width"] * 1.06 ** (k - (seeds.size - 1) / 2)
        ax.errorbar(beside, one, errors, fmt="o", color=colour, label=f"seed {seed}")
    ax.set_xscale("log", base=2)
    ax.set_xticks(result["width"].values, [str(w) for w in result["width"].values])
    ax.set_xlabel("width of the hidden layers")
    ax.set_ylabel(r"exponent of aging $\mu$ (95 % intervals)")
    ax.axhline(1, color="0.6", linewidth=0.8, zorder=0)
    figure.legend(frameon=False, fontsize=8, loc="outside right upper")
    figure.savefig(path, dpi=150)


def main() -> None:
    """Train, fit on the cluster, conclude."""
    given = parse(__doc__, __file__)
    size = QUICK if given.quick else FULL
    waiting = ts.log_schedule(100, size["last"], 8 if given.quick else 12)
    steps = ts.aging_schedule(waiting, ts.log_schedule(10, size["last"], 24))
    runs = given.out / "runs"
    for width in size["widths"]:
        train(runs, width, size["seeds"], steps)

    cluster = LocalCluster(n_workers=2, threads_per_worker=1, memory_limit="2GiB", dashboard_address=":0")
    with cluster, Client(cluster):
        sweep = ts.open_sweep(runs, damaged="skip")
        result = ts.map_sweep(
            aging, sweep, dims=("width", "seed"), rng=0, store=given.out / "fits.zarr", progress=True, waiting=waiting
        )

    plot(result, given.out / "exponents.png")
    rows = []
    for width in result["width"].values:
        for seed in result["seed"].values:
            one = result.sel(width=width, seed=seed)
            mu = one.sel(coefficient="mu")
            interval = mu["interval"].sel(level=0.95).values
            rows.append(
                {
                    "width": int(width),
                    "seed": int(seed),
                    "mu": (float(mu["value"]), *map(float, interval)),
                    "status": str(one["status"].values),
                }
            )
    failed = [
        str(r)
        for r in result["reason"].values.ravel()[
            np.char.startswith(result["status"].values.ravel().astype(str), "failed")
        ]
    ]
    means = {int(w): float(result["value"].sel(coefficient="mu", width=w).mean()) for w in result["width"].values}
    narrow, wide = min(means), max(means)
    words = [
        f"{len(rows) - len(failed)} of {len(rows)} runs were fitted"
        + (f"; failed: {'; '.join(failed)}." if failed else "."),
        f"Averaged over seeds, mu is {means[narrow]:.2f} at width {narrow} and {means[wide]:.2f} at width {wide}.",
    ]
    conclude(given, {"Exponent of aging, 95 % intervals": rows}, words)


if __name__ == "__main__":
    main()
