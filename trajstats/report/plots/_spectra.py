"""Plots of curvature spectra."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from trajstats.data._inputs import DENSITY, EIGENPAIRS, SPECTRUM, accepts
from trajstats.data.schema import REPLICA, STEP
from trajstats.estimators.curvature.density import spectral_density, spectral_summary
from trajstats.report.plots._style import CATEGORIES, axes, clock_label, ordered_colours

if TYPE_CHECKING:
    from matplotlib.axes import Axes

KIND_NAMES = {"hessian": "Hessian", "gauss_newton": "Gauss-Newton", "fisher": "Fisher"}
# Decades below its maximum at which a density leaves the picture.
DECADES = 7


@accepts((SPECTRUM, DENSITY))
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
    lines = [rho.isel({REPLICA: replica, STEP: k}) for k in range(rho.sizes[STEP])]
    labels = [f"{int(line[STEP]):,}" for line in lines]
    _draw(ax, lines, ordered_colours(rho[STEP].values), labels)
    _label(ax, lines[0], KIND_NAMES[rho.attrs["kind"]])
    ax.legend(title="step", fontsize="small")
    return ax


def plot_curvatures(
    spectra: Sequence[xr.Dataset], /, *, replica: int = 0, ax: Axes | None = None, **density: Any
) -> Axes:
    """Draw several kinds of curvature at one checkpoint beside each other: Hessian, Gauss-Newton, Fisher.

    Parameters
    ----------
    spectra : sequence of xarray.Dataset
        What `hessian_spectrum` gave, one per kind; the last checkpoint of each is drawn.
    replica : int
        Which replica, by position.
    ax : matplotlib.axes.Axes, optional
        Where to draw.
    **density
        Options of `spectral_density`. Without a `grid`, that of the first spectrum serves all.

    Returns
    -------
    matplotlib.axes.Axes
    """
    last = [spectrum.isel({STEP: [-1]}) for spectrum in spectra]
    first = spectral_density(last[0], **density)
    common = {"grid": first["eigenvalue"].values, "width": first.attrs["width"], "scale": first.attrs["scale"]}
    if first.attrs["scale"] == "symlog":
        common["linear_below"] = first.attrs["linear_below"]
    lines = [first, *(spectral_density(spectrum, **{**density, **common}) for spectrum in last[1:])]
    lines = [line.isel({REPLICA: replica, STEP: 0}) for line in lines]
    ax = axes(ax)
    _draw(ax, lines, list(CATEGORIES[: len(lines)]), [KIND_NAMES[line.attrs["kind"]] for line in lines])
    _label(ax, lines[0], "curvature")
    ax.legend(title=f"step {int(lines[0][STEP]):,}", fontsize="small")
    return ax


@accepts(SPECTRUM)
def plot_flat_directions(
    spectrum: xr.Dataset,
    /,
    *,
    eps: float | Sequence[float] = 1e-3,
    relative: bool = False,
    replica: int = 0,
    ax: Axes | None = None,
) -> Axes:
    """Draw the fraction of flat directions against the step, with its interval.

    Parameters
    ----------
    spectrum : xarray.Dataset
        What `hessian_spectrum` gave.
    eps : float or sequence of float
        Thresholds on the modulus of an eigenvalue, one line each.
    relative : bool
        Whether in units of each checkpoint's largest.
    replica : int
        Which replica, by position.
    ax : matplotlib.axes.Axes, optional
        Where to draw.

    Returns
    -------
    matplotlib.axes.Axes
    """
    ax = axes(ax)
    unit = r"\lambda_{\max}" if relative else ""
    for value, colour in zip(np.atleast_1d(eps).tolist(), CATEGORIES, strict=False):
        summary = spectral_summary(spectrum, eps=value, relative=relative).isel({REPLICA: replica})
        label = rf"$|\lambda| < {value:g}\,{unit}$"
        _against_step(ax, summary, "flat_fraction", colour, label)
    ax.set_ylabel("fraction of flat directions")
    ax.set_ylim(-0.02, 1.02)
    ax.legend(fontsize="small")
    return ax


@accepts((EIGENPAIRS, SPECTRUM))
def plot_top_eigenvalues(found: xr.Dataset, /, *, replica: int = 0, ax: Axes | None = None) -> Axes:
    """Draw extreme eigenvalues against the step, with their residuals as bands.

    Parameters
    ----------
    found : xarray.Dataset
        What `extreme_eigenpairs` gave: one line per rank; or what `hessian_spectrum` gave: largest and smallest.
    replica : int
        Which replica, by position.
    ax : matplotlib.axes.Axes, optional
        Where to draw.

    Returns
    -------
    matplotlib.axes.Axes
    """
    ax = axes(ax)
    if "eigenvalue" not in found:
        summary = spectral_summary(found).isel({REPLICA: replica})
        for name, colour in zip(("largest", "smallest"), CATEGORIES, strict=False):
            _against_step(ax, summary, name, colour, name)
    else:
        ranks = found["rank"].values.tolist()
        for rank, shade in zip(ranks, ordered_colours(range(len(ranks))), strict=True):
            line = found.isel({REPLICA: replica}).sel(rank=rank)
            low, high = line["eigenvalue"] - line["residual"], line["eigenvalue"] + line["residual"]
            drawn = xr.Dataset({"value": line["eigenvalue"], "value_low": low, "value_high": high})
            _against_step(ax, drawn, "value", shade, f"{rank}")
    ax.set_ylabel(r"eigenvalue $\lambda$ (loss / weight$^2$)")
    ax.legend(fontsize="small", title="rank" if "eigenvalue" in found else None)
    return ax


def _against_step(ax: Axes, data: xr.Dataset, name: str, colour: Any, label: str) -> None:
    step = data[STEP].values
    ax.fill_between(step, data[f"{name}_low"], data[f"{name}_high"], color=colour, alpha=0.25, linewidth=0)
    ax.plot(step, data[name], "o-", color=colour, markersize=3.5, linewidth=1.2, label=label)
    ax.set_xscale("symlog" if step.min() == 0 else "log")
    ax.set_xlabel(clock_label("$t$", "step"))


def _draw(ax: Axes, lines: Sequence[xr.Dataset], colours: Sequence[Any], labels: Sequence[str]) -> None:
    for line, colour, label in zip(lines, colours, labels, strict=True):
        ax.fill_between(line["eigenvalue"], line["low"], line["high"], color=colour, alpha=0.3, linewidth=0)
        ax.plot(line["eigenvalue"], line["density"], color=colour, linewidth=1.3, label=label)


def _label(ax: Axes, rho: xr.Dataset, kind: str) -> None:
    drawn = [np.asarray(line.get_xydata(), dtype=np.float64) for line in ax.get_lines()]
    top = max(float(points[:, 1].max()) for points in drawn)
    seen = np.concatenate([points[points[:, 1] > top * 10.0**-DECADES, 0] for points in drawn])
    ax.set_yscale("log")
    ax.set_ylim(top * 10.0**-DECADES, 3 * top)
    if rho.attrs["scale"] == "symlog":
        # The smooth relative of symlog, so that the kernel has the same shape everywhere.
        s = rho.attrs["linear_below"]
        ax.set_xscale("asinh", linear_width=s)
        decades = 10.0 ** np.arange(np.ceil(np.log10(s)), np.ceil(np.log10(np.abs(seen).max())) + 1)
        ticks = np.concatenate([-decades[::-1], [0], decades])
        ax.set_xticks(ticks, [_power(tick) for tick in ticks])
        ax.minorticks_off()
    ax.set_xlim(seen.min(), seen.max())
    ax.set_xlabel(rf"eigenvalue $\lambda$ of the {kind} (loss / weight$^2$)")
    ax.set_ylabel(r"density $\rho(\lambda)$ (weight$^2$ / loss)")


def _power(tick: float) -> str:
    if tick == 0:
        return "0"
    return rf"${'-' if tick < 0 else ''}10^{{{round(np.log10(abs(tick)))}}}$"
