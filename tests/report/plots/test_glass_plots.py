"""Plots of glasses and responses draw what they are given, with labelled axes."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

import trajstats as ts
from trajstats.theory.glasses import cugliandolo_kurchan


@pytest.mark.parametrize("T", [0.0, 0.3, 1.0])
def test_glass_plots(T):
    glass = cugliandolo_kurchan(p=3, T=T, t_max=30.0)
    for ax in (
        ts.plot_glass_correlation(glass),
        ts.plot_glass_correlation(glass, quantity="R"),
        ts.plot_fluctuation_dissipation(glass),
        ts.plot_glass_energy(glass),
    ):
        assert ax.get_xlabel()
        assert ax.get_ylabel()
        assert len(ax.lines) >= 2
    parametric = ts.plot_fluctuation_dissipation(glass).lines[0]
    assert (np.diff(parametric.get_xdata()) >= 0).all()


def test_response_plots():
    step = np.array([0, 1, 10, 100])
    rng = np.random.default_rng(0)
    dims = ("replica", "step", "input", "probe")
    response = xr.Dataset({"response": (dims, 1 + rng.random((2, 4, 3, 3)))}, {"step": step})
    ax = ts.plot_response_decay(ts.separate_response(response, n_bootstrap=20), label="net")
    assert len(ax.lines) == 2
    assert "optimiser steps" in ax.get_xlabel()
    flips = xr.Dataset(
        {"pgd": (("replica", "step", "input"), [[[0.1, np.nan, np.nan], [0.1, 0.2, 0.3]]])}, {"step": [0, 1]}
    )
    drawn = ts.plot_fragility(flips).lines[0].get_ydata()
    assert np.isnan(drawn[0])  # the median is censored
    assert drawn[1] == 0.2
