"""An autoencoder on real digits: a trained map of a space to itself, for the census of fixed points."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import xarray as xr

from trajstats.data.schedules import log_schedule
from trajstats.data.store.open import open_trajectory
from trajstats_trainers.architectures.mlp import JaxMLP, mlp_init
from trajstats_trainers.jax.adapter import JaxNetwork
from trajstats_trainers.jax.sgd import train_jax
from trajstats_trainers.tasks.digits import mnist_digits


def mean_square(outputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Mean squared error over examples and pixels.

    Parameters
    ----------
    outputs, targets : array, (b, pixels)
        Reconstruction and image.

    Returns
    -------
    scalar array
    """
    return ((outputs - targets) ** 2).mean()


def train_autoencoder(
    path: str | Path,
    *,
    n_examples: int = 20,
    hidden: tuple[int, ...] = (128, 128),
    pool: int = 4,
    steps: int = 20_000,
    learning_rate: float = 0.5,
    gain: float = 1.0,
    seed: int = 0,
    progress: str | None = "train autoencoder",
) -> tuple[JaxNetwork, xr.Dataset, np.ndarray]:
    r"""Train :math:`f(x)\approx x` on a few digits and record the run; a run that exists is continued.

    Full-batch gradient descent on :math:`\frac1{np}\sum|f(x)-x|^2`; tanh hidden layers, linear output.

    Parameters
    ----------
    path : str or Path
        Store of the trajectory.
    n_examples : int
        Digits stored.
    hidden : tuple of int
        Hidden widths.
    pool : int
        As in `mnist_digits`: 4 gives 7 x 7 pixels.
    steps : int
        Optimiser steps.
    learning_rate, gain : float
        Step size, and gain of the initial weights.
    seed : int
        Seed of the initial weights.
    progress : str, optional
        Label of the progress bar; None for no bar.

    Returns
    -------
    (JaxNetwork, xarray.Dataset, ndarray)
        The network in float64 (a census needs the digits), its trajectory, and the digits (n_examples, pixels).
    """
    digits = mnist_digits(pool=pool).inputs[:n_examples]
    sizes = (digits.shape[1], *hidden, digits.shape[1])
    model, start = JaxMLP(sizes), mlp_init(sizes, seed, gain=gain)
    train_jax(
        model,
        [start],
        mean_square,
        (digits, digits),
        [path],
        seeds=[seed],
        schedule=np.union1d(0, log_schedule(1, steps, 40)),
        learning_rate=learning_rate,
        batch_size=n_examples,
        attrs={"task": {"name": f"autoencoder-digits{n_examples}", "sizes": list(sizes)}},
        progress=progress,
    )
    network = JaxNetwork(model, start, mean_square, (digits, digits), dtype="float64")
    return network, open_trajectory(path), digits.astype(np.float64)
