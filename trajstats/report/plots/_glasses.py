"""Plots of reference glasses: correlation, response, fluctuation-dissipation, energy, and runs beside glasses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from trajstats.data._inputs import GLASS, accepts
from trajstats.report.plots._style import CATEGORIES, axes, clock_label, ordered_colours
from trajstats.theory.glasses.statics import dynamic_temperature, pspin_statics

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LINES = 6


@accepts(GLASS)
def plot_glass_correlation(solution: xr.Dataset, *, quantity: str = "C", ax: Axes | None = None) -> Axes:
    """Draw the correlation or the response of a solved glass against the lag, one colour for each waiting time.

    Parameters
    ----------
    solution : xarray.Dataset
        What `cugliandolo_kurchan` returned.
    quantity : {"C", "R", "chi"}
        Correlation, response or integrated response.
    ax : matplotlib.axes.Axes, optional
        Where to draw.

    Returns
    -------
    matplotlib.axes.Axes
        With the plateau of the infinite time limit as a dashed line below T_d.
    """
    ax = axes(ax)
    curves = solution[f"{quantity}_aging"]
    waiting = _chosen(curves["waiting_time"].values, curves["waiting_time"].values[-1] / 10)
    for t_w, colour in zip(waiting, ordered_colours(waiting), strict=True):
        line = curves.sel(waiting_time=t_w)
        line = line.where(line["lag"] > 0, drop=True)
        ax.plot(line["lag"], line, color=colour, lw=1.4, label=f"{t_w:.3g}")
    p, T = int(solution.attrs["p"]), float(solution.attrs["T"])
    if quantity == "C" and dynamic_temperature(p) > T:
        q = pspin_statics(p, T)["plateau"].item()
        ax.axhline(q, color="0.4", ls="--", lw=1, label=f"plateau $q$ = {q:.3f}")
    label = {"C": "correlation $C(t_w+t,t_w)$", "R": "response $R(t_w+t,t_w)$", "chi": r"integrated response $\chi$"}
    ax.set(xscale="log", xlabel="lag $t$ (inverse friction)", ylabel=label[quantity])
    if quantity == "R":
        ax.set_yscale("log")
    ax.legend(title="$t_w$", fontsize="small")
    ax.set_title(f"{p}-spin, $T$ = {T:g}", fontsize="medium")
    return ax


@accepts(GLASS)
def plot_fluctuation_dissipation(solution: xr.Dataset, *, ax: Axes | None = None) -> Axes:
    r"""Draw the integrated response against the correlation: slope :math:`-X/T`.

    Parameters
    ----------
    solution : xarray.Dataset
        What `cugliandolo_kurchan` returned.
    ax : matplotlib.axes.Axes, optional
        Where to draw.

    Returns
    -------
    matplotlib.axes.Axes
        One curve for each last time t, with t' running along it; dashed, what equilibrium gives; dotted, the limit of
        infinite times.
    """
    ax = axes(ax)
    times = _chosen(solution["time"].values, solution["time"].values[-1])
    for t, colour in zip(times, ordered_colours(times), strict=True):
        row = solution.sel(time=t)
        C, chi = _parametric(solution, row, t)
        ax.plot(C, chi, "-", color=colour, lw=1.4, label=f"{t:.3g}")
    p, T = int(solution.attrs["p"]), float(solution.attrs["T"])
    top = float(np.nanmax(solution["chi"]))
    limit = pspin_statics(p, T)
    q, effective = limit["plateau"].item(), limit["effective_temperature"].item()
    if T > 0:
        C = np.linspace(0, 1, 50)
        ax.plot(C, (1 - C) / T, "--", color="0.4", lw=1, label="equilibrium, slope $-1/T$")
    if q > 0 and np.isfinite(effective):
        start = (1 - q) / T if T > 0 else 1 / np.sqrt(p * (p - 1) / 2)
        ax.plot([q, 0], [start, start + q / effective], ":", color="k", lw=1.4, label=r"limit, slope $-X/T$")
    ax.set(
        xlim=(0, 1), ylim=(0, 1.25 * top), xlabel="correlation $C(t,t')$", ylabel=r"integrated response $\chi(t,t')$"
    )
    ax.legend(title="$t$", fontsize="small")
    ax.set_title(f"{p}-spin, $T$ = {T:g}", fontsize="medium")
    return ax


@accepts(GLASS)
def plot_glass_energy(solution: xr.Dataset, *, ax: Axes | None = None) -> Axes:
    """Draw how far the energy of a solved glass is from its limit, against time, with its estimated error.

    Parameters
    ----------
    solution : xarray.Dataset
        What `cugliandolo_kurchan` returned.
    ax : matplotlib.axes.Axes, optional
        Where to draw.

    Returns
    -------
    matplotlib.axes.Axes
        Logarithmic on both axes; dotted, the slope -2/3.
    """
    ax = axes(ax)
    p, T = int(solution.attrs["p"]), float(solution.attrs["T"])
    limit = pspin_statics(p, T)["energy"].item()
    shown = solution.where(solution["time"] > 0, drop=True)
    time, gap = shown["time"].values, (shown["energy"] - limit).values
    ax.plot(time, gap, color=CATEGORIES[0], lw=1.5, label="solution")
    if "energy_error" in shown:
        error = shown["energy_error"].values
        ax.fill_between(time, np.maximum(gap - error, 1e-12), gap + error, color=CATEGORIES[0], alpha=0.3, lw=0)
    late = time > 1
    if late.sum() > 2:
        guide = gap[-1] * (time[late] / time[-1]) ** (-2 / 3)
        ax.plot(time[late], guide, ":", color="0.4", label=r"$\propto t^{-2/3}$")
    ax.set(xscale="log", yscale="log", xlabel="time $t$ (inverse friction)", ylabel="$e(t)-e_\\infty$ per spin")
    ax.legend(fontsize="small")
    ax.set_title(f"{p}-spin, $T$ = {T:g}", fontsize="medium")
    return ax


def plot_glass_comparison(comparison: xr.Dataset) -> Any:
    r"""Draw runs and glasses side by side: MSD against lag above, the same against :math:`t/t_w^\mu` below.

    Parameters
    ----------
    comparison : xarray.Dataset
        What `compare_aging` returned.

    Returns
    -------
    matplotlib.figure.Figure
        One column for each system; the title gives mu with its interval and whether there is a plateau, the lower
        panel the collapse score with its error.
    """
    import matplotlib.pyplot as plt

    names = comparison["system"].values
    figure = plt.figure(figsize=(3.3 * len(names), 5.6), layout="constrained")
    panels = figure.subplots(2, len(names), squeeze=False)
    for column, name in enumerate(names):
        one = comparison.sel(system=name)
        waiting, lag, msd = (one[f"curve_{k}"].values for k in ("waiting_time", "lag", "msd"))
        levels = _chosen(np.unique(waiting[np.isfinite(waiting)]), np.inf)
        mu = one["exponent"].item()
        for t_w, colour in zip(levels, ordered_colours(levels), strict=True):
            mine = np.flatnonzero(waiting == t_w)
            mine = mine[np.argsort(lag[mine])]
            panels[0, column].plot(lag[mine], msd[mine], color=colour, lw=1.2, label=f"{t_w:.3g}")
            if np.isfinite(mu):
                panels[1, column].plot(lag[mine] / t_w**mu, msd[mine], color=colour, lw=1.2)
        low, high = one["exponent_interval"].values
        plateau = "plateau" if bool(one["plateau"]) else "no plateau"
        panels[0, column].set_title(f"{name}\n$\\mu$ = {mu:.2f} [{low:.2f}, {high:.2f}], {plateau}", fontsize="small")
        score, error = (one[k].sel(variable="scaled").item() for k in ("collapse", "collapse_stderr"))
        panels[1, column].set_title(rf"spread of $\ln\Delta$: {score:.2f} $\pm$ {error:.2f}", fontsize="small")
        clock = str(one["clock"].item()) if "clock" in one else "own clock"
        panels[0, column].set_xlabel(clock_label("lag $t$", clock))
        panels[1, column].set_xlabel(r"$t/t_w^\mu$")
        # Rising curves leave the lower right corner free, most of all where they are scaled.
        panels[1, column].legend(
            *panels[0, column].get_legend_handles_labels(),
            title="$t_w$", fontsize="x-small", title_fontsize="x-small", loc="lower right",
        )  # fmt: skip
        for row in (0, 1):
            panels[row, column].set(xscale="log", yscale="log")
    for row in (0, 1):
        panels[row, 0].set_ylabel(r"MSD $\Delta$ (squared weight or spin)")
    return figure


def _chosen(values: np.ndarray, last: float) -> np.ndarray:
    usable = values[(values >= 1) & (values <= last)] if np.isfinite(last) else values
    wanted = np.geomspace(usable[0], usable[-1], _LINES)
    return np.unique(usable[np.abs(np.log(usable)[:, None] - np.log(wanted)).argmin(axis=0)])


def _parametric(solution: xr.Dataset, row: xr.Dataset, t: float) -> tuple[np.ndarray, np.ndarray]:
    # Points (t, t'): earlier output times, and the short lags that end within 3 % of t, which fill in C near 1.
    earlier = row["time_prime"].values <= t
    C, chi = row["C"].values[earlier], row["chi"].values[earlier]
    near = solution["waiting_time"].values[np.abs(solution["waiting_time"].values - t).argmin()]
    short = solution[["C_aging", "chi_aging"]].sel(waiting_time=near)
    use = short["lag"].values <= 0.03 * t
    C = np.concatenate([C, short["C_aging"].values[use]])
    chi = np.concatenate([chi, short["chi_aging"].values[use]])
    keep = np.isfinite(C) & np.isfinite(chi)
    order = np.argsort(C[keep])
    return C[keep][order], chi[keep][order]
