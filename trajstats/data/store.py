"""The trajectory store: record weights while a network trains, open what was recorded."""

from __future__ import annotations

import glob
import json
import math
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr

from trajstats.data.schema import (
    LAYER,
    PARAMETER,
    REPLICA,
    SCHEMA_VERSION,
    STEP,
    WEIGHTS,
    as_attrs,
    check_trajectory,
    layer_coords,
)
from trajstats.errors import ArgumentError, SchemaError, StoreNotFoundError

ROWS = 64
COLUMNS = 16384


class TrajectoryWriter:
    """Record the weights of one run; opening an existing store continues it."""

    def __init__(
        self,
        path: Any,
        layers: Mapping[str, Sequence[int]],
        *,
        replica: int = 0,
        attrs: Mapping[str, Any] | None = None,
        clocks: Sequence[str] = ("epoch", "proper_time"),
        dtype: str = "float32",
    ) -> None:
        self.path = path
        self.layers = {str(k): tuple(int(n) for n in v) for k, v in layers.items()}
        self._clocks = tuple(clocks)
        self._n = sum(math.prod(s) for s in self.layers.values())
        try:
            self._group = zarr.open_group(path, mode="r+")
        except FileNotFoundError:
            self._group = zarr.open_group(path, mode="w")
            self._group.attrs.update(
                {
                    "schema_version": SCHEMA_VERSION,
                    "uid": uuid.uuid4().hex,
                    "source": str(path),
                    **as_attrs(attrs or {}),
                }
            )
            coords = layer_coords(self.layers)
            self._create(STEP, np.zeros(0, np.int64), (STEP,))
            self._create(REPLICA, np.array([replica]), (REPLICA,))
            self._create(LAYER, coords[LAYER].astype(str), (LAYER,))
            for name in ("layer_stop", "layer_shape", "layer_kind"):
                value = coords[name][1]
                self._create(name, value.astype(str) if value.dtype == object else value, (LAYER,))
            self._group.create_array(
                WEIGHTS,
                shape=(1, 0, self._n),
                chunks=(1, ROWS, min(COLUMNS, max(self._n, 1))),
                dtype=dtype,
                dimension_names=(REPLICA, STEP, PARAMETER),
            )

    def _create(self, name: str, value: np.ndarray, dims: tuple[str, ...], chunk: int = 65536) -> None:
        kind: Any = str if value.dtype.kind == "U" else value.dtype
        array = self._group.create_array(
            name, shape=value.shape, chunks=(1,) * (value.ndim - 1) + (chunk,), dtype=kind, dimension_names=dims
        )
        if value.size:
            array[...] = value
        if name not in dims:
            known = str(self._group.attrs.get("coordinates", "")).split()
            if dims != (REPLICA, STEP):
                self._group.attrs["coordinates"] = " ".join([*known, name])

    @property
    def committed(self) -> list[int]:
        """Steps that are safely stored."""
        return [int(s) for s in np.asarray(self._group[STEP][...])]

    def append(self, step: int, weights: Any, **series: float) -> None:
        """Store one row."""
        if isinstance(weights, Mapping):
            if set(weights) != set(self.layers):
                msg = f"layers {sorted(weights)} do not match {sorted(self.layers)}"
                raise ArgumentError(msg)
            flat = np.concatenate([np.asarray(weights[k]).ravel() for k in self.layers])
        else:
            flat = np.asarray(weights).ravel()
        steps = self.committed
        row = len(steps)
        for name, value in series.items():
            clock = name in self._clocks
            dims = (STEP,) if clock else (REPLICA, STEP)
            if name not in self._group:
                self._create(name, np.full((row,) if clock else (1, row), np.nan), dims)
            self._group[name].resize((row + 1,) if clock else (1, row + 1))
            self._group[name][..., row] = float(value)
        self._group[WEIGHTS].resize((1, row + 1, self._n))
        self._group[WEIGHTS][0, row] = flat
        self._group[STEP].resize((row + 1,))
        self._group[STEP][row] = int(step)

    def close(self) -> None:
        """Finish the store."""

    def __enter__(self) -> TrajectoryWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_trajectory(paths: Any) -> xr.Dataset:
    """Open one run, or join a list or glob of runs along `replica`, lazily."""
    if isinstance(paths, str) and glob.has_magic(paths):
        found = sorted(glob.glob(paths))
        if not found:
            msg = f"no store matches {paths!r}"
            raise StoreNotFoundError(msg)
        paths = found
    if isinstance(paths, (list, tuple)):
        runs = [open_trajectory(p) for p in paths]
        for run in runs[1:]:
            if run.sizes[PARAMETER] != runs[0].sizes[PARAMETER]:
                msg = "runs of different architectures cannot be joined"
                raise SchemaError(msg)
        labels = [int(run[REPLICA].values[0]) for run in runs]
        if len(set(labels)) < len(labels):
            runs = [run.assign_coords({REPLICA: [i]}) for i, run in enumerate(runs)]
        joined = xr.concat(
            runs, dim=REPLICA, join="inner", combine_attrs="drop_conflicts", coords="minimal", compat="override"
        )
        joined.attrs["uid"] = "+".join(str(run.attrs["uid"]) for run in runs)
        return check_trajectory(joined)
    if isinstance(paths, (str, Path)) and "://" not in str(paths) and not Path(paths).exists():
        msg = f"{paths} does not exist; check the path, or record a run with trajstats.TrajectoryWriter"
        raise StoreNotFoundError(msg)
    ds = xr.open_zarr(paths, consolidated=False, chunks=None)
    ds = ds.set_coords([n for n in ("layer_stop", "layer_shape", "layer_kind", "epoch", "proper_time") if n in ds])
    small = [n for n in ds.variables if n != WEIGHTS]
    ds = ds.assign({n: ds[n].load() for n in small if n in ds.data_vars}).assign_coords(
        {n: ds[n].load() for n in small if n in ds.coords}
    )
    return check_trajectory(ds.chunk({STEP: -1, PARAMETER: COLUMNS * 16}))
