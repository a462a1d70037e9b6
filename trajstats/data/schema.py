"""What a trajectory is: the names of its dimensions, coordinates and attributes, and how results are labelled."""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from trajstats.data._buffers import BUFFER_NAME, check_buffer_variable, with_buffer_variable
from trajstats.data._labels import label
from trajstats.data._layer_selection import cut_to_layers, shapes_from_json
from trajstats.errors import ArgumentError, SchemaError, unknown_name_message

SCHEMA_VERSION = 1

REPLICA = "replica"
STEP = "step"
PARAMETER = "parameter"
LAYER = "layer"
PAIR = "pair"
WAITING_TIME = "waiting_time"
LAG = "lag"
STEP_PRIME = "step_prime"

WEIGHTS = "weights"
WEIGHT_DIMS = (REPLICA, STEP, PARAMETER)
SKETCH = "sketch"
SKETCH_DIMS = (REPLICA, STEP, "hash", "bucket")
CLOCKS = ("step", "epoch", "proper_time")
CLOCK_UNITS = {"step": "optimiser steps", "epoch": "epochs", "proper_time": "sum of learning rates"}
STORED_DTYPES = ("float16", "float32", "float64")


def layer_kind(name: str, shape: Sequence[int]) -> str:
    """Guess what a tensor is from its name and shape."""
    parts = name.lower().replace("/", ".").split(".")
    leaf = parts[-1]
    if any(part.startswith(("bn", "ln", "norm", "batchnorm", "layernorm")) or "norm" in part for part in parts):
        return "norm"
    if leaf in {"bias", "b", "beta"} or leaf.startswith("bias"):
        return "bias"
    if leaf in {"weight", "w", "kernel", "embedding"} or leaf.startswith("weight") or len(shape) >= 2:
        return "weight"
    return "other"


def trajectory_dataset(
    weights: Any,
    *,
    step: Any,
    layers: Mapping[str, Sequence[int]] | None = None,
    replica: Any = None,
    series: Mapping[str, Any] | None = None,
    clocks: Mapping[str, Any] | None = None,
    buffers: Mapping[str, Any] | None = None,
    attrs: Mapping[str, Any] | None = None,
) -> xr.Dataset:
    """Put arrays in memory into the trajectory data model.

    Parameters
    ----------
    weights : array, (replica, step, parameter) or (step, parameter)
        Flat weights at the recorded steps; NumPy or dask; float16, float32 or float64.
    step : array of int, (step,)
        The optimiser step of each row, strictly increasing.
    layers : mapping name -> shape, optional
        Layers in the order of `parameter`; one layer called ``"all"`` if not given.
    replica : array of int, (replica,), optional
        Labels of the replicas; 0, 1, ... if not given.
    series : mapping name -> array, (replica, step) or (step,), optional
        Scalar series such as ``loss``.
    clocks : mapping name -> array, (step,), optional
        Other clocks: ``proper_time``, ``epoch``.
    buffers : mapping name -> array, (replica, step, ...) or (step, ...), optional
        State that is not trained, such as running statistics, saved in its own types.
    attrs : mapping, optional
        Attributes to add; anything that is not text or a number is stored as JSON.

    Returns
    -------
    xarray.Dataset
        A trajectory that every estimator accepts.

    Raises
    ------
    SchemaError
        If the shapes do not agree, the steps do not increase or the type is not floating.

    Examples
    --------
    >>> import numpy as np
    >>> run = trajectory_dataset(np.zeros((3, 4), "float32"), step=[0, 10, 100], layers={"w": (2, 2)})
    >>> dict(run.sizes)
    {'replica': 1, 'step': 3, 'parameter': 4, 'layer': 1}
    """
    array = weights if hasattr(weights, "dask") else np.asarray(weights)
    if array.ndim == 2:
        array = array[None]
    if array.ndim != 3:
        msg = f"weights have {array.ndim} dimensions; give (replica, step, parameter) or (step, parameter)"
        raise SchemaError(msg)
    n_replicas, n_steps, n_parameters = array.shape
    shapes = {"all": (n_parameters,)} if layers is None else {k: tuple(int(n) for n in v) for k, v in layers.items()}
    ds = xr.Dataset(
        {WEIGHTS: (WEIGHT_DIMS, array)},
        coords={
            REPLICA: np.arange(n_replicas) if replica is None else np.atleast_1d(np.asarray(replica)),
            STEP: np.asarray(step, dtype=np.int64),
            **layer_coords(shapes),
        },
    )
    for name, values in (series or {}).items():
        values = np.asarray(values, dtype=np.float64)
        ds[name] = ((REPLICA, STEP), np.broadcast_to(values, (n_replicas, n_steps)).copy())
    for name, values in (clocks or {}).items():
        ds = ds.assign_coords({name: (STEP, np.asarray(values, dtype=np.float64))})
    if buffers:
        ds = with_buffer_variable(ds, buffers, shapes, single=np.ndim(weights) == 2)
    ds.attrs = {"schema_version": SCHEMA_VERSION, "uid": uuid.uuid4().hex, "source": "memory", **as_attrs(attrs or {})}
    return label(check_trajectory(ds))


