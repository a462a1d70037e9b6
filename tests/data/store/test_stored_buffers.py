"""Buffers and digests in stores: kept with each row, wherever the row is and whatever is done to the store."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr

import trajstats as ts
from trajstats.data._buffers import buffers_at
from trajstats.data._digests import tensor_digest
from trajstats.data.sketch import Sketch
from trajstats.data.store._tiles import Tiles
from trajstats.data.store.files._place import Place
from trajstats.data.store.journal._files import open_journal
from trajstats.data.store.maintenance import append_from, compact, delete_after
from trajstats.data.store.open import follow
from trajstats.data.store.verification import verify

LAYERS = {"w": (3, 2), "b": (4,)}
RNG = np.random.default_rng(5)
MASK = RNG.random((30, 20)) < 0.5
TABLE = RNG.standard_normal((40, 8))


def weights(step: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, step]).standard_normal(10).astype(np.float32)


def state(step: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(10**6 + step)
    return {
        "bn.running_mean": rng.standard_normal(5).astype(np.float32),
        "bn.num_batches_tracked": np.array(step),
        "mask": MASK,
        "seldom": np.full((2, 3), step // 5, dtype=np.float16),
        "empty": np.zeros((0, 4), dtype=np.uint8),
        "table": TABLE,
    }


def record(path, steps, *, replica=0, **options):
    with ts.TrajectoryWriter(path, LAYERS, buffers=state(0), replica=replica, **options) as writer:
        for step in steps:
            writer.append(step, weights(step, replica), buffers=state(step), loss=step)
    return path


def unfinished(path, steps, **options):
    """As a kill leaves it."""
    writer = ts.TrajectoryWriter(path, LAYERS, buffers=state(0), **options)
    for step in steps:
        writer.append(step, weights(step), buffers=state(step), loss=step)
    for job in writer._jobs:
        job.result()
    writer._journal.close()
    writer._lock.release()
    return path


def check(run: xr.Dataset, steps, replica: int = 0) -> None:
    assert run.step.values.tolist() == list(steps)
    for k, step in enumerate(steps):
        found = buffers_at(run, replica, k)
        assert list(found) == list(state(0))
        for name, expected in state(step).items():
            assert found[name].dtype == expected.dtype
            np.testing.assert_array_equal(found[name], expected, err_msg=f"{name} of step {step}", strict=True)
        row = weights(step, int(run.replica.values[replica]))
        digests = [tensor_digest(row[:6]), tensor_digest(row[6:])]
        assert run.digest.values[replica, k].tolist() == digests


def test_buffers_come_back_from_journal_and_tiles(tmp_path, no_compute):
    path = unfinished(tmp_path / "a.zarr", range(12))
    with no_compute():
        run = ts.open_trajectory(path)
    assert run.buffers.dims == ("replica", "step", "buffer")
    assert run.buffers.attrs["units"]
    assert run.buffers.attrs["long_name"]
    check(run, range(12))
    compact(path)
    check(run, range(12))  # opened before: its rows have moved into tiles
    check(ts.open_trajectory(path), range(12))
    assert verify(path).ok


def test_many_slabs_and_kills_in_between(tmp_path, monkeypatch):
    monkeypatch.setattr("trajstats.data.store._layout.TILE_ROWS", 4)
    monkeypatch.setattr("trajstats.data.store._layout.TILE_BYTES", 4 * 4 * 10)
    monkeypatch.setattr("trajstats.data.store._layout.MAX_FILES", 8)
    path = tmp_path / "a.zarr"
    at = 0
    for rows in (3, 6, 1, 13, 2):
        unfinished(path, range(at, at + rows), expected_rows=16)
        at += rows
        check(ts.open_trajectory(path), range(at))
    record(path, range(at, at + 5))
    check(ts.open_trajectory(path), range(at + 5))
    assert verify(path).ok


def test_what_does_not_change_is_not_written_again(tmp_path):
    path = unfinished(tmp_path / "a.zarr", range(30))
    size = sum(file.stat().st_size for file in (path / "journal").glob("*.rows"))
    assert size < 30 * 700 + MASK.nbytes + TABLE.nbytes
    compact(path)
    stored = sum(file.stat().st_size for file in (path / "buffer_bytes").rglob("*") if file.is_file())
    assert stored < 30 * 60 + 1.1 * (MASK.nbytes / 8 + TABLE.nbytes) + 1000


@pytest.mark.parametrize("keep", [0, 1, 5, 12])
def test_delete_after(tmp_path, keep):
    for path in (record(tmp_path / "a.zarr", range(12)), unfinished(tmp_path / "b.zarr", range(12))):
        delete_after(path, row=keep)
        check(ts.open_trajectory(path), range(keep))
        record(path, range(keep, 15))
        check(ts.open_trajectory(path), range(15))
        assert verify(path).ok


def test_append_from(tmp_path):
    whole = record(tmp_path / "a.zarr", range(9))
    part = record(tmp_path / "b.zarr", range(4))
    append_from(part, whole)
    append_from(tmp_path / "c.zarr", ts.open_trajectory(whole))
    append_from(tmp_path / "d.zarr", ts.open_trajectory(unfinished(tmp_path / "u.zarr", range(9))))
    for path in (part, *(tmp_path / f"{letter}.zarr" for letter in "cd")):
        check(ts.open_trajectory(path), range(9))
        assert verify(path).ok


def test_append_from_memory_keeps_types(tmp_path):
    torch = pytest.importorskip("torch")
    values = torch.randn(3, 5).to(torch.bfloat16)
    run = ts.trajectory_dataset(np.zeros((3, 2)), step=range(3), buffers={"scale": values, "n": np.arange(3)})
    append_from(tmp_path / "a.zarr", run)
    stored = ts.open_trajectory(tmp_path / "a.zarr")
    assert [entry["dtype"] for entry in json.loads(stored.buffers.attrs["tensors"])] == ["bfloat16", "int64"]
    assert zarr.open_group(tmp_path / "a.zarr")["buffer_bytes"].shape == (1, 3, 2 * 5 + 8)
    np.testing.assert_array_equal(buffers_at(stored, 0, 1)["scale"], values[1].float().numpy())


def test_runs_are_joined_with_their_buffers(tmp_path):
    for seed, steps in ((0, range(6)), (1, range(0, 8, 2))):
        record(tmp_path / f"s{seed}.zarr", steps, replica=seed)
    joined = ts.open_trajectory(str(tmp_path / "s*.zarr"))
    assert joined.buffers.chunks is not None
    for replica in (0, 1):
        check(joined, [0, 2, 4], replica)
    check(joined.sel(step=[2, 4]).isel(replica=[1]), [2, 4])
    again = pickle.loads(pickle.dumps(joined))
    check(again, [0, 2, 4], 1)


def test_runs_with_other_buffers_are_not_joined(tmp_path):
    record(tmp_path / "a.zarr", range(3))
    with ts.TrajectoryWriter(tmp_path / "b.zarr", LAYERS, replica=1) as writer:
        writer.append(0, weights(0))
    with ts.TrajectoryWriter(tmp_path / "c.zarr", LAYERS, replica=2, buffers={"n": np.array(0)}) as writer:
        writer.append(0, weights(0), buffers={"n": 4})
    a, b, c = (tmp_path / f"{letter}.zarr" for letter in "abc")
    with pytest.raises(ts.SchemaError, match=r"a\.zarr has buffers .*b\.zarr has none"):
        ts.open_trajectory([b, a])
    with pytest.raises(ts.SchemaError, match="different buffers"):
        ts.open_trajectory([a, c])
    # What the message proposes.
    runs = [ts.open_trajectory(path).drop_vars("buffers", errors="ignore") for path in (b, c)]
    assert xr.concat(runs, "replica", data_vars="all", join="inner").sizes["replica"] == 2


def test_append_refuses_other_buffers_before_anything_is_written(tmp_path):
    writer = ts.TrajectoryWriter(tmp_path / "a.zarr", LAYERS, buffers=state(0))
    writer.append(0, weights(0), buffers=state(0))
    size = next((tmp_path / "a.zarr" / "journal").glob("*.rows")).stat().st_size
    wrong = [
        (None, "6 of 6 buffers are not given: 'bn.running_mean'"),
        ({k: v for k, v in state(1).items() if k != "mask"}, "1 of 6 buffers are not given: 'mask'"),
        ({**state(1), "more": np.zeros(2)}, "1 buffers are not among those of the run.*: 'more'"),
        ({**state(1), "mask": MASK[:2]}, r"'mask' has shape \(2, 20\); the run was opened with \(30, 20\)"),
        ({**state(1), "mask": MASK + 1}, "'mask' holds 2"),
        ([1, 2], "give a mapping name -> array"),
    ]
    for buffers, reason in wrong:
        with pytest.raises(ts.ArgumentError, match=reason):
            writer.append(1, weights(1), buffers=buffers)
    assert next((tmp_path / "a.zarr" / "journal").glob("*.rows")).stat().st_size == size
    writer.append(1, weights(1), buffers=state(1))
    writer.close()
    check(ts.open_trajectory(tmp_path / "a.zarr"), [0, 1])
    plain = ts.TrajectoryWriter(tmp_path / "b.zarr", LAYERS)
    with pytest.raises(ts.ArgumentError, match="opened without buffers"):
        plain.append(0, weights(0), buffers={"n": 1})
    plain.close()


def test_a_run_is_continued_with_the_same_buffers(tmp_path):
    path = record(tmp_path / "a.zarr", range(3))
    with pytest.raises(ts.ArgumentError, match="holds 6 buffers .*give them with buffers="):
        ts.TrajectoryWriter(path, LAYERS)
    with pytest.raises(
        ts.ArgumentError, match=r"other buffers: 'mask' \(30, 20\) bool .* given 'mask' \(30, 20\) float64"
    ):
        ts.TrajectoryWriter(path, LAYERS, buffers={**state(0), "mask": ((30, 20), "float64")})
    with ts.TrajectoryWriter(tmp_path / "b.zarr", LAYERS) as plain:
        plain.append(0, weights(0))
    with pytest.raises(ts.ArgumentError, match="recorded without buffers"):
        ts.TrajectoryWriter(tmp_path / "b.zarr", LAYERS, buffers=state(0))
    with pytest.raises(ts.ArgumentError, match="give a mapping"):
        ts.TrajectoryWriter(tmp_path / "c.zarr", LAYERS, buffers=["mask"])
    assert not (tmp_path / "c.zarr").exists()


@pytest.mark.parametrize("kind", ["memory", "icechunk"])
def test_elsewhere_than_on_a_disk(kind):
    if kind == "memory":
        place = zarr.storage.MemoryStore()
    else:
        icechunk = pytest.importorskip("icechunk")
        place = icechunk.Repository.create(icechunk.in_memory_storage())
    writer = ts.TrajectoryWriter(place, LAYERS, buffers=state(0))
    for step in range(5):
        writer.append(step, weights(step), buffers=state(step))
    check(ts.open_trajectory(place), range(5))
    writer.close()
    check(ts.open_trajectory(place), range(5))
    record(place, range(5, 7))
    check(ts.open_trajectory(place), range(7))
    assert verify(place).ok


def test_sketches_keep_buffers_and_digests(tmp_path):
    path = record(tmp_path / "a.zarr", range(4), sketch=Sketch(buckets=8, hashes=2))
    check(ts.open_trajectory(path), range(4))


def test_layers_left_out_leave_the_buffers(tmp_path):
    run = ts.open_trajectory(record(tmp_path / "a.zarr", range(3)), layers=["b"])
    assert run.layer.values.tolist() == ["b"]
    assert buffers_at(run, 0, 2)["bn.num_batches_tracked"] == 2
    assert run.digest.values[0, 1].tolist() == [tensor_digest(weights(1)[6:])]


def test_a_watched_run_shows_its_buffers(tmp_path):
    path = unfinished(tmp_path / "a.zarr", range(4))
    watch = follow(path, poll=0.01, timeout=5)
    check(next(watch), range(4))
    record(path, range(4, 6))
    check(next(watch), range(6))


def test_saved_with_xarray_and_opened_again(tmp_path):
    run = ts.open_trajectory(record(tmp_path / "a.zarr", range(4)))
    run.to_zarr(tmp_path / "b.zarr", consolidated=False)
    plain = ts.open_trajectory(tmp_path / "b.zarr")
    check(plain, range(4))
    assert plain.buffer_name.values[0] == "bn.running_mean"


def test_damage_is_found_and_named(tmp_path):
    path = record(tmp_path / "a.zarr", range(6))
    file = next(f for f in (path / "buffer_bytes" / "c").rglob("*") if f.is_file())
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 4
    file.write_bytes(raw)
    report = verify(path)
    assert not report.ok
    assert [tile.layers[:2] for tile in report.tiles] == [("bn.running_mean", "bn.num_batches_tracked")]
    run = ts.open_trajectory(path)
    with pytest.raises(ts.StoreError, match="tile of buffers"):
        buffers_at(run, 0, 0)
    whole = ts.open_trajectory(path, damaged="drop")
    assert whole.layer.values.tolist() == ["w", "b"]
    assert buffers_at(whole, 0, 0) == {}
    file.unlink()
    with pytest.raises(ts.StoreError, match="1 tiles are missing: buffer_bytes"):
        ts.open_trajectory(path)
    with pytest.raises(ts.StoreError, match="tiles of buffers are missing"):
        buffers_at(run, 0, 0)


def test_a_flipped_bit_in_the_journal_is_reported(tmp_path):
    path = unfinished(tmp_path / "a.zarr", range(3))
    file = next((path / "journal").glob("*.rows"))
    raw = file.read_bytes()
    rng = np.random.default_rng(0)
    for position in rng.integers(0, len(raw), 60).tolist():
        bad = bytearray(raw)
        bad[position] ^= 1 << int(rng.integers(8))
        file.write_bytes(bad)
        report = verify(path)
        assert report.journal is not None
    file.write_bytes(raw)
    check(ts.open_trajectory(path), range(3))


@pytest.mark.parametrize(
    "text", [None, "[]", "not json", '[{"name": "a", "shape": [3], "dtype": "object"}]', '[{"name": 1}]']
)
def test_a_damaged_list_of_buffers_is_an_error(tmp_path, text):
    path = unfinished(tmp_path / "a.zarr", range(3))
    file = path / "buffer_bytes" / "zarr.json"
    meta = json.loads(file.read_text())
    meta["attributes"]["tensors"] = text
    file.write_text(json.dumps(meta))
    with pytest.raises((ts.SchemaError, ts.StoreError), match="buffer_bytes"):
        ts.open_trajectory(path)


def old_store(path: Path) -> Path:
    """A store of format 1, without digests, whose journal still holds rows."""
    with ts.TrajectoryWriter(path, LAYERS) as writer:
        for step in range(4):
            writer.append(step, weights(step), loss=step)
    import shutil

    shutil.rmtree(path / "digest")
    root = json.loads((path / "zarr.json").read_text())
    root["attributes"] |= {"store_format": 1, "state": "writing"}
    root["attributes"].pop("checksums")
    root.pop("consolidated_metadata")
    (path / "zarr.json").write_text(json.dumps(root))
    return path


def test_stores_of_format_1_are_opened_and_continued(tmp_path):
    path = old_store(tmp_path / "old.zarr")
    run = ts.open_trajectory(path)
    assert "digest" not in run
    assert buffers_at(run, 0, 0) == {}
    with ts.TrajectoryWriter(path, LAYERS) as writer:
        assert writer.committed == [0, 1, 2, 3]
        writer.append(4, weights(4))
    run = ts.open_trajectory(path)
    np.testing.assert_array_equal(run.weights.values[0], [weights(step) for step in range(5)])
    assert "digest" not in run
    assert verify(path).ok
    append_from(tmp_path / "new.zarr", path)
    assert ts.open_trajectory(tmp_path / "new.zarr").digest.values[0, 4, 0] == tensor_digest(weights(4)[:6])


def test_names_of_many_elements_are_made_when_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr("trajstats.data.store._dask_buffers.MANY_NAMES", 10)
    run = ts.open_trajectory(record(tmp_path / "a.zarr", range(2)))
    assert run.buffer_name.chunks is not None
    expected = [name for name, values in state(0).items() for _ in range(values.size)]
    assert run.buffer_name.values.tolist() == expected
    assert run.buffer_name[3:9].values.tolist() == expected[3:9]
    check(run, range(2))


def test_ranges_of_rows_and_elements(tmp_path):
    path = unfinished(tmp_path / "a.zarr", range(7))
    run = ts.open_trajectory(path)
    whole = run.buffers.values
    for rows, columns in [(slice(2, 6, 3), slice(1, 9)), (slice(None, None, -1), slice(500, 650, 7)), (3, slice(0, 1))]:
        np.testing.assert_array_equal(run.buffers[0, rows, columns].values, whole[0, rows, columns])
    np.testing.assert_array_equal(run.buffers[0, [1, 5], [0, 700]].values, whole[0][np.ix_([1, 5], [0, 700])])


def test_a_sweep_keeps_the_buffers_of_each_run(tmp_path):
    for seed in (0, 1):
        record(tmp_path / f"s{seed}.zarr", range(seed + 2), replica=seed)
    with ts.TrajectoryWriter(tmp_path / "plain.zarr", LAYERS) as writer:
        writer.append(0, weights(0))
    runs = {name: node.to_dataset() for name, node in ts.open_sweep(tmp_path).children.items()}
    check(runs["s1"], range(3))
    assert buffers_at(runs["plain"], 0, 0) == {}


def test_a_journal_that_begins_with_a_row_of_unchanged_buffers_is_an_error(tmp_path):
    path = unfinished(tmp_path / "a.zarr", range(2))
    tiles = Tiles(Place(path, write=True))
    journal = open_journal(tiles.place, tiles.layout.row_bytes, tiles.layout.rows, tiles.buffer_bytes)
    journal.continue_after([])
    journal.append(0, 0, {"series": {}, "buffers": []}, [weights(0)])
    journal.close()
    run = ts.open_trajectory(path)
    with pytest.raises(ts.StoreError, match="row 0 says that a buffer is that of the row before"):
        buffers_at(run, 0, 0)


@pytest.mark.parametrize("held", [[6], [-1], [1, 1], [2, 1], "all", [True], [0.0]])
def test_impossible_lists_of_buffers_are_damage(tmp_path, held):
    path = unfinished(tmp_path / "a.zarr", range(2))
    tiles = Tiles(Place(path, write=True))
    journal = open_journal(tiles.place, tiles.layout.row_bytes, tiles.layout.rows, tiles.buffer_bytes)
    journal.continue_after(journal.scan(0)[0])
    journal.append(2, 2, {"series": {}, "buffers": held}, [weights(0)])
    journal.close()
    assert verify(path).journal is not None
