"""Match the buffers of a run with those of a network, and give the network those of one checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr

from trajstats.data._buffer_tensors import BufferTensor
from trajstats.data._buffers import BUFFER, BUFFER_NAME, BUFFERS, buffer_names, buffer_variable, buffers_at, tensors_of
from trajstats.errors import SchemaError
from trajstats.estimators._layer_order import Shape, listed, match_names, warn_user
from trajstats.network import Network

# Last parts of names of buffers that no evaluation depends on, or that are the same at every step.
_COUNTERS = ("num_batches_tracked", "n_averaged")
_CONSTANT = (
    *("inv_freq", "freqs_cis", "cos_cached", "sin_cached", "position_ids", "token_type_ids", "relative_position_index"),
    *("mask", "masked_bias"),
)


def in_buffers_of(network: Network, trajectory: xr.Dataset) -> xr.Dataset:
    """Check that a run's buffers fit a network, and name them as the network does."""
    tensors = tensors_of(trajectory)
    own: Mapping[str, Shape] = {str(k): tuple(v) for k, v in getattr(network, "buffers", {}).items()}
    moving = {name: shape for name, shape in own.items() if not _leaf(name).endswith(_COUNTERS + _CONSTANT)}
    if not tensors:
        if moving:
            _warn_absent(moving)
        return trajectory
    if not hasattr(network, "with_buffers"):
        given = listed({tensor.name: tensor.shape for tensor in tensors})
        warn_user(
            f"the run holds buffers ({given}) and the network has no with_buffers: it uses what it holds itself, the "
            "same at every checkpoint."
        )
        return trajectory.drop_vars([BUFFERS, BUFFER_NAME])
    tied = {name: main for name, main in getattr(network, "tied", {}).items() if main in own}
    found = match_names([tensor.name for tensor in tensors], own, tied)
    if text := _differences(tensors, own, found):
        raise SchemaError(text)
    if missing := {name: shape for name, shape in moving.items() if name not in found.values()}:
        _warn_absent(missing)
    return _renamed(trajectory, tensors, found)


def with_buffers_at(network: Network, trajectory: xr.Dataset, replica_index: int, step_index: int) -> Network:
    """Give a network the buffers of one checkpoint; the network itself where the run has none."""
    found = buffers_at(trajectory, replica_index, step_index)
    return network.with_buffers(found) if found else network  # type: ignore[attr-defined]  # checked by `in_buffers_of`


def with_buffer_row(network: Network, values: np.ndarray, tensors: Sequence[BufferTensor]) -> Network:
    """Give a network the buffers of one row of a trajectory's variable ``buffers``."""
    row = xr.Dataset({BUFFERS: buffer_variable(np.asarray(values)[None, None], tensors)})
    return with_buffers_at(network, row, 0, 0)


def _warn_absent(names: Mapping[str, Shape]) -> None:
    warn_user(
        f"the run holds no values of the network's buffers {listed(names)}: those of the network that was given are "
        "used, the same at every checkpoint. Record them (Recorder.record(..., buffers=...)), or ingest checkpoints "
        "that hold them, where they change in training."
    )


def _differences(tensors: Sequence[BufferTensor], own: Mapping[str, Shape], found: Mapping[str, str]) -> str:
    unknown = {
        tensor.name: tensor.shape
        for tensor in tensors
        if tensor.name not in found and tensor.native.kind == "f" and not _leaf(tensor.name).endswith(_CONSTANT)
    }
    other = [
        f"{tensor.name!r:.80} is {tensor.shape} in the run and {own[found[tensor.name]]} in the network"
        for tensor in tensors
        if tensor.name in found and tensor.shape != own[found[tensor.name]]
    ]
    if not unknown and not other:
        return ""
    text = "the buffers of the run and of the network differ."
    if unknown:
        text += f" Only in the run: {listed(unknown)}."
    if other:
        text += f" Of another shape: {'; '.join(other[:6])}."
    return (
        f"{text} The network has {listed(own) if own else 'none'}. Give the network of this run (JaxNetwork takes its "
        "own as buffers=), or leave the run's out: run.drop_vars('buffers')."
    )


def _renamed(trajectory: xr.Dataset, tensors: Sequence[BufferTensor], found: Mapping[str, str]) -> xr.Dataset:
    # Of two names of one tensor the first.
    first = {main: name for name, main in list(found.items())[::-1]}
    kept = [tensor for tensor in tensors if tensor.name in first.values()]
    if not kept:
        return trajectory.drop_vars([BUFFERS, BUFFER_NAME])
    named = [dataclasses.replace(tensor, name=found[tensor.name]) for tensor in kept]
    if named == list(tensors):
        return trajectory
    data = trajectory[BUFFERS]
    if len(kept) < len(tensors):
        taken = np.repeat([tensor in kept for tensor in tensors], [tensor.size for tensor in tensors])
        data = data.isel({BUFFER: np.flatnonzero(taken)})
    rest = trajectory.drop_vars([BUFFERS, BUFFER_NAME])
    return rest.assign({BUFFERS: buffer_variable(data.data, named)}).assign_coords({BUFFER_NAME: buffer_names(named)})


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]