def layer_coords(layers: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Turn a mapping name -> shape into the coordinates along `layer`."""
    sizes = [math.prod(shape) for shape in layers.values()]
    return {
        LAYER: np.array(list(layers), dtype=object),
        "layer_stop": (LAYER, np.cumsum(sizes, dtype=np.int64)),
        "layer_shape": (LAYER, np.array([json.dumps(list(shape)) for shape in layers.values()], dtype=object)),
        "layer_kind": (LAYER, np.array([layer_kind(k, v) for k, v in layers.items()], dtype=object)),
    }


def as_attrs(values: Mapping[str, Any]) -> dict[str, Any]:
    """Make attributes storable: text and numbers stay, everything else becomes JSON text."""
    return {
        str(key): value if isinstance(value, str | int | float) else json.dumps(value, default=_jsonable)
        for key, value in values.items()
    }


def _jsonable(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    return str(value)


def check_trajectory(trajectory: Any, *, sketched: bool = False) -> xr.Dataset:
    """Check from metadata alone that a dataset is a trajectory.

    No weight is read. Layer bounds and steps, if still lazy, are loaded: they are small and every estimator needs them.

    Parameters
    ----------
    trajectory : xarray.Dataset
        What should hold ``weights`` (replica, step, parameter) and the coordinates of the data model.
    sketched : bool
        Whether a sketched trajectory, with ``sketch`` (replica, step, hash, bucket) in place of ``weights``, will do.

    Returns
    -------
    xarray.Dataset
        The same dataset with its coordinates in memory.

    Raises
    ------
    SchemaError
        If a name, dimension, type, order or the schema version is not as it must be.
    """
    if not isinstance(trajectory, xr.Dataset):
        msg = (
            f"a trajectory is an xarray.Dataset; got {type(trajectory).__name__}. Use trajstats.open_trajectory(path)."
        )
        raise SchemaError(msg)
    version = trajectory.attrs.get("schema_version")
    if version != SCHEMA_VERSION:
        msg = (
            f"schema_version is {version!r}; this trajstats reads version {SCHEMA_VERSION}. "
            "Open the store with the trajstats that wrote it, or ingest the checkpoints again."
        )
        raise SchemaError(msg)
    is_sketch = SKETCH in trajectory and WEIGHTS not in trajectory
    if is_sketch and not sketched:
        msg = "this trajectory holds sketches, which only msd and two_time read; for all else record the weights"
        raise SchemaError(msg)
    if WEIGHTS not in trajectory and not is_sketch:
        names = sorted(map(str, trajectory.variables))
        msg = f"no variable 'weights'; the dataset has {names}. Rename yours to 'weights'."
        raise SchemaError(msg)
    dims = SKETCH_DIMS if is_sketch else WEIGHT_DIMS
    weights = trajectory[SKETCH if is_sketch else WEIGHTS]
    if weights.dims != dims:
        one = [name for name in dims if name in trajectory.coords and trajectory[name].dims == ()]
        remedy = f"Select with a list, as in run.sel({one[0]}=[...])" if one else "Use .transpose or .expand_dims"
        msg = f"{weights.name} have dims {weights.dims}; they must be {dims}. {remedy}."
        raise SchemaError(msg)
    if weights.dtype.name not in STORED_DTYPES:
        msg = (
            f"weights have type {weights.dtype}; allowed: {', '.join(STORED_DTYPES)}. Convert with .astype('float32')."
        )
        raise SchemaError(msg)
    missing = [name for name in (STEP, LAYER, "layer_stop") if name not in trajectory.coords]
    if missing:
        msg = f"coordinates {missing} are missing; see the data model in the documentation"
        raise SchemaError(msg)
    small = [name for name in trajectory.coords if trajectory[name].chunks is not None and name != BUFFER_NAME]
    if small:
        trajectory = trajectory.assign_coords({name: trajectory[name].compute() for name in small})
    if not is_sketch:
        trajectory = cut_to_layers(trajectory)
        weights = trajectory[WEIGHTS]
    step = trajectory[STEP].values
    if not np.issubdtype(step.dtype, np.integer) or (step.size > 1 and (np.diff(step) <= 0).any()):
        bad = int(np.argmax(np.diff(step) <= 0)) if step.size > 1 and (np.diff(step) <= 0).any() else 0
        msg = (
            f"step must be strictly increasing integers; got type {step.dtype}, near row {bad}: "
            f"{step[bad : bad + 2].tolist()}. Sort the checkpoints and drop duplicates."
        )
        raise SchemaError(msg)
    bounds, along = ("bucket_layer_stop", "bucket") if is_sketch else ("layer_stop", PARAMETER)
    if bounds not in trajectory.coords:
        msg = f"coordinate {bounds} is missing; see the data model in the documentation"
        raise SchemaError(msg)
    stops = trajectory[bounds].values
    if (np.diff(stops, prepend=0) < 0).any() or (stops.size and int(stops[-1]) != weights.sizes[along]):
        msg = f"{bounds} {stops[:5].tolist()}... must rise to the size of {along}, {weights.sizes[along]}"
        raise SchemaError(msg)
    return check_buffer_variable(trajectory)


def layer_slices(trajectory: xr.Dataset, layers: Sequence[str] | None = None) -> dict[str, slice]:
    """Give the range of each layer along `parameter`."""
    names = [str(name) for name in trajectory[LAYER].values]
    stops = trajectory["layer_stop"].values.tolist()
    every = {name: slice(start, stop) for name, start, stop in zip(names, [0, *stops[:-1]], stops, strict=True)}
    if layers is None:
        return every
    for name in layers:
        if name not in every:
            raise ArgumentError(unknown_name_message("layer", name, every))
    return {name: every[name] for name in layers}


def layer_shapes(trajectory: xr.Dataset) -> dict[str, tuple[int, ...]]:
    """Give the shape of each layer."""
    shapes = shapes_from_json(trajectory["layer_shape"].values)
    return {str(name): shape for name, shape in zip(trajectory[LAYER].values, shapes, strict=True)}


def clock_values(trajectory: xr.Dataset, clock: str = "step") -> np.ndarray:
    """Read one clock of a trajectory."""
    if clock in CLOCKS and clock in trajectory.data_vars and trajectory[clock].dims == (REPLICA, STEP):
        return _shared_clock(trajectory, clock)
    known = [str(name) for name, coord in trajectory.coords.items() if coord.dims == (STEP,)]
    if clock not in known:
        raise ArgumentError(unknown_name_message("clock", clock, known, do="Add it with .assign_coords(...)."))
    values = trajectory[clock].values
    return values if clock == STEP else values.astype(np.float64)


def _shared_clock(trajectory: xr.Dataset, clock: str) -> np.ndarray:
    # The clock of joined runs, where it is the same in all of them.
    values = trajectory[clock].values.astype(np.float64)
    if not np.allclose(values, values[:1], rtol=1e-9, atol=0, equal_nan=True):
        last = ", ".join(f"{v:.6g}" for v in values[:5, -1])
        msg = (
            f"{clock} is not the same in the {len(values)} replicas (at the last step: {last}); select one with "
            ".isel(replica=[0]), or count in steps with clock='step'"
        )
        raise ArgumentError(msg)
    return values[0]


def annotate(
    result: xr.DataArray | xr.Dataset,
    *,
    name: Hashable,
    long_name: str,
    units: str,
    estimator: str,
    arguments: Mapping[str, Any],
    source: str,
    **more: Any,
) -> Any:
    """Label a result with what it is and how it was made."""
    if result.attrs.get("estimator", estimator) != estimator:
        result.attrs = {}  # newer xarray keeps the attributes of what a result was computed from
    result.attrs.update(
        {
            "long_name": long_name,
            "units": units,
            "estimator": estimator,
            "arguments": json.dumps(dict(arguments), default=_jsonable, sort_keys=True),
            "source": source,
            **as_attrs(more),
        }
    )
    if isinstance(result, xr.DataArray):
        result.name = name
    # zarr v3 has no specification for fixed-width text: texts are saved as variable-length strings.
    fixed = {key: coord.astype(object) for key, coord in result.coords.items() if coord.dtype.kind == "U"}
    if isinstance(result, xr.DataArray):
        return label(result.assign_coords(fixed), estimator)
    fixed |= {key: values.astype(object) for key, values in result.data_vars.items() if values.dtype.kind == "U"}
    return label(result.assign(fixed), estimator)
