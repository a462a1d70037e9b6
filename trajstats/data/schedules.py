"""When to record, and which of the recorded pairs to look at, on which clock."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from trajstats.data._clocks import check_clock, choose_clock, clock_attrs, default_reason, pair_coords, unit_of
from trajstats.data._inputs import NUMBERS, TRAJECTORY, accepts
from trajstats.data._labels import label
from trajstats.data.schema import PAIR, STEP, check_trajectory, clock_values
from trajstats.errors import ArgumentError

# Times on a clock of real numbers agree to within this relative distance: differences of them are rounded.
ROUNDING = 1e-9


def log_schedule(start: int, stop: int, n: int) -> np.ndarray:
    r"""Space integer steps evenly in the logarithm.

    The `n` points of :math:`s_k=s_0(s_1/s_0)^{k/(n-1)}`, rounded to whole steps; those that round to the
    same step appear once.

    Parameters
    ----------
    start, stop : int
        First and last step, in optimiser steps; ``1 <= start <= stop``.
    n : int
        Points before duplicates are dropped.

    Returns
    -------
    ndarray of int64, (m,) with m <= n
        Strictly increasing, the ends included.

    Raises
    ------
    ArgumentError
        If the ends are out of order or below 1, or `n` is below 2.

    Examples
    --------
    >>> log_schedule(1, 1000, 4).tolist()
    [1, 10, 100, 1000]
    """
    if not 1 <= start <= stop:
        msg = f"start={start}, stop={stop}: logarithmic times need 1 <= start <= stop"
        raise ArgumentError(msg)
    if n < 2:
        msg = f"n={n}: a schedule needs at least 2 points"
        raise ArgumentError(msg)
    return np.unique(np.rint(np.geomspace(start, stop, n)).astype(np.int64))


@accepts(NUMBERS, NUMBERS)
def aging_schedule(waiting_times: Sequence[int] | np.ndarray, lags: Sequence[int] | np.ndarray) -> np.ndarray:
    r"""List every step that a set of waiting times and lags needs.

    The set :math:`\{0\}\cup\{t_w\}\cup\{t_w+t\}` over all waiting times :math:`t_w` and lags :math:`t`.

    Parameters
    ----------
    waiting_times : sequence of int, (a,)
        Waiting times in optimiser steps, >= 0.
    lags : sequence of int, (b,)
        Lags in optimiser steps, >= 1.

    Returns
    -------
    ndarray of int64, (m,) with m <= a * b + a + 1
        Strictly increasing steps at which to save the weights, step 0 (the start) included.

    Raises
    ------
    ArgumentError
        If either list is empty or holds a value out of range.

    Examples
    --------
    >>> aging_schedule([10, 100], [1, 10]).tolist()
    [0, 10, 11, 20, 100, 101, 110]
    """
    waiting = np.asarray(waiting_times, dtype=np.int64)
    lag = np.asarray(lags, dtype=np.int64)
    if waiting.size == 0 or lag.size == 0:
        msg = f"{waiting.size} waiting times and {lag.size} lags: give at least one of each"
        raise ArgumentError(msg)
    if waiting.min() < 0 or lag.min() < 1:
        msg = f"smallest waiting time {waiting.min()}, smallest lag {lag.min()}: waiting times must be >= 0, lags >= 1"
        raise ArgumentError(msg)
    return np.unique(np.concatenate([[0], waiting, (waiting[:, None] + lag).ravel()]))


@accepts(TRAJECTORY)
def time_pairs(
    trajectory: xr.Dataset,
    /,
    *,
    waiting_time: Sequence[float] | np.ndarray | None = None,
    lag: Sequence[float] | np.ndarray | None = None,
    lags_per_decade: int | None = None,
    min_lag: float | None = None,
    clock: str | None = None,
    tolerance: float = 0.0,
) -> xr.Dataset:
    r"""Pick saved pairs of times (t_w, t_w + t).

    The pairs carry their clock: `msd`, `two_time`, `van_hove` and the fits use it unless another clock is given.

    Parameters
    ----------
    trajectory : xarray.Dataset
        A trajectory.
    waiting_time : sequence of float, optional
        Waiting times on `clock`; all saved ones if not given. Each must have been saved, to within `tolerance`.
    lag : sequence of float, optional
        Lags on `clock`. A pair is included when ``waiting_time + lag`` was saved to within `tolerance` of the lag; a
        lag that no waiting time has is an error. Not together with `lags_per_decade`.
    lags_per_decade : int, optional
        Thin the saved lags of each waiting time to those nearest to a log grid with this many points a decade. With
        neither, every later saved time is used.
    min_lag : float, optional
        Shortest lag on `clock`; shorter ones are left out before thinning.
    clock : str, optional
        Coordinate along `step` in which times are given: ``"step"``, ``"epoch"``, ``"proper_time"`` or another one. If
        not given: ``"step"``, or ``"proper_time"`` where that is stored and is not proportional to the step, as under
        a learning-rate schedule. Then `waiting_time`, `lag` and `min_lag` could mean either, and `clock` is required.
    tolerance : float
        Relative distance at which a saved time still counts as the one requested.

    Returns
    -------
    xarray.Dataset
        Dim `pair`; coords ``waiting_time`` and ``lag`` (the saved ones, on `clock`); variables ``first`` and
        ``second``, the optimiser steps of the two ends; attrs ``clock`` and ``tolerance``, and ``clock_reason`` where
        proper time was chosen because no clock was given. Pairs without a lag on `clock` (at a learning rate of zero)
        are left out.

    Raises
    ------
    ArgumentError
        If a waiting time was not saved (the nearest is named), no pair is left, both kinds of lags are given, numbers
        could be on either of two clocks, or the clock is not finite or runs backwards.

    Examples
    --------
    >>> import numpy as np
    >>> from trajstats.data.schema import trajectory_dataset
    >>> run = trajectory_dataset(np.zeros((4, 2)), step=[0, 10, 20, 110])
    >>> pairs = time_pairs(run, waiting_time=[10], lag=[10, 100])
    >>> pairs.lag.values.tolist(), pairs.second.values.tolist()
    ([10, 100], [20, 110])

    Under a schedule of the learning rate, times are sums of learning rates unless ``clock="step"`` is given:

    >>> run = trajectory_dataset(np.zeros((3, 2)), step=[0, 10, 20], clocks={"proper_time": [0.0, 1.0, 1.5]})
    >>> pairs = time_pairs(run)
    >>> pairs.attrs["clock"], pairs.lag.values.tolist()
    ('proper_time', [1.0, 1.5, 0.5])
    """
    trajectory = check_trajectory(trajectory, sketched=True)
    _check_lists(waiting_time=waiting_time, lag=lag)
    _check_lags(lag, lags_per_decade, min_lag)
    chosen = choose_clock(trajectory, clock, waiting_time=waiting_time, lag=lag, min_lag=min_lag)
    times, steps = clock_values(trajectory, chosen), trajectory[STEP].values
    check_clock(times, steps, chosen)
    slack = max(float(tolerance), 0.0 if chosen == STEP else ROUNDING)
    if waiting_time is None:
        rows = list(range(times.size))
    else:
        rows = [_saved_row(times, t, chosen, slack) for t in waiting_time]
    first, second = _found(times, rows, lag, lags_per_decade, min_lag, slack, chosen)
    attrs = clock_attrs(chosen, default_reason(chosen) if clock is None else "")
    pairs = xr.Dataset(
        {"first": (PAIR, steps[first]), "second": (PAIR, steps[second])},
        coords=pair_coords(trajectory, first, second, attrs, ends=False),
        attrs={**attrs, "tolerance": tolerance},
    )
    return label(pairs)


def _check_lists(**given: Any) -> None:
    """Refuse one number, or a text, where a list of times is needed."""
    for name, times in given.items():
        if times is not None and (np.ndim(times) == 0 or isinstance(times, str)):
            msg = f"{name}={times!r} is not a list of times; give {name}=[{times}]"
            raise ArgumentError(msg)


def _check_lags(lag: Any, lags_per_decade: int | None, min_lag: Any) -> None:
    if lag is not None and lags_per_decade is not None:
        msg = "give lag=[...] or lags_per_decade=n, not both"
        raise ArgumentError(msg)
    if lags_per_decade is not None and lags_per_decade < 1:
        msg = f"lags_per_decade={lags_per_decade}: it must be at least 1"
        raise ArgumentError(msg)
    if min_lag is not None and not (isinstance(min_lag, int | float | np.number) and 0 < float(min_lag) < np.inf):
        msg = f"min_lag={min_lag!r}: give the shortest lag as one positive number, in units of the clock"
        raise ArgumentError(msg)
    if min_lag is not None and lag is not None and (short := [float(t) for t in lag if t < min_lag]):
        msg = f"lag={short[:5]} is below min_lag={min_lag:g}; leave one of the two out"
        raise ArgumentError(msg)


def _found(
    times: np.ndarray,
    rows: Sequence[int],
    wanted: Any,
    lags_per_decade: int | None,
    min_lag: float | None,
    slack: float,
    clock: str,
) -> tuple[np.ndarray, np.ndarray]:
    # The rows of both ends of each pair, in order.
    found: list[tuple[int, int]] = []
    matched: set[float] = set()
    shortest = 0.0 if min_lag is None else float(min_lag) * (1 - slack)
    for row in rows:
        lags = times[row + 1 :] - times[row]
        usable = np.flatnonzero((lags > 0) & (lags >= shortest))
        later, lags = usable + row + 1, lags[usable]
        if wanted is not None:
            for one in wanted:
                near = int(np.argmin(np.abs(lags - one))) if lags.size else -1
                if near >= 0 and abs(lags[near] - one) <= slack * abs(one) + _rounded(times[later[near]], clock):
                    found.append((row, int(later[near])))
                    matched.add(float(one))
        elif lags_per_decade is not None:
            found.extend((row, int(later[k])) for k in _thin(lags, lags_per_decade))
        else:
            found.extend((row, int(k)) for k in later)
    if wanted is not None and (never := [float(t) for t in wanted if float(t) not in matched]):
        msg = (
            f"no saved pair has a lag of {never[:5]} ({unit_of(clock)}) from these waiting times; saved lags can be "
            "listed with time_pairs(run, waiting_time=...). Allow a relative tolerance with tolerance=0.02."
        )
        raise ArgumentError(msg)
    if not found and min_lag is not None:
        msg = (
            f"no pair of saved times is left with a lag of {min_lag:g} or more ({unit_of(clock)}); the record spans "
            f"{times[-1] - times[0]:g}. Lower min_lag, or choose earlier waiting times."
        )
        raise ArgumentError(msg)
    if not found:
        msg = "no pair of saved times is left; the trajectory needs a later checkpoint than the waiting times given"
        raise ArgumentError(msg)
    first, second = np.array(sorted(set(found)), dtype=np.int64).T
    return first, second


def _rounded(time: float, clock: str) -> float:
    return 0.0 if clock == STEP else 8 * float(np.finfo(np.float64).eps) * abs(float(time))


def is_saved(times: np.ndarray, wanted: float, clock: str) -> bool:
    """Check whether a time was saved, to within the rounding of its clock."""
    slack = 0.0 if clock == STEP else ROUNDING * abs(wanted)
    return bool((np.abs(times - wanted) <= slack).any())


def _saved_row(times: np.ndarray, wanted: float, clock: str, slack: float) -> int:
    row = int(np.argmin(np.abs(times - wanted)))
    if abs(times[row] - wanted) > slack * abs(wanted):
        msg = (
            f"waiting time {wanted:g} ({clock}) was not saved; the nearest saved one is {times[row]:g} "
            f"(saved: {times.size} times from {times[0]:g} to {times[-1]:g}). Ask for it, or allow tolerance=0.02."
        )
        raise ArgumentError(msg)
    return row


def _thin(lags: np.ndarray, per_decade: int) -> list[int]:
    # A point of the log grid keeps at most one lag, the nearest to it within half a spacing.
    if lags.size == 0:
        return []
    position = np.log10(lags) * per_decade
    cell = np.rint(position).astype(int)
    best = {}
    for k in np.argsort(np.abs(position - cell), kind="stable")[::-1]:
        best[int(cell[k])] = int(k)
    return sorted(best.values())
