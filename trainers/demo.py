"""`trajstats demo`: the main job end to end on real digits, from training to a report."""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import xarray as xr
from tqdm.auto import tqdm

import trajstats as ts
from trajstats.errors import ArgumentError

# Eight waiting times and lags a decade over 100,000 steps: what `aging_schedule` needs for a collapse over 2.5 decades.
WAITING_TIMES = np.rint(np.geomspace(100, 31_623, 11)).astype(int)
LAGS = ts.log_schedule(1, 100_000 - int(WAITING_TIMES[-1]), 40)
STEPS = ts.aging_schedule(WAITING_TIMES, LAGS)
# Where one exponent can be expected: after the initial descent, and at lags of at least one epoch (100 steps), below
# which the displacement is the batch noise of the moment.
FIT_FROM = {"waiting_time": 1_000, "lag": 100}
SPECTRUM_STEPS = (100, 3_162, 100_000)


@dataclass(frozen=True)
class Net:
    """One network of the demo.

    Parameters
    ----------
    label : str
        For figures and tables.
    store : str
        Name of the stores, without seed and ending.
    sizes : tuple of int
        Widths from input to output.
    seeds : tuple of int
        One run each.
    learning_rate, l2 : float
        Of plain SGD.
    batch_size : int
        Examples per step.
    """

    label: str
    store: str
    sizes: tuple[int, ...]
    seeds: tuple[int, ...]
    learning_rate: float = 0.05
    l2: float = 0.0
    batch_size: int = 50

    def paths(self, runs: Path) -> list[Path]:
        """List its stores: the first seed's is named after the net alone."""
        return [
            runs / (f"{self.store}.zarr" if k == 0 else f"{self.store}_seed{s}.zarr") for k, s in enumerate(self.seeds)
        ]


UNDER = Net("under-parametrised", "digits_w5", (196, 5, 5, 5, 10), seeds=(0, 1, 2), l2=1e-4)
OVER = Net("over-parametrised", "digits_w64", (196, 64, 64, 10), seeds=(0,))


def train(net: Net, runs: Path, *, schedule: Sequence[int] | np.ndarray = STEPS, position: int = 0) -> list[Path]:
    """Train one net of the demo on the digits, every seed into its own store; finished stores are left as they are.

    Parameters
    ----------
    net : Net
        Which one.
    runs : Path
        Folder of the stores.
    schedule : sequence of int
        Steps to record.
    position : int
        Line of the progress bar.

    Returns
    -------
    list of Path
    """
    from trainers.architectures import JaxMLP, mlp_init
    from trainers.jax_adapter import accuracy, cross_entropy
    from trainers.jax_sgd import train_jax
    from trainers.tasks import mnist_digits

    task = mnist_digits(pool=2)
    return train_jax(
        JaxMLP(net.sizes),
        [mlp_init(net.sizes, seed) for seed in net.seeds],
        cross_entropy,
        (task.inputs, task.targets),
        net.paths(runs),
        seeds=net.seeds,
        schedule=schedule,
        learning_rate=net.learning_rate,
        batch_size=net.batch_size,
        l2=net.l2,
        metrics={"accuracy": accuracy},
        attrs={"task": task.describe(), "architecture": {"kind": "mlp", "activation": "tanh", "sizes": net.sizes}},
        progress=f"train {net.store} ({len(net.seeds)} seed{'s' if len(net.seeds) > 1 else ''})",
        position=position,
    )


def network_of(run: xr.Dataset, *, dtype: str = "float32") -> Any:
    """Rebuild the network of a run of the demo from the store's attributes.

    Parameters
    ----------
    run : xarray.Dataset
        A trajectory that `train` wrote.
    dtype : str
        Precision of the network.

    Returns
    -------
    JaxNetwork

    Raises
    ------
    ArgumentError
        If the run does not say which perceptron on which digits it is.
    """
    from trainers.architectures import JaxMLP, mlp_init
    from trainers.jax_adapter import JaxNetwork, cross_entropy
    from trainers.tasks import mnist_digits

    try:
        architecture = json.loads(run.attrs["architecture"])
        optimiser = json.loads(run.attrs["optimiser"])
        checksum = json.loads(run.attrs["task"])["checksum"]
    except KeyError as error:
        msg = f"the run has no attribute {error}; only runs that `trajstats demo` wrote can be rebuilt"
        raise ArgumentError(msg) from error
    task = mnist_digits(pool=2)
    if task.checksum != checksum:
        msg = f"the run was trained on data with checksum {checksum}; these digits have {task.checksum}"
        raise ArgumentError(msg)
    sizes = tuple(architecture["sizes"])
    model = JaxMLP(sizes, activation=architecture["activation"])
    data = (task.inputs, task.targets)
    return JaxNetwork(model, mlp_init(sizes, 0), cross_entropy, data, l2=optimiser["l2"], dtype=dtype)


def train_all(nets: Sequence[Net], runs: Path, schedule: Sequence[int] | np.ndarray = STEPS) -> None:
    """Train several nets side by side, a process and a core each.

    Parameters
    ----------
    nets : sequence of Net
        Which ones.
    runs : Path
        Folder of the stores.
    schedule : sequence of int
        Steps to record.
    """
    context = multiprocessing.get_context("spawn")
    lock = context.RLock()
    with ProcessPoolExecutor(len(nets), mp_context=context, initializer=_start_worker, initargs=(lock,)) as pool:
        jobs = [pool.submit(train, net, runs, schedule=schedule, position=k) for k, net in enumerate(nets)]
        for job in jobs:
            job.result()


def _start_worker(lock: Any) -> None:
    os.environ.setdefault("PJRT_NPROC", "1")
    tqdm.set_lock(lock)


@click.command()
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(),
    help="Folder for runs/ and report.html; the current one if not given.",
)
def demo(out: Path) -> None:
    """Train two digit classifiers, record them, and ask whether they age.

    Two minutes on two cores. Runs that are already there are used again; delete them to train anew.

    Example: trajstats demo --out my-demo
    """
    missing = [name for name in ("jax", "mlxtend") if importlib.util.find_spec(name) is None]
    if missing:
        msg = f"the demo needs {' and '.join(missing)}; run: pip install 'trajstats[demo]'"
        raise click.ClickException(msg)
    from trainers.demo_report import write_demo_report

    began = time.perf_counter()
    runs = out / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    click.echo(f"1/2 training {UNDER.label} and {OVER.label} digit classifiers, {STEPS[-1]:,} steps of SGD each")
    train_all([UNDER, OVER], runs)
    trained = time.perf_counter()
    click.echo("2/2 measuring and fitting")
    report = write_demo_report(runs, out / "report.html", training_seconds=trained - began)
    click.echo(f"done in {time.perf_counter() - began:.0f} s; the report is at {report.resolve()}")
