"""Arrays of any framework as NumPy arrays."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from trajstats.errors import ArgumentError, unknown_name_message


def to_numpy(array: Any) -> np.ndarray:
    """Take an array of any framework as a NumPy array; torch's bfloat16, which NumPy lacks, as the same float32."""
    if hasattr(array, "dask"):
        msg = "a dask array is not written by append; use append_from(path, dataset), or .compute() it"
        raise ArgumentError(msg)
    if hasattr(array, "detach"):
        array = array.detach().cpu()
        if str(array.dtype) == "torch.bfloat16":
            return array.float().numpy()
    result = np.asarray(array)
    if result.dtype.kind not in "fiub" and result.dtype.name not in {"bfloat16"}:
        msg = f"weights of type {result.dtype} are not real numbers"
        raise ArgumentError(msg)
    return result


def ordered_arrays(weights: Any, layers: Mapping[str, tuple[int, ...]]) -> list[np.ndarray]:
    """Take the weights of a row: all layers by name, in the order of `layers`, or the flat vector."""
    if isinstance(weights, Mapping):
        if missing := [name for name in layers if name not in weights]:
            raise ArgumentError(
                unknown_name_message("layer", missing[0], weights, do=f"The run has layers {list(layers)}.")
            )
        if extra := [name for name in weights if name not in layers]:
            do = "Start another store for another model; state that is not trained belongs into buffers=."
            raise ArgumentError(unknown_name_message("layer", extra[0], layers, do=do))
        arrays = [to_numpy(weights[name]) for name in layers]
        for (name, shape), array in zip(layers.items(), arrays, strict=True):
            if array.shape != shape:
                msg = f"layer {name!r} has shape {array.shape}; the run was opened with {shape}"
                raise ArgumentError(msg)
        return arrays
    array = to_numpy(weights)
    n_parameters = sum(math.prod(shape) for shape in layers.values())
    if array.shape != (n_parameters,):
        msg = (
            f"weights have shape {array.shape}; give a mapping with the {len(layers)} layers, or the flat "
            f"vector ({n_parameters},)"
        )
        raise ArgumentError(msg)
    return [array]
