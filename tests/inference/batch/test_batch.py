"""A batch survives what is broken in it, and good fits do not notice."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

import trajstats as ts
from trajstats.errors import ArgumentError
from trajstats.inference.batch.many_fits import stream_seed

WAIT, LAG = (a.ravel() for a in np.meshgrid(np.geomspace(100, 1e4, 4), np.geomspace(10, 1e4, 5), indexing="ij"))
OPTIONS = {"scheduler": "threads", "workers": 2}


def good(seed):
    noise = np.exp(0.05 * np.random.default_rng(seed).standard_normal(WAIT.size))
    return two_time(-np.expm1(-(np.sqrt(WAIT + LAG) - np.sqrt(WAIT)) / 20) * noise)


def two_time(values, wait=WAIT, lag=LAG):
    return xr.DataArray(values, dims="pair", coords={"waiting_time": ("pair", wait), "lag": ("pair", lag)})


def poison():
    broken = 2.0 * LAG
    one = WAIT[0] == WAIT
    return {
        "nan": two_time(np.where(LAG > 5000, np.nan, broken)),
        "infinite": two_time(np.where(LAG > 5000, np.inf, broken)),
        "negative": two_time(-broken),
        "zero": two_time(np.zeros(LAG.size)),
        "constant": two_time(np.ones(LAG.size)),
        "one waiting time": two_time(broken[one], WAIT[one], LAG[one]),
        "two points": two_time(broken[[0, 7]], WAIT[[0, 7]], LAG[[0, 7]]),
        "empty": two_time(broken[:0], WAIT[:0], LAG[:0]),
        "no labels": xr.DataArray(broken, dims="pair"),
        "not an array": None,
        "wrong dim": xr.DataArray(broken, dims="time"),
        "copies": xr.concat([good(0), good(0)], "replica"),
    }


@pytest.mark.slow
def test_a_poisoned_batch_of_two_hundred_raises_nothing_and_leaves_the_good_fits_bit_equal():
    clean = {("good", k): good(k) for k in range(188)}
    bad = {(name, -1): data for name, data in poison().items()}
    mixed = dict(sorted({**clean, **bad}.items(), key=lambda item: hash(str(item[0]))))
    whole = ts.fit_batch(ts.fit_subaging, mixed, rng=0, dims=("kind", "seed"), **OPTIONS)
    alone = ts.fit_batch(ts.fit_subaging, clean, rng=0, dims=("kind", "seed"), **OPTIONS)
    assert whole.sizes["case"] == 200
    kept = whole.isel(case=whole["kind"].values == "good").sortby("seed")
    for name in ("value", "stderr", "interval"):
        np.testing.assert_array_equal(kept[name], alone[name])
    failed = whole.isel(case=whole["kind"].values != "good")
    assert all(str(s).startswith("failed: ") for s in failed["status"].values)
    assert len({str(r) for r in failed["reason"].values}) == 12
    reasons = dict(zip(failed["kind"].values, failed["reason"].values, strict=True))
    assert "not identifiable from one" in reasons["one waiting time"]
    assert "negative" in reasons["negative"]
    assert np.isnan(failed["value"]).all()


def test_streams_depend_on_the_label_alone():
    assert stream_seed(0, ("a", 1)) == stream_seed(0, ("a", np.int64(1)))
    assert stream_seed(0, ("a", 1)) != stream_seed(0, ("a", 2))
    assert stream_seed(1, ("a", 1)) != stream_seed(0, ("a", 1))


def test_a_batch_resumes(tmp_path):
    calls = []

    def counted(data, *, rng, **options):
        calls.append(1)
        return ts.fit_subaging(data, rng=rng, **options)

    cases = {k: good(k) for k in range(3)}
    first = ts.fit_batch(counted, {0: cases[0]}, rng=0, store=tmp_path, scheduler="synchronous")
    second = ts.fit_batch(counted, cases, rng=0, store=tmp_path, scheduler="synchronous")
    assert len(calls) == 3
    np.testing.assert_array_equal(first["value"][0], second["value"][0])


def test_labels_and_all_failures():
    with pytest.raises(ArgumentError, match="2 parts"):
        ts.fit_batch(ts.fit_subaging, {"a": good(0)}, rng=0, dims=("layer", "seed"))
    with pytest.raises(ArgumentError, match="one label"):
        ts.fit_batch(ts.fit_subaging, {"a": good(0), ("a",): good(1)}, rng=0)
    result = ts.fit_batch(ts.fit_subaging, {"a": None}, rng=0, scheduler="synchronous")
    assert result["status"].item() == "failed: ArgumentError"
    assert not result["converged"].item()


def decay(seed=0, n=60):
    step = np.geomspace(1, 1e4, n)
    loss = (0.1 + step**-0.5) * (1 + 0.02 * np.random.default_rng(seed).standard_normal(n))
    return xr.DataArray(loss, dims="step", coords={"step": step})


def poisoned_decays():
    whole = decay()
    step = whole["step"].values
    return {
        "nan": whole.where(step < 5000),
        "infinite": whole.where(step < 5000, np.inf),
        "negative": -whole,
        "zero": 0 * whole,
        "rising": 1 / whole,
        "backwards": whole.isel(step=slice(None, None, -1)),
        "twice": xr.concat([whole, whole], "step"),
        "two points": whole[:2],
        "empty": whole[:0],
        "text": whole.astype(str),
        "no step": whole.drop_vars("step"),
        "not an array": 7.0,
    }


def learned(seed=0):
    width = np.repeat([5.0, 6, 8, 12, 20], 4)
    noise = np.exp(0.1 * np.random.default_rng(seed).standard_normal(width.size))
    return xr.DataArray(100 / (width - 4) * noise, dims="run", coords={"width": ("run", width)})


def poisoned_times():
    whole = learned()
    width = whole["width"]
    none = xr.zeros_like(whole).astype(bool)
    return {
        "nan": whole.where(width > 5),
        "infinite": whole.where(width > 5, np.inf),
        "negative": -whole,
        "zero": 0 * whole,
        "equal": 0 * whole + 3,
        "one width": whole.where(width == 5, drop=True),
        "two points": whole[[0, 19]],
        "empty": whole[:0],
        "none learned": xr.Dataset({"learning_time": whole, "learned": none}),
        "no width": whole.drop_vars("width"),
        "negative width": whole.assign_coords(width=-width),
        "not an array": "times",
    }


@pytest.mark.parametrize(
    ("fit", "good_one", "poisoned"),
    [(ts.fit_decay, decay, poisoned_decays), (ts.fit_divergence, learned, poisoned_times)],
)
def test_each_broken_decay_or_divergence_is_a_row_of_its_own(fit, good_one, poisoned):
    bad = {(name, 0): data for name, data in poisoned().items()}
    clean = {("good", 1): good_one(1)}
    options = {"rng": 0, "dims": ("kind", "seed"), "max_steps": 200, **OPTIONS}
    mixed = dict(sorted({**clean, **bad}.items(), key=lambda item: str(item[0])))
    whole, alone = (ts.fit_batch(fit, cases, **options) for cases in (mixed, clean))
    kept = whole.isel(case=whole["kind"].values == "good").sortby("seed")
    for name in ("value", "stderr", "interval"):
        np.testing.assert_array_equal(kept[name], alone[name])
    failed = whole.isel(case=whole["kind"].values != "good")
    kinds = {"ArgumentError", "FitError", "NonFiniteError"}
    assert {str(s).removeprefix("failed: ") for s in failed["status"].values} == kinds
    # an error of ours says what to do; one of Python's would begin with its kind
    assert len({str(r) for r in failed["reason"].values}) >= 10
    assert not any("Error: " in str(r) for r in failed["reason"].values)
