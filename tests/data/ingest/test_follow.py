"""A series is ingested while it grows: every checkpoint is taken once it is whole, and none that is not."""

from __future__ import annotations

import io
import threading
import time

import numpy as np
import pytest

import trajstats as ts
from trajstats.data.ingest._streaming import Streaming
from trajstats.data.ingest.into_store import ingest
from trajstats.data.store._tiles import Tiles
from trajstats.data.store.verification import verify


def raw(step):
    file = io.BytesIO()
    np.savez(file, w=np.full((30, 20), step, "f4"), b=np.arange(7, dtype="f4") + step)
    return file.getvalue()


def write_slowly(folder, steps, pause):
    """Write the first half of each file, and the rest later."""
    for step in steps:
        with (folder / f"step{step}.npz").open("wb") as file:
            file.write(raw(step)[:500])
            file.flush()
            time.sleep(pause)
            file.write(raw(step)[500:])
        time.sleep(pause)


def test_a_folder_that_grows(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    training = threading.Thread(target=write_slowly, args=(folder, [0, 10, 20, 30], 0.2))
    training.start()
    plan = ingest(folder, tmp_path / "run.zarr", follow=2.0)
    training.join()
    assert plan.added == [0, 10, 20, 30]
    run = ts.open_trajectory(tmp_path / "run.zarr")
    assert run.step.values.tolist() == [0, 10, 20, 30]
    np.testing.assert_array_equal(run.weights.values[0, :, -1], [0, 10, 20, 30])
    assert verify(tmp_path / "run.zarr").ok


def test_a_file_that_is_never_finished_is_named_and_the_others_are_kept(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for step in (0, 10):
        (folder / f"step{step}.npz").write_bytes(raw(step))
    (folder / "step20.npz").write_bytes(raw(20)[:500])
    with pytest.raises(ts.StoreError, match=r"step20\.npz"):
        ingest(folder, tmp_path / "run.zarr", follow=0.4)
    assert ts.open_trajectory(tmp_path / "run.zarr").step.values.tolist() == [0, 10]
    (folder / "step20.npz").write_bytes(raw(20))
    assert ingest(folder, tmp_path / "run.zarr", follow=0.4).added == [20]


def test_nothing_comes(tmp_path):
    (tmp_path / "in").mkdir()
    with pytest.raises(ts.StoreNotFoundError, match="holds no checkpoint"):
        ingest(tmp_path / "in", tmp_path / "run.zarr", follow=0.2)


@pytest.mark.parametrize(
    ("paths", "options", "match"),
    [
        ({0: {"w": np.ones(3)}}, {}, "needs a folder or a glob"),
        ("one.npz", {}, "needs a folder or a glob"),
        (".", {"follow": 0.0}, "follow=0.0: give the seconds"),
        (".", {"follow": float("nan")}, "follow=nan: give the seconds"),
        (".", {"dry_run": True}, "exclude each other"),
    ],
)
def test_what_cannot_be_followed(tmp_path, paths, options, match):
    with pytest.raises(ts.ArgumentError, match=match):
        ingest(paths, tmp_path / "run.zarr", **{"follow": 1.0, **options})
    assert not (tmp_path / "run.zarr").exists()


@pytest.mark.parametrize("pattern", ["step{}.npz", "step{}/model.safetensors"])
def test_a_file_that_changes_while_it_is_read(tmp_path, monkeypatch, pattern):
    from safetensors.numpy import save_file

    monkeypatch.setattr("trajstats.data.store._layout.TILE_ROWS", 2)
    monkeypatch.setattr("trajstats.data.store._layout.TILE_BYTES", 2 * 4 * 700)
    files = [tmp_path / "in" / pattern.format(step) for step in range(4)]
    for step, file in enumerate(files):
        file.parent.mkdir(exist_ok=True, parents=True)
        save_file({"w": np.full((30, 20), step, "f4")}, file) if file.suffix != ".npz" else file.write_bytes(raw(step))
    fill = Streaming._fill

    def fill_while_it_grows(self, out, k, *where):
        if k == 2:
            with files[2].open("ab") as file:
                file.write(b"more")
        return fill(self, out, k, *where)

    monkeypatch.setattr(Streaming, "_fill", fill_while_it_grows)
    with pytest.raises(ts.StoreError, match=rf"{files[2].name} changed while it was read"):
        ingest(tmp_path / "in", tmp_path / "run.zarr")
    run = ts.open_trajectory(tmp_path / "run.zarr")
    assert run.step.values.tolist() == [0, 1]
    np.testing.assert_array_equal(run.weights.values[0, :, -1], [0, 1])


def test_no_space_on_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr("trajstats.data.store._layout.TILE_ROWS", 2)
    monkeypatch.setattr("trajstats.data.store._layout.TILE_BYTES", 2 * 4 * 700)
    series = {step: {"w": np.full((30, 20), step, "f4")} for step in range(4)}
    write, calls = Tiles.write, []

    def full_disk(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return write(self, *args, **kwargs)

    monkeypatch.setattr(Tiles, "write", full_disk)
    with pytest.raises(ts.StoreError, match=r"run\.zarr: No space left on device\..*The same ingest again goes on"):
        ingest(series, tmp_path / "run.zarr")
    assert ts.open_trajectory(tmp_path / "run.zarr").step.values.tolist() == [0, 1]
    assert ingest(series, tmp_path / "run.zarr").added == [2, 3]
