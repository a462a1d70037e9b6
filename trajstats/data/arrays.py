"""Arrays of any framework as NumPy arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

from trajstats.errors import ArgumentError


def to_numpy(array: Any) -> np.ndarray:
    """Take an array of any framework as a NumPy array; torch's bfloat16, which NumPy lacks, as the same float32.

    Parameters
    ----------
    array : array
        A NumPy array, a torch tensor, a JAX array or a nested list.

    Returns
    -------
    ndarray
        Its values.

    Raises
    ------
    ArgumentError
        If it is lazy (a dask array) or is not made of real numbers.
    """
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
