"""The variables of a store's buffers, read lazily by dask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr

from trajstats.data._buffer_tensors import BufferTensor
from trajstats.data._buffers import BUFFER, BUFFER_NAME, BUFFERS, buffer_names, buffer_variable
from trajstats.data.store._buffer_rows import StoredBuffers
from trajstats.data.store._tiles import Tiles
from trajstats.data.store.journal._records import Record

MANY_NAMES = 2**20  # elements beyond which their names are made when they are looked at


def lazy_buffers(
    target: Any, tiles: Tiles, rows: int, records: Sequence[Record], uid: Any, block_bytes: int
) -> dict[str, xr.Variable]:
    """Make the variables ``buffers`` and ``buffer_name`` of a store, lazily; none where it has no buffers."""
    if tiles.buffers is None:
        return {}
    stored = StoredBuffers(target, rows, records)
    high = max(1, min(rows, tiles.buffers.rows))
    width = max(1, block_bytes // max(1, high * stored.dtype.itemsize))
    chunks = (1, high, max(1, min(width, stored.shape[2])))
    name = f"{BUFFERS}-{uid}-{rows}"
    data = da.from_array(stored, chunks=chunks, name=name, meta=np.empty((0, 0, 0), stored.dtype), fancy=False)
    return {BUFFERS: buffer_variable(data, stored.tensors), BUFFER_NAME: _names(stored.tensors, uid)}


def _names(tensors: Sequence[BufferTensor], uid: Any) -> xr.Variable:
    """Name the tensor of each element; of millions of elements only when it is looked at."""
    size = sum(tensor.size for tensor in tensors)
    if size <= MANY_NAMES:
        return buffer_names(tensors)
    few = buffer_names([])
    names = da.from_array(_Repeated(tensors), chunks=MANY_NAMES, name=f"{BUFFER_NAME}-{uid}", meta=few.values[:0])
    return xr.Variable((BUFFER,), names, few.attrs)


class _Repeated:
    """The name of each tensor, once for each of its elements."""

    def __init__(self, tensors: Sequence[BufferTensor]) -> None:
        self._names = np.array([tensor.name for tensor in tensors], dtype=object)
        self._stops = np.cumsum([tensor.size for tensor in tensors], dtype=np.int64)
        self.shape = (int(self._stops[-1]) if len(tensors) else 0,)
        self.dtype, self.ndim = np.dtype(object), 1

    def __getitem__(self, key: Any) -> Any:
        wanted = key[0] if isinstance(key, tuple) else key
        positions = np.arange(self.shape[0])[wanted] if isinstance(wanted, slice) else np.asarray(wanted)
        return self._names[np.searchsorted(self._stops, positions, side="right")]
