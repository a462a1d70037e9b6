"""The tables of a page: numbers with their intervals, from what was measured on runs."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from trajstats.data.schema import LAG, LAYER, PAIR, REPLICA, WAITING_TIME
from trajstats.estimators.displacement import local_exponent
from trajstats.inference.results import FitResult
from trajstats.inference.uncertainty import mean_half_interval
from trajstats.report.html import Table, interval_text
from trajstats.report.measured import Measured, largest_layers, total_msd

LAYER_ROWS = 60
GRID_COLUMNS = 7
# A lag of the table is the nearest saved one within this factor.
NEAR = 1.3


def mu_text(fit: FitResult | None) -> str:
    """Word the exponent of a fit with its 95 % interval.

    Parameters
    ----------
    fit : FitResult, optional
        Of `fit_subaging`.

    Returns
    -------
    str
    """
    if fit is None:
        return "not fitted"
    row = fit.summary(levels=(0.95,)).sel(coefficient="mu")
    return interval_text(float(row["value"]), *row["interval"].values[0])


def fit_tables(label: str, fit: FitResult) -> list[Table]:
    """Tabulate the estimators of mu, the models of aging and the coefficients of a fit.

    Parameters
    ----------
    label : str
        Name of the run where there are several.
    fit : FitResult
        Of `fit_subaging`.

    Returns
    -------
    list of Table
    """
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
    quality = ["coefficient", "median", "68 % interval", "95 % interval", "R-hat", "effective samples"]
    return [
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
    """Tabulate the MSD at each waiting time, one lag a decade; fewer where the table would be wider than it reads.

    Parameters
    ----------
    found : Measured
        A run with two-time displacements.

    Returns
    -------
    Table
    """
    delta = found.delta
    assert delta is not None
    total = total_msd(delta).mean(REPLICA) if REPLICA in delta.dims else total_msd(delta)
    waits, lags = np.unique(delta[WAITING_TIME].values), delta[LAG].values
    decades = np.arange(np.floor(np.log10(lags.min())), np.ceil(np.log10(lags.max())) + 1)
    decades = decades[(10.0**decades * NEAR >= lags.min()) & (10.0**decades / NEAR <= lags.max())]
    shown = 10.0 ** decades[:: -(-decades.size // GRID_COLUMNS) or 1]
    rows = []
    for wait in waits:
        mine = np.flatnonzero(delta[WAITING_TIME].values == wait)
        cells = []
        for lag in shown:
            near = mine[np.argmin(np.abs(np.log(lags[mine] / lag)))]
            fits = abs(np.log(lags[near] / lag)) <= np.log(NEAR)
            cells.append(f"{float(total[near]):.3g}" if fits else "")
        rows.append([*([found.label] if found.label else []), f"{wait:,.6g}", *cells])
    header = [
        *(["run"] if found.label else []),
        "MSD at waiting time \\ lag (steps)",
        *(f"{lag:,.6g}" for lag in shown),
    ]
    return Table(header, rows)


def layer_table(found: Measured) -> Table:
    """Tabulate how far the largest layers moved, how fast they still do, and their exponents.

    Parameters
    ----------
    found : Measured
        A run with two-time displacements.

    Returns
    -------
    Table
    """
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
    time = f"waiting time {waits[at]:,.6g}, lag {lags[at]:,.6g}"
    header = ["layer", "kind", "shape", "weights", f"MSD at {time}", "local exponent there", "µ, 95 % interval"]
    return Table([*(["run"] if found.label else []), *header], rows)


def _mean_and_error(values: Any) -> str:
    values = np.atleast_1d(values)
    if values.size == 1:
        return f"{values[0]:.3g}"
    return f"{values.mean():.3g} ± {mean_half_interval(values):.1g}"
