"""What `trajstats demo` measures on its runs, and the page it writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import xarray as xr
from tqdm.auto import tqdm

import trajstats as ts
from trajstats.report.page._measured import Measured, measure
from trajstats.report.page._sections import (
    STYLE,
    aging_section,
    displacement_section,
    loss_section,
    numbers_section,
    provenance_section,
    spectrum_section,
)
from trajstats.report.page.html import Section, write_report
from trajstats_trainers.demo.nets import FIT_FROM, LAGS, OVER, SPECTRUM_STEPS, UNDER, WAITING_TIMES, Net, network_of


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

    with mpl.rc_context({"backend": "agg", **STYLE}), tqdm(total=12, desc="analyse", unit="part") as bar:
        found = [_measure(net, runs, bar) for net in (UNDER, OVER)]
        spectrum = _spectrum(runs, bar)
        sections = [
            _numbers(found),
            loss_section(found),
            displacement_section(found),
            aging_section(found),
            _curvature(spectrum, runs),
            _how(found, training_seconds),
        ]
        lead = (
            "Two networks learn the same 5,000 handwritten digits by plain SGD. One is too small to fit them, one "
            "is not. Do their weights age, and with which exponent?"
        )
        page = write_report(report, title="Do these networks age?", lead=lead, sections=sections)
        bar.update()
    _close()
    return page


def _measure(net: Net, runs: Path, bar: Any) -> Measured:
    paths = [str(path) for path in net.paths(runs)]

    def done(part: str) -> None:
        bar.set_postfix_str(f"{part} of {net.store}")
        bar.update()

    # Layers are left to `trajstats analyze`: a fit for each would double the demo's analysis.
    return measure(
        ts.open_trajectory(paths),
        source=f"ts.open_trajectory({paths})",
        label=net.label,
        waiting_time=WAITING_TIMES,
        lag=LAGS,
        fit_from=FIT_FROM,
        layer_fits=0,
        done=done,
    )


def _spectrum(runs: Path, bar: Any) -> xr.Dataset:
    bar.set_postfix_str(f"Hessian of {UNDER.store} at {len(SPECTRUM_STEPS)} times")
    run = ts.open_trajectory(str(UNDER.paths(runs)[0]))
    spectrum = ts.hessian_spectrum(network_of(run), run, steps=SPECTRUM_STEPS, rng=0).compute()
    bar.update()
    return spectrum


def _numbers(found: list[Measured]) -> Section:
    nets = {net.label: net for net in (UNDER, OVER)}
    more = {
        "widths": ["-".join(str(n) for n in nets[one.label].sizes) for one in found],
        "train accuracy": [f"{100 * float(one.run['accuracy'].isel(step=-1).mean()):.1f} %" for one in found],
    }
    why = (
        f"It is fitted to waiting times from {FIT_FROM['waiting_time']:,} steps, after the initial descent, and lags "
        f"from {FIT_FROM['lag']} steps, one epoch: below, the displacement is batch noise that does not age."
    )
    return numbers_section(found, more=more, text=[why])


def _curvature(spectrum: xr.Dataset, runs: Path) -> Section:
    path = str(UNDER.paths(runs)[0])
    code = (
        "from trajstats_trainers.demo.nets import network_of\n\n"
        f"run = ts.open_trajectory({path!r})\n"
        f"spectrum = ts.hessian_spectrum(network_of(run), run, steps={list(SPECTRUM_STEPS)}, rng=0).compute()"
    )
    return spectrum_section(
        spectrum, code=code, text=f"{UNDER.label} network, seed {UNDER.seeds[0]}, all 5,000 digits."
    )


def _how(found: list[Measured], training_seconds: float) -> Section:
    text = (
        f"{len(WAITING_TIMES)} waiting times from {WAITING_TIMES[0]:,} to {WAITING_TIMES[-1]:,} steps and {len(LAGS)} "
        f"lags from {LAGS[0]} to {LAGS[-1]:,} steps, log-spaced; every pair was saved, none is interpolated."
    )
    return provenance_section(found, text=[text], rows=[["training time in this call", f"{training_seconds:.0f} s"]])


def _close() -> None:
    import matplotlib.pyplot as plt

    plt.close("all")
