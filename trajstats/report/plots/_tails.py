"""Tails of weights: Hill plots, and the tail index along training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from trajstats.data._inputs import TAILS, accepts
from trajstats.report.plots._style import CATEGORIES, axes, clock_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_hill(hill: xr.Dataset | Mapping[str, xr.Dataset], *, ax: Axes | None = None) -> Axes:
    """Draw Hill's index against the number of order statistics, with one standard error.

    Parameters
    ----------
    hill : xarray.Dataset or mapping of label -> xarray.Dataset
        What `hill_plot` gave, one or several.
    ax : matplotlib.axes.Axes, optional
        Where to draw.

    Returns
    -------
    matplotlib.axes.Axes
    """
    ax = axes(ax)
    several = {"": hill} if isinstance(hill, xr.Dataset) else dict(hill)
    for colour, (label, one) in zip(CATEGORIES, several.items(), strict=False):
        index, error = one["index"], one["stderr"]
        ax.plot(one["k"], index, color=colour, lw=1.4, label=label or None)
        ax.fill_between(one["k"], index - error, index + error, color=colour, alpha=0.2, lw=0)
    ax.axhline(4.0, color="0.5", lw=0.8, ls=":")
    where = ax.get_yaxis_transform()
    ax.text(0.99, 4.0, "finite 4th moment above", transform=where, ha="right", va="bottom", fontsize=8)
    ax.set(xscale="log", ylim=(0, 12))
    ax.set(xlabel="order statistics used $k$ (count)", ylabel=r"tail index $\hat\mu(k)$ (dimensionless)")
    if several.keys() != {""}:
        ax.legend(fontsize=8)
    return ax


@accepts(TAILS)
def plot_tail_index(tails: xr.Dataset, *, quantity: str = "hill_index", ax: Axes | None = None) -> Axes:
    """Draw the tail index of each layer along training: mean over replicas, and its error.

    The error is that of the mean over replicas where there are several, the fit's own otherwise.

    Parameters
    ----------
    tails : xarray.Dataset
        What `weight_tails` or `spectral_tails` gave.
    quantity : str
        ``"hill_index"`` or ``"alpha"``.
    ax : matplotlib.axes.Axes, optional
        Where to draw.

    Returns
    -------
    matplotlib.axes.Axes
    """
    ax = axes(ax)
    step = np.maximum(tails["step"].values, 0.5)
    replicas = tails.sizes["replica"]
    for colour, layer in zip(CATEGORIES, tails["layer"].values, strict=False):
        one = tails[quantity].sel(layer=layer)
        if not np.isfinite(one).any():
            continue  # a layer that could not be fitted; tails.reason says why
        own = tails["hill_stderr" if quantity == "hill_index" else "alpha_stderr"].sel(layer=layer)
        mean = one.mean("replica")
        error = one.std("replica", ddof=1) / np.sqrt(replicas) if replicas > 1 else own.isel(replica=0)
        ax.plot(step, mean, "o-", ms=3, color=colour, lw=1.2, label=str(layer))
        ax.fill_between(step, mean - error, mean + error, color=colour, alpha=0.2, lw=0)
    first = "; first point: 0" if tails["step"].values[0] == 0 else ""
    symbol = r"tail index $\hat\mu$" if quantity == "hill_index" else r"exponent $\hat\alpha$"
    ax.set(xscale="log", xlabel=clock_label("time $t$", "step") + first, ylabel=f"{symbol} (dimensionless)")
    ax.legend(fontsize=8)
    return ax
