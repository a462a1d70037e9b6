"""A fit is summarised, kept in a file, and read by ArviZ."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from trajstats.errors import StoreError, StoreNotFoundError
from trajstats.inference.aging.fit import fit_subaging
from trajstats.inference.results import FitResult

WAIT, LAG = (a.ravel() for a in np.meshgrid(np.geomspace(100, 1e4, 6), np.geomspace(10, 1e4, 8), indexing="ij"))


@pytest.fixture(scope="module")
def fit():
    noise = np.exp(0.02 * np.random.default_rng(0).standard_normal(WAIT.size))
    msd = -np.expm1(-(np.sqrt(WAIT + LAG) - np.sqrt(WAIT)) / 20) * noise
    delta = xr.DataArray(msd, dims="pair", coords={"waiting_time": ("pair", WAIT), "lag": ("pair", LAG)})
    return fit_subaging(delta, rng=0)


def test_summary_is_quantiles_of_the_draws(fit):
    table = fit.summary(levels=[0.5])
    draws = fit.posterior["mu"].values.ravel()
    row = table.sel(coefficient="mu", level=0.5)
    np.testing.assert_allclose(row["interval"], np.quantile(draws, [0.25, 0.75]))
    np.testing.assert_allclose(row["value"], np.median(draws))
    np.testing.assert_allclose(row["stderr"], np.diff(np.quantile(draws, [0.16, 0.84]))[0] / 2)
    assert str(fit).startswith("fit_subaging: ok\n  mu = 0.")


def test_a_variable_with_labels_gives_a_coefficient_for_each():
    draws = np.random.default_rng(0).standard_normal((2, 50, 3))
    posterior = xr.Dataset({"w_c": (("chain", "draw", "depth"), draws)}, coords={"depth": [1, 2, 4]})
    names = FitResult("fit_divergence", posterior, xr.Dataset(), xr.Dataset()).summary()["coefficient"].values.tolist()
    assert names == ["w_c[depth=1]", "w_c[depth=2]", "w_c[depth=4]"]


def test_saved_fits_come_back_equal_and_still_predict(fit, tmp_path):
    path = tmp_path / "fit.zarr"
    fit.save(path)
    again = FitResult.load(path)
    xr.testing.assert_equal(again.posterior, fit.posterior)
    xr.testing.assert_equal(again.summary(), fit.summary())
    xr.testing.assert_equal(again.predict(lag=[33.0], waiting_time=500.0), fit.predict(lag=[33.0], waiting_time=500.0))
    assert again.flags == fit.flags
    assert again.status == fit.status
    assert set(again.tables) == set(fit.tables)
    with pytest.raises(StoreError, match="never overwritten"):
        fit.save(path)
    assert not list(tmp_path.glob("*.partial"))


def test_loading_what_is_not_a_fit_says_so(tmp_path):
    with pytest.raises(StoreNotFoundError, match="no fit at"):
        FitResult.load(tmp_path / "nothing")
    xr.Dataset({"x": 1.0}).to_zarr(tmp_path / "other", consolidated=False)
    with pytest.raises(StoreError, match="holds no fit"):
        FitResult.load(tmp_path / "other")


def test_arviz_reads_the_tree(fit):
    from arviz_stats import summary

    table = summary(fit.to_datatree(), var_names=["mu"])
    assert float(table.loc["mu", "mean"]) == pytest.approx(float(fit.posterior["mu"].mean()), abs=0.01)
