"""Results that grow: same bits as anew, at the cost of the new pairs."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

import trajstats as ts
from trajstats.data.synthetic.processes import brownian
from trajstats.errors import ArgumentError, StoreError
from trajstats.estimators.two_time import _sums as sums

OBSERVABLES = [
    "kurtosis",
    "overlap",
    "correlation",
    "sign_flips",
    "velocity_correlation",
    "self_intermediate_scattering",
]


@pytest.mark.parametrize("per", ["all", "layer"])
def test_extended_is_recomputed_to_the_bit(per):
    layers = {"a": (99, 100), "b": (333,)}
    run = brownian(np.arange(0, 60, 2), rng=0, layers=layers, start=1.0, diffusion=1e-3, replicas=2)
    options = {"observables": OBSERVABLES, "per": per, "wavenumber": [2.0, 5.0]}
    old = ts.all_pairs(run.isel(step=slice(0, 25)), **options).compute()
    grown = ts.extend_pairs(old, run).compute()
    anew = ts.all_pairs(run, **options).compute()
    assert set(grown.data_vars) == set(anew.data_vars)
    for name in anew.data_vars:
        np.testing.assert_array_equal(grown[name], anew[name], err_msg=name)
        assert grown[name].attrs == anew[name].attrs
    assert grown.attrs == anew.attrs


def test_only_new_pairs_are_computed(monkeypatch):
    run = brownian(range(110), rng=0, n_parameters=500)
    old = ts.all_pairs(run.isel(step=slice(0, 100))).compute()
    counted = []

    def count(block, start, stop, plan, *rest):
        counted.append(int((plan.target >= 0).sum()))
        return kernel(block, start, stop, plan, *rest)

    kernel = sums.pair_sums
    monkeypatch.setattr(sums, "pair_sums", count)
    ts.extend_pairs(old, run).compute()
    assert counted == [110 * 109 // 2 - 100 * 99 // 2]


def test_cache_is_made_read_and_extended(tmp_path, monkeypatch):
    run = brownian(range(20), rng=0, n_parameters=500)
    path = tmp_path / "a.pairs.zarr"
    first = ts.cached_pairs(run.isel(step=slice(0, 15)), path, observables="kurtosis")
    assert first.sizes["step"] == 15
    grown = ts.cached_pairs(run, path, observables="kurtosis")
    xr.testing.assert_equal(grown.compute(), ts.all_pairs(run, observables="kurtosis").compute())
    monkeypatch.setattr(sums, "pair_sums", lambda *a, **k: pytest.fail("computed again"))
    again = ts.cached_pairs(run, path, observables="kurtosis").compute()
    xr.testing.assert_identical(again, grown.compute())
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_result_of_something_else_is_refused(tmp_path):
    run = brownian(range(6), rng=0)
    other = brownian(range(6), rng=0)
    result = ts.all_pairs(run)
    with pytest.raises(ArgumentError, match="must be all_pairs of this run"):
        ts.extend_pairs(result, other)
    with pytest.raises(ArgumentError, match="first ones of the run"):
        ts.extend_pairs(result, run.isel(step=slice(0, 4)))
    path = tmp_path / "p.zarr"
    ts.cached_pairs(run, path)
    with pytest.raises(ArgumentError, match="another path"):
        ts.cached_pairs(run, path, observables="kurtosis")
    (tmp_path / "text").write_text("no store")
    with pytest.raises(StoreError, match="no result of cached_pairs"):
        ts.cached_pairs(run, tmp_path / "text")
