"""Plots of fits: collapse, estimators, scans, corner, divergence, decay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from trajstats.data._clocks import unit_of
from trajstats.data._inputs import FIT, accepts
from trajstats.data.schema import LAG, STEP, WAITING_TIME
from trajstats.inference.aging.curves.master_curves import scaled_time
from trajstats.inference.results import FitResult
from trajstats.report.plots._style import CATEGORIES, axes, clock_label, ordered_colours

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BAND = "0.78"


def _residual_panel(ax: Axes) -> Axes:
    # make room below an Axes for its residuals, whatever figure it is in
    spec = ax.get_subplotspec()
    if spec is None:
        below = ax.inset_axes((0.0, -0.4, 1.0, 0.34), sharex=ax)
    else:
        rows = spec.subgridspec(2, 1, height_ratios=(3, 1), hspace=0.05)
        ax.set_subplotspec(rows[0])
        below = ax.figure.add_subplot(rows[1], sharex=ax)
    ax.tick_params(labelbottom=False)
    below.axhline(0, color="0.25", lw=0.8)
    return below


def plot_collapse(delta: xr.DataArray | None, fit: FitResult, *, ax: Axes | None = None) -> Axes:
    r"""Draw the MSD against the scaling variable, with the posterior band of the master curve and the residuals below.

    Parameters
    ----------
    delta : DataArray or None
        What was fitted. The points drawn are those of the fit, which may be thinner.
    fit : FitResult
        Of `fit_subaging`.
    ax : Axes, optional
        Where to draw.

    Returns
    -------
    matplotlib.axes.Axes
        Main panel; the residuals are the last Axes of its figure. The title has the median of mu and its 95 % interval.
    """
    ax = axes(ax, size=(5.6, 4.6))
    data, pivot, form = fit.data, float(fit.attrs["pivot"]), str(fit.attrs["form"])
    row = fit.summary().sel(coefficient="mu")
    mu = float(row["value"])
    centre = float(fit.posterior["mu_pooled"].median()) if "mu_pooled" in fit.posterior else mu
    wait, lag = data[WAITING_TIME].values, data[LAG].values
    u = np.exp(scaled_time(wait / pivot, lag / pivot, centre, form=form))
    middle = data["predicted"].values
    # each draw has its own mu, hence its own u: the band is that of the curve at fixed u
    spread = fit.predict().values.reshape(-1, u.size) if "curve" in fit.posterior else middle[None]
    low, high = np.quantile(np.log(spread / np.median(spread, axis=0)), [0.025, 0.975], axis=0)
    order = np.argsort(u)
    low, high = _smooth(np.log(u[order]), low[order]), _smooth(np.log(u[order]), high[order])
    below = _residual_panel(ax)
    ax.fill_between(
        u[order],
        middle[order] * np.exp(low),
        middle[order] * np.exp(high),
        color=_BAND,
        lw=0,
        label="95 % of the curve",
    )
    ax.plot(u[order], middle[order], color="0.25", lw=1)
    levels = np.unique(wait)
    for level, colour in zip(levels, ordered_colours(levels), strict=True):
        here = wait == level
        ax.plot(u[here], data["msd"].values[here], "o", ms=3, color=colour, label=f"$t_w$ = {level:.4g}")
        below.plot(u[here], data["residual"].values[here], "o", ms=2.4, color=colour)
    below.fill_between(u[order], low, high, color=_BAND, lw=0)
    clock = str(fit.attrs.get("clock", STEP))
    variable = r"\int_{t_w}^{t_w+t}(s/t_p)^{-\mu}ds/t_p" if form == "clock" else r"(t/t_p)/(t_w/t_p)^\mu"
    below.set_xlabel(rf"scaling variable $u={variable}$,  $t_p$ = {pivot:.4g} ({unit_of(clock)})")
    below.set_ylabel(r"$\delta\ln\Delta$")
    ax.set(xscale="log", yscale="log", ylabel=r"MSD $\Delta$ (squared weight)")
    ax.set_title(rf"$\mu$ = {_stated(row)}" + ("" if fit.status == "ok" else f"  ({fit.status})"), fontsize=10)
    ax.legend(fontsize=6.5, ncol=2, frameon=False)
    return ax


def _stated(row: xr.Dataset) -> str:
    # median and interval as the result states them: few seeds or a prior make the interval wider or skewed, +- hides it
    low, high = row["interval"].sel(level=0.95).values
    return f"{float(row['value']):.3f} [{low:.3f}, {high:.3f}]"


def _smooth(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    # the width of the band differs a little from waiting time to waiting time at the same u: show its running mean
    weight = np.exp(-0.5 * ((x[:, None] - x) / (0.04 * np.ptp(x) + 1e-12)) ** 2)
    return (weight @ y) / weight.sum(axis=1)


@accepts(FIT)
def plot_mu_estimators(fit: FitResult, *, ax: Axes | None = None) -> Axes:
    r"""Draw the exponent by every estimator, with 95 % intervals; hollow where the curve does not describe the data.

    Parameters
    ----------
    fit : FitResult
        Of `fit_subaging`.
    ax : Axes, optional
        Where to draw.

    Returns
    -------
    matplotlib.axes.Axes
    """
    ax = axes(ax)
    table = fit.tables["estimators"]
    row = fit.summary().sel(coefficient="mu", level=0.95)
    ax.axvspan(*row["interval"].values, color=_BAND, lw=0, label="95 % interval of the fit")
    ax.axvline(float(row["value"]), color="0.25", lw=1)
    for k, name in enumerate(table["estimator"].values):
        one = table.sel(estimator=name)
        wrong = float(one["misfit_ratio"]) > 1.3
        mu, low, high = float(one["mu"]), float(one["lower"]), float(one["upper"])
        ax.errorbar(
            mu,
            k,
            xerr=[[max(mu - low, 0)], [max(high - mu, 0)]] if np.isfinite(low) else None,
            fmt="o",
            color=CATEGORIES[k % 7],
            mfc="white" if wrong else None,
            capsize=2,
            ms=5,
        )
    ax.set_yticks(range(table.sizes["estimator"]), [str(n).replace("_", " ") for n in table["estimator"].values])
    ax.invert_yaxis()
    ax.set_xlabel(r"exponent of aging $\mu$ (hollow: wrong curve)")
    ax.legend(fontsize=7, frameon=False)
    return ax


@accepts(FIT)
def plot_scan(fit: FitResult, *, scan: str = "threshold", ax: Axes | None = None) -> Axes:
    r"""Draw the exponent along a scan of thresholds or of fit windows.

    Parameters
    ----------
    fit : FitResult
        Of `fit_subaging`.
    scan : str
        ``"threshold"`` or ``"window"``.
    ax : Axes, optional
        Where to draw.

    Returns
    -------
    matplotlib.axes.Axes
    """
    ax = axes(ax)
    table = fit.tables[f"{scan}_scan"]
    row = fit.summary().sel(coefficient="mu", level=0.95)
    ax.axhspan(*row["interval"].values, color=_BAND, lw=0, label="95 % interval of the fit")
    mu, error = table["mu"].values, 1.96 * table["stderr"].values
    if scan == "threshold":
        censored = table["censored"].values > 0
        for mask, face, word in ((~censored, CATEGORIES[0], "reached by all"), (censored, "white", "some censored")):
            if mask.any():
                ax.errorbar(
                    table["threshold"].values[mask],
                    mu[mask],
                    error[mask],
                    fmt="o",
                    ms=4,
                    capsize=2,
                    color=CATEGORIES[0],
                    mfc=face,
                    label=word,
                )
        ax.set(xscale="log", xlabel=r"threshold $\Delta^*$ (squared weight)")
    else:
        ax.errorbar(np.arange(mu.size), mu, error, fmt="o", ms=4, capsize=2, color=CATEGORIES[0])
        ax.set_xticks(range(mu.size), [str(n) for n in table["window"].values], rotation=30, ha="right", fontsize=8)
        ax.set_xlabel("fit window")
    ax.set_ylabel(r"exponent of aging $\mu$")
    ax.legend(fontsize=7, frameon=False)
    return ax


@accepts(FIT)
def plot_corner(fit: FitResult, *, coefficients: Sequence[str] | None = None, ax: Axes | None = None) -> Axes:
    """Draw the marginal and joint posteriors of a few coefficients.

    Parameters
    ----------
    fit : FitResult
        Any fit.
    coefficients : sequence of str, optional
        Which; the first four scalar ones if not given.
    ax : Axes, optional
        Where to draw; it is divided into panels.

    Returns
    -------
    matplotlib.axes.Axes
        The Axes that holds the panels.
    """
    scalars = [
        str(k) for k, v in fit.posterior.data_vars.items() if v.dims == ("chain", "draw") and np.ptp(v.values) > 0
    ]
    names = list(coefficients) if coefficients is not None else scalars[:4]
    ax = axes(ax, size=(1.7 * len(names) + 1, 1.7 * len(names) + 1))
    ax.axis("off")
    draws = {name: fit.posterior[name].values.ravel() for name in names}
    limits = {name: np.quantile(d, [0.002, 0.998]) for name, d in draws.items()}
    size = 1 / len(names)
    for i, down in enumerate(names):
        for j, across in enumerate(names[: i + 1]):
            panel = ax.inset_axes((j * size + 0.02, 1 - (i + 1) * size + 0.02, 0.92 * size, 0.92 * size))
            panel.set_xlim(limits[across])
            if i == j:
                panel.hist(
                    draws[across], bins=40, range=tuple(limits[across]), color=CATEGORIES[0], histtype="stepfilled"
                )
                panel.set_yticks([])
            else:
                panel.hist2d(
                    draws[across], draws[down], bins=35, range=[limits[across], limits[down]], cmap="cividis", cmin=1
                )
                panel.set_ylim(limits[down])
            panel.tick_params(labelsize=6, labelbottom=i == len(names) - 1, labelleft=j == 0 and i > 0)
            if i == len(names) - 1:
                panel.set_xlabel(across, fontsize=8)
            if j == 0 and i > 0:
                panel.set_ylabel(down, fontsize=8)
    return ax


@accepts(FIT)
def plot_divergence(fit: FitResult, *, ax: Axes | None = None) -> Axes:
    r"""Draw 1/T against width: learned runs, censored runs at their budget, posterior band and w_c.

    With several losses or depths each has its colour; w_c is then that of loss 0, or of each depth.

    Parameters
    ----------
    fit : FitResult
        Of `fit_divergence`.
    ax : Axes, optional
        Where to draw.

    Returns
    -------
    matplotlib.axes.Axes
    """
    ax = axes(ax)
    widest = float(fit.data["width"].max())
    grid = np.linspace(0.0, widest * 1.02, 300)
    rate = 1 / fit.predict(width=grid)
    kind = next((d for d in ("loss", "depth") if d in rate.dims), None)
    labels = [None] if kind is None else list(rate[kind].values)
    for k, label in enumerate(labels):
        colour = CATEGORIES[k % len(CATEGORIES)]
        word = "" if label is None else f", {kind} {label:g}"
        curve = rate if kind is None else rate.sel({kind: label})
        low, middle, high = np.quantile(curve.values.reshape(-1, grid.size), [0.025, 0.5, 0.975], axis=0)
        ax.fill_between(
            grid, low, high, color=_BAND if kind is None else colour, alpha=1 if kind is None else 0.25, lw=0
        )
        ax.plot(grid, middle, color="0.25" if kind is None else colour, lw=1, label=f"fit, 95 % band{word}")
        width, time, learned = _runs(fit.data, kind, label)
        ax.plot(width[learned], 1 / time[learned], "o", ms=4, color=colour, label=f"learned{word}")
        if (~learned).any():
            ax.plot(width[~learned], 1 / time[~learned], "v", ms=5, color=colour, mfc="white")
    if not fit.data["learned"].values.all():
        ax.plot([], [], "v", ms=5, color="0.25", mfc="white", label="not learned: 1/T is below")
    summary = fit.summary()
    rows = [str(n) for n in summary["coefficient"].values if str(n).startswith("w_c")]
    for k, name in enumerate(rows):
        edges = summary["interval"].sel(coefficient=name, level=0.95).values
        colour = CATEGORIES[k % len(CATEGORIES)] if len(rows) > 1 else CATEGORIES[2]
        ax.axvspan(*edges, color=colour, alpha=0.2, lw=0, label="$w_c$, 95 %" if k == 0 else None)
    ax.set(xlabel="width $w$ (units)", ylim=(0, None), xlim=(0, widest * 1.02))
    ax.set_ylabel(f"1 / learning time (1 / {unit_of(str(fit.attrs['clock']))})")
    found = ", ".join(f"{_width_word(name)} = {_stated(summary.sel(coefficient=name))}" for name in rows)
    ax.set_title(
        rf"{found}, $\nu$ = {float(summary['value'].sel(coefficient='nu')):.2f}"
        + ("" if fit.status == "ok" else f"  ({fit.status})"),
        fontsize=9,
    )
    ax.legend(fontsize=7, frameon=False)
    return ax


def _runs(data: xr.Dataset, kind: str | None, label: float | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    # the runs behind one curve: all of them, all at one loss, or those of one depth
    if kind == "loss":
        data = data.sel(loss=label)
    elif kind == "depth":
        data = data.isel(run=np.flatnonzero(data["depth"].values == label))
    return data["width"].values, data["learning_time"].values, data["learned"].values.astype(bool)


def _width_word(name: str) -> str:
    label = name.removeprefix("w_c").strip("[]").replace("depth=", "depth ").removesuffix(".0")
    return f"$w_c$ ({label})" if label else "$w_c$"


@accepts(FIT)
def plot_decay(fit: FitResult, *, ax: Axes | None = None) -> Axes:
    r"""Draw the loss on log-log axes with the posterior band, the posterior of the floor, and residuals below.

    Parameters
    ----------
    fit : FitResult
        Of `fit_decay`.
    ax : Axes, optional
        Where to draw.

    Returns
    -------
    matplotlib.axes.Axes
        Main panel.
    """
    ax = axes(ax, size=(5.6, 4.6))
    data = fit.data
    saved = data[data["loss"].dims[0]].values
    time = np.geomspace(saved[0], saved[-1], 200)
    curves = fit.predict(time=time, clock=str(fit.attrs["clock"])).values.reshape(-1, time.size)
    low, middle, high = np.quantile(curves, [0.025, 0.5, 0.975], axis=0)
    below = _residual_panel(ax)
    ax.fill_between(time, low, high, color=_BAND, lw=0, label="95 % of the curve")
    ax.plot(time, middle, color="0.25", lw=1)
    ax.plot(saved, data["loss"].values, "o", ms=3, color=CATEGORIES[0], label="loss, logarithmic bins")
    below.plot(saved, data["residual"].values, "o-", ms=2.4, lw=0.5, color=CATEGORIES[0])
    floor = fit.posterior["L_inf"].values.ravel()
    if np.ptp(floor) > 0:
        edges = np.quantile(floor, [0.025, 0.975])
        ax.axhspan(*edges, color=CATEGORIES[1], alpha=0.25, lw=0, label=r"floor $L_\infty$, 95 %")
    chance = (
        f", P(floor > 0) = {float(fit.tables['floor']['probability_positive']):.2f}" if "floor" in fit.tables else ""
    )
    beta = fit.summary().sel(coefficient="beta")
    ax.set_title(rf"$\beta$ = {_stated(beta)}{chance}", fontsize=10)
    ax.set(xscale="log", yscale="log", ylabel="loss $L$", ylim=(0.7 * data["loss"].values.min(), None))
    below.set(xlabel=clock_label("time $t$", str(fit.attrs["clock"])), ylabel=r"$\delta\ln L$")
    ax.legend(fontsize=7, frameon=False)
    return ax
