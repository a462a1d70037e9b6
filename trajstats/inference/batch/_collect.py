"""Results of many runs side by side: labels are united, what a run lacks is NaN."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from trajstats.errors import ArgumentError
from trajstats.inference.batch._engine import Outcome


def collect(outcomes: Sequence[Outcome], dim: str) -> xr.Dataset:
    """Put the results of a batch side by side along a new dim."""
    parts = [outcome.data for outcome in outcomes]
    good = [part for part in parts if part is not None]
    indexes = {
        str(name): _union([part[name].values for part in good if name in part.indexes]) for name in _indexed(good)
    }
    sizes = {str(d): max(part.sizes.get(d, 0) for part in good) for part in good for d in part.dims}
    sizes |= {name: len(labels) for name, labels in indexes.items()}
    about = {name: next(part[name].attrs for part in good if name in part.indexes) for name in indexes}
    result = xr.Dataset(coords={name: (name, labels, about[name]) for name, labels in indexes.items()})
    for name in dict.fromkeys(n for part in good for n in part.variables if n not in indexes):
        having = [part[name].variable for part in good if name in part.variables]
        dims = tuple(str(d) for d in having[0].dims)
        if any(set(v.dims) != set(dims) for v in having):
            odd = next(v.dims for v in having if set(v.dims) != set(dims))
            msg = f"{name!r} has dims {dims} in one run and {odd} in another; return results of the same dims"
            raise ArgumentError(msg)
        rows = [
            None if part is None or name not in part.variables else _placed(part, name, dims, sizes, indexes)
            for part in parts
        ]
        is_coord = any(name in part.coords for part in good)
        known = [row for row in rows if row is not None]
        if is_coord and all(_same(known[0], row) for row in known[1:]):
            value = xr.Variable(dims, known[0], having[0].attrs)
        else:
            blank = _blank([sizes[d] for d in dims], known[0].dtype)
            stacked = np.stack([blank if row is None else row for row in rows])
            value = xr.Variable((dim, *dims), stacked, having[0].attrs)
        result = result.assign_coords({name: value}) if is_coord else result.assign({name: value})
    if good:
        result.attrs = {k: v for k, v in good[0].attrs.items() if all(part.attrs.get(k) == v for part in good)}
    result["status"] = (dim, column([outcome.status for outcome in outcomes]))
    result["reason"] = (dim, column([outcome.reason for outcome in outcomes]))
    return result


def column(values: Sequence[Any]) -> np.ndarray:
    """Make a coordinate of labels."""
    if any(isinstance(value, str) for value in values):
        out = np.empty(len(values), dtype=object)
        out[:] = values
        return out
    return np.array(values)


def _indexed(parts: Sequence[xr.Dataset]) -> list[Hashable]:
    return list(dict.fromkeys(name for part in parts for name in part.indexes))


def _union(labels: Sequence[np.ndarray]) -> np.ndarray:
    if all(np.array_equal(labels[0], other) for other in labels[1:]):
        return labels[0]
    if all(one.dtype.kind in "iuf" for one in labels):
        return np.unique(np.concatenate(labels))
    return column(list(dict.fromkeys(label for one in labels for label in one.tolist())))


def _placed(
    part: xr.Dataset, name: Hashable, dims: Sequence[str], sizes: Mapping[str, int], indexes: Mapping[str, np.ndarray]
) -> np.ndarray:
    values = part[name].variable.transpose(*dims).values
    shape = tuple(sizes[d] for d in dims)
    if values.dtype.kind in "US":
        values = values.astype(object)
    where = []
    for d, n in zip(dims, values.shape, strict=True):
        order = {label: k for k, label in enumerate(indexes[d].tolist())} if d in part.indexes else {}
        where.append([order[label] for label in part[d].values.tolist()] if order else list(range(n)))
    if values.shape == shape and all(w == list(range(n)) for w, n in zip(where, shape, strict=True)):
        return values
    out = _blank(shape, values.dtype)
    if values.size:
        out[np.ix_(*where)] = values
    return out


def _blank(shape: Sequence[int], dtype: np.dtype[Any]) -> np.ndarray:
    if dtype.kind in "OUS":
        return np.full(shape, "", dtype=object)
    return np.full(shape, np.nan, dtype=dtype if dtype.kind in "fc" else np.float64)


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    return np.array_equal(one, other, equal_nan=one.dtype.kind in "fc" and other.dtype.kind in "fc")
