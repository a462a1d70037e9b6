"""The store: what is written is read back bit for bit, by trajstats and by plain xarray, wherever it is kept."""

from __future__ import annotations

import pickle
import subprocess
import sys

import dask
import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import trajstats as ts
from trajstats.data.store._layout import plan_layout
from trajstats.data.store._rows import StoredRows
from trajstats.data.store._tiles import Tiles
from trajstats.data.store.files._place import Place
from trajstats.data.store.open import follow

LAYERS = {"0.weight": (4, 5), "empty": (0, 3), "Schicht ä/../<b>": (6,)}
N = 26


def rows(n: int, size: int = N, dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(11).standard_normal((n, size)).astype(dtype)


def record(path, weights, *, layers=None, start=0, **options):
    with ts.TrajectoryWriter(path, layers or LAYERS, **options) as writer:
        for k, row in enumerate(weights, start=start):
            writer.append(10 * k, row, loss=1.0 / (k + 1), epoch=k / 2)
    return path


def test_round_trip_with_plain_xarray(tmp_path):
    weights = rows(5)
    path = record(tmp_path / "run.zarr", weights, replica=3, attrs={"task": {"name": "digits"}, "lr": 0.1})
    with xr.open_zarr(path) as plain:
        assert plain.weights.dims == ("replica", "step", "parameter")
        np.testing.assert_array_equal(plain.weights.values[0], weights)
        assert plain.step.values.tolist() == [0, 10, 20, 30, 40]
        assert plain.replica.values.tolist() == [3]
        assert plain.layer.values.tolist() == list(LAYERS)
        assert plain.layer_stop.values.tolist() == [20, 20, 26]
        assert {"layer_stop", "layer_shape", "layer_kind", "epoch"} <= set(plain.coords)
        np.testing.assert_array_equal(plain.loss.values[0], 1 / np.arange(1, 6))
        assert plain.attrs["task"] == '{"name": "digits"}'
        assert plain.attrs["lr"] == 0.1
    assert not (path / "journal").exists()


def test_mapping_and_flat_vector_give_the_same(tmp_path):
    weights = rows(2)
    record(tmp_path / "a.zarr", weights)
    named = [{"Schicht ä/../<b>": w[20:], "0.weight": w[:20].reshape(4, 5), "empty": np.zeros((0, 3))} for w in weights]
    record(tmp_path / "b.zarr", named)
    a, b = (ts.open_trajectory(tmp_path / f"{x}.zarr") for x in "ab")
    np.testing.assert_array_equal(a.weights.values, b.weights.values)


def test_opening_is_lazy(tmp_path, no_compute):
    path = record(tmp_path / "run.zarr", rows(5))
    with no_compute():
        run = ts.open_trajectory(path)
        assert run.weights.chunks is not None
        ts.time_pairs(run, lag=[10])


def test_resume_continues_where_it_was(tmp_path):
    weights = rows(9)
    path = record(tmp_path / "run.zarr", weights[:4])
    with ts.TrajectoryWriter(path, LAYERS) as writer:
        assert writer.committed == [0, 10, 20, 30]
        with pytest.raises(ts.ArgumentError, match="steps must increase"):
            writer.append(30, weights[4])
    record(path, weights[4:], start=4)
    np.testing.assert_array_equal(ts.open_trajectory(path).weights.values[0], weights)


def test_many_slabs_sharded_and_resumed(tmp_path, monkeypatch):
    monkeypatch.setattr("trajstats.data.store._layout.TILE_ROWS", 4)
    monkeypatch.setattr("trajstats.data.store._layout.TILE_BYTES", 4 * 4 * 10)
    monkeypatch.setattr("trajstats.data.store._layout.MAX_FILES", 8)
    weights = rows(30, 95)
    layout = plan_layout("weights", (95,), "float32", expected_rows=16)
    assert layout.shard == 80
    path = record(tmp_path / "run.zarr", weights[:11], layers={"w": (95,)}, expected_rows=16)
    record(path, weights[11:], layers={"w": (95,)}, start=11)
    np.testing.assert_array_equal(ts.open_trajectory(path).weights.values[0], weights)
    assert len(list((path / "weights" / "c").rglob("*"))) < 40


def test_files_stay_below_1e5_for_large_networks():
    for n in (10**6, 10**8, 10**9):
        layout = plan_layout("weights", (n,), "float32")
        assert -(-n // layout.shard) * -(-4096 // layout.rows) <= 1e5
        assert 4 * 2**20 <= layout.rows * layout.columns * 4 <= 8 * 2**20


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_stored_type(tmp_path, dtype):
    weights = rows(3, dtype=dtype)
    run = ts.open_trajectory(record(tmp_path / "run.zarr", weights, dtype=dtype))
    assert run.weights.dtype == dtype
    np.testing.assert_array_equal(run.weights.values[0], weights)


def test_bfloat16_is_stored_exactly_with_its_rounding_floor(tmp_path):
    torch = pytest.importorskip("torch")
    source = torch.randn(400, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    with ts.TrajectoryWriter(tmp_path / "run.zarr", {"w": (400,)}) as writer:
        writer.append(0, {"w": source})
        writer.append(1, {"w": source})
    run = ts.open_trajectory(tmp_path / "run.zarr")
    exact = source.float().numpy()
    np.testing.assert_array_equal(run.weights.values[0, 0], exact)
    assert run.source_dtype == "bfloat16"
    ulp = np.exp2(np.floor(np.log2(np.abs(exact.astype(float)))) - 7)
    floor = run.rounding_floor.values[0].sum()  # of the pair: the sum of its two rows
    np.testing.assert_allclose(floor, np.mean(ulp**2) / 6, rtol=1e-12)


def test_rounding_floor_is_the_error_of_rounding(tmp_path):
    rng = np.random.default_rng(0)
    before = rng.standard_normal(200_000)
    after = before + 0.05 * rng.standard_normal(before.size)
    with ts.TrajectoryWriter(tmp_path / "run.zarr", {"w": before.shape}, dtype="float16") as writer:
        writer.append(0, before)
        writer.append(1, after)
    run = ts.open_trajectory(tmp_path / "run.zarr")
    stored = run.weights.values[0].astype(float)
    noise = ((stored[1] - stored[0]) - (after - before)) ** 2
    floor = run.rounding_floor.values[0].sum()
    assert abs(noise.mean() - floor) < 4 * noise.std() / np.sqrt(noise.size) + 0.02 * floor


@pytest.mark.parametrize(("n_rows", "layers"), [(1, {"w": (1,)}), (1, {"w": ()}), (3, {"e": (0,)}), (0, {"w": (3,)})])
def test_smallest_runs(tmp_path, n_rows, layers):
    size = int(sum(np.prod(s) for s in layers.values()))
    weights = rows(n_rows, size)
    run = ts.open_trajectory(record(tmp_path / "run.zarr", weights, layers=layers))
    assert run.sizes["step"] == n_rows
    np.testing.assert_array_equal(run.weights.values[0], weights)


def test_hostile_layer_names_reach_no_path(tmp_path):
    names = ["../../etc/passwd", "/abs", "a\0b", "x" * 5000, "<script>", "\ud800 lone", "c/0/0", "zarr.json", ""]
    layers = {name: (1,) for name in names}
    run = ts.open_trajectory(record(tmp_path / "run.zarr", rows(2, len(names)), layers=layers))
    assert len(set(run.layer.values.tolist())) == len(names)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run.zarr"]


@pytest.mark.parametrize("name", ["sketch", "journal", "../x", "a b", "c", ""])
def test_series_names_are_checked(tmp_path, name):
    with ts.TrajectoryWriter(tmp_path / "run.zarr", LAYERS) as writer:
        with pytest.raises(ts.ArgumentError, match="series name"):
            writer.append(0, rows(1)[0], **{name: 1.0})
        assert writer.committed == []


def test_arguments_are_checked_before_anything_is_written(tmp_path):
    with ts.TrajectoryWriter(tmp_path / "run.zarr", LAYERS) as writer:
        good = {"0.weight": np.zeros((4, 5)), "empty": np.zeros((0, 3)), "Schicht ä/../<b>": np.zeros(6)}
        for bad, match in [
            ({k: v for k, v in good.items() if k != "empty"}, "unknown layer 'empty'"),
            ({**good, "more": np.zeros(2)}, "unknown layer 'more'"),
            ({**good, "0.weight": np.zeros((5, 4))}, r"shape \(5, 4\)"),
            (np.zeros(25), r"\(26,\)"),
            (dask.array.zeros(26), "append_from"),
            (np.array(["a"] * 26), "real numbers"),
        ]:
            with pytest.raises(ts.ArgumentError, match=match):
                writer.append(0, bad)
        with pytest.raises(ts.ArgumentError, match="one number a step"):
            writer.append(0, good, loss=[1, 2])
        assert writer.committed == []
    with pytest.raises(ts.StoreError, match="closed"):
        writer.append(0, good)
    with pytest.raises(ts.ArgumentError, match="other layers"):
        ts.TrajectoryWriter(tmp_path / "run.zarr", {"0.weight": (5, 4)})
    with pytest.raises(ts.ArgumentError, match="sync"):
        ts.TrajectoryWriter(tmp_path / "x.zarr", LAYERS, sync=-1.0)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    with pytest.raises(ts.StoreError, match=r"thesis\.tex"):
        ts.TrajectoryWriter(tmp_path / "full", LAYERS)


def test_open_errors(tmp_path):
    with pytest.raises(ts.StoreNotFoundError, match="does not exist"):
        ts.open_trajectory(tmp_path / "no.zarr")
    with pytest.raises(ts.StoreNotFoundError, match="no store matches"):
        ts.open_trajectory(str(tmp_path / "*.zarr"))
    with pytest.raises(ts.StoreNotFoundError, match=r"no zarr\.json"):
        ts.open_trajectory(tmp_path)
    path = record(tmp_path / "run.zarr", rows(1))
    zarr.open_group(path, mode="r+").attrs["schema_version"] = 99
    with pytest.raises(ts.SchemaError, match="99"):
        ts.open_trajectory(path)


def test_runs_are_joined_along_replica(tmp_path):
    a, b = rows(4), rows(4) + 1
    for k, weights in enumerate([a, b]):
        record(tmp_path / f"run{k + 9}.zarr", weights, replica=k)
    for given_as in (str(tmp_path / "run*.zarr"), [tmp_path / "run9.zarr", tmp_path / "run10.zarr"]):
        run = ts.open_trajectory(given_as)
        np.testing.assert_array_equal(run.weights.values, np.stack([a, b]))
        assert run.replica.values.tolist() == [0, 1]
        assert len(run.uid.split("+")) == 2
        assert run.loss.shape == (2, 4)
    record(tmp_path / "run11.zarr", rows(4, 3), layers={"other": (3,)})
    with pytest.raises(ts.SchemaError, match="different layers"):
        ts.open_trajectory(str(tmp_path / "run*.zarr"))


def test_runs_of_different_length_keep_common_steps(tmp_path):
    record(tmp_path / "a.zarr", rows(4))
    record(tmp_path / "b.zarr", 2 * rows(6))
    run = ts.open_trajectory([tmp_path / "a.zarr", tmp_path / "b.zarr"])
    assert run.step.values.tolist() == [0, 10, 20, 30]
    assert run.replica.values.tolist() == [0, 1]


@pytest.mark.parametrize("kind", ["memory", "zarr", "icechunk"])
def test_other_places(kind):
    if kind == "icechunk":
        icechunk = pytest.importorskip("icechunk")
        place = icechunk.Repository.create(icechunk.in_memory_storage())
    else:
        place = "memory://tests/run.zarr" if kind == "memory" else zarr.storage.MemoryStore()
    weights = rows(7)
    with ts.TrajectoryWriter(place, LAYERS) as writer:
        for k in range(4):
            writer.append(10 * k, weights[k])
            live = ts.open_trajectory(place)
            assert live.state == "writing"
            np.testing.assert_array_equal(live.weights.values[0], weights[: k + 1])
        if kind != "icechunk":
            with pytest.raises(ts.StoreError, match="being written"):
                ts.TrajectoryWriter(place, LAYERS)
    with ts.TrajectoryWriter(place, LAYERS) as writer:
        assert writer.committed == [0, 10, 20, 30]
        for k in range(4, 7):
            writer.append(10 * k, weights[k])
    run = ts.open_trajectory(place)
    assert run.state == "finished"
    np.testing.assert_array_equal(run.weights.values[0], weights)


def test_read_only_store(tmp_path):
    path = record(tmp_path / "run.zarr", rows(2))
    store = zarr.storage.LocalStore(path, read_only=True)
    assert ts.open_trajectory(store).sizes["step"] == 2
    with pytest.raises(ts.StoreError, match="reading only"):
        ts.TrajectoryWriter(store, LAYERS)


def test_open_writes_nothing(tmp_path):
    path = record(tmp_path / "run.zarr", rows(2))
    before = {p: p.stat().st_mtime_ns for p in path.rglob("*")}
    ts.open_trajectory(path).load()
    assert {p: p.stat().st_mtime_ns for p in path.rglob("*")} == before


def test_live_store_shows_committed_rows_and_can_be_followed(tmp_path):
    weights = rows(300, 20_000)
    path = tmp_path / "run.zarr"
    writer = ts.TrajectoryWriter(path, {"w": (20_000,)})
    seen = []
    for k in range(100):
        writer.append(k, weights[k])
        if k in (0, 50, 99):
            run = ts.open_trajectory(path)
            assert run.state == "writing"
            assert run.committed_rows == k + 1
            seen.append(run)
    watch = follow(path, poll=0.01)
    assert next(watch).sizes["step"] == 100
    for k in range(100, 300):
        writer.append(k, weights[k])
    assert next(watch).sizes["step"] == 300
    writer.close()
    assert next(watch).state == "finished"
    assert list(watch) == []
    for run in seen:  # opened long ago: rows they show have moved from the journal into tiles since
        n = run.sizes["step"]
        np.testing.assert_array_equal(run.weights.values[0], weights[:n])


def test_second_writer_is_refused_in_this_and_another_process(tmp_path):
    path = tmp_path / "run.zarr"
    with ts.TrajectoryWriter(path, LAYERS) as writer:
        with pytest.raises(ts.StoreError, match="being written by process"):
            ts.TrajectoryWriter(path, LAYERS)
        code = f"import trajstats as ts; ts.TrajectoryWriter({str(path)!r}, {LAYERS!r})"
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
        assert other.returncode != 0
        assert "being written by process" in other.stderr
        writer.append(0, rows(1)[0])
    assert ts.open_trajectory(path).sizes["step"] == 1


def test_lock_of_another_host_is_explained(tmp_path):
    path = record(tmp_path / "run.zarr", rows(1))
    (path / "journal").mkdir()
    (path / "journal" / "lock").write_text('{"pid": 1, "host": "elsewhere", "since": "2026-01-01"}')
    with pytest.raises(ts.StoreError, match="elsewhere.*stale.*take_over=True"):
        ts.TrajectoryWriter(path, LAYERS)
    with ts.TrajectoryWriter(path, LAYERS, take_over=True) as writer:
        assert writer.committed == [0]


def test_flush_every_n_seconds(tmp_path):
    with ts.TrajectoryWriter(tmp_path / "run.zarr", LAYERS, sync=1000.0) as writer:
        for k, row in enumerate(rows(3)):
            writer.append(k, row)
        assert writer.committed == []
        writer.flush()
        assert writer.committed == [0, 1, 2]


def test_series_that_appear_late_are_nan_before(tmp_path):
    with ts.TrajectoryWriter(tmp_path / "run.zarr", LAYERS) as writer:
        writer.append(0, rows(1)[0], loss=0.0)
        writer.append(1, rows(1)[0], accuracy=0.5)
        live = ts.open_trajectory(tmp_path / "run.zarr")
    for run in (live, ts.open_trajectory(tmp_path / "run.zarr")):
        np.testing.assert_array_equal(run.accuracy.values, [[np.nan, 0.5]])
        np.testing.assert_array_equal(run.loss.values, [[0.0, np.nan]])


def test_missing_tile_is_an_error_at_open_and_later(tmp_path):
    path = record(tmp_path / "run.zarr", rows(3, 40_000), layers={"a": (20_000,), "b": (20_000,)})
    run = ts.open_trajectory(path)
    (path / "weights" / "c" / "0" / "0" / "2").unlink()
    with pytest.raises(ts.StoreError, match="missing"):
        run.weights.compute()
    with pytest.raises(ts.StoreError, match="weights/c/0/0/2"):
        ts.open_trajectory(path)
    for left in (ts.open_trajectory(path, damaged="drop"), ts.open_trajectory(path, layers=["a"])):
        assert left.layer.values.tolist() == ["a"]
        np.testing.assert_array_equal(left.weights.values[0], rows(3, 40_000)[:, :20_000])


def test_a_trajectory_saved_by_xarray_opens_too(tmp_path, small_run):
    small_run.to_zarr(tmp_path / "plain.zarr", consolidated=False)
    run = ts.open_trajectory(tmp_path / "plain.zarr")
    xr.testing.assert_identical(run.compute(), small_run)
    assert run.weights.chunks is not None
    assert ts.open_trajectory(tmp_path / "plain.zarr", layers=["0.bias"]).sizes["parameter"] == 4


@pytest.mark.parametrize("step", [1.5, "3", None])
def test_steps_are_integers(tmp_path, step):
    with ts.TrajectoryWriter(tmp_path / "run.zarr", LAYERS) as writer, pytest.raises(ts.ArgumentError, match="integer"):
        writer.append(step, rows(1)[0])


def test_stored_rows_pickle_by_address(tmp_path):
    path = record(tmp_path / "run.zarr", rows(3))
    again = pickle.loads(pickle.dumps(StoredRows(path, 3)))
    np.testing.assert_array_equal(again[0], rows(3))


@pytest.fixture(scope="module")
def tiled(tmp_path_factory):
    path = tmp_path_factory.mktemp("store") / "run.zarr"
    weights = rows(23, 37)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trajstats.data.store._layout.TILE_ROWS", 4)
        patch.setattr("trajstats.data.store._layout.TILE_BYTES", 4 * 4 * 8)
        record(path, weights[:9], layers={"w": (37,)})
        writer = ts.TrajectoryWriter(path, {"w": (37,)})
        for k in range(9, 23):
            writer.append(10 * k, weights[k])
        assert Tiles(Place(path)).layout.rows == 4
        yield ts.open_trajectory(path), weights
        writer.close()


_bound = st.one_of(st.none(), st.integers(-40, 40))
_slice = st.builds(slice, _bound, _bound, st.one_of(st.none(), st.integers(1, 5)))


@given(steps=_slice, parameters=_slice)
@settings(max_examples=60, deadline=None)
def test_any_slice_of_tiles_and_journal(tiled, steps, parameters):
    run, weights = tiled
    got = run.weights[0].isel(step=steps, parameter=parameters).values
    np.testing.assert_array_equal(got, weights[steps, parameters])


@pytest.mark.slow
def test_memory_of_the_writer_does_not_grow_with_rows(tmp_path):
    n, n_rows = 2_000_000, 70
    code = f"""
import resource
import numpy as np
import trajstats as ts
row = np.random.default_rng(0).standard_normal({n}).astype("f4")
with ts.TrajectoryWriter({str(tmp_path / "warm.zarr")!r}, {{"w": (100,)}}) as writer:
    writer.append(0, row[:100])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with ts.TrajectoryWriter({str(tmp_path / "run.zarr")!r}, {{"w": ({n},)}}) as writer:
    for k in range({n_rows}):
        writer.append(k, row)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    assert float(done.stdout) < 150  # MiB; the 64 rows of a slab take 488
