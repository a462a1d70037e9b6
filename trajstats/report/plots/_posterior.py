"""Marginal posteriors of one coefficient, several fits side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from trajstats.data._inputs import FITS, accepts
from trajstats.errors import ArgumentError, unknown_name_message
from trajstats.inference.results import FitResult
from trajstats.report.plots._style import CATEGORIES, axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@accepts(FITS)
def plot_posterior(fits: Mapping[str, FitResult], /, coefficient: str = "mu", *, ax: Axes | None = None) -> Axes:
    """Draw the marginal posterior of one coefficient for each fit, with median and 95 % interval above it.

    Parameters
    ----------
    fits : mapping label -> FitResult
        Fits that share the coefficient.
    coefficient : str
        Its name.
    ax : matplotlib.axes.Axes, optional
        Where to draw.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ArgumentError
        If a fit has no such coefficient, or there is no fit.
    """
    if not fits:
        msg = "no fit given; pass {label: fit}"
        raise ArgumentError(msg)
    for fit in fits.values():
        if coefficient not in fit.posterior:
            raise ArgumentError(unknown_name_message("coefficient", coefficient, [str(name) for name in fit.posterior]))
    ax = axes(ax)
    top = 0.0
    for (label, fit), colour in zip(fits.items(), CATEGORIES * len(fits), strict=False):
        draws = np.ravel(fit.posterior[coefficient].values)
        height, _, _ = ax.hist(
            draws, bins=60, density=True, histtype="stepfilled", color=colour, alpha=0.35, label=label
        )
        top = max(top, float(np.max(height)))
    for row, (fit, colour) in enumerate(zip(fits.values(), CATEGORIES * len(fits), strict=False)):
        low, middle, high = np.quantile(fit.posterior[coefficient].values, [0.025, 0.5, 0.975])
        y = top * (1.1 + 0.08 * row)
        ax.errorbar(middle, y, xerr=[[middle - low], [high - middle]], fmt="o", color=colour, capsize=3, markersize=4)
    ax.set_xlabel(rf"$\{coefficient}$" if coefficient in ("mu", "nu", "beta") else coefficient)
    ax.set_ylabel("posterior density")
    ax.legend(frameon=False, fontsize="small")
    return ax
