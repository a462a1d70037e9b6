"""Buffers: the state of a network that is not trained, stored in its own types."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from trajstats.data._arrays import to_numpy
from trajstats.data._buffer_tensors import (
    BUFFER_TYPES,
    BufferTensor,
    check_buffers,
    check_integers,
    common_type,
    pack_buffer,
    pack_buffers,
    tensors_from_json,
    tensors_to_json,
    type_name,
    unpack_buffer,
)
from trajstats.errors import SchemaError

__all__ = [
    "BUFFER_TYPES",
    "BufferTensor",
    "buffer_names",
    "buffer_variable",
    "buffers_at",
    "check_buffer_variable",
    "check_buffers",
    "common_type",
    "is_buffer",
    "pack_buffer",
    "pack_buffers",
    "tensors_from_json",
    "tensors_of",
    "tensors_to_json",
    "type_name",
    "unpack_buffer",
    "with_buffer_variable",
]

BUFFERS = "buffers"
BUFFER = "buffer"
BUFFER_NAME = "buffer_name"
TENSORS = "tensors"
BUFFER_DIMS = ("replica", "step", BUFFER)
_BLOCK = 2**22  # elements that are read at a time
# Last parts of names that frameworks give to state which is not trained.
_LEAVES = frozenset(
    {"num_batches_tracked", "n_averaged", "masked_bias", "inv_freq", "original_inv_freq", "freqs_cis", "position_ids"}
    | {"token_type_ids", "relative_position_index", "attn_mask", "causal_mask", "cos_cached", "sin_cached"}
    | {"zero_point", "fake_quant_enabled", "observer_enabled", "seed_generator_state", "embed_avg", "cluster_size"}
)
_SPECTRAL = frozenset({"weight_u", "weight_v", "_u", "_v"})  # vectors of spectral norm
# Parts anywhere in a name: collections of flax, haiku and Keras.
_COLLECTIONS = frozenset({"batch_stats", "batchstats", "non_trainable_variables", "seed_generator"})
_MASKED = frozenset({"attn", "attention", "self_attn", "self_attention"})


def is_buffer(name: str, dtype: Any, shape: Sequence[int]) -> bool:
    """Decide from name, type and shape whether a tensor is a buffer: state that is not trained.

    Buffers are integer and boolean tensors, and floating ones with the names that frameworks give to running
    statistics, attention masks, rotary frequencies and the vectors of spectral norm. A reader that knows better from
    the file (a collection ``batch_stats``, a list of non-trainable weights) does not need to ask.
    """
    if type_name(dtype).startswith(("int", "uint", "bool", "qint", "quint")):
        return True
    parts = [part.lower() for part in re.split(r"[^0-9A-Za-z_]+", str(name)) if part]
    if not parts:
        return False
    leaf = parts[-1]
    if leaf in _LEAVES or leaf.startswith(("running_", "moving_")) or not _COLLECTIONS.isdisjoint(parts):
        return True
    sizes = tuple(int(n) for n in shape)
    if leaf in _SPECTRAL and len(sizes) == 1:
        return True
    # A causal mask: (1, 1, n, n) under the name of a bias.
    square = len(sizes) == 4 and sizes[:2] == (1, 1) and sizes[2] == sizes[3]
    return square and leaf in {"bias", "mask"} and len(parts) > 1 and parts[-2] in _MASKED


def buffer_variable(data: Any, tensors: Sequence[BufferTensor]) -> xr.Variable:
    """Label an array (replica, step, buffer) as the variable ``buffers``."""
    attrs = {
        "long_name": "buffers (state that is not trained)",
        "units": "1",
        TENSORS: tensors_to_json(tensors),
    }
    return xr.Variable(BUFFER_DIMS, data, attrs)


def buffer_names(tensors: Sequence[BufferTensor]) -> xr.Variable:
    """Make the coordinate that names the tensor of each element."""
    names = np.repeat(np.array([t.name for t in tensors], dtype=object), [t.size for t in tensors])
    return xr.Variable((BUFFER,), names, {"long_name": "tensor that an element of buffers belongs to", "units": ""})


def with_buffer_variable(
    ds: xr.Dataset, buffers: Mapping[str, Any], layers: Mapping[str, Any], *, single: bool
) -> xr.Dataset:
    """Add arrays (replica, step, ...) or (step, ...) to a dataset as its variable ``buffers``.

    `single` says that the weights came without replicas, which decides where both readings would fit.
    """
    check_buffers(buffers, layers)
    n_replicas, n_steps = ds.sizes["replica"], ds.sizes["step"]
    tensors, arrays = [], []
    for name, value in buffers.items():
        array = to_numpy(value)
        full = array.shape[:2] == (n_replicas, n_steps)
        short = array.shape[:1] == (n_steps,)
        if not full and not short:
            msg = (
                f"buffer {name!r:.120} has shape {array.shape}; give (replica, step, ...) or (step, ...), with "
                f"{n_replicas} replicas and {n_steps} steps"
            )
            raise SchemaError(msg)
        if not full or (short and single):
            array = np.broadcast_to(array[None], (n_replicas, *array.shape))
        kind = type_name(getattr(value, "dtype", array.dtype))
        tensors.append(BufferTensor(name, tuple(array.shape[2:]), kind))
        check_integers(name, array)
        arrays.append(array)
    out = np.empty((n_replicas, n_steps, sum(t.size for t in tensors)), dtype=common_type(tensors))
    start = 0
    for tensor, array in zip(tensors, arrays, strict=True):
        out[:, :, start : start + tensor.size] = array.reshape(n_replicas, n_steps, tensor.size)
        start += tensor.size
    return ds.assign({BUFFERS: buffer_variable(out, tensors)}).assign_coords({BUFFER_NAME: buffer_names(tensors)})


def check_buffer_variable(trajectory: xr.Dataset) -> xr.Dataset:
    """Check from metadata alone the variable ``buffers`` of a trajectory, where it has one; name its elements."""
    if BUFFERS not in trajectory.variables:
        return trajectory
    found = trajectory[BUFFERS]
    if found.dims != BUFFER_DIMS:
        msg = f"buffers have dims {found.dims}; they must be {BUFFER_DIMS}. Use .transpose or .expand_dims."
        raise SchemaError(msg)
    tensors = tensors_of(trajectory)
    if found.dtype.kind not in "biuf":
        msg = f"buffers have type {found.dtype}; they must be numbers"
        raise SchemaError(msg)
    if BUFFER_NAME not in trajectory.coords:
        trajectory = trajectory.assign_coords({BUFFER_NAME: buffer_names(tensors)})
    return trajectory


def tensors_of(trajectory: xr.Dataset) -> list[BufferTensor]:
    """List the buffers of a trajectory; empty where it has none."""
    if BUFFERS not in trajectory.variables:
        return []
    found = trajectory[BUFFERS]
    tensors = tensors_from_json(found.attrs.get(TENSORS))
    size = sum(tensor.size for tensor in tensors)
    if size != found.sizes.get(BUFFER, -1):
        msg = (
            f"buffers have {found.sizes.get(BUFFER)} elements; the tensors that they list have {size}. Do not "
            "select along 'buffer': take them by name from buffers_at, or drop them with .drop_vars('buffers')."
        )
        raise SchemaError(msg)
    return tensors


def buffers_at(trajectory: xr.Dataset, replica_index: int, step_index: int) -> dict[str, np.ndarray]:
    """Read the buffers of one checkpoint, in their own types and shapes."""
    tensors = tensors_of(trajectory)
    if not tensors:
        return {}
    chosen = {
        dim: k for dim, k in (("replica", replica_index), ("step", step_index)) if dim in trajectory[BUFFERS].dims
    }
    row = trajectory[BUFFERS].isel(chosen)
    found: dict[str, np.ndarray] = {}
    for start, group in _blocks(tensors):
        values = row.isel({BUFFER: slice(start, start + sum(t.size for t in group))}).values
        at = 0
        for tensor in group:
            found[tensor.name] = _restored(values[at : at + tensor.size], tensor)
            at += tensor.size
    return found


def _blocks(tensors: Sequence[BufferTensor]) -> Iterator[tuple[int, list[BufferTensor]]]:
    """Group consecutive tensors, so that few elements are held in the common type at a time."""
    start, size = 0, 0
    group: list[BufferTensor] = []
    for tensor in tensors:
        if group and size + tensor.size > _BLOCK:
            yield start, group
            start, size, group = start + size, 0, []
        group.append(tensor)
        size += tensor.size
    if group:
        yield start, group


def _restored(values: np.ndarray, tensor: BufferTensor) -> np.ndarray:
    """Give a buffer its own type and shape."""
    if tensor.native.kind in "biu" and values.dtype.kind == "f" and not np.isfinite(values).all():
        msg = f"buffer {tensor.name!r:.120} is NaN where {tensor.dtype} is expected: this row holds no buffers"
        raise SchemaError(msg)
    return values.astype(tensor.native).reshape(tensor.shape)
