"""Learning times: when each run of a sweep first reaches a loss, which never did, and whether a fit can use them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from trajstats.data.schema import REPLICA, STEP, clock_values
from trajstats.errors import ArgumentError, FitError, NonFiniteError, unknown_name_message
from trajstats.inference._labels import labelled
from trajstats.inference._options import positive_number, real_values
from trajstats.inference._replica_checks import check_copies
from trajstats.inference._scaling import own_unit
from trajstats.inference.transition._likelihood import LearningTimes

PROPER_TIME = "proper_time"
_MIN_WIDTHS = 3
_MIN_LEARNED = 4


def learning_times(
    sweep: xr.DataTree | Mapping[str, xr.Dataset],
    /,
    *,
    loss: float | Sequence[float],
    series: str = "loss",
    clock: str = PROPER_TIME,
    width: Mapping[str, float] | None = None,
) -> xr.Dataset:
    r"""Time at which each run of a sweep first reaches a loss.

    :math:`\tau_\ell`: first crossing of :math:`\ell` by the saved series, interpolated linearly in the logarithms of
    loss and time.

    Parameters
    ----------
    sweep : DataTree or mapping name -> Dataset
        One trajectory per node (`open_sweep`); a node with several replicas gives several runs.
    loss : float or sequence of float
        Loss (or losses) to reach, in units of the series.
    series : str
        Name of the series.
    clock : str
        Clock of the times. Where no run has a ``proper_time`` it is ``"step"``.
    width : mapping name -> float, optional
        Width of each run; read from its attributes (``width``, or inside a JSON attribute) if not given.

    Returns
    -------
    xarray.Dataset
        Dims `run` and, if several losses were given, `loss`: ``learning_time`` (the budget where the run did not
        learn), ``learned`` (bool), ``budget`` (run). Coords ``width``, ``depth`` where known, ``name``.

    Raises
    ------
    ArgumentError
        If a width, the series or the clock is missing, or a loss is no positive number.

    Notes
    -----
    Two runs that are copies of each other raise FitError.
    """
    given = np.atleast_1d(np.asarray(loss))
    if given.dtype.kind not in "iuf" or not given.size or not (np.isfinite(given) & (given > 0)).all():
        msg = f"loss={loss!r}: a loss to reach is a positive number, several are a sequence of such"
        raise ArgumentError(msg)
    targets = given.astype(float)
    nodes = _nodes(sweep)
    rows: list[dict[str, Any]] = []
    curves: dict[int, list[tuple[str, np.ndarray]]] = {}
    chosen = clock if clock != PROPER_TIME or any(clock in run.variables for run in nodes.values()) else STEP
    for name, run in nodes.items():
        if series not in run:
            raise ArgumentError(unknown_name_message("series", series, [str(v) for v in run.data_vars]))
        if chosen not in run.variables:
            msg = f"run {name!r} has no clock {chosen!r}, and times of two clocks do not compare: give clock='step'"
            raise ArgumentError(msg)
        values = np.atleast_2d(run[series].values)
        times = np.broadcast_to(_clock_rows(run, chosen), values.shape)
        if not np.isfinite(times).all() or (np.diff(times, axis=-1) < 0).any():
            msg = (
                f"run {name!r}: {chosen} is not finite or runs backwards; a learning time needs a clock that increases"
            )
            raise ArgumentError(msg)
        wide = width[name] if width is not None and name in width else _setting(run, "width")
        if wide is None:
            msg = f"run {name!r} has no attribute 'width'; give learning_times(..., width={{{name!r}: ...}})"
            raise ArgumentError(msg)
        for r, (own, curve) in enumerate(zip(times, values, strict=True)):
            label = name if len(values) == 1 else f"{run[REPLICA].values[r] if REPLICA in run.coords else r} of {name}"
            curves.setdefault(curve.size, []).append((label, curve))
            reached = [_crossing(own, curve, target) for target in targets]
            rows.append(
                {
                    "name": name,
                    "width": float(wide),
                    "depth": _setting(run, "depth"),
                    "clock": chosen,
                    "time": [t if np.isfinite(t) else own[-1] for t in reached],
                    "learned": [bool(np.isfinite(t)) for t in reached],
                    "budget": own[-1],
                }
            )
    for alike in curves.values():
        check_copies(np.stack([curve for _, curve in alike]), [label for label, _ in alike])
    return _times_dataset(rows, targets)


def learning_table(times: Any, budget: float | None) -> xr.Dataset:
    """Check learning times from anywhere and mark those that are censored."""
    if not isinstance(times, xr.DataArray | xr.Dataset):
        msg = f"learning times must be a Dataset of trajstats.learning_times or a DataArray; got {type(times).__name__}"
        raise ArgumentError(msg)
    if isinstance(times, xr.DataArray):
        if "width" not in times.coords or not times["width"].dims:
            msg = "the learning times need a coordinate 'width' with the width of each run"
            raise ArgumentError(msg)
        other = [d for d in times.dims if d not in ("run", "loss")]
        if len(times.dims) == 2 and times["width"].dims[0] in times.dims and "loss" not in times.dims:
            seeds = times.transpose(..., times["width"].dims[0])
            names = seeds[seeds.dims[0]].values
            check_copies(real_values(seeds, "learning_time"), names)
        if other:
            flat = times.stack(run=other).reset_index("run") if "run" not in times.dims else times
            times = flat.transpose("run", ...)
        times = times.to_dataset(name="learning_time")
    if "learning_time" not in times or "width" not in times.coords:
        msg = (
            "learning times need the variable 'learning_time' and the coordinate 'width'; use trajstats.learning_times"
        )
        raise ArgumentError(msg)
    dims = times["learning_time"].dims
    if "run" not in dims and len(dims) == 1:
        times = times.rename({dims[0]: "run"})
    _check_labels(times)
    if budget is not None:
        budget = positive_number("budget", budget, "the largest time watched is positive")
    given = times["learning_time"]
    values = given.copy(data=real_values(given, "learning_time"))
    if np.isnan(values.values).any():
        bad = int(np.isnan(values.values).sum())
        msg = f"{bad} learning times are NaN; mark runs that did not learn with learned=False"
        raise NonFiniteError(msg)
    limit: Any = np.inf if budget is None else budget
    if "budget" in times:
        own = times["budget"].copy(data=real_values(times["budget"], "budget"))
        limit = np.minimum(own, limit)
    marked = "learned" in times
    learned = _marks(times["learned"]) if marked else (values < limit) & np.isfinite(values)
    if marked and budget is not None:
        learned = learned & (values < budget)
    if "budget" in times and bool((learned & (values > own * (1 + 1e-9))).any()):
        msg = "some runs learned at a time beyond their own budget: correct 'budget', the time that each was watched"
        raise ArgumentError(msg)
    capped = xr.where(learned, values, np.minimum(values, limit) if marked else limit)
    if not np.isfinite(capped.values).all():
        msg = "runs that did not learn have no finite budget; give budget=largest time watched"
        raise ArgumentError(msg)
    return times.assign(learning_time=capped.transpose(*values.dims), learned=learned.transpose(*values.dims))


def _check_labels(times: xr.Dataset) -> None:
    dims = times["learning_time"].dims
    if "run" not in dims or set(dims) - {"run", "loss"} or times["width"].dims != ("run",):
        msg = (
            f"learning_time has dims {dims} and width {times['width'].dims}: learning times lie along run (and loss), "
            "with the width of each run"
        )
        raise ArgumentError(msg)
    wide = real_values(times["width"], "width")
    if not (np.isfinite(wide) & (wide > 0)).all():
        msg = f"widths {wide[~(np.isfinite(wide) & (wide > 0))][:5].tolist()}: a width is a positive finite number"
        raise ArgumentError(msg)
    if "loss" in dims:
        levels = real_values(times["loss"], "loss") if "loss" in times.coords else np.array([np.nan])
        if not (np.isfinite(levels) & (levels > 0)).all() or np.unique(levels).size < levels.size:
            msg = f"losses {levels.tolist()}: the coordinate loss holds distinct positive finite numbers"
            raise ArgumentError(msg)
    if "depth" in times.coords and not np.isfinite(real_values(times["depth"], "depth")).all():
        msg = "some runs have the depth NaN: give the depth of each run, or drop the coordinate"
        raise ArgumentError(msg)


def _marks(learned: xr.DataArray) -> xr.DataArray:
    # NaN is true for NumPy: a mask that was filled up with NaN would count runs as learned
    if learned.dtype.kind == "b":
        return learned
    values = real_values(learned, "learned")
    if not np.isin(values, (0.0, 1.0)).all():
        msg = "learned holds values other than True and False (or 1 and 0): say of each run whether it learned"
        raise ArgumentError(msg)
    return learned.copy(data=values.astype(bool))


def learning_arrays(table: xr.Dataset) -> LearningTimes:
    """Check a table of learning times and take its arrays."""
    width, time = table["width"].values.astype(float), table["learning_time"].values.astype(float)
    learned = table["learned"].values.astype(bool)
    if (time <= 0).any():
        msg = (
            f"{int((time <= 0).sum())} learning times are not positive: such a run is at the loss when it starts; "
            "ask for a lower one, or leave the run out"
        )
        raise FitError(msg)
    if not learned.any():
        msg = f"none of {learned.size} runs learned: w_c is above every width, or the budget is too short"
        raise FitError(msg)
    widths = np.unique(width[learned])
    if widths.size < _MIN_WIDTHS or learned.sum() < _MIN_LEARNED:
        msg = (
            f"{int(learned.sum())} runs learned at {widths.size} distinct widths {widths.tolist()}: a divergence with "
            f"three coefficients needs {_MIN_LEARNED} runs at {_MIN_WIDTHS} widths"
        )
        raise FitError(msg)
    if np.ptp(np.log(time[learned])) == 0:
        msg = "all learning times are equal (zero variance): nothing diverges"
        raise FitError(msg)
    scaled, unit = own_unit(time)
    return LearningTimes(width, np.log(scaled), learned, unit)


def _nodes(sweep: xr.DataTree | Mapping[str, xr.Dataset]) -> dict[str, xr.Dataset]:
    if isinstance(sweep, xr.DataTree):
        nodes = {node.path.strip("/") or "run": node.to_dataset() for node in sweep.subtree if STEP in node.dims}
    else:
        nodes = dict(sweep)
    if not nodes:
        msg = "the sweep holds no run with dim 'step'"
        raise ArgumentError(msg)
    return nodes


def _setting(run: xr.Dataset, name: str) -> float | None:
    places: list[Mapping[str, Any]] = [run.attrs]
    for value in run.attrs.values():
        if isinstance(value, str) and value.startswith("{"):
            try:
                places.append(json.loads(value))
            except ValueError:
                continue
    for place in places:
        if isinstance(place.get(name), int | float):
            return float(place[name])
    return None


def _clock_rows(run: xr.Dataset, clock: str) -> np.ndarray:
    # joined seeds may each have a clock of their own
    if clock in run.data_vars and run[clock].dims == (REPLICA, STEP):
        return np.asarray(run[clock].values, dtype=float)
    return clock_values(run, clock).astype(float)


def _crossing(times: np.ndarray, curve: np.ndarray, target: float) -> float:
    below = np.flatnonzero(curve <= target)
    if below.size == 0:
        return float("inf")
    k = int(below[0])
    if k == 0 or not np.isfinite(curve[k - 1]) or times[k - 1] <= 0 or curve[k] <= 0:
        return float(times[k])
    share = np.log(curve[k - 1] / target) / np.log(curve[k - 1] / curve[k])
    return float(np.exp(np.log(times[k - 1]) + share * np.log(times[k] / times[k - 1])))


def _times_dataset(rows: list[dict[str, Any]], targets: np.ndarray) -> xr.Dataset:
    dims = ("run", "loss") if targets.size > 1 else ("run",)
    shape = (len(rows), targets.size) if targets.size > 1 else (len(rows),)
    result = xr.Dataset(
        {
            "learning_time": (dims, np.array([row["time"] for row in rows]).reshape(shape)),
            "learned": (dims, np.array([row["learned"] for row in rows]).reshape(shape)),
            "budget": ("run", np.array([row["budget"] for row in rows])),
        },
        coords={
            "width": ("run", np.array([row["width"] for row in rows])),
            "name": ("run", np.array([row["name"] for row in rows], dtype=object)),
            "loss": targets if targets.size > 1 else float(targets[0]),
        },
        attrs={"clock": rows[0]["clock"], "estimator": "learning_times"},
    )
    if all(row["depth"] is not None for row in rows):
        result = result.assign_coords(depth=("run", np.array([row["depth"] for row in rows])))
    return labelled(result, "learning_times", clock=rows[0]["clock"])
