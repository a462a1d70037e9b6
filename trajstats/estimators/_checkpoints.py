"""Where a network meets a run: matched layers, selected steps, one checkpoint in memory at a time, checked inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from trajstats.data._arrays import to_numpy
from trajstats.data._buffers import is_buffer
from trajstats.data.schema import REPLICA, STEP, WEIGHTS, check_trajectory, layer_slices, trajectory_dataset
from trajstats.errors import ArgumentError, NonFiniteError, SchemaError, unknown_name_message
from trajstats.estimators._checkpoint_buffers import in_buffers_of, with_buffers_at
from trajstats.estimators._layer_order import in_order_of, listed, warn_user
from trajstats.network import CURVATURE_KINDS, CurvatureKind, Network


def match_network(network: Network, trajectory: Any) -> tuple[Network, xr.Dataset]:
    """Bring a network and a run together: the one place that decides whether they fit."""
    trajectory = check_trajectory(trajectory)
    return in_order_of(network, trajectory), in_buffers_of(network, trajectory)


def one_checkpoint(network: Network, weights: Any) -> tuple[Network, np.ndarray]:
    """Bring a network and the weights of one checkpoint together."""
    if isinstance(weights, xr.DataArray):
        msg = "an array of a run does not say where its layers are; give the checkpoint: run.sel(replica=..., step=...)"
        raise ArgumentError(msg)
    if isinstance(weights, Mapping) and not isinstance(weights, xr.Dataset):
        weights = _dataset_of(weights)
    if isinstance(weights, xr.Dataset):
        missing = [dim for dim in (REPLICA, STEP) if dim in weights.coords and dim not in weights.dims]
        network, one = match_network(network, weights.expand_dims(missing).transpose(REPLICA, STEP, ...))
        if one.sizes[REPLICA] * one.sizes[STEP] != 1:
            msg = f"{one.sizes[REPLICA]} replicas and {one.sizes[STEP]} steps: give one, run.sel(replica=..., step=...)"
            raise ArgumentError(msg)
        return with_buffers_at(network, one, 0, 0), np.asarray(one[WEIGHTS].values[0, 0])
    vector = np.asarray(weights).ravel()
    if vector.size != network.n_parameters:
        msg = f"{vector.size} weights given, the network has {network.n_parameters}"
        raise SchemaError(msg)
    layers = getattr(network, "layers", {})
    if len(layers) > 1:
        warn_user(
            f"the weights are a plain array, taken in the order of the network's layers: {listed(layers)}. Of a run, "
            "give the checkpoint itself, run.sel(replica=..., step=...), whose layers have names."
        )
    return network, vector


def select_checkpoints(
    network: Network, trajectory: xr.Dataset, steps: Sequence[int] | None
) -> tuple[Network, xr.Dataset]:
    """Match a network with a trajectory (`match_network`) and select the steps asked for."""
    network, trajectory = match_network(network, trajectory)
    if steps is None:
        return network, trajectory
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
    return network, trajectory.isel({STEP: np.searchsorted(saved, wanted)})


def walk(network: Network, trajectory: xr.Dataset) -> Iterator[tuple[tuple[int, int], Network, np.ndarray]]:
    """Read one checkpoint after the other."""
    for r in range(trajectory.sizes[REPLICA]):
        for s in range(trajectory.sizes[STEP]):
            weights = np.asarray(trajectory[WEIGHTS].isel({REPLICA: r, STEP: s}).values, dtype=np.float64)
            if not np.isfinite(weights).all():
                where = f"replica {trajectory[REPLICA].values[r]}, step {trajectory[STEP].values[s]}"
                msg = f"the weights of {where} hold NaN or infinity; leave this checkpoint out with steps=[...]"
                raise NonFiniteError(msg)
            yield (r, s), with_buffers_at(network, trajectory, r, s), weights


def _dataset_of(weights: Mapping[str, Any]) -> xr.Dataset:
    arrays = {str(name): to_numpy(array) for name, array in weights.items()}
    buffers = {name for name, array in arrays.items() if is_buffer(name, array.dtype, array.shape)}
    return trajectory_dataset(
        np.concatenate([array.ravel() for name, array in arrays.items() if name not in buffers])[None],
        step=[0],
        layers={name: array.shape for name, array in arrays.items() if name not in buffers},
        buffers={name: arrays[name][None] for name in buffers} or None,
    )


def check_inputs(network: Network, inputs: Any, what: str) -> np.ndarray:
    """Check an array of network inputs."""
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
    """Refuse a name that is not allowed."""
    if given not in allowed:
        raise ArgumentError(unknown_name_message(kind, given, allowed))


def chosen_rows(trajectory: xr.Dataset, steps: Sequence[int] | None) -> list[int]:
    """Return the rows of saved steps in ascending order, each once; all rows if no steps are given."""
    if steps is None:
        return list(range(trajectory.sizes[STEP]))
    wanted = np.unique(np.asarray(steps))
    if wanted.size == 0:
        msg = "steps=[] chooses nothing; give saved steps, or None for all"
        raise ArgumentError(msg)
    return [int(row) for row in saved_rows(trajectory, wanted)]


def saved_rows(trajectory: xr.Dataset, steps: np.ndarray) -> np.ndarray:
    """Find the rows of saved steps."""
    saved = trajectory[STEP].values
    rows = np.minimum(np.searchsorted(saved, steps), saved.size - 1)
    if (missing := saved[rows] != steps).any():
        wanted = int(steps[missing][0])
        nearest = int(saved[np.argmin(np.abs(saved - wanted))])
        msg = (
            f"step {wanted} was not saved; the nearest saved one is {nearest} ({saved.size} steps from {saved[0]} to "
            f"{saved[-1]}). They are in trajectory.step; time_pairs(trajectory) makes pairs of them."
        )
        raise ArgumentError(msg)
    return rows


MEMORY = 2**30
UNITS = "loss / weight^2"


def checked(
    network: Network,
    trajectory: xr.Dataset,
    steps: Sequence[int] | None,
    kind: CurvatureKind,
    layers: Sequence[str] | None,
    rng: int | np.random.Generator,
) -> tuple[Network, xr.Dataset, list[int], np.ndarray | None, int]:
    """Standardise what every curvature estimator is given."""
    network, trajectory = match_network(network, trajectory)
    if kind not in CURVATURE_KINDS:
        raise ArgumentError(unknown_name_message("kind", kind, CURVATURE_KINDS))
    if isinstance(layers, str):
        layers = [layers]
    selection = None
    if layers is not None:
        slices = list(layer_slices(trajectory, layers).values())
        if not slices:
            msg = "layers=[] restricts to nothing; name at least one layer, or None for all"
            raise ArgumentError(msg)
        selection = np.concatenate([np.arange(part.start, part.stop) for part in slices])
    if isinstance(rng, np.random.Generator):
        return network, trajectory, chosen_rows(trajectory, steps), selection, int(rng.integers(2**63))
    if isinstance(rng, bool) or not isinstance(rng, int | np.integer) or rng < 0:
        msg = f"rng={rng!r}: give a seed (an integer of at least 0) or a numpy.random.Generator"
        raise ArgumentError(msg)
    return network, trajectory, chosen_rows(trajectory, steps), selection, int(rng)


def at_least_one(**counts: int) -> None:
    """Check counts."""
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
            msg = f"{name}={value!r}: give an integer of at least 1"
            raise ArgumentError(msg)
