"""DESIGN's flow on stores that the demo's trainer wrote, from training to the figure and the page."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
from trajstats_trainers.demo import nets
from trajstats_trainers.demo import page as demo_report
from trajstats_trainers.demo.training import train

import trajstats as ts

WAITING = np.array([100, 300, 1_000, 3_000])
LAGS = ts.log_schedule(1, 1_000, 13)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The demo's small net on a schedule of 4,000 steps, two seeds, and its large one."""
    folder = tmp_path_factory.mktemp("demo") / "runs"
    folder.mkdir()
    schedule = ts.aging_schedule(WAITING, LAGS)
    train(replace(nets.UNDER, seeds=(0, 1)), folder, schedule=schedule)
    train(replace(nets.OVER, sizes=(196, 12, 10)), folder, schedule=schedule)
    return folder


def test_the_flow_of_the_design(runs, monkeypatch):
    monkeypatch.chdir(runs.parent)
    run = ts.open_trajectory("runs/digits_w5.zarr")
    pairs = ts.time_pairs(run, waiting_time=[100, 1_000, 3_000], lags_per_decade=8)
    delta = ts.msd(run, pairs)
    assert delta.dims == ("replica", "pair", "layer")
    assert delta.chunks is not None
    fit = ts.fit_subaging(delta, rng=0)
    mu = fit.summary().sel(coefficient="mu")
    assert np.isfinite(mu["value"])
    assert mu["interval"].sel(level=0.95, bound="lower") < mu["value"] < mu["interval"].sel(level=0.95, bound="upper")
    ax = ts.plot_collapse(delta, fit)
    assert ax.get_xscale() == "log"


def test_same_seed_same_numbers(runs):
    run = ts.open_trajectory(str(runs / "digits_w5.zarr"))
    delta = ts.msd(run, ts.time_pairs(run, waiting_time=WAITING, lag=LAGS))
    one, two = (ts.fit_subaging(delta, rng=3) for _ in range(2))
    np.testing.assert_array_equal(one.posterior["mu"], two.posterior["mu"])


def test_seeds_join_along_replica(runs):
    joined = ts.open_trajectory(str(runs / "digits_w5*.zarr"))
    assert joined.replica.values.tolist() == [0, 1]
    one = ts.open_trajectory(str(runs / "digits_w5_seed1.zarr"))
    np.testing.assert_array_equal(joined.weights.sel(replica=1), one.weights.sel(replica=1))


def test_network_of_a_run_has_the_recorded_loss(runs):
    run = ts.open_trajectory(str(runs / "digits_w5.zarr"))
    net = nets.network_of(run)
    assert net.n_parameters == run.sizes["parameter"]
    for row in (0, -1):
        np.testing.assert_allclose(
            net.loss(run.weights.values[0, row])
            - net.l2 * float(np.sum(run.weights.values[0, row].astype(float) ** 2)),
            run.loss.values[0, row],
            rtol=1e-5,
        )


def test_the_report_is_written(runs, tmp_path, monkeypatch):
    for module in (demo_report,):
        monkeypatch.setattr(module, "UNDER", replace(nets.UNDER, seeds=(0, 1)))
        monkeypatch.setattr(module, "OVER", replace(nets.OVER, sizes=(196, 12, 10)))
        monkeypatch.setattr(module, "WAITING_TIMES", WAITING)
        monkeypatch.setattr(module, "LAGS", LAGS)
        monkeypatch.setattr(module, "SPECTRUM_STEPS", (100, 1_000, 4_000))
    # A net of 5 x 196 weights on 5,000 digits takes seconds per dense Hessian: the report's test asks for Lanczos.
    whole = ts.hessian_spectrum
    monkeypatch.setattr(ts, "hessian_spectrum", lambda *a, **k: whole(*a, method="lanczos", probes=2, order=20, **k))
    page = demo_report.write_demo_report(runs, tmp_path / "report.html", training_seconds=1.0)
    text = page.read_text()
    for heading in ("In numbers", "Loss", "Two-time displacement", "Aging exponent", "Curvature", "How this was made"):
        assert f">{heading}</h2>" in text
    assert text.count("data:image/svg+xml") >= 8
    assert "95 % interval" in text


BAD = {
    "unknown layer": (lambda run: ts.msd(run, ts.time_pairs(run, lag=[1]), per=["0.wieght"]), "0.wieght"),
    "waiting time not saved": (lambda run: ts.time_pairs(run, waiting_time=[150]), "waiting time 150.*nearest.*"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_names_what_was_given(runs, case):
    call, words = BAD[case]
    with pytest.raises(ts.TrajstatsError, match=words):
        call(ts.open_trajectory(str(runs / "digits_w5.zarr")))


def test_missing_path():
    with pytest.raises(ts.StoreNotFoundError, match=r"nowhere\.zarr"):
        ts.open_trajectory("nowhere.zarr")


def test_store_of_another_schema_version(runs, tmp_path):
    import zarr

    copy = tmp_path / "copy.zarr"
    shutil.copytree(runs / "digits_w5.zarr", copy)
    zarr.open_group(str(copy), mode="r+").attrs["schema_version"] = 99
    with pytest.raises(ts.SchemaError, match="99"):
        ts.open_trajectory(str(copy))


def test_nan_weights_are_named(small_run):
    small_run.weights.values[1, 7, 3] = np.nan
    pairs = ts.time_pairs(small_run, lags_per_decade=3)
    with pytest.raises(ts.NonFiniteError):
        ts.fit_subaging(ts.msd(small_run, pairs), rng=0)
