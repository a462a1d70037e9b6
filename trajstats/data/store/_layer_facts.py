"""What is kept of each layer of a row beside its values: the rounding floor and the digest."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trajstats.data._digests import TensorDigest, tensor_digest


class LayerFacts:
    """Rounding floors and digests of rows that come in blocks of columns, from left to right."""

    def __init__(self, n_rows: int, stops: np.ndarray, source_dtype: str, *, floors: bool, digests: bool) -> None:
        self._stops, self._source_dtype = stops, source_dtype
        self._sums = np.zeros((n_rows, stops.size)) if floors else None
        self._digests = [[TensorDigest() for _ in range(stops.size)] for _ in range(n_rows)] if digests else None

    def add(self, block: np.ndarray, start: int) -> None:
        """Take in the columns of all rows from `start` on."""
        if self._sums is not None:
            from trajstats.data._rounding import rounding_floor  # numba is imported only where a floor is needed

            for k, row in enumerate(block):
                self._sums[k] += rounding_floor(row, self._stops, self._source_dtype, start=start)
        if self._digests is None:
            return
        stop = start + block.shape[1]
        first, last = np.searchsorted(self._stops, [start, stop - 1], side="right").tolist()
        for layer in range(first, min(last + 1, self._stops.size)):
            begin = int(self._stops[layer - 1]) if layer else 0
            within = slice(max(start, begin) - start, min(stop, int(self._stops[layer])) - start)
            for k, row in enumerate(block):
                self._digests[k][layer].update(row[within])

    @property
    def floors(self) -> np.ndarray | None:
        """Mean over the weights of a layer, (row, layer)."""
        return None if self._sums is None else self._sums / np.maximum(np.diff(self._stops, prepend=0), 1)

    @property
    def digests(self) -> np.ndarray | None:
        """Digests (row, layer)."""
        if self._digests is None:
            return None
        values = [digest.value for row in self._digests for digest in row]
        return np.array(values, dtype=np.uint64).reshape(len(self._digests), self._stops.size)


def layer_digests(arrays: Sequence[np.ndarray], stops: np.ndarray) -> list[int]:
    """Compute the digest of each layer of one row, which comes as one array a layer, or as one flat array."""
    if len(arrays) != stops.size:
        arrays = np.split(arrays[0].reshape(-1), stops[:-1])
    return [tensor_digest(array) for array in arrays]
