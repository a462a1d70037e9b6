"""What a page measures on a run: displacements, slopes, the exponent of aging, layer by layer, and why not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr

from trajstats.data._clocks import check_clock, choose_clock, default_reason, with_reason
from trajstats.data.schedules import time_pairs
from trajstats.data.schema import LAG, LAYER, PAIR, REPLICA, STEP, WAITING_TIME, clock_values
from trajstats.errors import TrajstatsError
from trajstats.estimators.two_time.derived import local_exponent
from trajstats.estimators.two_time.measures import msd
from trajstats.estimators.two_time.path import loss_regimes
from trajstats.inference.aging.fit import fit_subaging
from trajstats.inference.results import FitResult

LAGS_PER_DECADE = 8
WAITING_TIMES = 8
# A waiting time has checkpoints up to this many times its own step.
REACH = 1.5
# Layers that get a fit of their own: the largest ones, a second or two each.
LAYER_FITS = 8


@dataclass(frozen=True)
class Measured:
    """One run, or seeds of one run, and what was measured on it."""

    label: str  # Name of the run where a page shows several; empty where there is one
    source: str  # Python that opens the run
    run: xr.Dataset  # The trajectory
    seed: int  # Seed of the fits
    pairs: str  # Python that picks the pairs of times
    clock: str = STEP  # Clock of the times
    reason: str = ""  # Why this clock was taken where none was given and it is not the step; empty otherwise
    series: str | None = None  # The recorded loss
    regimes: xr.Dataset | None = None  # Of `loss_regimes`
    delta: xr.DataArray | None = None  # MSD of each layer at all pairs, and the part of it that is fitted
    window: xr.DataArray | None = None  # MSD of each layer at all pairs, and the part of it that is fitted
    from_waiting_time: float = 0.0  # Where that part begins
    from_lag: float = 0.0  # Where that part begins
    skipped: int = 0  # Pairs left out because a weight was not finite
    slopes: xr.Dataset | None = None  # Local exponents over all weights
    fit: FitResult | None = None  # Of `fit_subaging`
    layer_fits: Mapping[str, FitResult] = field(default_factory=dict)  # The same for single layers
    # Why a part could not be measured: ``"loss"``, ``"msd"``, ``"fit"`` or the name of a layer after ``"layer "``
    refused: Mapping[str, str] = field(default_factory=dict)

    @property
    def suffix(self) -> str:
        """Ending of this run's names in the code of a page."""
        return "".join("_" + word for word in "".join(c if c.isalnum() else " " for c in self.label).split())


def choose_waiting_times(step: np.ndarray, *, at_most: int = WAITING_TIMES) -> list[float]:
    """Choose waiting times among saved times: even in the logarithm, each with as many decades of lags as there are."""
    rows = np.flatnonzero((step > 0) & (step <= step[-1] / REACH)) if step.size else np.zeros(0, dtype=int)
    if not rows.size:
        return []
    filled = np.array([_filled(step[row + 1 :] - step[row]) for row in rows])
    place = np.log(step[rows])
    width = (np.ptp(place) + 1e-12) / at_most
    cell = np.minimum((place - place[0]) / width, at_most - 1).astype(int)
    chosen: list[int] = []
    for k in np.unique(cell):
        best = int(np.flatnonzero(cell == k)[np.argmax(filled[cell == k])])
        if chosen and place[best] - place[chosen[-1]] < width / 2:  # neighbours across an edge: the better one stays
            best = max(chosen.pop(), best, key=lambda row: filled[row])
        chosen.append(best)
    return [step[rows[row]].item() for row in chosen]


def _filled(lags: np.ndarray) -> int:
    # a clock may stand still, at a learning rate of zero
    return int(np.unique(np.rint(np.log10(lags[lags > 0]) * LAGS_PER_DECADE)).size)


