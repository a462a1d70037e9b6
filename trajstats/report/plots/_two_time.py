"""Plots of two-time statistics: MSD curves, maps, van Hove functions, local exponents, layers, and the loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from trajstats.data._clocks import clock_of, default_clock
from trajstats.data._inputs import DELTA, MATRIX, SLOPES, TRAJECTORY, VAN_HOVE, accepts
from trajstats.data.schema import LAG, PAIR, REPLICA, STEP, STEP_PRIME, WAITING_TIME, clock_values
from trajstats.errors import ArgumentError
from trajstats.report.plots._style import CATEGORIES, axes, clock_label, lag_label, ordered_colours, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_LEGEND = 8
FLOOR = "rounding_floor"


@accepts(DELTA)
def plot_msd(delta: xr.DataArray, *, exponent: float | None = 1.0, ax: Axes | None = None) -> Axes:
    r"""Draw the MSD against the lag, one colour for each waiting time.

    Parameters
    ----------
    delta : xarray.DataArray, (replica, pair[, layer])
        `trajstats.msd`. Layers are put together, weighted by their parameters. With lags on a noise clock
        (``msd(..., clock=...)``) this is the plot against :math:`\int D`.
    exponent : float, optional
        Slope of a dotted guide line; none if None.
    ax : matplotlib.axes.Axes, optional
        Where to draw.

    Returns
    -------
    matplotlib.axes.Axes
        Median over replicas, and the band of their 16th to 84th percentile where there are several. A cross marks
        values below ten times the rounding floor of the store.
    """
    ax = axes(ax)
    total = _total(delta).transpose(REPLICA, PAIR)
    values, n_replicas = total.values, total.sizes[REPLICA]
    waiting, lag = delta[WAITING_TIME].values, delta[LAG].values
    levels = np.unique(waiting)
    floor = _total(delta[FLOOR]).transpose(REPLICA, PAIR).values if FLOOR in delta.coords else None
    for level, colour in zip(levels, ordered_colours(levels), strict=True):
        mine = np.flatnonzero((waiting == level) & (lag > 0))
        mine = mine[np.argsort(lag[mine])]
        low, middle, high = np.nanquantile(values[:, mine], [0.16, 0.5, 0.84], axis=0)
        ax.plot(lag[mine], middle, "o-", ms=2.6, lw=1, color=colour, label=f"{level:.3g}")
        if floor is not None:
            low_ones = mine[np.nanmedian(values[:, mine] / floor[:, mine], axis=0) < 10]
            ax.plot(lag[low_ones], np.nanmedian(values[:, low_ones], axis=0), "x", ms=5, color="0.3", zorder=4)
        if n_replicas > 1:
            ax.fill_between(lag[mine], low, high, color=colour, alpha=0.25, lw=0)
    shown = lag[lag > 0]
    if exponent is not None and (values[:, lag > 0] > 0).any():
        # The guide passes below the curves, so that it hides none.
        x = np.array([shown.min(), shown.max()], dtype=float)
        middle = np.nanmedian(values[:, lag > 0], axis=0)
        floor = 0.4 * np.nanmin(np.where(middle > 0, middle / shown**exponent, np.nan))
        ax.plot(x, floor * x**exponent, ":", color="0.4", lw=1.2, label=rf"$\propto t^{{{exponent:g}}}$")
    clock = clock_of(delta)
    ax.set(xscale="log", yscale="log", xlabel=lag_label(delta))
    ax.set_ylabel(r"MSD $\Delta(t_w,t_w+t)$ (squared weight)")
    _legend(ax, rf"$t_w$ ({clock})", levels.size)
    return ax


@accepts(DELTA)
def plot_msd_layers(delta: xr.DataArray) -> Any:
    """Draw small multiples of the MSD, one panel for each layer, kind or group, on common axes.

    Parameters
    ----------
    delta : xarray.DataArray, (replica, pair, layer)
        `trajstats.msd` with ``per="layer"``, ``"kind"`` or a mapping.

    Returns
    -------
    numpy.ndarray of matplotlib.axes.Axes
        One per layer.

    Raises
    ------
    ArgumentError
        If `delta` has no dim of layers.
    """
    dim = _group_dim(delta)
    if dim is None:
        msg = f"delta has dims {delta.dims}, no layers; measure with msd(..., per='layer')"
        raise ArgumentError(msg)
    import matplotlib.pyplot as plt

    names = [str(n) for n in delta[dim].values]
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure = plt.figure(figsize=(0.6 + 2.5 * columns, 0.7 + 2.1 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for k, panel in enumerate(panels.flat):
        if k >= len(names):
            panel.set_visible(False)
            continue
        plot_msd(delta.isel({dim: k}), exponent=None, ax=panel)
        panel.set_title(f"{plain(names[k])}  (M = {int(delta['n_parameters'][k])})", fontsize=8)
        panel.set(xlabel="", ylabel="")
        if legend := panel.get_legend():
            handles, texts = legend.legend_handles, [t.get_text() for t in legend.get_texts()]
            title = legend.get_title().get_text()
            legend.remove()
    figure.legend(handles, texts, title=title, fontsize=7, title_fontsize=7, frameon=False, loc="outside right upper")
    figure.supxlabel(lag_label(delta), fontsize=9)
    figure.supylabel(r"MSD $\Delta(t_w,t_w+t)$ (squared weight)", fontsize=9)
    return panels.ravel()[: len(names)]


@accepts(MATRIX)
def plot_two_time_map(result: xr.DataArray, *, clock: str | None = None, ax: Axes | None = None) -> Axes:
    """Draw an all-pairs observable as a map over both times, on logarithmic times.

    Parameters
    ----------
    result : xarray.DataArray, (replica, step, step_prime)
        A variable of `trajstats.all_pairs` with ``per="all"``, or one layer. Replicas are averaged.
    clock : str, optional
        Coordinate along `step` for both axes; if not given ``"step"``, or ``"proper_time"`` where that is stored and is
        not proportional to the step.
    ax : matplotlib.axes.Axes, optional
        Where to draw.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ArgumentError
        If `result` has other dims.
    """
    from matplotlib.colors import LogNorm

    mean = result.mean(REPLICA) if REPLICA in result.dims else result
    if set(mean.dims) != {STEP, STEP_PRIME}:
        msg = f"a map needs dims (step, step_prime), got {result.dims}; select one layer with .sel(layer=...)"
        raise ArgumentError(msg)
    clock = clock or default_clock(result)
    ax = axes(ax, size=(5.0, 4.2))
    values = mean.transpose(STEP, STEP_PRIME).values
    times = result[clock].values.astype(float)
    edges = _edges(times)
    positive = values[np.isfinite(values) & (values > 0)]
    wide = positive.size and positive.min() * 20 < positive.max() and not (values < 0).any()
    norm = LogNorm(positive.min(), positive.max()) if wide else None
    mesh = ax.pcolormesh(edges, edges, np.ma.masked_invalid(np.where(values > 0, values, np.nan) if wide else values),
                         cmap="cividis", norm=norm, rasterized=True)  # fmt: skip
    # Bins of a record that starts at 0 are drawn on a scale which is linear up to its first later time.
    first = times[times > 0].min() if (times > 0).any() else 1.0
    for axis in (ax.xaxis, ax.yaxis):
        axis.axes.set_xscale("symlog", linthresh=first) if axis is ax.xaxis else ax.set_yscale(
            "symlog", linthresh=first
        )
    ax.set(xlim=edges[[0, -1]], ylim=edges[[0, -1]], xlabel=clock_label("time $t$", clock))
    ax.set_ylabel(clock_label("time $t'$", clock))
    ax.set_aspect("equal")
    units = str(result.attrs.get("units", "1"))
    units = {"weight^2": "squared weight", "weight^4": "weight$^4$"}.get(units, units)
    label = str(result.attrs.get("long_name", result.name)) + ("" if units == "1" else f" ({units})")
    ax.figure.colorbar(mesh, ax=ax, label=label, fraction=0.046)
    return ax


@accepts(VAN_HOVE)
def plot_van_hove(histogram: xr.Dataset, *, ax: Axes | None = None) -> Axes:
    """Draw van Hove functions with the Gaussian of the same width and bands of the binomial scatter.

    Parameters
    ----------
    histogram : xarray.Dataset
        `trajstats.van_hove` with ``per="all"``, or one layer. Replicas are averaged.
    ax : matplotlib.axes.Axes, optional
        Where to draw.

    Returns
    -------
    matplotlib.axes.Axes
    """
    ax = axes(ax)
    density = histogram["density"].mean(REPLICA).transpose(PAIR, "bin").values
    count = histogram["count"].sum(REPLICA).transpose(PAIR, "bin").values
    x, colours = histogram["bin"].values, ordered_colours(np.arange(density.shape[0]))
    for k, colour in enumerate(colours):
        filled = count[k] > 0
        waiting, lag = float(histogram[WAITING_TIME][k]), float(histogram[LAG][k])
        ax.plot(x[filled], density[k, filled], "o", ms=2.8, color=colour, label=f"{waiting:.3g}, {lag:.3g}")
        relative = 1 / np.sqrt(count[k, filled])
        low, high = density[k, filled] * np.clip(1 - relative, 0.05, None), density[k, filled] * (1 + relative)
        ax.fill_between(x[filled], low, high, color=colour, alpha=0.25, lw=0)
    ax.plot(x, histogram["null"].values, "--", color="0.2", lw=1.2, label="Gaussian")
    logarithmic = (x > 0).all()
    smallest = density[density > 0].min() if (density > 0).any() else 1e-6
    ax.set(yscale="log", ylim=(0.3 * smallest, 3 * max(density.max(), 0.5)))
    ax.set_xscale("log" if logarithmic else "linear")
    ax.set_xlabel(str(histogram["bin"].attrs["long_name"]) + " (rms displacements)")
    ax.set_ylabel(r"density of single-weight displacements")
    _legend(ax, f"$t_w$, $t$ ({clock_of(histogram)})", density.shape[0])
    return ax


@accepts(SLOPES)
def plot_local_exponent(slopes: xr.Dataset, *, ax: Axes | None = None) -> Axes:
    r"""Draw local exponents against the lag, with error bands, and lines at drift (2) and diffusion (1).

    Parameters
    ----------
    slopes : xarray.Dataset, (pair)
        `trajstats.local_exponent` with ``per="all"``, or one layer.
    ax : matplotlib.axes.Axes, optional
        Where to draw.

    Returns
    -------
    matplotlib.axes.Axes
    """
    ax = axes(ax)
    waiting, lag = slopes[WAITING_TIME].values, slopes[LAG].values
    levels = np.unique(waiting)
    for level, colour in zip(levels, ordered_colours(levels), strict=True):
        mine = np.flatnonzero((waiting == level) & np.isfinite(slopes["exponent"].values))
        mine = mine[np.argsort(lag[mine])]
        y, error = slopes["exponent"].values[mine], slopes["stderr"].values[mine]
        ax.plot(lag[mine], y, "o-", ms=2.6, lw=1, color=colour, label=f"{level:.3g}")
        if np.isfinite(error).any():
            ax.fill_between(lag[mine], y - error, y + error, color=colour, alpha=0.25, lw=0)
    for value, name in ((1.0, "diffusion"), (2.0, "drift")):
        ax.axhline(value, color="0.5", lw=0.8, ls="--")
        ax.annotate(name, (0.995, value), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=7)
    clock = clock_of(slopes)
    ax.set(xscale="log", xlabel=lag_label(slopes), ylabel=r"local exponent $d\ln\Delta/d\ln t$")
    low, high = ax.get_ylim()
    ax.set_ylim(min(low, -0.1), max(high, 2.2))
    _legend(ax, rf"$t_w$ ({clock})", levels.size)
    return ax


@accepts(TRAJECTORY)
def plot_loss(
    trajectory: xr.Dataset,
    regimes: xr.Dataset | None = None,
    *,
    series: str = "loss",
    clock: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the loss along training, one line per replica, with the regimes if given.

    Parameters
    ----------
    trajectory : xarray.Dataset
        A trajectory with the series.
    regimes : xarray.Dataset, optional
        `trajstats.loss_regimes`: t1 and t2 are drawn as lines with their 95 % intervals as bands.
    series : str
        Name of the series.
    clock : str, optional
        Clock of the horizontal axis: if not given that of `regimes`, or else that of `time_pairs`.
    ax : matplotlib.axes.Axes, optional
        Where to draw.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ArgumentError
        If `regimes` are on another clock than `clock`.
    """
    own = default_clock(trajectory) if regimes is None else clock_of(regimes)
    if regimes is not None and clock is not None and clock != own:
        msg = f"clock={clock!r}, but the regimes are on {own!r}; give loss_regimes(..., clock={clock!r})"
        raise ArgumentError(msg)
    clock = clock or own
    ax = axes(ax)
    times = clock_values(trajectory, clock).astype(float)
    values = trajectory[series].transpose(REPLICA, STEP).values
    later = times > 0
    for k, row in enumerate(values):
        ax.plot(
            times[later], row[later], lw=1, color=CATEGORIES[k % 7], label=f"replica {trajectory[REPLICA].values[k]}"
        )
    if regimes is not None:
        for name, colour in (("t1", "0.25"), ("t2", "0.55")):
            middle = regimes[name].median().item()
            if np.isfinite(middle):
                ax.axvline(middle, color=colour, lw=1.2, ls="--", label=f"$t_{name[1]}$ = {middle:.3g}")
                ax.axvspan(float(regimes[f"{name}_low"].min()), float(regimes[f"{name}_high"].max()),
                           color=colour, alpha=0.15, lw=0)  # fmt: skip
    finite = values[:, later][np.isfinite(values[:, later])]
    decades = finite.size and finite.min() > 0 and finite.max() > 20 * finite.min()
    ax.set(xscale="log", yscale="log" if decades else "linear", xlabel=clock_label("time $t$", clock), ylabel=series)
    _legend(ax, None, values.shape[0] + 2)
    return ax


