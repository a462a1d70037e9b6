"""One call from a stored run to a page that anyone can read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from tqdm.auto import tqdm

from trajstats.data._clocks import check_clock, choose_clock, unit_of
from trajstats.data.schedules import is_saved
from trajstats.data.schema import LAYER, REPLICA, STEP, check_trajectory, clock_values
from trajstats.data.store.open import open_trajectory
from trajstats.errors import ArgumentError, StoreError, TrajstatsError
from trajstats.estimators._checkpoints import match_network
from trajstats.estimators.curvature.hessian import hessian_spectrum
from trajstats.network import Network
from trajstats.report.page._measured import Measured, measure
from trajstats.report.page._secrets import without_secrets
from trajstats.report.page._sections import (
    STYLE,
    aging_section,
    displacement_section,
    layer_section,
    loss_section,
    numbers_section,
    provenance_section,
    spectrum_section,
)
from trajstats.report.page.html import Section, write_report

SPECTRUM_STEPS = 3


def analyze(
    source: Any,
    out: str | Path,
    /,
    *,
    network: Network | None = None,
    rng: int | np.random.Generator = 0,
    waiting_time: Sequence[float] | None = None,
    clock: str | None = None,
    progress: bool = True,
    title: str | None = None,
) -> Path:
    """Analyse a run and write one self-contained page: loss, displacements, aging, layers, curvature, provenance.

    Every section carries the Python that redoes its figures and numbers.

    Parameters
    ----------
    source : path, URL, list of them, glob pattern, or xarray.Dataset
        What `open_trajectory` takes, or what it gave: runs of one architecture, joined along `replica`. Weights or
        sketches.
    out : path
        The page to write; an older one is replaced when the new one is complete.
    network : Network, optional
        With it, the spectrum of its curvature at three checkpoints of the first replica is shown.
    rng : int or numpy.random.Generator
        Seed of fits and spectra; a generator gives one integer, which the page states.
    waiting_time : sequence of float, optional
        Saved times to measure from, on `clock`; by default up to eight, even in the logarithm, that have most lags.
    clock : str, optional
        Clock of all times. If not given: ``"step"``, or ``"proper_time"`` where that is stored and is not proportional
        to the step; the page says so and shows mu on both. Then `waiting_time` could mean either, and needs `clock`.
    progress : bool
        Show a progress bar.
    title : str, optional
        Heading of the page.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    ArgumentError
        If a waiting time was not saved or is not positive, or it could be on either of two clocks.
    SchemaError
        If the layers of the network and of the run differ by name or shape.
    StoreError
        If the folder of the page does not exist, or `source` cannot be opened.

    Notes
    -----
    A part that cannot be measured says why, and the page is made all the same: no loss, one replica, too few
    checkpoints, data that support no fit. Attributes named like secrets, passwords in URLs and tokens are not shown.

    Cost: one pass over the checkpoints used, about 4 s for the fit of the whole network and 2 s for each of the eight
    largest layers, and the spectra. Bias: the waiting times of the fit are chosen by the loss alone (from t1 of
    `loss_regimes` on), never by the displacements.

    Examples
    --------
    >>> import tempfile
    >>> from trajstats.data.synthetic.processes import scaled_brownian
    >>> run = scaled_brownian(np.unique(np.geomspace(1, 1000, 30).astype(int)), rng=0, exponent=0.5)
    >>> page = analyze(run, tempfile.mkdtemp() + "/report.html", progress=False)
    >>> "Aging exponent" in page.read_text()
    True
    """
    out = Path(out)
    if not out.parent.is_dir():
        msg = f"folder {out.parent} does not exist; create it first"
        raise StoreError(msg)
    seed = int(rng) if isinstance(rng, int | np.integer) else int(np.random.default_rng(rng).integers(2**31))
    run, opened, name = _open(source)
    _check(run, network, waiting_time, clock)
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    open_before = set(plt.get_fignums())
    with mpl.rc_context({"backend": "agg", **STYLE}), tqdm(total=8, desc="analyse", disable=not progress) as bar:

        def done(part: str) -> None:
            bar.set_postfix_str(part)
            bar.update()

        try:
            found = measure(run, source=opened, seed=seed, waiting_time=waiting_time, clock=clock, done=done)
            done("curvature")
            curvature = [] if network is None else [_curvature(network, found)]
            done("page")
            sections = [
                numbers_section([found]),
                loss_section([found]),
                displacement_section([found]),
                aging_section([found]),
                layer_section([found]),
                *curvature,
                provenance_section([found]),
            ]
            page = write_report(out, title=title or f"Does {name} age?", lead=_lead(found), sections=sections)
        finally:
            for number in set(plt.get_fignums()) - open_before:
                plt.close(number)
        bar.update(bar.total - bar.n)
    return page


def _open(source: Any) -> tuple[xr.Dataset, str, str]:
    # the trajectory, Python that opens it, and a name for the heading
    if isinstance(source, xr.Dataset):
        run = check_trajectory(source, sketched=True)
        return run, f"...  # the trajectory that was analysed, uid {_one_line(run.attrs.get('uid'))}", "this run"
    run = open_trajectory(source)
    several = isinstance(source, list | tuple)
    paths = [str(path) for path in source] if several else [str(source)]
    if any(without_secrets(path) != path and "://" in path for path in paths):
        paths = [without_secrets(path) for path in paths]
    names = [without_secrets(path).rstrip("/").rpartition("/")[2] for path in paths]
    name = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
    return run, f"ts.open_trajectory({paths if several else paths[0]!r})", name


def _one_line(value: Any) -> str:
    return "".join(c for c in str(value) if c.isalnum() or c in "-_")


def _check(run: xr.Dataset, network: Network | None, waiting_time: Sequence[float] | None, clock: str | None) -> None:
    if network is not None and "weights" not in run:
        msg = "the run holds sketches, and a spectrum needs weights; leave network out, or record the weights"
        raise ArgumentError(msg)
    if network is not None:
        match_network(network, run)
    chosen = choose_clock(run, clock, waiting_time=waiting_time)
    saved = clock_values(run, chosen)
    check_clock(saved, run[STEP].values, chosen)
    if waiting_time is not None and (missing := [t for t in waiting_time if t <= 0 or not is_saved(saved, t, chosen)]):
        msg = (
            f"waiting times {missing[:5]} were not saved or are not positive; saved times ({unit_of(chosen)}): "
            f"{saved[:8].tolist()}..."
        )
        raise ArgumentError(msg)


def _curvature(network: Network, found: Measured) -> Section:
    first = found.run.isel({REPLICA: [0]})
    saved = found.run[STEP].values
    rows = np.unique(np.rint(np.geomspace(1, saved.size, SPECTRUM_STEPS)).astype(int)) - 1
    if saved.size > SPECTRUM_STEPS:  # early, middle and late in the logarithm of time
        wanted = np.geomspace(max(saved[saved > 0][0], 1), saved[-1], SPECTRUM_STEPS)
        rows = np.unique([int(np.argmin(np.abs(saved - t))) for t in wanted])
    steps = saved[rows].tolist()
    code = (
        "network = ...  # the network that was given\n"
        f"spectrum = ts.hessian_spectrum(network, run.isel(replica=[0]), steps={steps}, rng={found.seed}).compute()"
    )
    try:
        spectrum = hessian_spectrum(network, first, steps=steps, rng=found.seed).compute()
    except TrajstatsError as error:
        return Section("Curvature", text=[f"The spectrum was refused: {error}"])
    label = str(found.run[REPLICA].values[0])
    return spectrum_section(spectrum, code=code, text=f"Replica {label}, loss over all data of the network given.")


def _lead(found: Measured) -> str:
    run = found.run
    n = run.sizes[REPLICA]
    return (
        f"{'One run' if n == 1 else f'{n} runs'} of a network with {int(run['layer_stop'].values[-1]):,} weights in "
        f"{run.sizes[LAYER]:,} layer{'s' if run.sizes[LAYER] > 1 else ''}, {run.sizes[STEP]:,} checkpoints. Do its "
        "weights age, and with which exponent?"
    )
