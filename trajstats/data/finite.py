"""Where a trajectory holds NaN or infinity: every value is looked at once, block by block."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from tqdm import tqdm

from trajstats.data._buffers import buffers_at
from trajstats.data._inputs import TRAJECTORY, accepts
from trajstats.data._labels import label
from trajstats.data.schema import LAYER, REPLICA, STEP, WEIGHTS, check_trajectory

BUFFERS = "buffers"
_BLOCK_BYTES = 32 * 2**20
_SHOWN = 20


@accepts(TRAJECTORY)
def check_finite(trajectory: xr.Dataset, /, *, progress: bool = False) -> xr.Dataset:
    """Find NaN and infinity in weights, buffers, clocks and recorded series.

    Parameters
    ----------
    trajectory : xarray.Dataset
        A trajectory; lazy ones are read once, in blocks of 32 MiB.
    progress : bool
        Show a progress bar.

    Returns
    -------
    xarray.Dataset
        Numbers of values that are NaN or infinite: ``weights`` (replica, step, layer), ``buffers`` (replica, step,
        buffer_name) where there are buffers, and every series and clock under its own name. Attribute ``finite`` is 1
        where weights, series and clocks are finite, else 0; attribute ``found`` lists what was found, a line each, with
        layer, step and replica. An infinite buffer, such as a mask of attention, is listed and does not count.

    Raises
    ------
    SchemaError
        If it is not a trajectory with weights.

    Examples
    --------
    >>> from trajstats.data.schema import trajectory_dataset
    >>> weights = np.zeros((3, 5))
    >>> weights[1, 4] = np.nan
    >>> found = check_finite(trajectory_dataset(weights, step=[0, 10, 20], layers={"w": (2, 2), "b": (1,)}))
    >>> found.attrs["finite"], found.attrs["found"]
    (0, "layer 'b', step 10, replica 0: 1 of 1 value")
    """
    run = check_trajectory(trajectory)
    names = [str(name) for name in run[LAYER].values]
    labels = {REPLICA: run[REPLICA].values if REPLICA in run.coords else np.arange(run.sizes[REPLICA])}
    labels |= {STEP: run[STEP].values}
    counts, sizes = _weights(run, progress)
    result = xr.Dataset({WEIGHTS: ((REPLICA, STEP, LAYER), counts, _about(WEIGHTS))}, coords={**labels, LAYER: names})
    lines = [
        f"layer {names[k]!r}, step {labels[STEP][i]}, replica {labels[REPLICA][r]}: {_of(counts[r, i, k], sizes[k])}"
        for r, i, k in np.argwhere(counts)
    ]
    for name, values in run.variables.items():
        if STEP in values.dims and set(values.dims) <= {REPLICA, STEP} and values.dtype.kind == "f":
            bad = ~np.isfinite(values.values)
            key = f"{name}_not_finite" if name in run.coords else str(name)
            result[key] = (values.dims, bad.astype(np.int64), _about(str(name)))
            steps = labels[STEP][bad if bad.ndim == 1 else bad.any(axis=values.dims.index(REPLICA))]
            if steps.size:
                lines.append(f"{name}: {int(bad.sum())} of {bad.size} values, first at step {steps[0]}")
    counted = len(lines)
    if BUFFERS in run:
        kept = _buffers(run)
        result[BUFFERS] = kept.assign_attrs(_about(BUFFERS))
        for name, total in zip(kept["buffer_name"].values, kept.sum((REPLICA, STEP)).values, strict=True):
            if total:
                lines.append(f"buffer {str(name)!r}: {int(total)} values over all steps (a mask may be infinite)")
    more = [f"and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
    result.attrs = {
        "long_name": "where a trajectory is not finite",
        "units": "1",
        "estimator": "check_finite",
        "arguments": "{}",
        "source": str(run.attrs.get("uid", "")),
        "finite": int(not counted),
        "found": "\n".join([*lines[:_SHOWN], *more]) or "all values are finite",
    }
    return label(result)


def _about(name: str) -> dict[str, str]:
    return {"long_name": f"values of {name} that are NaN or infinite", "units": "1"}


def _of(count: int, size: int) -> str:
    return f"{int(count)} of {int(size):,} value{'s' if size != 1 else ''}"


def _weights(run: xr.Dataset, progress: bool) -> tuple[np.ndarray, np.ndarray]:
    weights = run[WEIGHTS].variable
    stops = run["layer_stop"].values.astype(np.int64)
    starts = np.concatenate([[0], stops[:-1]]).astype(np.int64)
    replicas, rows, n = weights.shape
    width = max(min(n, _BLOCK_BYTES // max(weights.dtype.itemsize, 1)), 1)
    deep = max(_BLOCK_BYTES // (width * weights.dtype.itemsize), 1)
    counts = np.zeros((replicas, rows, stops.size), dtype=np.int64)
    blocks = [(r, i, a) for r in range(replicas) for i in range(0, rows, deep) for a in range(0, n, width)]
    for r, i, a in tqdm(blocks, desc="looking for NaN", unit="block", disable=not progress):
        part = np.asarray(weights[r, i : i + deep, a : a + width].values)
        bad = ~np.isfinite(part)
        if not bad.any():
            continue
        for k in np.flatnonzero((starts < a + width) & (stops > a)):
            cut = slice(max(int(starts[k]) - a, 0), int(stops[k]) - a)
            counts[r, i : i + len(bad), k] += bad[:, cut].sum(axis=1)
    return counts, stops - starts


def _buffers(run: xr.Dataset) -> xr.DataArray:
    rows: list[list[dict[str, Any]]] = [
        [buffers_at(run, r, i) for i in range(run.sizes[STEP])] for r in range(run.sizes[REPLICA])
    ]
    names = list(dict.fromkeys(name for row in rows for one in row for name in one))
    counts = np.array([[[_bad(one.get(name)) for name in names] for one in row] for row in rows], dtype=np.int64)
    shape = (run.sizes[REPLICA], run.sizes[STEP], len(names))
    return xr.DataArray(
        counts.reshape(shape),
        dims=(REPLICA, STEP, "buffer_name"),
        coords={"buffer_name": np.array(names, dtype=object)},
    )


def _bad(values: Any) -> int:
    array = np.asarray(values if values is not None else 0)
    try:
        return int((~np.isfinite(array.astype(np.float64))).sum()) if array.dtype.kind not in "OSU" else 0
    except (TypeError, ValueError):
        return 0
