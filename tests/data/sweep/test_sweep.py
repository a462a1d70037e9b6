"""A sweep opens lazily, tells its settings, and names what is wrong with it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import xarray as xr

import trajstats as ts
from trajstats.data.sweep.sweep import setting_name
from trajstats.errors import ArgumentError, StoreError, StoreNotFoundError


def record(path, width, seed, *, steps=4, finish=True, **more):
    """A run of a net of its own size and number of steps."""
    attrs = {"architecture": {"width": width, "sizes": [2, width]}, "optimiser": {"kind": "sgd", "lr": 0.1}, **more}
    writer = ts.TrajectoryWriter(path, {"w": (2, width)}, replica=seed, attrs={"seed": seed, **attrs})
    rng = np.random.default_rng([width, seed])
    for step in range(steps):
        writer.append(step, rng.standard_normal(2 * width).astype("float32"), loss=1.0 / (1 + step))
    if finish:
        writer.close()
    return writer


@pytest.fixture
def folder(tmp_path):
    for width in (4, 8, 16):
        for seed in (0, 1):
            record(tmp_path / f"w{width}" / f"seed{seed}.zarr", width, seed, steps=3 + seed)
    return tmp_path


def test_runs_of_different_sizes_and_times_open_without_reading_a_weight(folder, no_compute):
    with no_compute():
        sweep = ts.open_sweep(folder)
        table = ts.sweep_table(sweep)
    assert list(sweep.children) == [f"w{w}.seed{s}" for w in (4, 8, 16) for s in (0, 1)]
    assert all(node["weights"].chunks is not None for node in sweep.children.values())
    assert table["architecture.width"].values.tolist() == [4, 4, 8, 8, 16, 16]
    assert table["n_parameters"].values.tolist() == [8, 8, 16, 16, 32, 32]
    assert table["n_steps"].values.tolist() == [3, 4] * 3
    assert table["seed"].values.tolist() == [0, 1] * 3
    assert set(table["optimiser.kind"].values) == {"sgd"}
    assert table["architecture.sizes"].values[0] == "[2, 4]"
    assert table["run"].values.tolist() == list(sweep.children)
    assert set(table["state"].values) == {"finished"}
    assert "uid" not in table


def test_names_do_not_change_when_runs_are_added(folder):
    before = list(ts.open_sweep(folder).children)
    record(folder / "w2" / "seed0.zarr", 2, 0)
    after = ts.open_sweep(folder)
    assert set(before) < set(after.children)
    pattern = ts.open_sweep(str(folder / "w*" / "seed0.zarr"))
    assert list(pattern.children) == [f"w{w}.seed0" for w in (2, 4, 8, 16)]
    listed = ts.open_sweep([folder / "w4" / "seed0.zarr", folder / "w8" / "seed1.zarr"])
    assert list(listed.children) == ["w4.seed0", "w8.seed1"]
    np.testing.assert_array_equal(listed["w8.seed1"]["weights"], after["w8.seed1"]["weights"])


def test_a_store_alone_is_a_sweep_of_one(folder):
    assert list(ts.open_sweep(folder / "w4" / "seed0.zarr").children) == ["seed0"]


def test_selection_by_settings_however_they_are_nested(folder, no_compute):
    sweep = ts.open_sweep(folder)
    with no_compute():
        assert list(ts.select_runs(sweep, width=8).children) == ["w8.seed0", "w8.seed1"]
        assert list(ts.select_runs(sweep, width=[4, 16], seed=1).children) == ["w4.seed1", "w16.seed1"]
        assert list(ts.select_runs(sweep, width=lambda w: w > 8, seed=0).children) == ["w16.seed0"]
        assert len(ts.select_runs(sweep, {"optimiser.kind": "sgd"}).children) == 6
    with pytest.raises(ArgumentError, match=r"no run of the sweep has .*'width': 5.*\[4, 8, 16\]"):
        ts.select_runs(sweep, width=5)
    with pytest.raises(ArgumentError, match="did you mean 'architecture.width'"):
        ts.select_runs(sweep, architecture_width=5)


def test_settings_that_some_runs_lack_or_share_a_name(tmp_path):
    record(tmp_path / "a.zarr", 4, 0, task={"width": 28}, dropout=0.5, clipped=True)
    record(tmp_path / "b.zarr", 8, 0, note="short", clipped=False)
    table = ts.sweep_table(ts.open_sweep(tmp_path))
    assert table["clipped"].dtype == bool
    np.testing.assert_array_equal(table["dropout"], [0.5, np.nan])
    assert table["note"].values.tolist() == ["", "short"]
    with pytest.raises(ArgumentError, match="'architecture.width', 'task.width'"):
        setting_name(table, "width")
    table.to_zarr(tmp_path / "table.out", consolidated=False)


def test_a_corrupt_member_is_named_and_skipped_on_request(folder):
    (folder / "w8" / "seed0.zarr" / "zarr.json").write_bytes(b"{not json")
    tile = next((folder / "w16" / "seed1.zarr" / "weights" / "c").rglob("0"))
    while tile.is_dir():
        tile = next(tile.iterdir())
    tile.unlink()
    (folder / "w4" / "empty.zarr").mkdir()
    with pytest.raises(StoreError, match=r"run 'w4.empty' of the sweep, .*empty.zarr.*damaged='skip'"):
        ts.open_sweep(folder)
    sweep = ts.open_sweep(folder, damaged="skip")
    assert list(sweep.children) == ["w4.seed0", "w4.seed1", "w8.seed1", "w16.seed0"]
    skipped = {one["run"]: one["reason"] for one in json.loads(sweep.attrs["skipped"])}
    assert set(skipped) == {"w4.empty", "w8.seed0", "w16.seed1"}
    assert "missing" in skipped["w16.seed1"]
    assert json.loads(ts.select_runs(sweep, width=4).attrs["skipped"]) == json.loads(sweep.attrs["skipped"])


def test_a_run_that_is_being_written_shows_its_committed_rows_and_says_so(folder):
    writer = record(folder / "w8" / "seed2.zarr", 8, 2, steps=5, finish=False)
    sweep = ts.open_sweep(folder)
    assert json.loads(sweep.attrs["writing"]) == ["w8.seed2"]
    table = ts.sweep_table(sweep).sel(run="w8.seed2")
    assert str(table["state"].values) == "writing"
    assert int(table["n_steps"]) == 5
    assert sweep["w8.seed2"]["weights"].values.shape == (1, 5, 16)
    assert json.loads(ts.select_runs(sweep, width=4).attrs["writing"]) == []
    writer.close()


def test_what_is_no_sweep(tmp_path):
    with pytest.raises(StoreNotFoundError, match="does not exist"):
        ts.open_sweep(tmp_path / "nowhere")
    with pytest.raises(StoreNotFoundError, match="no trajectory store"):
        ts.open_sweep(tmp_path)
    with pytest.raises(StoreNotFoundError, match="no trajectory store"):
        ts.open_sweep(str(tmp_path / "*.zarr"))
    with pytest.raises(StoreNotFoundError, match="no trajectory store"):
        ts.open_sweep([])
    with pytest.raises(ArgumentError, match="got int"):
        ts.open_sweep(3)
    with pytest.raises(ArgumentError, match="'drop'; allowed: 'raise', 'skip'"):
        ts.open_sweep(tmp_path, damaged="drop")
    (tmp_path / "a.zarr").mkdir()
    with pytest.raises(StoreError, match="none of the 1 runs"):
        ts.open_sweep(tmp_path, damaged="skip")
    with pytest.raises(ArgumentError, match="both be the run"):
        ts.open_sweep([tmp_path / "a.zarr", tmp_path / "a"])


def test_a_sweep_behind_a_url():
    for seed in (0, 1):
        with ts.TrajectoryWriter(f"memory://sweep/w4/seed{seed}.zarr", {"w": (4,)}, attrs={"seed": seed}) as run:
            run.append(0, np.full(4, seed, "float32"))
    sweep = ts.open_sweep("memory://sweep")
    assert list(sweep.children) == ["w4.seed0", "w4.seed1"]
    assert list(ts.open_sweep("memory://sweep/w4/seed*.zarr").children) == ["seed0", "seed1"]
    assert float(sweep["w4.seed1"]["weights"][0, 0, 0]) == 1.0
    with pytest.raises(StoreNotFoundError, match=r"open_sweep\(pattern\) opens the runs that match"):
        ts.open_trajectory("memory://sweep/w4/seed*.zarr")


@pytest.mark.parametrize("other", [[1, 2], {"a": 1}, {"a": xr.Dataset(coords={"step": [0]})}])
def test_what_is_no_sweep_is_refused(other):
    with pytest.raises(ArgumentError, match="open_sweep"):
        ts.sweep_table(other)
