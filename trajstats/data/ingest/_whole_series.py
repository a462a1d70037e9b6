"""A whole series of checkpoints in one zarr group or netCDF file, with a dimension for time."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from trajstats.data.formats._boxes import Box, box_tensor
from trajstats.data.formats._series_files import open_dataset
from trajstats.data.formats._tensor import Checkpoint, input_size
from trajstats.data.formats.hdf5._read import number_name
from trajstats.data.safety._budget import Budget, foreign, shorten
from trajstats.data.store._guard import CONVERT_ZARR_2
from trajstats.errors import ArgumentError, StoreError, StoreNotFoundError, UnsupportedError, unknown_name_message

REPLICA_DIMS = frozenset(["replica", "replicas", "seed", "seeds", "run", "runs", "member", "ensemble"])
TIME_UNITS = frozenset(
    ["nanosecond", "microsecond", "millisecond", "second", "minute", "hour", "day", "week", "month", "year"]
    + ["ns", "us", "ms", "s", "sec", "min", "h", "d"]
)


def read_series(path: Path, dims: Mapping[str, str]) -> tuple[list[tuple[int, Checkpoint]], list[float]]:
    """Read a zarr or netCDF file that holds a whole series, one variable per tensor with a dimension for time."""
    along = next(iter(dims.values()), None)
    if len(dims) != 1 or not dims.keys() <= {"step", "epoch"}:
        msg = (
            f"dims={dict(dims)}: name the dimension of time, as in dims={{'step': 'time'}} or dims={{'epoch': 'time'}}"
        )
        raise ArgumentError(msg)
    if not path.exists():
        msg = f"{path} does not exist"
        raise StoreNotFoundError(msg)
    if any((path / name).exists() for name in (".zgroup", ".zmetadata", ".zarray")):
        msg = f"{path} is zarr format 2, and format 3 is read. {CONVERT_ZARR_2}"
        raise UnsupportedError(msg)
    budget = Budget.for_size(input_size(path))
    data = open_dataset(path, budget)
    if along not in data.dims:
        msg = f"{path}: {unknown_name_message('dimension', along, data.dims)}"
        raise ArgumentError(msg)
    names = [str(n) for n, v in data.data_vars.items() if along in v.dims and number_name(v.dtype)]
    budget.spend_objects(data.sizes[along] * (2 + 5 * len(names)), f"{path}: dimension {along!r}")
    steps, epochs = _times(path, data, str(along), epochs="epoch" in dims)
    if replicas := {str(d) for n in names for d in data[n].dims} & REPLICA_DIMS:
        dim = min(replicas)
        msg = (
            f"{path}: the dimension {dim!r} seems to hold several runs; a store holds one. Save each by itself, "
            f"data.isel({dim}=0).to_netcdf(...), or rename the dimension if it is part of a tensor"
        )
        raise ArgumentError(msg)
    rows = []
    for name in names:
        variable = data[name].variable
        shape = tuple(n for d, n in variable.sizes.items() if d != along)
        rows.append(
            (
                name,
                shape,
                number_name(variable.dtype) or "",
                partial(_read_row, variable, str(along), f"{path}: {name!r}"),
            )
        )
    series = []
    for k, step in enumerate(steps):
        found = Checkpoint(f"{path}[{along}={epochs[k] if epochs else step}]", {})
        for name, shape, kind, read in rows:
            found.tensors[name] = box_tensor(shape, kind, partial(read, k))
        series.append((step, found))
    return series, epochs


def _read_row(variable: Any, along: str, where: str, k: int, box: Box) -> np.ndarray:
    with foreign(where):
        return np.asarray(variable.isel({along: k})[box])


def _times(path: Path, data: Any, along: str, *, epochs: bool) -> tuple[list[int], list[float]]:
    """Take the values of the time dimension as steps, or as epochs with the position as step; none is rounded."""
    n = int(data.sizes[along])
    if along not in data.coords:
        return list(range(n)), [float(k) for k in range(n)] if epochs else []
    if data[along].dims != (along,):
        msg = f"{path}: {along!r} has dimensions {shorten(data[along].dims)}, not that one alone"
        raise StoreError(msg)
    with foreign(f"{path}: {along!r}"):
        values = data[along].values
    units = str(data[along].attrs.get("units", ""))
    remedy = f"give it the optimiser steps: data.assign_coords({along}=[0, 100, ...]), and save that"
    if values.dtype.kind not in "iuf" or " since " in units or TIME_UNITS & {units, units.removesuffix("s")}:
        what = f"times in {units!r:.60}" if values.dtype.kind in "iuf" else f"values of type {values.dtype}"
        msg = f"{path}: {along!r} holds {what}, which are not optimiser steps; {remedy}"
        raise ArgumentError(msg)
    if not np.isfinite(values).all() or (np.abs(values.astype(np.float64)) >= 2.0**63).any():
        msg = f"{path}: {along!r} holds NaN, infinity or a number over 2**63; {remedy}"
        raise ArgumentError(msg)
    if epochs:
        order = np.argsort(values, kind="stable")
        steps = np.empty(n, dtype=np.int64)
        steps[order] = np.arange(n)
        if len(np.unique(values)) < n:
            msg = f"{path}: {along!r} holds an epoch twice; {remedy}"
            raise ArgumentError(msg)
        return steps.tolist(), values.astype(np.float64).tolist()
    if (values != np.floor(values)).any():
        bad = values[values != np.floor(values)][0]
        msg = (
            f"{path}: {along!r} holds {bad}, and steps are whole numbers. If these are epochs, "
            f"dims={{'epoch': {along!r}}} (--epoch-dim {along}) keeps them as the clock 'epoch'; or {remedy}"
        )
        raise ArgumentError(msg)
    return [int(value) for value in values.tolist()], []
