"""Walk through the saved weights of a trajectory, one checkpoint in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import xarray as xr

from trajstats.data.schema import PARAMETER, REPLICA, STEP, WEIGHTS, check_trajectory
from trajstats.errors import ArgumentError, NonFiniteError, SchemaError, unknown
from trajstats.network import Network


def select_checkpoints(network: Network, trajectory: xr.Dataset, steps: Sequence[int] | None) -> xr.Dataset:
    """Check that a network fits a trajectory and select the steps asked for.

    Parameters
    ----------
    network : Network
        The run's network.
    trajectory : xarray.Dataset
        A trajectory.
    steps : sequence of int, optional
        Saved steps; all if None.

    Returns
    -------
    xarray.Dataset
        The trajectory at those steps, still lazy.

    Raises
    ------
    ArgumentError
        If a step was not saved (the nearest is named).
    SchemaError
        If the network has another number of weights.
    """
    trajectory = check_trajectory(trajectory)
    if trajectory.sizes[PARAMETER] != network.n_parameters:
        msg = (
            f"the trajectory has {trajectory.sizes[PARAMETER]} weights, the network {network.n_parameters}; "
            "give the network of this run"
        )
        raise SchemaError(msg)
    if steps is None:
        return trajectory
    saved = trajectory[STEP].values
    wanted = np.atleast_1d(np.asarray(steps))
    if wanted.size == 0:
        msg = "steps is empty: give at least one saved step, or None for all"
        raise ArgumentError(msg)
    for step in wanted:
        if step not in saved:
            near = saved[np.abs(saved - step).argmin()]
            msg = f"step {step} was not saved; the nearest saved one is {near}"
            raise ArgumentError(msg)
    return trajectory.isel({STEP: np.searchsorted(saved, wanted)})


def walk(trajectory: xr.Dataset) -> Iterator[tuple[tuple[int, int], np.ndarray]]:
    """Read one checkpoint after the other.

    Parameters
    ----------
    trajectory : xarray.Dataset
        As `select_checkpoints` gives it.

    Yields
    ------
    (replica index, step index), weights (parameter,) in float64

    Raises
    ------
    NonFiniteError
        If a checkpoint holds NaN or infinity.
    """
    for r in range(trajectory.sizes[REPLICA]):
        for s in range(trajectory.sizes[STEP]):
            weights = np.asarray(trajectory[WEIGHTS].isel({REPLICA: r, STEP: s}).values, dtype=np.float64)
            if not np.isfinite(weights).all():
                where = f"replica {trajectory[REPLICA].values[r]}, step {trajectory[STEP].values[s]}"
                msg = f"the weights of {where} hold NaN or infinity; leave this checkpoint out with steps=[...]"
                raise NonFiniteError(msg)
            yield (r, s), weights


def check_inputs(network: Network, inputs: Any, what: str) -> np.ndarray:
    """Check an array of network inputs.

    Parameters
    ----------
    network : Network
        Gives the size of one input.
    inputs : array, (n, ...)
        Examples along the first axis.
    what : str
        Name of the argument, for the message.

    Returns
    -------
    ndarray

    Raises
    ------
    ArgumentError
        If there is none, or their size is not the network's.
    NonFiniteError
        If a value is NaN or infinite.
    """
    inputs = np.asarray(inputs)
    if inputs.ndim < 2 or len(inputs) == 0 or inputs[0].size != network.n_inputs:
        msg = (
            f"{what} have shape {inputs.shape}; give (n, {network.n_inputs}) with n >= 1, examples along the first axis"
        )
        raise ArgumentError(msg)
    if np.issubdtype(inputs.dtype, np.floating) and not np.isfinite(inputs).all():
        msg = f"{what} hold NaN or infinity"
        raise NonFiniteError(msg)
    return inputs


def check_choice(kind: str, given: str, allowed: Sequence[str]) -> None:
    """Refuse a name that is not allowed.

    Parameters
    ----------
    kind : str
        What the name stands for.
    given : str
        What was given.
    allowed : sequence of str
        What is allowed.

    Raises
    ------
    ArgumentError
        If `given` is not among `allowed`.
    """
    if given not in allowed:
        raise ArgumentError(unknown(kind, given, allowed))
