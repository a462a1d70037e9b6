"""The sections of a page: figures, tables and code that redoes them, from what was measured on runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from trajstats.data.schema import LAG, LAYER, PAIR, REPLICA, STEP, WAITING_TIME
from trajstats.estimators.displacement import local_exponent
from trajstats.inference.alternatives import WRONG_CURVE_RATIO
from trajstats.inference.results import FitResult
from trajstats.report.html import Section, Table, interval_text
from trajstats.report.measured import LAYER_FITS, Measured, largest_layers, total_msd
from trajstats.report.plots import (
    plot_collapse,
    plot_corner,
    plot_local_exponent,
    plot_loss,
    plot_msd,
    plot_msd_layers,
    plot_mu_estimators,
    plot_posterior,
    plot_scan,
    plot_spectrum,
    plot_top_eigenvalues,
)
from trajstats.report.redaction import shown_attrs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Figures of a page are drawn with these; the code of the page sets them too.
STYLE = {"font.size": 9, "axes.titlesize": 9}
SETUP = f"""import matplotlib.pyplot as plt
import numpy as np
import trajstats as ts

plt.rcParams.update({json.dumps(STYLE)})
"""
LAYER_PANELS = 12
LAYER_ROWS = 60
GRID_COLUMNS = 7
# A lag of the table is the nearest saved one within this factor.
NEAR = 1.3

Runs = Sequence[Measured]


def numbers_section(
    runs: Runs, *, more: Mapping[str, Sequence[str]] | None = None, text: Sequence[str] = ()
) -> Section:
    """Say what was found in one table.

    Parameters
    ----------
    runs : sequence of Measured
        What was measured.
    more : mapping column -> texts, optional
        Further columns, one text per run.
    text : sequence of str
        Paragraphs before the flags of the fits.

    Returns
    -------
    Section
    """
    extra = more or {}
    rows = []
    for k, found in enumerate(runs):
        run = found.run
        step = run[STEP].values
        loss = "not recorded"
        if found.series is not None and step.size:
            loss = f"{float(run[found.series].isel({STEP: -1}).mean()):.3g}"
        rows.append(
            [
                *([found.label] if found.label else []),
                f"{_n_weights(run):,}",
                f"{run.sizes[LAYER]:,}",
                str(run.sizes[REPLICA]),
                f"{step.size:,} from {int(step[0]):,} to {int(step[-1]):,}" if step.size else "none",
                loss,
                *(str(texts[k]) for texts in extra.values()),
                _mu_text(found.fit),
                found.fit.status if found.fit is not None else "refused",
            ]
        )
    header = [
        *(["run"] if runs[0].label else []),
        "weights",
        "layers",
        "replicas",
        "checkpoints (steps)",
        "final loss",
        *extra,
        "µ, 95 % interval",
        "fit",
    ]
    words = [
        "The exponent µ says how the time to forget grows with age: 0 in a steady state, 1 for full aging, in between "
        "for subaging.",
        *text,
        *[_prefix(found) + word for found in runs for word in _judgement(found)],
    ]
    code = SETUP + "".join("\n" + _measure_code(found) for found in runs)
    return Section("In numbers", text=words, tables=[Table(header, rows)], code=code)


def loss_section(runs: Runs) -> Section:
    """Show the loss of every replica and where its regimes begin.

    Parameters
    ----------
    runs : sequence of Measured
        What was measured.

    Returns
    -------
    Section
    """
    figures, code, text = [], [], []
    for found in runs:
        if found.series is not None and (found.run[STEP].values > 0).any():
            s = found.suffix
            shown = f", regimes{s}" if found.regimes is not None else ""
            if found.regimes is not None:
                code.append(f"regimes{s} = ts.loss_regimes(run{s}, rng={found.seed}, series={found.series!r})")
            code.append(f"ts.plot_loss(run{s}{shown}, series={found.series!r})")
            ax = plot_loss(found.run, found.regimes, series=found.series)
            figures.append((_figure(ax), f"{_of(found, 'Loss')}, every replica; dashed: corners of its regimes."))
        if "loss" in found.refused:
            text.append(_prefix(found) + found.refused["loss"])
    return Section("Loss", text=text, figures=figures, code=_lines(code))


def displacement_section(runs: Runs) -> Section:
    """Show the MSD over the grid of waiting times and lags, and its local exponents.

    Parameters
    ----------
    runs : sequence of Measured
        What was measured.

    Returns
    -------
    Section
    """
    text = [
        "Displacement over all weights between the waiting time and the waiting time plus the lag. Curves that shift "
        "to the right as the waiting time grows show aging; curves that lie on each other show a steady state. The "
        "local exponent is 2 for drift, 1 for diffusion and 0 on a plateau."
    ]
    figures, tables, code = [], [], []
    for found in runs:
        if found.delta is None:
            text.append(_prefix(found) + found.refused["msd"])
            continue
        if found.skipped:
            text.append(f"{_prefix(found)}{found.skipped} pairs with a weight that is not finite were left out.")
        s = found.suffix
        figures.append((_figure(plot_msd(found.delta)), f"{_of(found, 'Mean square displacement')}, by waiting time."))
        code.append(f"ts.plot_msd(delta{s})")
        if found.slopes is not None and np.isfinite(found.slopes["exponent"]).any():
            ax = plot_local_exponent(found.slopes)
            band = "no error band: one replica" if found.run.sizes[REPLICA] == 1 else "band: error over replicas"
            figures.append((_figure(ax), f"{_of(found, 'Local exponent')} of the displacement; {band}."))
            code += [
                f'total{s} = delta{s}.weighted(delta{s}.n_parameters).mean("layer", keep_attrs=True)',
                f"ts.plot_local_exponent(ts.local_exponent(total{s}))",
            ]
        tables.append(_grid_table(found))
    return Section("Two-time displacement", text=text, figures=figures, tables=tables, code=_lines(code))


def aging_section(runs: Runs) -> Section:
    """Show the exponent of aging by every estimator, the collapse and the posterior.

    Parameters
    ----------
    runs : sequence of Measured
        What was measured.

    Returns
    -------
    Section
    """
    text, figures, code = [], [], []
    fits = {found.label or "µ": found.fit for found in runs if found.fit is not None}
    for found in runs:
        if found.fit is None:
            text.append(f"{_prefix(found)}No exponent was fitted: {_why_no_fit(found)}")
            continue
        text.append(_prefix(found) + _spread(found.fit))
        s = found.suffix
        drawn: list[tuple[str, Axes, str]] = [
            (f"ts.plot_collapse(window{s}, fit{s})", plot_collapse(found.window, found.fit), "Collapse of the"
             " displacements on one master curve, residuals below"),
            (f"ts.plot_mu_estimators(fit{s})", plot_mu_estimators(found.fit), "µ by every estimator, 95 % intervals"),
            (f'ts.plot_scan(fit{s}, scan="window")', plot_scan(found.fit, scan="window"), "µ by part of the data"),
            (f'ts.plot_scan(fit{s}, scan="threshold")', plot_scan(found.fit), "µ by threshold of the displacement"),
            (f"ts.plot_corner(fit{s})", plot_corner(found.fit), "Joint posterior"),
        ]  # fmt: skip
        for line, ax, caption in drawn:
            code.append(line)
            figures.append((_figure(ax), f"{_of(found, caption)}."))
    if len(fits) > 1:
        figures.append((_figure(plot_posterior(fits, "mu")), "Posteriors of µ with median and 95 % interval."))
        named = ", ".join(f"{found.label!r}: fit{found.suffix}" for found in runs if found.fit is not None)
        code.append(f'ts.plot_posterior({{{named}}}, "mu")')
    tables = [table for found in runs if found.fit is not None for table in _fit_tables(found.label, found.fit)]
    return Section("Aging exponent", text=text, figures=figures, tables=tables, code=_lines(code))


def layer_section(runs: Runs) -> Section:
    """Show every layer's displacement and exponent.

    Parameters
    ----------
    runs : sequence of Measured
        What was measured.

    Returns
    -------
    Section
    """
    text, figures, tables, code = [], [], [], []
    for found in runs:
        delta = found.delta
        if delta is None:
            text.append(f"{_prefix(found)}No displacement was measured, so none by layer.")
            continue
        s = found.suffix
        n = delta.sizes[LAYER]
        if n > 1:
            shown = largest_layers(delta, LAYER_PANELS)
            some = f"the {len(shown)} largest of {n:,} layers" if len(shown) < n else "by layer"
            panels = plot_msd_layers(delta.sel({LAYER: shown}))
            figures.append((_figure(panels[0]), f"{_of(found, 'Mean square displacement')}, {some}."))
            code.append(f"ts.plot_msd_layers(delta{s}.sel(layer={shown}))")
        if found.fit is not None and n > LAYER_FITS:
            text.append(f"{_prefix(found)}µ is fitted to the {LAYER_FITS} largest layers.")
        if n > LAYER_ROWS:
            text.append(f"{_prefix(found)}The {LAYER_ROWS} largest of {n:,} layers are listed.")
        code += [f"ts.fit_subaging(window{s}, rng={found.seed}, over={name!r})" for name in found.layer_fits]
        tables.append(_layer_table(found))
        refusals = {word for part, word in found.refused.items() if part.startswith("layer ")}
        text += [f"{_prefix(found)}Fit of a layer refused: {word}" for word in sorted(refusals)]
    return Section("Layers", text=text, figures=figures, tables=tables, code=_lines(code))


def spectrum_section(spectrum: xr.Dataset, *, code: str, text: str = "") -> Section:
    """Show the curvature of the loss at a few checkpoints.

    Parameters
    ----------
    spectrum : xarray.Dataset
        Of `hessian_spectrum`.
    code : str
        Python that made it, under the name ``spectrum``.
    text : str
        What it is of.

    Returns
    -------
    Section
    """
    arguments = json.loads(spectrum.attrs["arguments"])
    figures = [(_figure(plot_spectrum(spectrum)), "Density of the eigenvalues at each step; bands: 95 %.")]
    lines = [code.rstrip(), "ts.plot_spectrum(spectrum)"]
    if spectrum.sizes[STEP] > 1:
        figures.append((_figure(plot_top_eigenvalues(spectrum)), "Largest eigenvalues along training."))
        lines.append("ts.plot_top_eigenvalues(spectrum)")
    steps = ", ".join(f"{int(step):,}" for step in spectrum[STEP].values)
    words = f"Spectrum of the {spectrum.attrs['kind']} at steps {steps}; method: {arguments['method']}. {text}".rstrip()
    return Section("Curvature", text=[words], figures=figures, code=_lines(lines))


def provenance_section(runs: Runs, *, text: Sequence[str] = (), rows: Sequence[Sequence[str]] = ()) -> Section:
    """Say where the numbers come from: runs, their attributes, seeds and settings.

    Parameters
    ----------
    runs : sequence of Measured
        What was measured.
    text : sequence of str
        Paragraphs.
    rows : sequence of (setting, value)
        Further rows.

    Returns
    -------
    Section
    """
    labelled = bool(runs[0].label)
    table: list[list[str]] = []

    def add(label: str, setting: str, value: str) -> None:
        table.append([*([label] if labelled else []), setting, value])

    for found in runs:
        for name, value in shown_attrs(found.run.attrs).items():
            add(found.label, name, value)
        add(found.label, "replicas", ", ".join(str(r) for r in found.run[REPLICA].values))
        add(found.label, "seed of the fits", str(found.seed))
        if found.fit is not None:
            for name, value in shown_attrs(found.fit.attrs).items():
                add(found.label, f"fit.{name}", value)
    for setting, value in rows:
        add("all", setting, value)
    header = [*(["run"] if labelled else []), "setting", "value"]
    return Section("How this was made", text=text, tables=[Table(header, table)])


def _measure_code(found: Measured) -> str:
    s = found.suffix
    lines = [f"run{s} = {found.source}"]
    if found.delta is not None:
        lines += [
            f"pairs{s} = ts.time_pairs(run{s}, {found.pairs})",
            f'delta{s} = ts.msd(run{s}, pairs{s}, on_nan="skip").compute().dropna("pair")',
        ]
    if found.fit is not None:
        inside = f"(delta{s}.waiting_time >= {found.from_waiting_time:g}) & (delta{s}.lag >= {found.from_lag:g})"
        lines += [
            f"window{s} = delta{s}.isel(pair=np.flatnonzero({inside}))",
            f"fit{s} = ts.fit_subaging(window{s}, rng={found.seed})",
            f"print(fit{s})",
        ]
    return "\n".join(lines) + "\n"


def _figure(ax: Axes) -> Figure:
    figure = ax.get_figure(root=True)
    assert figure is not None
    return figure


def _n_weights(run: xr.Dataset) -> int:
    return int(run["layer_stop"].values[-1]) if run.sizes[LAYER] else 0


def _prefix(found: Measured) -> str:
    return f"{found.label}: " if found.label else ""


def _of(found: Measured, what: str) -> str:
    return f"{what} ({found.label})" if found.label else what


def _lines(code: Sequence[str]) -> str:
    return "".join(line + "\n" for line in code)


def _mu_text(fit: FitResult | None) -> str:
    if fit is None:
        return "not fitted"
    row = fit.summary(levels=(0.95,)).sel(coefficient="mu")
    return interval_text(float(row["value"]), *row["interval"].values[0])


def _why_no_fit(found: Measured) -> str:
    return found.refused.get("fit") or found.refused.get("msd", "")


def _judgement(found: Measured) -> list[str]:
    if found.fit is None:
        return [f"No exponent was fitted: {_why_no_fit(found)}"]
    part = (
        f"µ is fitted to waiting times from {found.from_waiting_time:,.6g} and lags from {found.from_lag:,.6g} steps. "
        "What its interval rests on: "
    )
    return [part + ("; ".join(found.fit.flags) or "no flag was raised") + "."]


def _spread(fit: FitResult) -> str:
    table = fit.tables["estimators"]
    mu = table["mu"].values
    right = np.isfinite(mu) & ~(table["misfit_ratio"].values > WRONG_CURVE_RATIO)
    words = f"{mu.size} estimators give µ from {np.nanmin(mu):.3f} to {np.nanmax(mu):.3f}"
    if right.any() and not right.all():
        words += f"; those whose curve describes the data from {mu[right].min():.3f} to {mu[right].max():.3f}"
    return words + ". The spread between them is an error that no single interval holds."


def _fit_tables(label: str, fit: FitResult) -> list[Table]:
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


def _grid_table(found: Measured) -> Table:
    # One lag a decade, fewer where the table would be wider than it reads.
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


def _layer_table(found: Measured) -> Table:
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
                _mu_text(found.layer_fits.get(name) if len(names) > 1 else found.fit),
            ]
        )
    time = f"waiting time {waits[at]:,.6g}, lag {lags[at]:,.6g}"
    header = ["layer", "kind", "shape", "weights", f"MSD at {time}", "local exponent there", "µ, 95 % interval"]
    return Table([*(["run"] if found.label else []), *header], rows)


def _mean_and_error(values: Any) -> str:
    values = np.atleast_1d(values)
    if values.size == 1:
        return f"{values[0]:.3g}"
    return f"{values.mean():.3g} ± {values.std(ddof=1) / np.sqrt(values.size):.1g}"
