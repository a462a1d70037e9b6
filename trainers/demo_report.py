"""What `trajstats demo` measures on its runs, and the page it writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from tqdm.auto import tqdm

import trajstats as ts
from trainers.demo import FIT_FROM, LAGS, OVER, SPECTRUM_STEPS, UNDER, WAITING_TIMES, Net, network_of
from trajstats.report.html import Section, Table, interval_text, write_report
from trajstats.report.plots import (
    plot_collapse,
    plot_loss,
    plot_msd,
    plot_posterior,
    plot_spectrum,
)
from trajstats.report.plots.style import axes

CODE = """import trajstats as ts

run   = ts.open_trajectory("runs/digits_w5.zarr")
pairs = ts.time_pairs(run, waiting_time=[100, 1_000, 10_000], lags_per_decade=8)
delta = ts.msd(run, pairs)                       # lazy: (replica, pair, layer)
fit   = ts.fit_subaging(delta, rng=0)            # computes here, once
print(fit.summary().sel(coefficient="mu"))
ts.plot_collapse(delta, fit)
"""


def write_demo_report(runs: Path, report: Path, *, training_seconds: float) -> Path:
    """Measure the demo's runs and write the page.

    Parameters
    ----------
    runs : Path
        Folder of the stores.
    report : Path
        The page to write.
    training_seconds : float
        Wall time of the training, for the page.

    Returns
    -------
    Path
    """
    import matplotlib as mpl

    with mpl.rc_context({"backend": "agg", "font.size": 9, "axes.titlesize": 9}):
        results = {}
        with tqdm(total=9, desc="analyse", unit="part") as bar:
            for net in (UNDER, OVER):
                results[net.label] = _measure(net, runs, bar)
            spectrum = _spectrum(runs, bar)
            sections = [
                _what(results),
                _losses(results),
                _displacements(results),
                _aging(results),
                _curvature(spectrum),
                _how(results, training_seconds),
            ]
            bar.update()
            lead = (
                "Two networks learn the same 5,000 handwritten digits by plain SGD. One is too small to fit them, one "
                "is not. Do their weights age, and with which exponent?"
            )
            page = write_report(report, title="Do these networks age?", lead=lead, sections=sections)
            bar.update()
    _close()
    return page


def _measure(net: Net, runs: Path, bar: Any) -> dict[str, Any]:
    run = ts.open_trajectory([str(path) for path in net.paths(runs)])
    bar.set_postfix_str(f"MSD of {net.store}")
    pairs = ts.time_pairs(run, waiting_time=WAITING_TIMES, lag=LAGS)
    delta = ts.msd(run, pairs, per="layer").compute()
    bar.update()
    bar.set_postfix_str(f"posterior of mu of {net.store}")
    inside = (delta["waiting_time"] >= FIT_FROM["waiting_time"]) & (delta["lag"] >= FIT_FROM["lag"])
    window = delta.isel(pair=np.flatnonzero(inside.values))
    fit = ts.fit_subaging(window, rng=0)
    bar.update(2)
    return {"net": net, "run": run, "delta": delta, "window": window, "fit": fit}


def _spectrum(runs: Path, bar: Any) -> xr.Dataset:
    bar.set_postfix_str(f"Hessian of {UNDER.store} at {len(SPECTRUM_STEPS)} times")
    run = ts.open_trajectory(str(UNDER.paths(runs)[0]))
    spectrum = ts.hessian_spectrum(network_of(run), run, steps=SPECTRUM_STEPS, rng=0).compute()
    bar.update()
    return spectrum


def _what(results: dict[str, dict[str, Any]]) -> Section:
    rows = []
    for label, found in results.items():
        run, fit = found["run"], found["fit"]
        summary = fit.summary().sel(coefficient="mu")
        value = float(summary["value"])
        low, high = (float(summary["interval"].sel(level=0.95, bound=b)) for b in ("lower", "upper"))
        final = run["loss"].isel(step=-1).values
        rows.append(
            [
                label,
                "-".join(str(n) for n in found["net"].sizes),
                f"{run.sizes['parameter']:,}",
                str(run.sizes["replica"]),
                f"{np.mean(final):.2g}",
                f"{100 * float(run['accuracy'].isel(step=-1).mean()):.1f} %",
                interval_text(value, low, high),
                fit.status,
            ]
        )
    header = ["network", "widths", "weights", "seeds", "final loss (nats)", "train accuracy", "µ, 95 % interval", "fit"]
    flags = [f"{label}: {flag}" for label, found in results.items() for flag in found["fit"].flags]
    return Section(
        "In numbers",
        text=[
            "The exponent µ says how the time to forget grows with age: it is 0 in a steady state, 1 for full aging, "
            f"and in between for subaging. It is fitted to waiting times from {FIT_FROM['waiting_time']:,} steps, "
            f"after the initial descent, and lags from {FIT_FROM['lag']} steps, one epoch: below, the displacement is "
            "batch noise that does not age. What each interval rests on:",
            *(flags or ["No flag was raised."]),
        ],
        tables=[Table(header, rows)],
    )


def _losses(results: dict[str, dict[str, Any]]) -> Section:
    figures = []
    for label, found in results.items():
        ax = plot_loss(found["run"], ax=axes(None))
        figures.append((ax.figure, f"Training loss of the {label} network, every seed."))
    return Section("Loss", figures=figures)


def _displacements(results: dict[str, dict[str, Any]]) -> Section:
    figures = []
    for label, found in results.items():
        ax = plot_msd(found["delta"], ax=axes(None))
        figures.append((ax.figure, f"Mean square displacement of the {label} network against lag, by waiting time."))
    text = [
        "Displacement over all weights between the waiting time and the waiting time plus the lag. Curves that shift "
        "to the right as the waiting time grows show aging; curves that lie on each other show a steady state."
    ]
    return Section("Two-time displacement", text=text, figures=figures)


def _aging(results: dict[str, dict[str, Any]]) -> Section:
    figures = []
    for label, found in results.items():
        ax = plot_collapse(found["window"], found["fit"], ax=axes(None, size=(5.2, 4.6)))
        figures.append((ax.figure, f"The {label} network's displacements on one master curve, residuals below."))
    ax = plot_posterior({label: found["fit"] for label, found in results.items()}, "mu")
    figures.append((ax.figure, "Posterior of µ with median and 95 % interval."))
    header = ["network", "coefficient", "median", "68 % interval", "95 % interval", "R-hat", "effective samples"]
    rows = [row for label, found in results.items() for row in _coefficients(label, found["fit"])]
    return Section("Aging exponent", figures=figures, tables=[Table(header, rows)], code=CODE)


def _coefficients(label: str, fit: ts.FitResult) -> list[list[str]]:
    summary = fit.summary()
    rows = []
    for name in summary["coefficient"].values:
        one = summary.sel(coefficient=name)
        value = float(one["value"])
        ends = [
            [float(one["interval"].sel(level=level, bound=bound)) for bound in ("lower", "upper")]
            for level in (0.68, 0.95)
        ]
        sampled = name in fit.diagnostics["coefficient"].values
        quality = [
            f"{float(fit.diagnostics[key].sel(coefficient=name)):{form}}" if sampled else "drawn given the others"
            for key, form in (("r_hat", ".3f"), ("ess", ".0f"))
        ]
        rows.append([label, str(name), f"{value:.4g}", *(interval_text(value, *end) for end in ends), *quality])
    return rows


def _curvature(spectrum: xr.Dataset) -> Section:
    ax = plot_spectrum(spectrum)
    text = [
        f"Spectrum of the Hessian of the training loss of the {UNDER.label} network (seed {UNDER.seeds[0]}) over all "
        f"5,000 digits at three times; method: {json.loads(spectrum.attrs['arguments'])['method']}."
    ]
    return Section("Curvature", text=text, figures=[(ax.figure, "Density of Hessian eigenvalues at three steps.")])


def _how(results: dict[str, dict[str, Any]], training_seconds: float) -> Section:
    rows = []
    for label, found in results.items():
        run = found["run"]
        optimiser = json.loads(run.attrs["optimiser"])
        rows += [[label, key, str(value)] for key, value in optimiser.items()]
        rows.append([label, "checkpoints", f"{run.sizes['step']} from step 0 to {int(run['step'][-1]):,}"])
        rows.append([label, "stores", ", ".join(path.name for path in found["net"].paths(Path()))])
        rows.append([label, "fit", json.dumps(dict(found["fit"].attrs), default=str)])
    task = json.loads(next(iter(results.values()))["run"].attrs["task"])
    rows += [["both", key, str(value)] for key, value in task.items()]
    rows.append(["both", "training time in this call", f"{training_seconds:.0f} s"])
    text = [
        f"{len(WAITING_TIMES)} waiting times from {WAITING_TIMES[0]:,} to {WAITING_TIMES[-1]:,} steps and {len(LAGS)} "
        f"lags from {LAGS[0]} to {LAGS[-1]:,} steps, log-spaced; every pair was saved, none is interpolated."
    ]
    return Section("How this was made", text=text, tables=[Table(["network", "setting", "value"], rows)])


def _close() -> None:
    import matplotlib.pyplot as plt

    plt.close("all")
