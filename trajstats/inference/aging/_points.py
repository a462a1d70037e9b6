"""The door of inference: a labelled two-time MSD is checked here, computed once and thinned to those fitted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr

from trajstats.data._clocks import clock_of
from trajstats.data.schema import LAG, LAYER, PAIR, REPLICA, STEP, WAITING_TIME
from trajstats.errors import ArgumentError, FitError, NonFiniteError, unknown_name_message
from trajstats.inference._options import real_values
from trajstats.inference._replica_checks import check_copies, check_on_nan, check_trend, finite_part, level_flags
from trajstats.inference._scaling import own_unit

MAX_POINTS = 144
MAX_WAITING_TIMES = 12
MIN_POINTS = 6
_MIN_CURVES = 2


@dataclass(frozen=True)
class Points:
    """Checked points of a two-time MSD."""

    waiting_time: np.ndarray  # On the clock of the data; positive
    lag: np.ndarray  # On the clock of the data; positive
    msd: np.ndarray  # Positive and finite, in `unit`
    replica: np.ndarray  # Labels
    over: str  # Which weights: ``"total"`` or the name of a layer
    clock: str  # Clock of the times
    source: str
    flags: list[str] = field(default_factory=list)  # What was left out
    unit: float = 1.0  # Squared displacement that counts as 1
    given: int = 0  # Pairs that the MSD had

    @property
    def pivot(self) -> float:
        """Unit of time of the fit: the geometric mean of the waiting times."""
        return float(np.exp(np.log(np.unique(self.waiting_time)).mean()))

    @property
    def scaled(self) -> tuple[np.ndarray, np.ndarray]:
        """Waiting times and lags in units of the pivot."""
        return self.waiting_time / self.pivot, self.lag / self.pivot

    def subset(self, keep: np.ndarray) -> Points:
        """Keep some points."""
        return Points(
            self.waiting_time[keep],
            self.lag[keep],
            self.msd[:, keep],
            self.replica,
            self.over,
            self.clock,
            self.source,
            self.flags,
            self.unit,
            self.given,
        )


def two_time_points(
    delta: xr.DataArray, *, over: str = "total", max_points: int = MAX_POINTS, on_nan: str = "raise"
) -> Points:
    """Check a two-time MSD, compute it and thin it."""
    check_on_nan(on_nan)
    if not isinstance(delta, xr.DataArray) or PAIR not in delta.dims:
        got = f"dims {delta.dims}" if isinstance(delta, xr.DataArray) else type(delta).__name__
        msg = (
            f"delta must be a DataArray with dim 'pair' and coords waiting_time and lag; got {got}. Use trajstats.msd."
        )
        raise ArgumentError(msg)
    missing = [name for name in (WAITING_TIME, LAG) if name not in delta.coords or delta[name].dims != (PAIR,)]
    extra = [str(d) for d in delta.dims if d not in (PAIR, REPLICA, LAYER)]
    if missing or extra:
        msg = (
            f"delta lacks the coordinates {missing} along pair"
            if missing
            else f"delta has dims {extra} besides replica, pair, layer"
        )
        raise ArgumentError(msg)
    one, chosen = _over(delta, over)
    if REPLICA not in one.dims:
        one = one.expand_dims(REPLICA)
    one = one.transpose(REPLICA, PAIR)
    if not one.sizes[REPLICA]:
        msg = "delta has no replica: the selection before it is empty"
        raise ArgumentError(msg)
    waiting, lag = (real_values(one[name], name) for name in (WAITING_TIME, LAG))
    values = real_values(one, "delta")
    _check_times(waiting, lag)
    if values.size and not np.isfinite(values).any():
        _refuse_layers(delta, chosen)
    labels = one[REPLICA].values if REPLICA in one.coords else np.arange(values.shape[0])
    rows, flags = np.ones(len(values), dtype=bool), []
    keep = waiting > 0
    if on_nan == "skip":
        rows, finite = finite_part(values)
        if rows.any() and finite.any():
            flags += _skipped(rows, finite, labels)
            keep &= finite
            values, labels = values[rows], labels[rows]
    looked = keep if on_nan == "skip" else np.ones_like(keep)
    _check_values(values[:, looked], waiting[looked], lag[looked])
    check_copies(values[:, keep], labels)
    flags += level_flags(values[:, keep], labels)
    if (waiting <= 0).any():
        flags.append(
            f"{int((waiting <= 0).sum())} points at waiting time 0 left out: the scaling variable needs t_w > 0"
        )
    first = np.unique(np.stack([waiting, lag]), axis=1, return_index=True)[1]
    if first.size < waiting.size:
        # the same pair twice would pretend that the noise is known to be nothing
        flags.append(f"{waiting.size - first.size} repeated pairs left out")
        keep &= np.isin(np.arange(waiting.size), first)
    flags += check_trend(waiting[keep], lag[keep], values[:, keep], labels)
    scaled, unit = own_unit(values[:, keep])
    points = Points(
        waiting[keep],
        lag[keep],
        scaled,
        labels,
        chosen,
        clock_of(delta),
        str(delta.attrs.get("source", "")),
        flags,
        unit,
        waiting.size,
    )
    check_size(points)
    return points.subset(thin(points.waiting_time, points.lag, max_points))


def _skipped(rows: np.ndarray, finite: np.ndarray, labels: np.ndarray) -> list[str]:
    flags = []
    if not rows.all():
        named = ", ".join(str(label) for label in labels[~rows][:5])
        flags.append(f"replicas left out: {named}; more than half of their MSD is not finite")
    if not finite.all():
        flags.append(f"{int((~finite).sum())} of {finite.size} pairs left out: their MSD is not finite in a replica")
    return flags


def _over(delta: xr.DataArray, over: str) -> tuple[xr.DataArray, str]:
    if LAYER not in delta.dims:
        own = str(delta[LAYER].values) if LAYER in delta.coords else "total"
        if over not in ("total", own):
            raise ArgumentError(unknown_name_message("over", over, dict.fromkeys(["total", own])))
        return delta, own
    names = [str(name) for name in delta[LAYER].values]
    if over != "total":
        if over not in names:
            raise ArgumentError(unknown_name_message("over", over, ["total", *names]))
        return _one_layer(delta, names.index(over)), over
    if len(names) == 1:
        return delta.isel({LAYER: 0}), "total" if names[0] in ("all", "total") else names[0]
    if "n_parameters" not in delta.coords:
        msg = "several layers without the coordinate n_parameters cannot be combined; choose one with over='name'"
        raise ArgumentError(msg)
    sizes = real_values(delta["n_parameters"], "n_parameters")
    if not (np.isfinite(sizes).all() and (sizes >= 0).all() and sizes.sum() > 0):
        msg = f"n_parameters={sizes.tolist()}: layers are weighted by these; give how many weights each has"
        raise ArgumentError(msg)
    share = delta["n_parameters"] / sizes.sum()
    # a layer without weights has no MSD: NaN, which would spread
    return (delta * share).isel({LAYER: np.flatnonzero(sizes > 0)}).sum(LAYER, skipna=False), "total"


def _refuse_layers(delta: xr.DataArray, chosen: str) -> None:
    # Name the layers without one finite value; a sum that is NaN for another reason is left to the check of values.
    names = [] if chosen == "total" else [chosen]
    if chosen == "total" and LAYER in delta.dims:
        lines = real_values(delta.transpose(LAYER, ...), "delta")
        fine = np.isfinite(lines.reshape(len(lines), -1)).any(axis=1)
        names = [str(name) for name, any_finite in zip(delta[LAYER].values, fine, strict=True) if not any_finite]
    if names:
        shown = ", ".join(repr(name) for name in names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        msg = (
            f"every MSD value is NaN or infinite in layer {shown}, so on_nan='skip' would leave nothing. Find the "
            "checkpoint with trajstats.check_finite(run), and leave the layer out with .sel(layer=[...]) or fit "
            "another with over='name'."
        )
        raise NonFiniteError(msg)


def _one_layer(delta: xr.DataArray, k: int) -> xr.DataArray:
    one = delta.isel({LAYER: k})
    if "n_parameters" in one.coords and one["n_parameters"].size == 1 and not one["n_parameters"].item():
        msg = f"layer {str(delta[LAYER].values[k])!r} has no weights, so that nothing in it moves; choose another"
        raise FitError(msg)
    return one


def _check_times(waiting: np.ndarray, lag: np.ndarray) -> None:
    bad = ~(np.isfinite(waiting) & np.isfinite(lag) & (waiting >= 0) & (lag > 0))
    if bad.any():
        k = int(np.argmax(bad))
        msg = (
            f"{int(bad.sum())} pairs have no valid times (first: waiting time {waiting[k]:g}, lag {lag[k]:g}); waiting "
            "times are 0 or more and lags positive, both finite"
        )
        raise ArgumentError(msg)


def _check_values(values: np.ndarray, waiting: np.ndarray, lag: np.ndarray) -> None:
    for bad, word in ((~np.isfinite(values), "not finite"), (values < 0, "negative"), (values == 0, "zero")):
        if bad.any():
            r, k = np.argwhere(bad)[0]
            msg = (
                f"{int(bad.sum())} of {bad.size} MSD values are {word} (first: replica {r}, "
                f"waiting time {waiting[k]:g}, lag {lag[k]:g}, value {values[r, k]}). "
            )
            if word == "not finite":
                raise NonFiniteError(
                    msg + "Find the checkpoint and layer with trajstats.check_finite(run), or leave those replicas and "
                    "pairs out with on_nan='skip'."
                )
            hint = (
                "The weights did not move. Leave out the later of two equal checkpoints: run.drop_sel(step=[...]), or "
                "ingest again with drop_identical=True."
                if word == "zero"
                else "A mean square cannot be: check its source."
            )
            raise FitError(msg + hint)


def check_size(points: Points) -> None:
    """Refuse points that cannot determine a master curve and an exponent."""
    n, waits = points.lag.size, np.unique(points.waiting_time)
    if waits.size < 2:
        msg = (
            f"{waits.size} waiting time(s): mu compares waiting times and is not identifiable from one. "
            "Give time_pairs(run, waiting_time=[...]) at least two, better ten."
        )
        raise FitError(msg)
    if n < MIN_POINTS:
        msg = f"{n} points: a master curve and an exponent need at least {MIN_POINTS}. Ask for more lags."
        raise FitError(msg)
    rich = sum(np.unique(points.lag[points.waiting_time == w]).size > 1 for w in waits)
    if rich < _MIN_CURVES:
        msg = (
            f"{rich} of {waits.size} waiting times have two lags or more: a curve to collapse needs {_MIN_CURVES} of "
            "them. Ask for more lags."
        )
        raise FitError(msg)
    if (np.ptp(np.log(points.msd), axis=1) < 1e-12).any():
        msg = "the MSD is the same at every pair (zero variance): there is no curve to collapse"
        raise FitError(msg)


def thin(waiting: np.ndarray, lag: np.ndarray, max_points: int) -> np.ndarray:
    """Choose points near a log grid of waiting times and lags."""
    if waiting.size <= max_points:
        return np.arange(waiting.size)
    levels = np.unique(waiting)
    chosen = levels[_spread(np.log(levels), MAX_WAITING_TIMES)]
    each = max(max_points // chosen.size, 2)
    rows = []
    for level in chosen:
        members = np.flatnonzero(waiting == level)
        members = members[np.argsort(lag[members], kind="stable")]
        rows.append(members[_spread(np.log(lag[members]), each)])
    return np.sort(np.concatenate(rows))


def _spread(position: np.ndarray, n: int) -> np.ndarray:
    if position.size <= n:
        return np.arange(position.size)
    grid = np.linspace(position[0], position[-1], n)
    return np.unique(np.abs(position[None, :] - grid[:, None]).argmin(axis=1))


def layer_blocks(delta: xr.DataArray, points: Points) -> np.ndarray | None:
    """MSD of each layer at the chosen points, in shares whose mean is the total."""
    if (
        LAYER not in delta.dims
        or delta.sizes[LAYER] < 2
        or points.over != "total"
        or "n_parameters" not in delta.coords
    ):
        return None
    mean = delta
    if REPLICA in delta.dims:
        labels = delta[REPLICA].values if REPLICA in delta.coords else np.arange(delta.sizes[REPLICA])
        mean = delta.isel({REPLICA: np.isin(labels, points.replica)}).mean(REPLICA)
    some = np.flatnonzero(delta["n_parameters"].values > 0)
    share = delta["n_parameters"] / delta["n_parameters"].sum() * some.size
    values = (mean * share).isel({LAYER: some}).transpose(LAYER, PAIR).values
    rows = {pair: k for k, pair in enumerate(zip(delta[WAITING_TIME].values, delta[LAG].values, strict=True))}
    chosen = [rows[pair] for pair in zip(points.waiting_time, points.lag, strict=True)]
    return np.asarray(values[:, chosen], dtype=float)


def clock_differences(delta: xr.DataArray, points: Points, clocks: Any) -> dict[str, np.ndarray]:
    """Difference of other clocks over each chosen pair."""
    result: dict[str, np.ndarray] = {}
    if clocks is None:
        return result
    if not isinstance(clocks, Mapping):
        msg = f"clocks={clocks!r}: give a mapping from a name to a DataArray along step"
        raise ArgumentError(msg)
    for name, clock in clocks.items():
        if not isinstance(clock, xr.DataArray) or clock.dims != (STEP,) or STEP not in clock.coords:
            msg = f"clock {name!r} must be a DataArray along step, with the coordinate step"
            raise ArgumentError(msg)
        if "first" not in delta.coords or "second" not in delta.coords:
            msg = "clocks need the coords 'first' and 'second' (steps) of delta; use trajstats.msd(run, pairs)"
            raise ArgumentError(msg)
        steps, values = clock[STEP].values, real_values(clock, f"clock {name!r}")
        ends = [np.interp(delta[end].values, steps, values) for end in ("first", "second")]
        lookup = {
            (w, t): gap
            for w, t, gap in zip(delta[WAITING_TIME].values, delta[LAG].values, ends[1] - ends[0], strict=True)
        }
        gaps = np.array([lookup[w, t] for w, t in zip(points.waiting_time, points.lag, strict=True)])
        if not (gaps > 0).all():
            msg = f"clock {name!r} does not increase over every pair; a clock must be strictly increasing"
            raise ArgumentError(msg)
        result[name] = gaps
    return result
