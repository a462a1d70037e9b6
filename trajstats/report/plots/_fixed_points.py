"""Fixed points: their number against depth, the basins' shares, and a plane coloured by attractor."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from trajstats.data._inputs import CENSUS, SCAN, accepts
from trajstats.report.plots._style import CATEGORIES, axes, ordered_colours

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_BASINS = 20


@accepts(SCAN)
def plot_fixed_point_count(scan: xr.Dataset, *, law: str, scale: float, ax: Axes | None = None) -> Axes:
    """Draw Q(N, L) against depth for one weight law and scale, one line per width, with standard errors over nets.

    Parameters
    ----------
    scan : xarray.Dataset
        What `census_scan` gave.
    law : str
        The weight law.
    scale : float
        The scale g.
    ax : matplotlib.axes.Axes, optional
        Where to draw.

    Returns
    -------
    matplotlib.axes.Axes
    """
    ax = axes(ax)
    one = scan.sel(law=law, scale=scale)
    for width, colour in zip(scan["width"].values, ordered_colours(scan["width"].values), strict=True):
        q, error = one["Q"].sel(width=width), one["Q_stderr"].sel(width=width)
        ax.errorbar(scan["depth"], q, yerr=error, fmt="o-", ms=4, lw=1.2, capsize=2, color=colour, label=f"N = {width}")
    ax.set(xlabel="depth $L$ (layers)", ylabel="fixed points found $Q$ (count, mean over nets)", ylim=(0, None))
    ax.set_title(f"{law} weights, g = {scale:g}", fontsize=10)
    ax.legend(fontsize=8)
    return ax


@accepts(CENSUS)
def plot_basins(census: xr.Dataset, *, ax: Axes | None = None) -> Axes:
    """Draw basin shares of the 20 largest basins with their intervals; cycles hatched, and what did not converge last.

    Parameters
    ----------
    census : xarray.Dataset
        What `fixed_point_census` gave.
    ax : matplotlib.axes.Axes, optional
        Where to draw.

    Returns
    -------
    matplotlib.axes.Axes
    """
    ax = axes(ax)
    top = census.isel(attractor=slice(0, MOST_BASINS))
    share = top["share"].values
    error = np.abs(np.stack([share - top["share_low"].values, top["share_high"].values - share]))
    place = np.arange(share.size)
    cycle = top["period"].values > 1
    for chosen, hatch, label, colour in ((~cycle, "", "fixed point", 0), (cycle, "//", "cycle", 1)):
        if chosen.any():
            bars = (place[chosen], share[chosen])
            ax.bar(*bars, yerr=error[:, chosen], capsize=3, color=CATEGORIES[colour], hatch=hatch, label=label)
    lost = float((census["label"] < 0).mean())
    ax.bar([share.size], [lost], color="0.7", label="unconverged or diverged")
    names = [str(i) for i in place] + ["none"]
    ax.set_xticks(np.arange(share.size + 1), names)
    ax.set(xlabel="attractor (by falling share)", ylabel="share of starts (95 % interval)", ylim=(0, None))
    ax.legend(fontsize=8)
    return ax


def plot_attractor_slice(slice_: xr.Dataset, *, ax: Axes | None = None) -> Axes:
    """Colour a plane of starts by the attractor each one reaches; grey where it reaches none of the census.

    Parameters
    ----------
    slice_ : xarray.Dataset
        What `attractor_slice` gave.
    ax : matplotlib.axes.Axes, optional
        Where to draw.

    Returns
    -------
    matplotlib.axes.Axes
    """
    from matplotlib.colors import ListedColormap, to_rgba

    ax = axes(ax, size=(4.6, 4.2))
    label = slice_["label"].values
    known = np.unique(label[label >= 0])
    colours: list[tuple[float, ...]] = [to_rgba(CATEGORIES[i % len(CATEGORIES)]) for i in range(known.size)]
    if known.size > len(CATEGORIES):
        colours = ordered_colours(known)
    shown = np.searchsorted(known, label) + 1
    shown[label < 0] = 0
    palette = ListedColormap([to_rgba("0.75"), *colours])
    ax.pcolormesh(slice_["u"], slice_["v"], shown, cmap=palette, vmin=-0.5, vmax=known.size + 0.5, shading="nearest")
    for index, colour in zip(known[:8], colours, strict=False):
        ax.plot([], [], "s", color=colour, label=f"attractor {index}")
    if (label < 0).any():
        ax.plot([], [], "s", color="0.75", label="none of the census")
    ax.set(xlabel="$u$ (units of the first direction)", ylabel="$v$ (units of the second direction)", aspect="equal")
    ax.legend(fontsize=7, loc="upper right")
    return ax
