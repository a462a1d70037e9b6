"""The tables of a page: numbers with their intervals, from what was measured on runs."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import xarray as xr

from trajstats.data._clocks import clock_of, unit_of
from trajstats.data.schema import LAG, LAYER, PAIR, REPLICA, STEP, WAITING_TIME
from trajstats.estimators.two_time.derived import local_exponent
from trajstats.inference._uncertainty import mean_half_interval
from trajstats.inference.results import FitResult
from trajstats.report.page._measured import Measured, largest_layers, total_msd
from trajstats.report.page.html import Table, interval_text

LAYER_ROWS = 60
GRID_COLUMNS = 7
# A lag of the table is the nearest saved one within this factor.
NEAR = 1.3


def mu_text(fit: FitResult | None) -> str:
    """Word the exponent of a fit with its 95 % interval."""
    if fit is None:
        return "not fitted"
    row = fit.summary(levels=(0.95,)).sel(coefficient="mu")
    return interval_text(float(row["value"]), *row["interval"].values[0])


def step_mu_text(fit: FitResult | None) -> str:
    """Word the exponent of the same displacements with times in optimiser steps."""
    if fit is None or "clocks" not in fit.tables:
        return mu_text(fit)
    table = fit.tables["clocks"]
    if STEP not in table["clock"].values:
        return "not found"
    return _with_interval(*(float(table[key].sel(clock=STEP)) for key in ("mu", "lower", "upper")))


def fit_tables(label: str, fit: FitResult) -> list[Table]:
    """Tabulate the estimators of mu, the models of aging and the coefficients of a fit."""
    lead = [label] if label else []
    first = ["run"] if label else []
    estimators = fit.tables["estimators"]
    by_estimator = [
        [
            *lead,
            str(name).replace("_", " "),
            _with_interval(*(float(row[key]) for key in ("mu", "lower", "upper"))),
            "" if np.isnan(row["misfit_ratio"]) else f"{float(row['misfit_ratio']):.2f}",
        ]
        for name in estimators["estimator"].values
        for row in [estimators.sel(estimator=name)]
    ]
    models = fit.tables["models"]
    by_model = [
        [
            *lead,
            str(name).replace("_", " "),
            *(f"{float(models[key].sel(model=name)):.3g}" for key in ("log_bayes_factor", "score_difference")),
        ]
        for name in models["model"].values
    ]
    clocks = fit.tables.get("clocks")
    by_clock = [] if clocks is None else [
        [*lead, f"{str(name).replace('_', ' ')} ({unit_of(str(name))})",
         _with_interval(*(float(clocks[key].sel(clock=name)) for key in ("mu", "lower", "upper")))]
        for name in clocks["clock"].values
    ]  # fmt: skip
    quality = ["coefficient", "median", "68 % interval", "95 % interval", "R-hat", "effective samples"]
    return [
        *([Table([*first, "clock", "µ of the free curve, 95 % interval"], by_clock)] if by_clock else []),
        Table([*first, "estimator of µ", "µ, 95 % interval", "noise needed / that of the free curve"], by_estimator),
        Table([*first, "model of aging", "ln Bayes factor against free µ", "ln score on waiting times left out, minus "
               "that of free µ"], by_model),
        Table([*first, *quality], [[*lead, *row] for row in _coefficients(fit)]),
    ]  # fmt: skip


def _coefficients(fit: FitResult) -> list[list[str]]:
    summary = fit.summary(levels=(0.68, 0.95))
    rows = []
    for name in sorted(summary["coefficient"].values, key=lambda name: name != "mu"):
        one = summary.sel(coefficient=name)
        value = float(one["value"])
        ends = [interval_text(value, *map(float, pair)) for pair in one["interval"].values]
        sampled = name in fit.diagnostics["coefficient"].values
        quality = [
            f"{float(fit.diagnostics[key].sel(coefficient=name)):{form}}" if sampled else "drawn given the others"
            for key, form in (("r_hat", ".3f"), ("ess", ".0f"))
        ]
        rows.append([str(name), f"{value:.4g}", *ends, *quality])
    return rows


def _with_interval(value: float, low: float, high: float) -> str:
    if not np.isfinite(value):
        return "not found"
    return interval_text(value, low, high) if np.isfinite([low, high]).all() else f"{value:.3f}, no interval"


def grid_table(found: Measured) -> Table:
    """Tabulate the MSD at each waiting time, one lag a decade; fewer where the table would be wider than it reads."""
    delta = found.delta
    assert delta is not None
    total = total_msd(delta).mean(REPLICA) if REPLICA in delta.dims else total_msd(delta)
    waits, lags = np.unique(delta[WAITING_TIME].values), delta[LAG].values
    decades = np.arange(np.floor(np.log10(lags.min())), np.ceil(np.log10(lags.max())) + 1)
    decades = decades[(10.0**decades * NEAR >= lags.min()) & (10.0**decades / NEAR <= lags.max())]
    shown = 10.0 ** decades[:: -(-decades.size // GRID_COLUMNS) or 1]
    nearest = np.array([[_nearest(delta, wait, lag) for lag in shown] for wait in waits])
    heads, cells = [], np.full(nearest.shape, "", dtype=object)
    for k, lag in enumerate(shown):
        there = np.flatnonzero(nearest[:, k] >= 0)
        real = {f"{lags[near]:,.6g}" for near in nearest[there, k]}
        # one saved lag for all waiting times heads the column; where they differ each cell names its own
        heads.append(real.pop() if len(real) == 1 else f"near {lag:,.6g}")
        for row in there:
            near = nearest[row, k]
            own = "" if not heads[-1].startswith("near") else f" (lag {lags[near]:,.6g})"
            cells[row, k] = f"{float(total[near]):.3g}{own}"
    lead = [found.label] if found.label else []
    rows = [[*lead, f"{wait:,.6g}", *line] for wait, line in zip(waits, cells, strict=True)]
    about = f"MSD at waiting time \\ lag ({unit_of(clock_of(delta))})"
    return Table([*(["run"] if found.label else []), about, *heads], rows)


def _nearest(delta: xr.DataArray, wait: float, lag: float) -> int:
    # the pair of this waiting time whose saved lag is nearest to a lag; -1 where none is near
    mine = np.flatnonzero(delta[WAITING_TIME].values == wait)
    away = np.abs(np.log(delta[LAG].values[mine] / lag))
    return int(mine[np.argmin(away)]) if away.min() <= np.log(NEAR) else -1


def layer_table(found: Measured) -> Table:
    """Tabulate how far the largest layers moved, how fast they still do, and their exponents."""
    delta = found.delta
    assert delta is not None
    waits, lags = delta[WAITING_TIME].values, delta[LAG].values
    late = np.flatnonzero(waits == waits.max())
    at = int(late[np.argmin(np.abs(np.log(lags[late] / max(waits.max(), 1))))])
    with np.errstate(invalid="ignore"):
        slopes = local_exponent(delta.isel({PAIR: late}))
    place = int(np.flatnonzero(late == at)[0])
    rows = []
    names = [str(name) for name in delta[LAYER].values]
    for name in largest_layers(delta, LAYER_ROWS):
        k = names.index(name)
        moved = delta.isel({LAYER: k, PAIR: at}).values
        slope, error = (float(slopes[key].isel({LAYER: k, PAIR: place})) for key in ("exponent", "stderr"))
        rows.append(
            [
                *([found.label] if found.label else []),
                name,
                str(found.run["layer_kind"].values[k]),
                " x ".join(map(str, json.loads(str(found.run["layer_shape"].values[k])))) or "scalar",
                f"{int(delta['n_parameters'][k]):,}",
                _mean_and_error(moved),
                "" if np.isnan(slope) else f"{slope:.2f}" + (f" ± {error:.2f}" if np.isfinite(error) else ""),
                mu_text(found.layer_fits.get(name) if len(names) > 1 else found.fit),
            ]
        )
    time = f"waiting time {waits[at]:,.6g}, lag {lags[at]:,.6g} ({unit_of(clock_of(delta))})"
    header = ["layer", "kind", "shape", "weights", f"MSD at {time}", "local exponent there", "µ, 95 % interval"]
    return Table([*(["run"] if found.label else []), *header], rows)


def _mean_and_error(values: Any) -> str:
    values = np.atleast_1d(values)
    if values.size == 1:
        return f"{values[0]:.3g}"
    return f"{values.mean():.3g} ± {mean_half_interval(values):.1g}"
