"""A trajectory after ``.sel(layer=...)``: the parameters of the chosen layers, cut out lazily."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import xarray as xr

from trajstats.data.safety._budget import shorten
from trajstats.errors import SchemaError

LAYER = "layer"
PARAMETER = "parameter"
STOP = "layer_stop"
SHAPE = "layer_shape"
KIND = "layer_kind"
# What a store keeps for each layer at each step.
PER_LAYER = ("digest", "rounding_floor")


def cut_to_layers(trajectory: xr.Dataset) -> xr.Dataset:
    """Cut `parameter` to the layers that a selection along `layer` left.

    xarray selects along `layer` the coordinates only; `parameter` has no label by layer and stays whole.
    """
    if trajectory[LAYER].dims == ():
        trajectory = _with_dim(trajectory)
    stops = np.asarray(trajectory[STOP].values)
    for name in [name for name in (STOP, SHAPE) if name in trajectory.coords]:
        if trajectory[name].dims != (LAYER,):
            msg = f"{name} has dims {trajectory[name].dims}; it must have one value for each {LAYER!r}"
            raise SchemaError(msg)
    if SHAPE not in trajectory.coords:
        return trajectory
    sizes = np.array([math.prod(shape) for shape in shapes_from_json(trajectory[SHAPE].values)], dtype=np.int64)
    if np.array_equal(np.cumsum(sizes), stops) and sizes.sum() == trajectory.sizes[PARAMETER]:
        return trajectory
    starts = stops - sizes
    if (starts < 0).any() or (stops > trajectory.sizes[PARAMETER]).any():
        msg = (
            f"the layers end at {stops[:5].tolist()} and have sizes {sizes[:5].tolist()}, which do not fit the "
            f"{trajectory.sizes[PARAMETER]} parameters; select layers on the whole run: run.sel(layer=[...])"
        )
        raise SchemaError(msg)
    parts = [trajectory.isel({PARAMETER: slice(int(a), int(b))}) for a, b in zip(starts, stops, strict=True)]
    whole = [str(name) for name, v in trajectory.variables.items() if PARAMETER in v.dims]
    cut = {
        name: xr.concat([part[name] for part in parts], PARAMETER) if len(parts) > 1 else parts[0][name]
        for name in whole
    }
    rest = trajectory.drop_dims(PARAMETER).assign(cut)
    return rest.assign_coords({STOP: (LAYER, np.cumsum(sizes))}).assign_attrs(trajectory.attrs)


def shapes_from_json(texts: Iterable[Any]) -> list[tuple[int, ...]]:
    """Read the shapes of layers, each a JSON list of whole numbers."""
    shapes = []
    for text in texts:
        try:
            shape = json.loads(str(text))
        except (ValueError, RecursionError):
            shape = None
        good = isinstance(shape, list) and all(type(n) is int and 0 <= n < 2**48 for n in shape)
        if not good or math.prod(shape) >= 2**62:
            msg = (
                f"layer_shape must hold the shape of each layer as JSON, such as '[3, 5]'; one is {shorten(str(text))}"
            )
            raise SchemaError(msg)
        shapes.append(tuple(shape))
    return shapes


def _with_dim(trajectory: xr.Dataset) -> xr.Dataset:
    """Give `layer` back its dim after one layer was selected by its name alone."""
    labels = [name for name in (LAYER, STOP, SHAPE, KIND) if name in trajectory.coords]
    numbers = {
        name: trajectory[name].drop_vars(labels, errors="ignore").expand_dims(LAYER, axis=-1).variable
        for name in PER_LAYER
        if name in trajectory.variables and LAYER not in trajectory[name].dims
    }
    coords = {name: (LAYER, np.array([trajectory[name].item()], trajectory[name].dtype)) for name in labels}
    return trajectory.drop_vars(labels).assign_coords(coords).assign(numbers)
