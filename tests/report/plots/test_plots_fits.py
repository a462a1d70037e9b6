"""Pictures of fits: what is drawn is what was fitted."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr

import trajstats as ts
from trajstats.inference.results import FitResult

WAIT, LAG = (a.ravel() for a in np.meshgrid(np.geomspace(100, 1e4, 6), np.geomspace(10, 1e4, 8), indexing="ij"))
WIDTH = np.repeat([5.0, 8.0, 12.0, 20.0, 40.0], 4)


@pytest.fixture(scope="module")
def aging():
    noise = np.exp(0.02 * np.random.default_rng(0).standard_normal(WAIT.size))
    msd = -np.expm1(-(np.sqrt(WAIT + LAG) - np.sqrt(WAIT)) / 20) * noise
    delta = xr.DataArray(msd, dims="pair", coords={"waiting_time": ("pair", WAIT), "lag": ("pair", LAG)})
    return ts.fit_subaging(delta, rng=0)


def divergence(kind=None, labels=(None,)):
    """A fit as `fit_divergence` returns it, with draws made here: w_c = 4 (less 2 * loss, or one less a depth)."""
    rng = np.random.default_rng(0)
    dims, shape = ("chain", "draw"), (2, 200)
    w_c = 4.0 + 0.1 * rng.standard_normal(shape)
    values = {"w_c": (dims, w_c), "nu": (dims, np.ones(shape))}
    size = len(labels)
    amplitude = 100.0 * np.arange(1, size + 1) * np.ones((*shape, size))
    time = 100.0 / (WIDTH - 4.0)
    learned = WIDTH > 6
    data = xr.Dataset({"learning_time": ("run", time), "learned": ("run", learned)}, coords={"width": ("run", WIDTH)})
    if kind is None:
        values["A"] = (dims, amplitude[..., 0])
    else:
        values["A"] = ((*dims, kind), amplitude)
    if kind == "loss":
        values["slope"] = (dims, np.full(shape, 2.0))
        data = data.expand_dims(loss=list(labels)).transpose("run", "loss")
        data = data.assign_coords(width=("run", WIDTH))
    if kind == "depth":
        values["w_c"] = ((*dims, kind), np.stack([w_c - k for k in range(size)], axis=-1))
        values["nu_depth"] = ((*dims, kind), np.ones((*shape, size)))
        depth = xr.DataArray(np.repeat(labels, WIDTH.size), dims="run")
        data = xr.concat([data] * size, "run").assign_coords(depth=depth)
    coords = {} if kind is None else {kind: list(labels)}
    return FitResult(
        "fit_divergence", xr.Dataset(values, coords=coords), data, xr.Dataset(), attrs={"clock": "proper_time"}
    )


def test_the_collapse_has_data_band_and_residuals(aging):
    ax = ts.plot_collapse(None, aging)
    drawn = sum(line.get_xdata().size for line in ax.lines if line.get_marker() == "o")
    assert drawn == aging.data.sizes["pair"]
    assert ax.get_xscale() == ax.get_yscale() == "log"
    below = ax.figure.axes[-1]
    residual = np.concatenate([line.get_ydata() for line in below.lines if line.get_marker() == "o"])
    np.testing.assert_allclose(np.sort(residual), np.sort(aging.data["residual"]))
    assert ax.collections
    # the interval the result states, not a standard deviation
    row = aging.summary().sel(coefficient="mu", level=0.95)
    low, high = row["interval"].values
    assert f"{float(row['value']):.3f} [{low:.3f}, {high:.3f}]" in ax.get_title()


def test_estimators_and_scans_show_every_entry_with_its_error(aging):
    ax = ts.plot_mu_estimators(aging)
    assert len(ax.get_yticklabels()) == aging.tables["estimators"].sizes["estimator"]
    scan = ts.plot_scan(aging, scan="threshold", ax=plt.figure().gca())
    assert scan.get_xscale() == "log"
    drawn = sum(line.get_xdata().size for line in scan.lines if line.get_marker() == "o")
    assert drawn == aging.tables["threshold_scan"].sizes["threshold"]
    window = ts.plot_scan(aging, scan="window", ax=plt.figure().gca())
    assert [t.get_text() for t in window.get_xticklabels()] == list(aging.tables["window_scan"]["window"].values)


def test_the_corner_has_a_panel_for_each_pair(aging):
    ax = ts.plot_corner(aging, coefficients=["mu", "N_eff", "log_smoothing"])
    assert len(ax.child_axes) == 6


def test_the_divergence_marks_censored_runs_and_where_the_rate_vanishes():
    ax = ts.plot_divergence(divergence())
    hollow = [line for line in ax.lines if line.get_marker() == "v" and line.get_xdata().size]
    assert [sorted(set(line.get_xdata())) for line in hollow] == [[5.0]]
    curve = next(line for line in ax.lines if line.get_label().startswith("fit"))
    at = curve.get_xdata()
    np.testing.assert_allclose(curve.get_ydata()[at < 3.5], 0)
    np.testing.assert_allclose(np.interp(20.0, at, curve.get_ydata()), 0.16, rtol=0.01)
    assert "sum of learning rates" in ax.get_ylabel()


@pytest.mark.parametrize(
    ("kind", "labels", "at"), [("loss", (0.1, 0.5), (3.8, 3.0)), ("depth", (1.0, 2.0), (4.0, 3.0))]
)
def test_losses_and_depths_have_their_own_curves(kind, labels, at):
    fit = divergence(kind, labels)
    curves = fit.predict(width=[20.0]).median(("chain", "draw")).values.ravel()
    np.testing.assert_allclose(curves, [100 / (20 - at[0]), 200 / (20 - at[1])], rtol=0.01)
    ax = ts.plot_divergence(fit)
    lines = [line for line in ax.lines if line.get_label().startswith("fit")]
    assert len(lines) == 2
    for line, time in zip(lines, curves, strict=True):
        np.testing.assert_allclose(np.interp(20.0, line.get_xdata(), line.get_ydata()), 1 / time, rtol=0.01)


def test_the_decay_shows_its_floor():
    t = np.geomspace(1, 1e4, 60)
    draws = np.random.default_rng(0).normal(0.1, 0.005, (2, 100))
    posterior = xr.Dataset(
        {k: (("chain", "draw"), v) for k, v in {"L_inf": draws, "A": 0 * draws + 1, "beta": 0 * draws + 0.5}.items()}
    )
    loss = 0.1 + t**-0.5
    data = xr.Dataset({"loss": ("step", loss), "residual": ("step", 0 * t)}, coords={"step": t})
    attrs = {"pivot": 100.0, "curve": "power_law", "clock": "step"}
    ax = ts.plot_decay(FitResult("fit_decay", posterior, data, xr.Dataset(), attrs=attrs))
    assert ax.get_xscale() == ax.get_yscale() == "log"
    words = [text.get_text() for text in ax.get_legend().get_texts()]
    assert any("floor" in word for word in words)
    np.testing.assert_allclose(next(line for line in ax.lines if line.get_marker() == "o").get_ydata(), loss)
