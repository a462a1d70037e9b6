"""Colours and axis helpers shared by all plots: colour-blind-safe, labelled with units."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from trajstats.data._clocks import PROPER_TIME, clock_of
from trajstats.data.schema import CLOCK_UNITS, LAG

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe & Ito's eight colours, told apart with any common colour vision.
CATEGORIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")


def axes(ax: Axes | None, *, size: tuple[float, float] = (5.2, 3.8)) -> Axes:
    """Give the Axes to draw on, a new figure's if none was given."""
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=size, layout="constrained")[1]


def ordered_colours(values: Any) -> list[tuple[float, ...]]:
    """Give one viridis colour per value, by rank (the lightest yellow is left out: it vanishes on white)."""
    import matplotlib as mpl

    rank = np.argsort(np.argsort(np.asarray(values)))
    scale = max(len(rank) - 1, 1)
    return [tuple(mpl.colormaps["viridis"](0.9 * r / scale)) for r in rank]


def clock_label(symbol: str, clock: str, units: str = "") -> str:
    """Word an axis of time with its unit."""
    unit, name = CLOCK_UNITS.get(clock, units), plain(clock.replace("_", " "))
    if clock == PROPER_TIME or (clock not in CLOCK_UNITS and unit not in ("", clock)):
        return f"{symbol} ({name}: {plain(unit)})"
    return f"{symbol} ({unit or name})"


def lag_label(result: xr.Dataset | xr.DataArray) -> str:
    """Word the axis of lags of a two-time result, with its clock and unit."""
    return clock_label("lag $t$", clock_of(result), str(result[LAG].attrs.get("units", "")))


def plain(name: str) -> str:
    """Keep a name that others chose from being read as mathematics."""
    return "".join(c if c.isprintable() and c.isascii() else "?" for c in name).replace("$", r"\$")
