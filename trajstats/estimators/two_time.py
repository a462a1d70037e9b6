"""Two-time statistics: every observable of the displacement between two saved times."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import xarray as xr

from trajstats.data.schema import (
    LAG,
    PAIR,
    REPLICA,
    STEP,
    STEP_PRIME,
    WAITING_TIME,
    annotate,
    check_trajectory,
    clock_values,
)
from trajstats.errors import ArgumentError, unknown
from trajstats.estimators.blocks import block_sums
from trajstats.estimators.groups import Groups, Per, read_groups


def msd(trajectory: xr.Dataset, pairs: xr.Dataset, /, *, per: Per = "layer", clock: str = "step") -> xr.DataArray:
    r"""Mean squared displacement of the weights between listed pairs of saved times.

    .. math:: \Delta(t_w,t_w+t)=\frac1M\sum_{i=1}^M[w_i(t_w+t)-w_i(t_w)]^2

    over the M parameters of each group (the definition of paper key *glassy*).

    Parameters
    ----------
    trajectory : xarray.Dataset
        A trajectory.
    pairs : xarray.Dataset
        What `time_pairs` returned.
    per : {"layer", "kind", "all"} or mapping
        Which parameters are averaged.
    clock : str
        Clock of the result's ``waiting_time`` and ``lag``.

    Returns
    -------
    xarray.DataArray, (replica, pair, layer)
        Lazy, float64, in squared weight units.

    Examples
    --------
    >>> from trajstats.data.schedules import time_pairs
    >>> from trajstats.data.schema import trajectory_dataset
    >>> run = trajectory_dataset(np.outer([0, 1, 3], np.ones(4)), step=[0, 1, 3])
    >>> msd(run, time_pairs(run), per="all").compute().values.tolist()
    [[1.0, 9.0, 4.0]]
    """
    trajectory = check_trajectory(trajectory)
    groups = read_groups(trajectory, per)
    first, second = _rows(trajectory, pairs["first"].values), _rows(trajectory, pairs["second"].values)
    rows, where = np.unique(np.concatenate([first, second]), return_inverse=True)
    i, j = where[: first.size], where[first.size :]
    stops = trajectory["layer_stop"].values
    sums = block_sums(
        trajectory,
        rows,
        partial(_pair_sums, i=i, j=j, stops=stops, of_layer=groups.of_layer, n=len(groups)),
        (i.size, len(groups)),
    )
    times = clock_values(trajectory, clock)
    result = _labelled(
        sums / groups.sizes,
        (PAIR,),
        {
            WAITING_TIME: (PAIR, times[first]),
            LAG: (PAIR, times[second] - times[first]),
            "first": (PAIR, trajectory[STEP].values[first]),
            "second": (PAIR, trajectory[STEP].values[second]),
        },
        trajectory,
        groups,
    )
    return annotate(
        result,
        name="msd",
        long_name="mean squared displacement",
        units="weight^2",
        estimator="msd",
        arguments={"per": groups.argument, "clock": clock},
        source=trajectory.attrs["uid"],
        clock=clock,
    )


def all_pairs(run: xr.Dataset, /, *, per: Per = "all") -> xr.Dataset:
    """Every two-time observable asked for, between all pairs of checkpoints.

    Parameters
    ----------
    run : xarray.Dataset
        A trajectory.
    per : {"layer", "kind", "all"} or mapping
        Which parameters are averaged.

    Returns
    -------
    xarray.Dataset
        ``msd`` (replica, step, step_prime[, layer]), lazy, float64.

    Examples
    --------
    >>> from trajstats.data.schema import trajectory_dataset
    >>> run = trajectory_dataset(np.outer([0, 1, 3], np.ones(4)), step=[0, 1, 3])
    >>> all_pairs(run).msd.compute().values[0].tolist()
    [[0.0, 1.0, 9.0], [1.0, 0.0, 4.0], [9.0, 4.0, 0.0]]
    """
    trajectory = check_trajectory(run)
    groups = read_groups(trajectory, per)
    n = trajectory.sizes[STEP]
    i, j = (k.ravel() for k in np.indices((n, n)))
    stops = trajectory["layer_stop"].values
    sums = block_sums(
        trajectory,
        np.arange(n),
        partial(_pair_sums, i=i, j=j, stops=stops, of_layer=groups.of_layer, n=len(groups)),
        (i.size, len(groups)),
    )
    values = (sums / groups.sizes).reshape((-1, n, n, len(groups)))
    result = _labelled(
        values,
        (STEP, STEP_PRIME),
        {STEP_PRIME: trajectory[STEP].values, STEP: trajectory[STEP].values},
        trajectory,
        groups,
    )
    about = {"estimator": "all_pairs", "arguments": {"per": groups.argument}, "source": trajectory.attrs["uid"]}
    result = annotate(result, name="msd", long_name="mean squared displacement", units="weight^2", **about)
    return annotate(result.to_dataset(), name="", long_name="two-time statistics", units="", **about)


def _rows(trajectory: xr.Dataset, steps: np.ndarray) -> np.ndarray:
    saved = trajectory[STEP].values
    rows = np.minimum(np.searchsorted(saved, steps), saved.size - 1)
    if (saved[rows] != steps).any():
        raise ArgumentError(
            unknown("step", steps[saved[rows] != steps][0], saved, do="Make pairs with time_pairs(run).")
        )
    return rows


def _pair_sums(
    block: np.ndarray,
    start: int,
    stop: int,
    *,
    i: np.ndarray,
    j: np.ndarray,
    stops: np.ndarray,
    of_layer: np.ndarray,
    n: int,
) -> np.ndarray:
    out = np.zeros((i.size, n))
    block = block.astype(np.float64)
    for layer, (a, b) in enumerate(zip([0, *stops[:-1]], stops, strict=True)):
        a, b = max(a, start) - start, min(b, stop) - start
        if a < b and of_layer[layer] >= 0:
            for p in range(i.size):
                d = block[j[p], a:b] - block[i[p], a:b]
                out[p, of_layer[layer]] += d @ d
    return out


def _labelled(values: Any, dims: tuple[str, ...], coords: dict, trajectory: xr.Dataset, groups: Groups) -> xr.DataArray:
    coords = {REPLICA: trajectory[REPLICA].values, **coords, **groups.coords()}
    if groups.dim is None:
        values = values[..., 0]
        return xr.DataArray(values, dims=(REPLICA, *dims), coords=coords)
    return xr.DataArray(values, dims=(REPLICA, *dims, groups.dim), coords=coords)
