"""Further checkpoints of a run are added to the store that an earlier ingest made; others are refused."""

from __future__ import annotations

import numpy as np
import pytest

import trajstats as ts
from trajstats.data.ingest.into_store import ingest
from trajstats.data.store._tiles import Tiles
from trajstats.data.store.verification import verify

SHAPES = {"a.weight": (50, 40), "a.bias": (50,)}


def state(step, seed=0, dtype="f4"):
    rng = np.random.default_rng([seed, step])
    moving = {"a.running_mean": rng.standard_normal(5).astype("f4"), "a.num_batches_tracked": np.int64(step)}
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in SHAPES.items()} | moving


def files_of(path):
    return {p: p.read_bytes() for p in path.rglob("*") if p.is_file()}


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setattr("trajstats.data.store._layout.TILE_ROWS", 4)
    monkeypatch.setattr("trajstats.data.store._layout.TILE_BYTES", 4 * 4 * 500)


@pytest.mark.parametrize("cuts", [(3, 10), (4, 5, 10), (1, 2, 3, 9, 10)])
def test_rows_that_are_added_are_those_of_one_ingest(tmp_path, small_tiles, cuts):
    folder = tmp_path / "in"
    folder.mkdir()
    begin = 0
    for stop in cuts:
        for step in range(begin, stop):
            np.savez(folder / f"step{step}.npz", **state(step))
        assert ingest(folder, tmp_path / "grown.zarr").added == list(range(begin, stop))
        begin = stop
    ingest(folder, tmp_path / "whole.zarr")
    grown, whole = (ts.open_trajectory(tmp_path / f"{name}.zarr").load() for name in ("grown", "whole"))
    for name in whole.variables:
        np.testing.assert_array_equal(grown[name].values, whole[name].values, err_msg=name)
    assert set(grown.variables) == set(whole.variables)
    assert grown.source == whole.source
    assert verify(tmp_path / "grown.zarr").ok
    before = files_of(tmp_path / "grown.zarr")
    assert ingest(folder, tmp_path / "grown.zarr").added == []
    assert files_of(tmp_path / "grown.zarr") == before


def test_the_last_stored_checkpoint_is_enough_to_continue(tmp_path):
    ingest({step: state(step) for step in (0, 10, 20)}, tmp_path / "run.zarr")
    plan = ingest({step: state(step) for step in (20, 30)}, tmp_path / "run.zarr")
    assert plan.added == [30]
    assert "1 of them were in the store, 1 are new, steps 30 to 30" in str(plan)
    run = ts.open_trajectory(tmp_path / "run.zarr")
    assert run.step.values.tolist() == [0, 10, 20, 30]
    wanted = [np.concatenate([state(s)[n].ravel() for n in ("a.bias", "a.weight")]) for s in (0, 10, 20, 30)]
    np.testing.assert_array_equal(run.weights.values[0], wanted)


def changed(step, name, at):
    tree = state(step)
    tree[name].reshape(-1)[at] += 1
    return tree


@pytest.mark.parametrize(
    ("given", "options", "match"),
    [
        ({20: state(20), 30: state(30)}, {}, "none of its 2 steps"),
        ({0: state(0), 5: state(5), 10: state(10)}, {}, "without step 5"),
        ({0: state(0, seed=1), 10: state(10), 20: state(20)}, {}, "at step 0 it holds other values"),
        ({0: changed(0, "a.bias", 49), 10: state(10), 20: state(20)}, {}, r"step 0 it holds other values of 'a\.bias'"),
        ({10: changed(10, "a.weight", 1999), 20: state(20)}, {}, r"step 10 it holds other values of 'a\.weight'"),
        ({10: state(10, dtype="f8"), 20: state(20, dtype="f8")}, {}, "float64"),
        ({10: {"b": np.ones(3, "f4")}, 20: {"b": np.ones(3, "f4")}}, {}, "not made from these checkpoints"),
        (
            {s: {n: state(s)[n] for n in SHAPES} for s in (10, 20)},
            {},
            "not made from these checkpoints.*2 buffers",
        ),
        ({10: state(10), 20: state(20)}, {"replica": 3}, "holds replica 0"),
    ],
)
def test_checkpoints_that_do_not_continue_a_store_are_refused(tmp_path, given, options, match):
    ingest({step: state(step) for step in (0, 10)}, tmp_path / "run.zarr")
    before = files_of(tmp_path / "run.zarr")
    for dry_run in (True, False):
        with pytest.raises(ts.TrajstatsError, match=match):
            ingest(given, tmp_path / "run.zarr", dry_run=dry_run, **options)
    assert files_of(tmp_path / "run.zarr") == before


def test_a_recorded_run_is_never_added_to(tmp_path):
    with ts.TrajectoryWriter(tmp_path / "run.zarr", {"w": (3,)}) as writer:
        writer.append(0, np.zeros(3))
    with pytest.raises(ts.StoreError, match="was not made by ingest"):
        ingest({0: {"w": np.zeros(3, "f4")}, 1: {"w": np.ones(3, "f4")}}, tmp_path / "run.zarr")


def test_stopped_while_rows_are_added(tmp_path, small_tiles, monkeypatch):
    ingest({step: state(step) for step in range(3)}, tmp_path / "run.zarr")
    write, calls = Tiles.write, []

    def second_fails(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return write(self, *args, **kwargs)

    monkeypatch.setattr(Tiles, "write", second_fails)
    series = {step: state(step) for step in range(10)}
    with pytest.raises(KeyboardInterrupt):
        ingest(series, tmp_path / "run.zarr")
    assert ts.open_trajectory(tmp_path / "run.zarr").step.values.tolist() == [0, 1, 2, 3]
    assert ingest(series, tmp_path / "run.zarr").added == [4, 5, 6, 7, 8, 9]
    ingest(series, tmp_path / "whole.zarr")
    grown, whole = (ts.open_trajectory(tmp_path / f"{name}.zarr") for name in ("run", "whole"))
    np.testing.assert_array_equal(grown.weights.values, whole.weights.values)
    assert verify(tmp_path / "run.zarr").ok


def test_findings_of_earlier_ingests_are_kept(tmp_path):
    bad = state(1)
    bad["a.bias"][3] = np.nan
    with pytest.warns(UserWarning, match="1 weights are NaN"):
        ingest({0: state(0), 1: bad}, tmp_path / "run.zarr")
    with pytest.warns(UserWarning, match="step 3 equals step 2"):
        plan = ingest({1: bad, 2: state(2), 3: state(2)}, tmp_path / "run.zarr")
    kinds = [finding.kind for finding in plan.findings]
    assert sorted(kinds) == ["identical", "not finite"]
    assert ts.open_trajectory(tmp_path / "run.zarr").findings.count("not finite") == 1


def test_a_dry_run_says_what_would_be_added(tmp_path):
    ingest({step: state(step) for step in (0, 10)}, tmp_path / "run.zarr")
    before = files_of(tmp_path / "run.zarr")
    plan = ingest({step: state(step) for step in (0, 10, 20, 30)}, tmp_path / "run.zarr", dry_run=True)
    assert plan.added == [20, 30]
    assert "2 of them were in the store, 2 are new, steps 20 to 30" in str(plan)
    assert files_of(tmp_path / "run.zarr") == before


def test_long_lists_of_a_plan_say_how_many_more(tmp_path):
    plan = ingest({step: state(step) for step in range(20)}, tmp_path / "run.zarr", dry_run=True)
    lines = str(plan).splitlines()
    assert sum(line.startswith("  step ") for line in lines) == 11
    assert "  ... 9 more" in lines
