"""The networks of the demo, its schedule and what is fitted."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

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
    from trajstats_trainers.architectures.mlp import JaxMLP, mlp_init
    from trajstats_trainers.jax.adapter import JaxNetwork, cross_entropy
    from trajstats_trainers.tasks.digits import mnist_digits

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
