"""Plots of curvature spectra."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from trajstats.estimators.spectrum import spectral_density
from trajstats.report.plots.style import axes, ordered_colours

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_spectrum(spectrum: xr.Dataset, /, *, replica: int = 0, ax: Axes | None = None, **density: Any) -> Axes:
    """Draw the density of a curvature spectrum at each checkpoint, with its band, on symlog axes.

    Parameters
    ----------
    spectrum : xarray.Dataset
        What `hessian_spectrum` or `spectral_density` gave.
    replica : int
        Which replica, by position.
    ax : matplotlib.axes.Axes, optional
        Where to draw.
    **density
        Options of `spectral_density`, where `spectrum` is not a density yet.

    Returns
    -------
    matplotlib.axes.Axes
    """
    rho = spectrum if "density" in spectrum else spectral_density(spectrum, **density)
    ax = axes(ax)
    rho = rho.isel(replica=replica)
    for step, colour in zip(rho["step"].values, ordered_colours(rho["step"].values), strict=True):
        one = rho.sel(step=step)
        ax.fill_between(one["eigenvalue"], one["low"], one["high"], color=colour, alpha=0.3, linewidth=0)
        ax.plot(one["eigenvalue"], one["density"], color=colour, linewidth=1.3, label=f"{int(step):,}")
    if rho.attrs["scale"] == "symlog":
        ax.set_xscale("asinh", linear_width=rho.attrs["linear_below"])
    top = float(rho["density"].max())
    ax.set_yscale("log")
    floor = max(top * 1e-8, float(np.nanmin(rho["density"].where(rho["density"] > 0))))
    ax.set_ylim(floor, 3 * top)
    kind = {"hessian": "Hessian", "gauss_newton": "Gauss-Newton", "fisher": "Fisher"}[rho.attrs["kind"]]
    ax.set_xlabel(rf"eigenvalue $\lambda$ of the {kind} (loss / weight$^2$)")
    ax.set_ylabel(r"density $\rho(\lambda)$ (weight$^2$ / loss)")
    ax.legend(title="step", fontsize="small")
    return ax
