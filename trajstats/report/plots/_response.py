"""Plots of the training response: its decay and kernel, the size of the feature space, and fragility."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from trajstats.data._inputs import SEPARATION, accepts
from trajstats.data.schema import LAYER, REPLICA, STEP
from trajstats.report.plots._style import CATEGORIES, axes, clock_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@accepts(SEPARATION)
def plot_response_decay(separation: xr.Dataset, *, label: str = "", colour: int = 0, ax: Axes | None = None) -> Axes:
    """Draw the decay A(t) of the response relative to its start, one line for each replica.

    Parameters
    ----------
    separation : xarray.Dataset
        What `separate_response` returned.
    label : str
        For the legend; the unexplained share is added.
    colour : int
        Which of the palette's colours.
    ax : matplotlib.axes.Axes, optional
        Where to draw; call again on the same Axes to compare runs.

    Returns
    -------
    matplotlib.axes.Axes
    """
    ax = axes(ax)
    whole = separation.sel(stage="whole")
    share = float(whole["unexplained"].mean())
    time = np.maximum(separation[STEP].values, 0.5)
    for r in range(separation.sizes[REPLICA]):
        decay = whole["decay"].isel({REPLICA: r})
        name = f"{label} (unexplained {100 * share:.1f} %)" if r == 0 else None
        ax.plot(time, decay / decay.isel({STEP: 0}), "o-", ms=2.6, lw=1.2, color=CATEGORIES[colour], label=name)
    ax.set(xscale="log", yscale="log", xlabel=clock_label("time", STEP), ylabel="decay $A(t)/A(0)$")
    ax.legend(fontsize="small")
    return ax


def plot_feature_space(
    size: xr.Dataset, *, measure: str = "participation_ratio", label: str = "", colour: int = 0, ax: Axes | None = None
) -> Axes:
    """Draw the size of the feature space against time, one line style for each layer, with its interval.

    Parameters
    ----------
    size : xarray.Dataset
        What `feature_space` returned.
    measure : str
        ``"participation_ratio"``, ``"stable_rank"`` or ``"effective_dimension"``.
    label : str
        For the legend.
    colour : int
        Which of the palette's colours.
    ax : matplotlib.axes.Axes, optional
        Where to draw.

    Returns
    -------
    matplotlib.axes.Axes
        The first replica, its interval over the draw of inputs as a band.
    """
    ax = axes(ax)
    time = np.maximum(size[STEP].values, 0.5)
    one = size.isel({REPLICA: 0})
    for k, layer in enumerate(size[LAYER].values):
        here = one.sel({LAYER: layer})
        style = ("-", "--", ":", "-.")[k % 4]
        name = f"{label} {layer}".strip()
        ax.plot(time, here[measure], style, color=CATEGORIES[colour], lw=1.5, label=name)
        bounds = here[f"{measure}_interval"]
        ax.fill_between(time, bounds[:, 0], bounds[:, 1], color=CATEGORIES[colour], alpha=0.2, lw=0)
    ax.set(xscale="log", xlabel=clock_label("time", STEP), ylabel=f"{measure.replace('_', ' ')} (directions)")
    ax.legend(fontsize="small")
    return ax


def plot_fragility(
    found: xr.Dataset, *, attack: str = "pgd", label: str = "", colour: int = 0, ax: Axes | None = None
) -> Axes:
    """Draw the median over inputs of the smallest flipping perturbation, with the band of the quartiles.

    Parameters
    ----------
    found : xarray.Dataset
        What `fragility` returned. Inputs that never flip count as above every perturbation.
    attack : {"pgd", "fgsm"}
        Which attack.
    label : str
        For the legend.
    colour : int
        Which of the palette's colours.
    ax : matplotlib.axes.Axes, optional
        Where to draw.

    Returns
    -------
    matplotlib.axes.Axes
        The first replica; a quantile that is censored is not drawn.
    """
    ax = axes(ax)
    values = np.where(np.isnan(found[attack].values[0]), np.inf, found[attack].values[0])
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75], axis=1, method="nearest")
    time = np.maximum(found[STEP].values, 0.5)
    shown = np.where(np.isfinite(middle), middle, np.nan)
    ax.plot(time, shown, "o-", ms=2.6, color=CATEGORIES[colour], lw=1.5, label=label or attack)
    ax.fill_between(time, low, np.where(np.isfinite(high), high, np.nan), color=CATEGORIES[colour], alpha=0.2, lw=0)
    ax.set(
        xscale="log", yscale="log", xlabel=clock_label("time", STEP), ylabel=f"smallest flip, {attack} (input units)"
    )
    ax.legend(fontsize="small")
    return ax
