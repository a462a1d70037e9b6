"""Plots of fits: collapse, estimators, scans, corner, divergence, decay."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from trajstats.data.schema import LAG, WAITING_TIME
from trajstats.inference.models import scaled_time
from trajstats.inference.results import FitResult
from trajstats.report.plots.style import axes, ordered_colours

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_collapse(delta: xr.DataArray | None, fit: FitResult, *, ax: Axes | None = None) -> Axes:
    r"""Draw the MSD against the scaling variable, with the posterior band of the master curve and the residuals below.

    Parameters
    ----------
    delta : DataArray or None
        What was fitted (the points drawn are those of the fit; None draws the same).
    fit : FitResult
        Of `fit_subaging`.
    ax : Axes, optional
        Where to draw.

    Returns
    -------
    matplotlib.axes.Axes
        Main panel; the residuals are ``ax.child_axes[0]``.
    """
    ax = axes(ax, size=(5.4, 4.4))
    data, pivot, form = fit.data, float(fit.attrs["pivot"]), str(fit.attrs["form"])
    mu = float(fit.summary()["value"].sel(coefficient="mu"))
    stderr = float(fit.summary()["stderr"].sel(coefficient="mu"))
    wait, lag = data[WAITING_TIME].values, data[LAG].values
    u = np.exp(scaled_time(wait / pivot, lag / pivot, mu, form=form))
    low, middle, high = np.quantile(fit.predict().values.reshape(-1, u.size), [0.025, 0.5, 0.975], axis=0)
    below = ax.inset_axes((0, -0.42, 1, 0.3), sharex=ax)
    order = np.argsort(u)
    ax.fill_between(u[order], low[order], high[order], color="0.75", lw=0, label="95 % of the master curve", zorder=1)
    ax.plot(u[order], middle[order], color="0.25", lw=1, zorder=2)
    levels = np.unique(wait)
    for level, colour in zip(levels, ordered_colours(levels), strict=True):
        here = wait == level
        ax.plot(u[here], data["msd"].values[here], "o", ms=3.2, color=colour, label=f"$t_w$ = {level:.3g}", zorder=3)
        below.plot(u[here], data["residual"].values[here], "o", ms=2.6, color=colour)
    below.fill_between(u[order], np.log(low / middle)[order], np.log(high / middle)[order], color="0.75", lw=0)
    below.axhline(0, color="0.25", lw=0.8)
    below.set(xlabel=rf"scaled lag $u$ ({form} form, $\mu$ = {mu:.3f} $\pm$ {stderr:.3f}), pivot $t_w$ = {pivot:.3g}")
    below.set_ylabel(r"residual of $\ln\Delta$")
    ax.set(xscale="log", yscale="log", ylabel=r"mean square displacement $\Delta$ (squared weight)")
    ax.tick_params(labelbottom=False)
    ax.legend(fontsize=6.5, ncol=2, frameon=False)
    return ax
