"""Sums over blocks of parameters, on dask: the only module of the estimators that imports it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dask
import dask.array as da
import numpy as np
import xarray as xr

from trajstats.data.schema import WEIGHTS

BLOCK_BYTES = 64 * 2**20
FAN_IN = 4


def block_sums(
    trajectory: xr.Dataset,
    rows: np.ndarray,
    partial: Callable[[np.ndarray, int, int], np.ndarray],
    shape: tuple[int, ...],
) -> da.Array:
    """Sum a function of blocks of parameters in a fixed order, lazily.

    Parameters
    ----------
    trajectory : xarray.Dataset
        A checked trajectory.
    rows : ndarray of int, (row,)
        Checkpoints that are read.
    partial : callable
        ``partial(weights[rows, start:stop], start, stop)`` gives one summand.
    shape : tuple of int
        Shape of a summand.

    Returns
    -------
    dask array, (replica, *shape)
        float64.
    """
    weights = trajectory[WEIGHTS].data
    n_replicas, _, n = weights.shape
    width = max(1, BLOCK_BYTES // (4 * rows.size) // 16384) * 16384
    out = []
    for r in range(n_replicas):
        parts = []
        for start in range(0, n, width):
            stop = min(n, start + width)
            piece: Any = weights[r, rows, start:stop]
            parts.append(dask.delayed(partial)(piece, start, stop))
        while len(parts) > 1:
            parts = [dask.delayed(_add)(*parts[k : k + FAN_IN]) for k in range(0, len(parts), FAN_IN)]
        out.append(da.from_delayed(parts[0], shape, dtype=np.float64))
    return da.stack(out)


def _add(first: np.ndarray, *others: np.ndarray) -> np.ndarray:
    total = first.copy()
    for other in others:
        total += other
    return total