def measure(
    run: xr.Dataset,
    /,
    *,
    source: str,
    label: str = "",
    seed: int = 0,
    waiting_time: Sequence[float] | np.ndarray | None = None,
    lag: Sequence[float] | np.ndarray | None = None,
    clock: str | None = None,
    fit_from: Mapping[str, float] | None = None,
    layer_fits: int = LAYER_FITS,
    done: Callable[[str], Any] = lambda part: None,
) -> Measured:
    """Measure all that a page shows; what cannot be measured is refused with a reason, and the rest goes on."""
    chosen = choose_clock(run, clock, waiting_time=waiting_time, lag=lag, fit_from=list((fit_from or {}).values()))
    reason = "" if clock is not None else default_reason(chosen)
    times = clock_values(run, chosen)
    check_clock(times, run[STEP].values, chosen)
    refused: dict[str, str] = {}
    done("loss")
    series, regimes = _loss(run, seed, chosen, refused)
    done("displacements")
    waits = choose_waiting_times(times) if waiting_time is None else _plain(waiting_time)
    lags = None if lag is None else _plain(lag)
    spelled = f"lags_per_decade={LAGS_PER_DECADE}" if lags is None else f"lag={lags}"
    named = "" if chosen == STEP else f", clock={chosen!r}"
    found = Measured(
        label, source, run, seed, f"waiting_time={waits}, {spelled}{named}", chosen, reason, series, regimes,
        refused=refused,
    )  # fmt: skip
    delta, skipped = _displacements(run, waits, lags, found, refused)
    if delta is None:
        return found
    start = _fit_from(delta, regimes, fit_from or {})
    inside = (delta[WAITING_TIME].values >= start[0]) & (delta[LAG].values >= start[1])
    window = delta.isel({PAIR: np.flatnonzero(inside)})
    done("local exponents")
    with np.errstate(invalid="ignore"):  # weights that do not move have no slope: NaN
        slopes = local_exponent(total_msd(delta))
    done("exponent of aging")
    fit = _fit(window, seed, refused, "fit")
    done("layers")
    own: dict[str, FitResult] = {}
    if fit is not None and delta.sizes[LAYER] > 1:
        for name in largest_layers(delta, layer_fits):
            one = _fit(window, seed, refused, f"layer {name}", over=name)
            if one is not None:
                own[name] = one
    return Measured(
        label,
        source,
        run,
        seed,
        found.pairs,
        chosen,
        reason,
        series,
        regimes,
        delta,
        window,
        *start,
        skipped,
        slopes,
        fit,
        own,
        refused,
    )


def total_msd(delta: xr.DataArray) -> xr.DataArray:
    """Put the layers of an MSD together."""
    return delta.weighted(delta["n_parameters"]).mean(LAYER, keep_attrs=True)


def largest_layers(delta: xr.DataArray, n: int) -> list[str]:
    """Name the layers with most weights."""
    order = np.argsort(-delta["n_parameters"].values, kind="stable")[:n]
    return [str(delta[LAYER].values[k]) for k in np.sort(order)]


def _plain(values: Sequence[float] | np.ndarray) -> list[float]:
    # whole numbers stay so: the page spells them
    return [int(t) if float(t).is_integer() else float(t) for t in values]


def _loss(run: xr.Dataset, seed: int, clock: str, refused: dict[str, str]) -> tuple[str | None, xr.Dataset | None]:
    series = [str(name) for name, values in run.data_vars.items() if values.dims == (REPLICA, STEP)]
    named = sorted((name for name in series if "loss" in name.lower()), key=lambda name: (name != "loss", name))
    if not named:
        others = f"; recorded series: {', '.join(series)}" if series else ""
        refused["loss"] = f"No loss was recorded{others}. Record it with append(step, weights, loss=...)."
        return None, None
    try:
        return named[0], loss_regimes(run, rng=seed, series=named[0], clock=clock)
    except TrajstatsError as error:
        refused["loss"] = f"The regimes of the loss were not looked for: {error}"
        return named[0], None


def _displacements(
    run: xr.Dataset, waits: list[float], lags: list[float] | None, found: Measured, refused: dict[str, str]
) -> tuple[xr.DataArray | None, int]:
    if not waits:
        refused["msd"] = (
            f"{run.sizes[STEP]} checkpoints: a displacement needs one above step 0 and a later one, at {REACH} times "
            "its step or more. Record more of them; aging_schedule lists which."
        )
        return None, 0
    try:
        per_decade = LAGS_PER_DECADE if lags is None else None
        pairs = time_pairs(run, waiting_time=waits, lag=lags, lags_per_decade=per_decade, clock=found.clock)
        pairs = with_reason(pairs, found.reason)
        delta = msd(run, pairs, on_nan="skip").compute()
    except TrajstatsError as error:
        refused["msd"] = str(error)
        return None, 0
    whole = delta.dropna(PAIR)
    if not whole.sizes[PAIR]:
        refused["msd"] = f"all {delta.sizes[PAIR]} pairs of checkpoints hold a weight that is not finite"
        return None, delta.sizes[PAIR]
    if not (whole > 0).any():
        refused["msd"] = "no weight moved between any two checkpoints"
        return None, 0
    return whole, delta.sizes[PAIR] - whole.sizes[PAIR]


def _fit_from(delta: xr.DataArray, regimes: xr.Dataset | None, asked: Mapping[str, float]) -> tuple[float, float]:
    waits = np.unique(delta[WAITING_TIME].values)
    first = float(waits[0])
    if regimes is not None and np.isfinite(regimes["t1"]).any():
        later = waits[waits >= float(regimes["t1"].max())]
        first = float(later[0]) if later.size > 1 else first
    return float(asked.get(WAITING_TIME, first)), float(asked.get(LAG, delta[LAG].values.min()))


def _fit(window: xr.DataArray, seed: int, refused: dict[str, str], part: str, **options: Any) -> FitResult | None:
    try:
        return fit_subaging(window, rng=seed, **options)
    except TrajstatsError as error:
        refused[part] = str(error)
        return None
