"""The sections of a page: figures, tables and code that redoes them, from what was measured on runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from trajstats.data._clocks import unit_of
from trajstats.data.schema import LAYER, REPLICA, STEP, clock_values
from trajstats.inference.aging._alternatives import WRONG_CURVE_RATIO
from trajstats.inference.results import FitResult
from trajstats.report.page._measured import LAYER_FITS, Measured, largest_layers
from trajstats.report.page._secrets import shown_attrs
from trajstats.report.page._tables import LAYER_ROWS, fit_tables, grid_table, layer_table, mu_text, step_mu_text
from trajstats.report.page.html import Section, Table
from trajstats.report.plots._fits import plot_collapse, plot_corner, plot_mu_estimators, plot_scan
from trajstats.report.plots._posterior import plot_posterior
from trajstats.report.plots._spectra import plot_spectrum, plot_top_eigenvalues
from trajstats.report.plots._two_time import plot_local_exponent, plot_loss, plot_msd, plot_msd_layers

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

Runs = Sequence[Measured]


def numbers_section(
    runs: Runs, *, more: Mapping[str, Sequence[str]] | None = None, text: Sequence[str] = ()
) -> Section:
    """Say what was found in one table."""
    extra = more or {}
    elsewhere = any(found.clock != STEP for found in runs)
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
                mu_text(found.fit),
                *([step_mu_text(found.fit)] if elsewhere else []),
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
        "µ, 95 % interval" + _on_clock(runs),
        *(["µ on optimiser steps (free curve)"] if elsewhere else []),
        "fit",
    ]
    words = [
        "The exponent µ says how the time to forget grows with age: 0 in a steady state, 1 for full aging, in between "
        "for subaging.",
        *[_prefix(found) + clock_words(found) for found in runs if found.clock != STEP],
        *text,
        *[_prefix(found) + word for found in runs for word in _judgement(found)],
    ]
    code = SETUP + "".join("\n" + _measure_code(found) for found in runs)
    return Section("In numbers", text=words, tables=[Table(header, rows)], code=code)


def loss_section(runs: Runs) -> Section:
    """Show the loss of every replica and where its regimes begin."""
    figures, code, text = [], [], []
    for found in runs:
        if found.series is not None and (found.run[STEP].values > 0).any():
            s = found.suffix
            shown = f", regimes{s}" if found.regimes is not None else ""
            named = "" if found.clock == STEP else f", clock={found.clock!r}"
            if found.regimes is not None:
                code.append(f"regimes{s} = ts.loss_regimes(run{s}, rng={found.seed}, series={found.series!r}{named})")
            code.append(f"ts.plot_loss(run{s}{shown}, series={found.series!r}{named})")
            ax = plot_loss(found.run, found.regimes, series=found.series, clock=found.clock)
            figures.append((_figure(ax), f"{_of(found, 'Loss')}, every replica; dashed: corners of its regimes."))
        if "loss" in found.refused:
            text.append(_prefix(found) + found.refused["loss"])
    return Section("Loss", text=text, figures=figures, code=_lines(code))


def displacement_section(runs: Runs) -> Section:
    """Show the MSD over the grid of waiting times and lags, and its local exponents."""
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
        tables.append(grid_table(found))
    return Section("Two-time displacement", text=text, figures=figures, tables=tables, code=_lines(code))


def aging_section(runs: Runs) -> Section:
    """Show the exponent of aging by every estimator, the collapse and the posterior."""
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
    tables = [table for found in runs if found.fit is not None for table in fit_tables(found.label, found.fit)]
    return Section("Aging exponent", text=text, figures=figures, tables=tables, code=_lines(code))


def layer_section(runs: Runs) -> Section:
    """Show every layer's displacement and exponent."""
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
        tables.append(layer_table(found))
        refusals = {word for part, word in found.refused.items() if part.startswith("layer ")}
        text += [f"{_prefix(found)}Fit of a layer refused: {word}" for word in sorted(refusals)]
    return Section("Layers", text=text, figures=figures, tables=tables, code=_lines(code))


def spectrum_section(spectrum: xr.Dataset, *, code: str, text: str = "") -> Section:
    """Show the curvature of the loss at a few checkpoints."""
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
    """Say where the numbers come from: runs, their attributes, seeds and settings."""
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
        inside = (
            f"(delta{s}.waiting_time >= {_exact(found.from_waiting_time)}) & (delta{s}.lag >= {_exact(found.from_lag)})"
        )
        lines += [
            f"window{s} = delta{s}.isel(pair=np.flatnonzero({inside}))",
            f"fit{s} = ts.fit_subaging(window{s}, rng={found.seed})",
            f"print(fit{s})",
        ]
    return "\n".join(lines) + "\n"


def _exact(number: float) -> str:
    short = f"{number:g}"
    return short if float(short) == number else repr(float(number))


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


def _why_no_fit(found: Measured) -> str:
    return found.refused.get("fit") or found.refused.get("msd", "")


def _judgement(found: Measured) -> list[str]:
    if found.fit is None:
        return [f"No exponent was fitted: {_why_no_fit(found)}"]
    part = (
        f"µ is fitted to waiting times from {found.from_waiting_time:,.6g} and lags from {found.from_lag:,.6g} "
        f"({unit_of(found.clock)}). "
        "What its interval rests on: "
    )
    used = f"Used: {found.fit.attrs['used']}." if "used" in found.fit.attrs else ""
    return [part + ("; ".join(found.fit.flags) or "no flag was raised") + f". {used}".rstrip()]


def _on_clock(runs: Runs) -> str:
    clocks = dict.fromkeys(found.clock for found in runs)
    return "" if list(clocks) == [STEP] else ", on " + " or ".join(name.replace("_", " ") for name in clocks)


def clock_words(found: Measured) -> str:
    """Name the clock of a run whose times are not optimiser steps."""
    why = f": {found.reason}" if found.reason else ", as requested"
    last = f"{float(clock_values(found.run, found.clock)[-1]):,.6g}"
    return (
        f"Times are in {found.clock.replace('_', ' ')} ({unit_of(found.clock)}){why}. The last step, "
        f"{int(found.run[STEP].values[-1]):,}, is at {last}. µ is shown on optimiser steps too; the two differ because "
        "the learning rate was not constant."
    )


def _spread(fit: FitResult) -> str:
    table = fit.tables["estimators"]
    mu = table["mu"].values
    right = np.isfinite(mu) & ~(table["misfit_ratio"].values > WRONG_CURVE_RATIO)
    words = f"{mu.size} estimators give µ from {np.nanmin(mu):.3f} to {np.nanmax(mu):.3f}"
    if right.any() and not right.all():
        words += f"; those whose curve describes the data from {mu[right].min():.3f} to {mu[right].max():.3f}"
    return words + ". The spread between them is an error that no single interval holds."
