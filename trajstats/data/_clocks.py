"""Which clock times are given in, and how results carry it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from trajstats.data.schema import CLOCK_UNITS, LAG, PAIR, STEP, WAITING_TIME, clock_values
from trajstats.errors import ArgumentError

PROPER_TIME = "proper_time"
CLOCK, REASON = "clock", "clock_reason"
BY_DEFAULT = "no clock was given, and proper_time is stored and not proportional to the step"
# A learning rate that varies by less is constant to rounding; sums in single precision drift by up to _DRIFT.
_CONSTANT, _DRIFT = 1e-6, 0.02


def default_clock(run: xr.Dataset | xr.DataArray, /) -> str:
    """Return the clock of times when none is given: proper time where it is stored and not proportional to the step.

    Proportional means to rounding, and up to one step of offset (the first learning rate counted at step 0 or at
    step 1). A proper time that never advances says nothing.
    """
    stored = run.coords if isinstance(run, xr.DataArray) else run.variables
    if PROPER_TIME not in stored or STEP not in run.dims or STEP not in run[PROPER_TIME].dims:
        return STEP
    times = np.atleast_2d(run[PROPER_TIME].transpose(..., STEP).values.astype(np.float64))
    steps = run[STEP].values.astype(np.float64)
    return STEP if all(_is_proportional(steps, row) for row in times) else PROPER_TIME


def _is_proportional(step: np.ndarray, time: np.ndarray) -> bool:
    known = np.isfinite(time)
    step, time = step[known], time[known]
    if step.size < 2 or np.ptp(time) == 0:
        return True
    gone, made = step - step[0], time - time[0]
    rate, size = made[-1] / gone[-1], float(np.abs(time).max())
    if rate <= 0:
        return False
    with np.errstate(over="ignore"):
        single = bool((time.astype(np.float32) == time).all())
    eps = float(np.finfo(np.float32 if single else np.float64).eps)
    # Each addition of a rate is rounded to the precision of the sum; in single precision the errors can be alike.
    relative = _CONSTANT + min(0.5 * eps * size / rate, _DRIFT)
    offset = abs(time[0] - rate * step[0])
    straight = (np.abs(made - rate * gone) <= relative * rate * gone + 4 * eps * size).all()
    return bool(straight and offset <= rate * (1 + 1e-6 + relative * abs(step[0])) + 4 * eps * size)


def choose_clock(run: xr.Dataset, clock: Any, /, **numbers: Any) -> str:
    """Return the clock given, or the default one; refuse numbers that could be meant on either of two clocks."""
    if clock is not None:
        if not isinstance(clock, str):
            msg = f"clock={clock!r}: give the name of a coordinate along step, such as 'step' or 'proper_time'"
            raise ArgumentError(msg)
        return clock
    chosen = default_clock(run)
    given = {name: value for name, value in numbers.items() if value is not None and np.size(value)}
    if chosen != STEP and given:
        raise ArgumentError(_ambiguous(run, given))
    return chosen


def _ambiguous(run: xr.Dataset, given: Mapping[str, Any]) -> str:
    name, value = next(iter(given.items()))
    number = f"{float(np.ravel(np.asarray(value, dtype=np.float64))[-1]):g}"
    steps, times = run[STEP].values, run[PROPER_TIME].values
    return (
        f"{name}={number} could mean {number} optimiser steps or a sum of learning rates of {number}: this run stores "
        f"proper_time, which is not proportional to the step (steps {steps[0]} to {steps[-1]} are proper times "
        f"{np.nanmin(times):.6g} to {np.nanmax(times):.6g}). Give clock='step' or clock='proper_time'."
    )


def check_clock(times: np.ndarray, steps: np.ndarray, clock: str) -> None:
    """Refuse a clock that is not finite or runs backwards."""
    if not np.isfinite(times).all():
        bad = ~np.isfinite(times)
        msg = (
            f"{clock} is NaN or infinite at {int(bad.sum())} of {bad.size} saved steps (first: step {steps[bad][0]}); "
            "leave these steps out with .isel(step=...), or give clock='step'"
        )
        raise ArgumentError(msg)
    if (np.diff(times) < 0).any():
        k = int(np.argmax(np.diff(times) < 0))
        msg = (
            f"{clock} runs backwards, from {times[k]:g} at step {steps[k]} to {times[k + 1]:g} at step {steps[k + 1]}; "
            "correct it with .assign_coords(...), or give clock='step'"
        )
        raise ArgumentError(msg)


def default_reason(clock: str) -> str:
    """Return why a clock was chosen without being given; empty for the step."""
    return "" if clock == STEP else BY_DEFAULT


def clock_attrs(clock: str, reason: str = "") -> dict[str, str]:
    """Return the attributes by which a result carries its clock."""
    return {CLOCK: clock, **({REASON: reason} if reason else {})}


def with_reason(pairs: xr.Dataset, reason: str, /) -> xr.Dataset:
    """Return pairs that also carry why their clock was chosen, where a caller chose it by default."""
    if not reason:
        return pairs
    out = pairs.assign_attrs({REASON: reason})
    for name in (WAITING_TIME, LAG):
        out[name].attrs = {**pairs[name].attrs, REASON: reason}
    return out


def carried_clock(labelled: xr.Dataset | xr.DataArray, /) -> dict[str, str]:
    """Return the clock attributes that pairs or a result carry; empty where they carry none.

    Arithmetic may drop the attributes of a result, not those of its times.
    """
    places = [labelled.attrs, *(labelled[name].attrs for name in (WAITING_TIME, LAG) if name in labelled.coords)]
    for attrs in places:
        if CLOCK in attrs:
            return clock_attrs(str(attrs[CLOCK]), str(attrs.get(REASON, "")))
    try:
        arguments = json.loads(str(labelled.attrs.get("arguments", "{}")))
    except ValueError:
        return {}
    known = arguments.get(CLOCK) if isinstance(arguments, dict) else None
    return clock_attrs(known) if isinstance(known, str) else {}


def clock_of(labelled: xr.Dataset | xr.DataArray, /) -> str:
    """Return the clock of a result; the step where it carries none."""
    return carried_clock(labelled).get(CLOCK, STEP)


def pair_clock(run: xr.Dataset, pairs: xr.Dataset, clock: str | None, /) -> dict[str, str]:
    """Return the clock attributes for a result on pairs: the clock given, else that of the pairs, else the default."""
    if clock is not None:
        return clock_attrs(choose_clock(run, clock))
    carried = carried_clock(pairs) or _recognised(run, pairs)
    if not carried:
        chosen = default_clock(run)
        return clock_attrs(chosen, default_reason(chosen))
    if carried[CLOCK] not in run.variables:
        msg = (
            f"the pairs count in {carried[CLOCK]!r}, which this run does not have; give clock='step', or add the clock "
            "with .assign_coords(...)"
        )
        raise ArgumentError(msg)
    return carried


def _recognised(run: xr.Dataset, pairs: xr.Dataset) -> dict[str, str]:
    # Pairs that lost their attributes still hold times: the clock is the one on which the run gives the same.
    if WAITING_TIME not in pairs.coords or not np.isin(pairs["first"].values, run[STEP].values).all():
        return {}
    rows = np.searchsorted(run[STEP].values, pairs["first"].values)
    known = [str(name) for name, coord in run.coords.items() if coord.dims == (STEP,) and coord.dtype.kind in "iuf"]
    for name in sorted(known, key=lambda name: name != STEP):
        if np.allclose(run[name].values[rows], pairs[WAITING_TIME].values, rtol=1e-12, atol=0):
            return clock_attrs(name)
    return {}


def unit_of(clock: str, run: xr.Dataset | xr.DataArray | None = None) -> str:
    """Return the unit of a clock, for axes and tables."""
    own = str(run[clock].attrs.get("units", "")) if run is not None and clock in run.coords else ""
    return CLOCK_UNITS.get(clock) or own or clock


def pair_coords(
    run: xr.Dataset, first: np.ndarray, second: np.ndarray, attrs: Mapping[str, str], *, ends: bool = True
) -> dict[str, Any]:
    """Return the coordinates along `pair` of rows of a run: the times on their clock and, with `ends`, the steps."""
    clock = attrs[CLOCK]
    times, steps = clock_values(run, clock), run[STEP].values
    about = {"units": unit_of(clock, run), **attrs}
    coords: dict[str, Any] = {
        WAITING_TIME: (PAIR, times[first], {"long_name": "waiting time", **about}),
        LAG: (PAIR, times[second] - times[first], {"long_name": "lag", **about}),
    }
    if ends:
        for name, rows, word in (("first", first, "earlier"), ("second", second, "later")):
            label = {"long_name": f"step of the {word} time", "units": CLOCK_UNITS[STEP]}
            coords[name] = (PAIR, steps[rows], label)
    return coords


def on_steps(delta: xr.DataArray, /) -> xr.DataArray | None:
    """Return a two-time result with its times in optimiser steps; None where the steps of its pairs are not known."""
    if not {"first", "second"} <= set(delta.coords):
        return None
    first, second = delta["first"].values, delta["second"].values
    about = {"units": CLOCK_UNITS[STEP], CLOCK: STEP}
    out = delta.assign_coords(
        {
            WAITING_TIME: (PAIR, first, {"long_name": "waiting time", **about}),
            LAG: (PAIR, second - first, {"long_name": "lag", **about}),
        }
    )
    out.attrs = {**{k: v for k, v in delta.attrs.items() if k != REASON}, CLOCK: STEP}
    return out
