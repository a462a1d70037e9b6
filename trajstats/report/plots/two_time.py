"""Plots of two-time observables and of the loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from trajstats.data.schema import LAG, WAITING_TIME, clock_values
from trajstats.report.plots.style import CATEGORIES, axes, clock_label, ordered_colours

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_loss(run: xr.Dataset, /, *, clock: str = "step", ax: Axes | None = None) -> Axes:
    """Draw the recorded loss of every replica against time, on log axes.

    Parameters
    ----------
    run : xarray.Dataset
        A trajectory with ``loss`` (replica, step).
    clock : str
        Coordinate along `step`.
    ax : matplotlib.axes.Axes, optional
        Where to draw.

    Returns
    -------
    matplotlib.axes.Axes
    """
    ax = axes(ax)
    times = clock_values(run, clock)
    for k, replica in enumerate(run["replica"].values):
        ax.plot(times, run["loss"].values[k], color=CATEGORIES[k % len(CATEGORIES)], lw=1.2, label=f"replica {replica}")
    ax.set(xscale="symlog", yscale="log", xlabel=clock_label("time", clock), ylabel="training loss")
    ax.legend(frameon=False, fontsize="small")
    return ax


def plot_msd(delta: xr.DataArray, /, *, ax: Axes | None = None) -> Axes:
    """Draw the MSD of all weights against lag, one curve per waiting time, with a band over replicas.

    Parameters
    ----------
    delta : DataArray, (replica, pair, layer) or (replica, pair)
        What `msd` gave.
    ax : matplotlib.axes.Axes, optional
        Where to draw.

    Returns
    -------
    matplotlib.axes.Axes
        Median over replicas; the band spans all of them.
    """
    ax = axes(ax)
    total = delta.weighted(delta["n_parameters"]).mean("layer") if "layer" in delta.dims else delta
    waits = np.unique(delta[WAITING_TIME].values)
    for wait, colour in zip(waits, ordered_colours(waits), strict=True):
        here = total.isel(pair=np.flatnonzero(delta[WAITING_TIME].values == wait)).sortby(LAG)
        ax.plot(here[LAG], here.median("replica"), "o-", ms=2.5, lw=1, color=colour, label=f"{wait:g}")
        if here.sizes["replica"] > 1:
            ax.fill_between(here[LAG], here.min("replica"), here.max("replica"), color=colour, alpha=0.25, lw=0)
    ax.set(xscale="log", yscale="log", xlabel=clock_label("lag $t$", delta.attrs.get("clock", "step")))
    ax.set_ylabel(r"mean square displacement $\Delta(t_w, t_w+t)$ (weight$^2$)")
    ax.legend(title="waiting time $t_w$", frameon=False, fontsize="x-small", ncol=2)
    return ax
