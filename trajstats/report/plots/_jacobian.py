"""Jacobian spectra on logarithmic axes, with theory and the scatter of finite nets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from trajstats.data._inputs import ESD, accepts
from trajstats.report.plots._style import CATEGORIES, axes, ordered_colours

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@accepts(ESD)
def plot_jacobian_esd(esd: xr.Dataset, comparison: xr.Dataset | None = None, *, ax: Axes | None = None) -> Axes:
    """Draw the mean density of squared singular values at each step, with its band, and the law if it was compared.

    The vertical axis is x times the density: the share of singular values per unit of ln x.

    Parameters
    ----------
    esd : xarray.Dataset
        What `jacobian_esd` gave.
    comparison : xarray.Dataset, optional
        What `compare_to_theory` gave; its curve is drawn only where the theory applies or was forced.
    ax : matplotlib.axes.Axes, optional
        Where to draw.

    Returns
    -------
    matplotlib.axes.Axes
    """
    ax = axes(ax)
    x = esd["squared_singular_value"].values
    steps = esd["step"].values
    for step, colour in zip(steps, ordered_colours(steps), strict=True):
        one = esd.sel(step=step)
        ax.plot(x, x * one["density"], color=colour, lw=1.4, label=f"step {int(step)}", drawstyle="steps-mid")
        ax.fill_between(x, x * one["density_low"], x * one["density_high"], color=colour, alpha=0.2, lw=0, step="mid")
    if comparison is not None:
        note = "" if comparison.attrs.get("applies", 1) else " (outside its validity)"
        ax.plot(x, x * comparison["theory"], color=CATEGORIES[1], lw=1.6, ls="--", label=f"law of wide nets{note}")
        if "band_low" in comparison:
            low, high = x * comparison["band_low"], x * comparison["band_high"]
            ax.fill_between(
                x, low, high, color=CATEGORIES[1], alpha=0.2, lw=0, step="mid", label="finite nets of that law"
            )
    top = float(np.nanmax(x * esd["density_high"]))
    ax.set(xscale="log", yscale="log", ylim=(top * 1e-4, 2 * top))
    ax.set(xlabel="squared singular value $x=s^2$ (dimensionless)", ylabel=r"$x\,\rho(x)$ (share per unit of $\ln x$)")
    ax.legend(fontsize=8)
    return ax
