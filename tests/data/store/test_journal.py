"""The journal: what a kill, a torn write, a flipped bit and a full disk leave behind."""

from __future__ import annotations

import resource
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import trajstats as ts
from trajstats.data.store.files._folder import Folder
from trajstats.data.store.journal._files import FileJournal
from trajstats.data.store.maintenance import compact, delete_after
from trajstats.data.store.verification import verify

sys.path.insert(0, str(Path(__file__).parent))
import kill_trials  # beside this file; also a command

N = 1000


def unfinished(path: Path, rows: int) -> np.ndarray:
    """A store with `rows` rows in its journal, as a kill leaves it."""
    weights = np.random.default_rng(3).standard_normal((rows, N)).astype(np.float32)
    writer = ts.TrajectoryWriter(path, {"w": (N,)})
    for step, row in enumerate(weights):
        writer.append(step, row, loss=step)
    writer._journal.close()
    writer._lock.release()
    return weights


@pytest.mark.slow
@pytest.mark.parametrize("number", range(22))
def test_sigkill_twice_in_a_row_loses_nothing(tmp_path, number):
    result = kill_trials.trial(str(tmp_path), np.random.default_rng(number))
    assert result["rows"] >= result["acknowledged"]


@pytest.mark.parametrize("cut", [1, 47, 48, 60, 500, 4000])
def test_torn_end_is_no_row(tmp_path, cut):
    path = tmp_path / "run.zarr"
    weights = unfinished(path, 5)
    file = next((path / "journal").glob("*.rows"))
    raw = file.read_bytes()
    start = FileJournal(Folder(path), 4 * N, 2**20).scan(0)[0][3].offset + 4 * N  # where the last record begins
    file.write_bytes(raw[: start + cut])
    (path / "journal" / "count").unlink()  # a row is counted once it is safe; this one was not
    run = ts.open_trajectory(path)
    np.testing.assert_array_equal(run.weights.values[0], weights[:4])
    assert verify(path).journal.torn
    with ts.TrajectoryWriter(path, {"w": (N,)}) as writer:
        assert writer.committed == [0, 1, 2, 3]
        writer.append(4, weights[4])
    np.testing.assert_array_equal(ts.open_trajectory(path).weights.values[0], weights)


@pytest.mark.parametrize("cut", [0, 1, 60])
def test_a_journal_that_was_cut_is_no_torn_write(tmp_path, cut):
    path = tmp_path / "run.zarr"
    weights = unfinished(path, 5)
    file = next((path / "journal").glob("*.rows"))
    raw = file.read_bytes()
    start = FileJournal(Folder(path), 4 * N, 2**20).scan(0)[0][2].offset + 4 * N
    file.write_bytes(raw[: start + cut])
    assert verify(path).journal.lost == 2
    assert not verify(path).ok
    for act in (ts.open_trajectory, compact, lambda p: ts.TrajectoryWriter(p, {"w": (N,)})):
        with pytest.raises(ts.StoreError, match="2 rows from row 3 on were safe in the journal"):
            act(path)
    delete_after(path, row=3)
    compact(path)
    np.testing.assert_array_equal(ts.open_trajectory(path).weights.values[0], weights[:3])


def test_every_flipped_bit_of_a_journal_is_reported(tmp_path):
    path = tmp_path / "run.zarr"
    unfinished(path, 4)
    file = next((path / "journal").glob("*.rows"))
    raw = file.read_bytes()
    ends = [r.offset + 4 * N for r in FileJournal(Folder(path), 4 * N, 2**20).scan(0)[0]]
    rng = np.random.default_rng(0)
    for position in {*range(0, 60, 2), *rng.integers(0, len(raw), 40).tolist(), len(raw) - 1}:
        bad = bytearray(raw)
        bad[position] ^= 1 << int(rng.integers(8))
        file.write_bytes(bad)
        report = verify(path)
        assert not report.ok, f"byte {position}"
        assert report.journal.row == int(np.searchsorted(ends, position, side="right"))
        with pytest.raises(ts.StoreError, match="checksum"):
            ts.open_trajectory(path)
    file.write_bytes(raw)
    assert verify(path).ok