def _group_dim(delta: xr.DataArray) -> str | None:
    return next((str(d) for d in delta.dims if d not in {REPLICA, PAIR, "block"}), None)


def _total(delta: xr.DataArray) -> xr.DataArray:
    dims = [d for d in (_group_dim(delta), "block") if d is not None and d in delta.dims]
    total = delta.weighted(delta["n_parameters"]).mean(dims) if dims else delta
    return total if REPLICA in total.dims else total.expand_dims(REPLICA)


def _edges(times: np.ndarray) -> np.ndarray:
    middle = np.where(times[:-1] > 0, np.sqrt(np.abs(times[:-1] * times[1:])), times[1:] / 2)
    return np.concatenate([[times[0]], middle, [times[-1]]])


def _legend(ax: Axes, title: str | None, n: int) -> None:
    handles, labels = ax.get_legend_handles_labels()
    if n > MAX_LEGEND:
        # Ends and a few between; the guide lines come last and stay.
        fixed = [k for k, label in enumerate(labels) if not label[:1].isdigit()]
        free = [k for k in range(len(labels)) if k not in fixed]
        keep = (
            sorted({free[i] for i in np.linspace(0, len(free) - 1, 6).round().astype(int)} | set(fixed))
            if free
            else fixed
        )
        handles, labels = [handles[k] for k in keep], [labels[k] for k in keep]
    ax.legend(handles, labels, title=title, fontsize=7, title_fontsize=7, frameon=False)
