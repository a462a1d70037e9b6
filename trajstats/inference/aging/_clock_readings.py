"""The clock of a fit: both readings of mu where it is not the optimiser step, and times that name their clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import xarray as xr

from trajstats.data._clocks import CLOCK, REASON, carried_clock, unit_of
from trajstats.data.schema import LAG, PAIR, STEP, WAITING_TIME
from trajstats.errors import FitError
from trajstats.inference.aging._grid import GridPosterior
from trajstats.inference.aging._pilot import Pilot, pilot_fit
from trajstats.inference.aging._points import Points, check_size

Coords = dict[str, tuple[str, np.ndarray, dict[str, str]]]
_BOUNDS = (0.16, 0.84, 0.025, 0.975)


def clock_readings(
    delta: xr.DataArray, points: Points, pilot: Pilot, bounds: Mapping[str, tuple[float, float]], *, likelihood: str
) -> xr.Dataset | None:
    """Return mu of the free curve on the clock of the data and on optimiser steps; None where that is the same."""
    own = _points_on_steps(delta, points)
    if own is None:
        return None
    rows = {points.clock: pilot.grid}
    try:
        check_size(own)
        rows[STEP] = pilot_fit(np.log(own.msd.mean(axis=0)), own, bounds, likelihood=likelihood).grid
    except FitError:
        pass
    columns = np.array([_row(grid) for grid in rows.values()]).T
    names = ("mu", "stderr", "lower", "upper")
    return xr.Dataset(
        {name: ("clock", column) for name, column in zip(names, columns, strict=True)},
        coords={
            "clock": np.array(list(rows), dtype=object),
            "unit": ("clock", np.array([unit_of(name) for name in rows], dtype=object)),
        },
        attrs={"long_name": "exponent of aging by clock, free curve, 95 % intervals"},
    )


def clock_flag(delta: xr.DataArray, points: Points, readings: xr.Dataset | None) -> list[str]:
    """Return the sentence that names a clock which was not given, with both readings of mu."""
    reason = carried_clock(delta).get(REASON)
    if not reason:
        return []
    text = f"times are in {points.clock} ({unit_of(points.clock)}): {reason}"
    if readings is not None and STEP in readings["clock"].values:
        here, there = (readings.sel(clock=name) for name in (points.clock, STEP))
        text += f"; mu is {_stated(here)} on {points.clock} and {_stated(there)} on optimiser steps"
    return [text]


def _stated(row: xr.Dataset) -> str:
    return f"{float(row['mu']):.3f} [{float(row['lower']):.3f}, {float(row['upper']):.3f}]"


def _row(grid: GridPosterior) -> tuple[float, float, float, float]:
    low, high, lower, upper = grid.quantile(np.array(_BOUNDS))
    return grid.mean, (high - low) / 2, lower, upper


def _points_on_steps(delta: xr.DataArray, points: Points) -> Points | None:
    if points.clock == STEP or not {"first", "second"} <= set(delta.coords):
        return None
    times = zip(delta[WAITING_TIME].values.tolist(), delta[LAG].values.tolist(), strict=True)
    ends = zip(delta["first"].values.tolist(), delta["second"].values.tolist(), strict=True)
    steps = dict(zip(times, ends, strict=True))
    chosen = zip(points.waiting_time.tolist(), points.lag.tolist(), strict=True)
    first, second = np.array([steps[pair] for pair in chosen], dtype=np.float64).T
    keep = np.flatnonzero(first > 0)
    return replace(points, waiting_time=first, lag=second - first, clock=STEP).subset(keep)


def time_coords(waiting_time: np.ndarray, lag: np.ndarray, clock: str) -> Coords:
    """Return waiting times and lags along `pair` on their clock."""
    about = {"units": unit_of(clock), CLOCK: clock}
    return {
        WAITING_TIME: (PAIR, waiting_time, {"long_name": "waiting time", **about}),
        LAG: (PAIR, lag, {"long_name": "lag", **about}),
    }
