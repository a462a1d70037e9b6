"""Every variable and coordinate of a fit has a name and units of its own, also after saving and loading."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

import trajstats as ts
from trajstats.inference.results import FitResult

WAIT, LAG = (a.ravel() for a in np.meshgrid(np.geomspace(100, 1e4, 5), np.geomspace(10, 1e4, 6), indexing="ij"))
STEP = np.unique(np.geomspace(1, 1e4, 40).astype(int))
WIDTH = np.repeat([6.0, 8.0, 12.0, 20.0, 40.0], 4)


def noise(size, sd):
    return np.exp(sd * np.random.default_rng(0).standard_normal(size))


def aging(n=1, **options):
    rows = -np.expm1(-(np.sqrt(WAIT + LAG) - np.sqrt(WAIT)) / 20) * noise((n, WAIT.size), 0.02)
    coords = {"waiting_time": ("pair", WAIT), "lag": ("pair", LAG)}
    delta = xr.DataArray(rows, dims=("replica", "pair"), coords=coords, attrs={"clock": "proper_time"})
    return ts.fit_subaging(delta, rng=0, **options)


def decay():
    loss = (0.1 + STEP**-0.5) * noise(STEP.size, 0.02)
    coords = {"step": STEP, "proper_time": ("step", 0.1 * STEP)}
    loss = xr.DataArray(loss, dims="step", coords=coords)
    return ts.fit_decay(loss, rng=0, clock="proper_time", max_steps=100)


def divergence():
    times = 100 / (WIDTH - 4) * noise(WIDTH.size, 0.05)
    return ts.fit_divergence(xr.DataArray(times, dims="run", coords={"width": ("run", WIDTH)}), rng=0, max_steps=200)


FITS = {
    "one run": lambda: aging(groups="waiting_time"),
    "seeds": lambda: aging(3),
    "decay": decay,
    "divergence": divergence,
}


@pytest.fixture(scope="module", params=FITS)
def fit(request):
    return FITS[request.param]()


def unlabelled(tree):
    return [
        f"{node.path}/{name}"
        for node in tree.subtree
        for name, variable in node.to_dataset(inherit=False).variables.items()
        if not (variable.attrs.get("long_name") and variable.attrs.get("units"))
    ]


def test_everything_in_a_fit_is_labelled(fit, tmp_path):
    assert unlabelled(fit.to_datatree()) == []
    assert unlabelled(xr.DataTree(fit.summary())) == []
    assert unlabelled(xr.DataTree(fit.predict().to_dataset(name="predicted"))) == []
    fit.save(tmp_path / "fit")
    assert unlabelled(FitResult.load(tmp_path / "fit").to_datatree()) == []


def test_labels_are_their_own():
    fit = aging(groups="waiting_time")
    assert fit.data["waiting_time"].attrs["units"] == "sum of learning rates"
    assert fit.posterior["mu"].attrs == {"long_name": "exponent of aging", "units": "1"}
    np.testing.assert_allclose(fit.log_likelihood["waiting_time"], np.unique(WAIT))  # on the clock, not in pivots
    assert fit.log_likelihood["waiting_time"].attrs["units"] == "sum of learning rates"
    assert fit.tables["threshold_scan"]["threshold"].attrs["units"] == "weight^2"


def test_a_decay_lies_along_its_clock():
    fit = decay()
    assert fit.data["loss"].dims == ("proper_time",)
    assert fit.data["proper_time"].attrs["units"] == "sum of learning rates"
    assert fit.predict(time=[3.0]).dims == ("chain", "draw", "proper_time")
    assert "step" not in fit.data.variables
    ts.plot_decay(fit)


def test_making_a_fit_leaves_the_data_of_its_maker_alone():
    draws = xr.Dataset({"mu": (("chain", "draw"), np.zeros((2, 3)))})
    FitResult("fit_subaging", draws, xr.Dataset(), xr.Dataset())
    assert draws["mu"].attrs == {}