def test_damage_in_the_middle_is_never_cut_off_in_silence(tmp_path):
    path = tmp_path / "run.zarr"
    weights = unfinished(path, 6)
    file = next((path / "journal").glob("*.rows"))
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 6 * 2 + 2000] ^= 4
    file.write_bytes(raw)
    with pytest.raises(ts.StoreError, match=r"row 2 .* 3 whole rows follow"):
        ts.TrajectoryWriter(path, {"w": (N,)})
    assert file.read_bytes() == raw
    assert ts.open_trajectory(path, damaged="drop").sizes["step"] == 2
    delete_after(path, row=2)
    compact(path)
    np.testing.assert_array_equal(ts.open_trajectory(path).weights.values[0], weights[:2])


def test_a_damaged_last_row_that_was_never_safe_is_left_out_with_a_warning(tmp_path):
    path = tmp_path / "run.zarr"
    unfinished(path, 3)
    file = next((path / "journal").glob("*.rows"))
    raw = bytearray(file.read_bytes())
    raw[-5] ^= 1
    file.write_bytes(raw)
    with pytest.raises(ts.StoreError, match="row 2 .* fails its checksum"):  # it was safe once
        ts.TrajectoryWriter(path, {"w": (N,)})
    (path / "journal" / "count").unlink()
    with pytest.warns(UserWarning, match="the last row, 2,"):
        writer = ts.TrajectoryWriter(path, {"w": (N,)})
    assert writer.committed == [0, 1]
    writer.close()


@pytest.fixture
def file_limit():
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def limit(n_bytes: int | None) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft if n_bytes is None else n_bytes, hard))

    yield limit
    limit(None)
    signal.signal(signal.SIGXFSZ, old)


def test_disk_full_in_an_append_leaves_the_rows_before_it(tmp_path, file_limit):
    path = tmp_path / "run.zarr"
    rows = np.random.default_rng(0).standard_normal((6, N)).astype(np.float32)
    writer = ts.TrajectoryWriter(path, {"w": (N,)})
    for k in range(3):
        writer.append(k, rows[k])
    file_limit(3 * 4 * N + 2000)
    with pytest.raises(ts.StoreError, match=r"row 3 .* could not be written"):
        writer.append(3, rows[3])
    assert writer.committed == [0, 1, 2]
    np.testing.assert_array_equal(ts.open_trajectory(path).weights.values[0], rows[:3])
    file_limit(None)
    for k in range(3, 6):
        writer.append(k, rows[k])
    writer.close()
    np.testing.assert_array_equal(ts.open_trajectory(path).weights.values[0], rows)


def test_disk_full_in_compaction_leaves_the_journal_whole(tmp_path, file_limit):
    path = tmp_path / "run.zarr"
    n = 30_000
    rows = np.random.default_rng(0).standard_normal((100, n)).astype(np.float32)
    writer = ts.TrajectoryWriter(path, {"w": (n,)})
    for k in range(60):
        writer.append(k, rows[k])
    file_limit(100_000)
    with pytest.raises(ts.StoreError, match="safe in the journal"):
        writer.close()
    np.testing.assert_array_equal(ts.open_trajectory(path).weights.values[0], rows[:60])
    file_limit(None)
    with ts.TrajectoryWriter(path, {"w": (n,)}) as writer:
        assert writer.committed == list(range(60))
        for k in range(60, 100):
            writer.append(k, rows[k])
    with xr.open_zarr(path, consolidated=False) as plain:
        np.testing.assert_array_equal(plain.weights.values[0], rows)
    assert verify(path).ok


def append_all(writer, rows):
    for k, row in enumerate(rows):
        writer.append(k, row)
        if k == 100:
            [job.exception() for job in writer._jobs]  # wait


def test_background_compaction_that_fails_does_not_stop_the_run(tmp_path, monkeypatch):
    from trajstats.data.store._tiles import Tiles

    path = tmp_path / "run.zarr"
    rows = np.random.default_rng(0).standard_normal((140, 20_000)).astype(np.float32)
    writer = ts.TrajectoryWriter(path, {"w": (20_000,)})
    with monkeypatch.context() as patched:
        patched.setattr(Tiles, "write", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.warns(UserWarning, match="safe in the journal"):
            append_all(writer, rows)
    writer.close()
    np.testing.assert_array_equal(ts.open_trajectory(path).weights.values[0], rows)
