"""Train the networks of the demo, one process each."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from trajstats_trainers.demo.nets import STEPS, Net


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
    from trajstats_trainers.architectures.mlp import JaxMLP, mlp_init
    from trajstats_trainers.jax.adapter import accuracy, cross_entropy
    from trajstats_trainers.jax.sgd import train_jax
    from trajstats_trainers.tasks.digits import mnist_digits

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
