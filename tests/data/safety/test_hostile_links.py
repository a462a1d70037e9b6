"""Stores and results from somebody else with links, pipes and second names in them: nothing outside is touched."""

import os
import shutil
import threading

import numpy as np
import pytest
import xarray as xr

import trajstats as ts
from trajstats.data.store.files import _folder as folder_module
from trajstats.data.store.files._folder import Folder, check_plain
from trajstats.data.store.maintenance import append_from, compact, delete_after
from trajstats.data.store.verification import verify

LAYERS = {"w": (3,)}
SECRET = b"a file of the user's own, longer than a record of the journal" * 20
posix = pytest.mark.skipif(os.name != "posix", reason="links need rights elsewhere")
pytestmark = posix


def unfinished(path, rows=3):
    """Leave a store as a killed run leaves it."""
    writer = ts.TrajectoryWriter(path, LAYERS)
    for step in range(rows):
        writer.append(step, np.full(3, float(step)), loss=1.0)
    writer._lock.release()
    writer._journal.close()
    return path


def finished(path):
    with ts.TrajectoryWriter(path, LAYERS) as writer:
        for step in range(3):
            writer.append(step, np.full(3, float(step)), loss=1.0)
    return path


@pytest.fixture
def outside(tmp_path):
    """Make files of the user that nothing here may change; check them at the end."""
    place = tmp_path / "outside"
    (place / "deep").mkdir(parents=True)
    for name in ("file", "deep/other", "lock", "000000000000.rows", "left.partial"):
        (place / name).write_bytes(SECRET)
    yield place
    kept = {str(f.relative_to(place)): f.read_bytes() for f in place.rglob("*") if f.is_file()}
    assert kept == dict.fromkeys(("file", "deep/other", "lock", "000000000000.rows", "left.partial"), SECRET)


UNFINISHED = {
    "lock": ("journal/lock", "file"),
    "rows": ("journal/000000000000.rows", "file"),
    "more rows": ("journal/000000000064.rows", "file"),
    "journal": ("journal", ""),
    "weights": ("weights", ""),
    "tiles": ("weights/c", ""),
    "folder of a slab": ("weights/c/0", "deep"),
    "tile": ("weights/c/0/0/0", "file"),
    "series": ("loss", "deep"),
    "metadata": ("zarr.json", "file"),
    "metadata of an array": ("weights/zarr.json", "file"),
    "metadata of the journal": ("journal/zarr.json", "file"),
    "left over": ("weights/x.partial", "file"),
    "to nowhere": ("journal/lock", "nothing-here"),
    "round": ("weights/c", "../run.zarr/weights/c"),
}


def put_link(path, key, target):
    place = path / key
    if place.is_symlink() or place.is_file():
        place.unlink()
    elif place.is_dir():
        place.rename(path.parent / "moved")
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(target)


def actions(path, tmp_path):
    checkpoints = tmp_path / "checkpoints"
    checkpoints.mkdir()
    for step in range(5):
        np.savez(checkpoints / f"step{step}.npz", w=np.full(3, float(step), np.float32))
    more = ts.trajectory_dataset(np.ones((2, 3), np.float32), step=[10, 11], layers=LAYERS)
    return {
        "write": lambda: ts.TrajectoryWriter(path, LAYERS),
        "write as another": lambda: ts.TrajectoryWriter(path, LAYERS, take_over=True),
        "open": lambda: ts.open_trajectory(path).load(),
        "open what is whole": lambda: ts.open_trajectory(path, damaged="drop").load(),
        "follow": lambda: next(ts.follow(path, timeout=0.0)),
        "verify": lambda: verify(path),
        "compact": lambda: compact(path),
        "delete_after": lambda: delete_after(path, 0),
        "append_from": lambda: append_from(path, more),
        "append_from out": lambda: append_from(tmp_path / "copy.zarr", path),
        "ingest": lambda: ts.ingest(checkpoints, path),
        "sweep": lambda: ts.open_sweep(path).load(),
    }


@pytest.mark.parametrize("attack", UNFINISHED)
@pytest.mark.parametrize("make", [unfinished, finished], ids=["unfinished", "finished"])
def test_a_link_in_a_store_is_refused_by_all_that_opens_it(tmp_path, outside, attack, make):
    path = make(tmp_path / "run.zarr")
    key, target = UNFINISHED[attack]
    put_link(path, key, outside / target)
    before = sorted(p.name for p in path.rglob("*"))
    for name, act in actions(path, tmp_path).items():
        if name == "compact" and make is finished:
            continue  # nothing to do
        with pytest.raises((ts.UnsafeInputError, ts.StoreError)) as caught:
            act()
        assert len(str(caught.value)) < 500, name
        assert sorted(p.name for p in path.rglob("*")) == before, name


@pytest.mark.parametrize("key", ["journal", "journal/lock", "weights", "weights/c"])
def test_a_folder_prepared_for_a_new_run(tmp_path, outside, key):
    path = tmp_path / "new.zarr"
    path.mkdir()
    put_link(path, key, outside / ("file" if key.endswith("lock") else ""))
    with pytest.raises((ts.UnsafeInputError, ts.StoreError)):
        ts.TrajectoryWriter(path, LAYERS)
    (tmp_path / "in").mkdir()
    np.savez(tmp_path / "in" / "step1.npz", w=np.ones(3, np.float32))
    with pytest.raises((ts.UnsafeInputError, ts.StoreError)):
        ts.ingest(tmp_path / "in", path)


@pytest.mark.parametrize("key", ["journal/lock", "journal/000000000000.rows"])
def test_a_second_name_of_a_file_outside_is_not_written(tmp_path, key):
    path = unfinished(tmp_path / "run.zarr")
    own = tmp_path / "own"
    own.write_bytes((path / key).read_bytes() + b"more")
    (path / key).unlink()
    (path / key).hardlink_to(own)
    before = own.read_bytes()
    with pytest.raises(ts.UnsafeInputError, match="hard link"):
        ts.TrajectoryWriter(path, LAYERS)
    assert own.read_bytes() == before


def test_a_backup_of_hard_links_keeps_its_rows(tmp_path):
    path = finished(tmp_path / "run.zarr")
    backup = tmp_path / "backup"
    for file in [f for f in path.rglob("*") if f.is_file()]:
        (backup / file.relative_to(path)).parent.mkdir(parents=True, exist_ok=True)
        (backup / file.relative_to(path)).hardlink_to(file)
    with ts.TrajectoryWriter(path, LAYERS) as writer:
        writer.append(7, np.ones(3))
    assert ts.open_trajectory(path).step.values.tolist() == [0, 1, 2, 7]
    assert ts.open_trajectory(backup).step.values.tolist() == [0, 1, 2]
    assert verify(backup).ok


@pytest.mark.parametrize("key", ["journal/lock", "journal/000000000000.rows", "zarr.json", "weights/c/0/0/0", "step"])
def test_pipes_do_not_hang(tmp_path, key):
    path = unfinished(tmp_path / "run.zarr")
    place = path / key
    if place.is_dir():
        place.rename(tmp_path / "moved")
    place.unlink(missing_ok=True)
    place.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(place)
    for act in actions(path, tmp_path).values():
        problem = []

        def run(act=act, problem=problem):
            try:
                act()
            except (ts.UnsafeInputError, ts.StoreError) as error:
                problem.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        thread.join(30)
        assert not thread.is_alive()
        assert problem


def test_the_path_of_the_store_itself_may_be_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "run.zarr").symlink_to(tmp_path / "disk")
    finished(tmp_path / "run.zarr")
    assert ts.open_trajectory(tmp_path / "run.zarr").sizes["step"] == 3
    assert verify(tmp_path / "run.zarr").ok
    (tmp_path / "nowhere.zarr").symlink_to(tmp_path / "nothing")
    (tmp_path / "round.zarr").symlink_to(tmp_path / "round.zarr")
    for name in ("nowhere.zarr", "round.zarr"):
        for act in (lambda p: ts.TrajectoryWriter(p, LAYERS), ts.open_trajectory, verify, compact):
            with pytest.raises((ts.StoreError, ts.ArgumentError)):
                act(tmp_path / name)


def test_a_link_put_in_place_after_the_check_is_not_followed(tmp_path, outside):
    path = tmp_path / "run.zarr"
    writer = ts.TrajectoryWriter(path, LAYERS)
    writer.append(0, np.ones(3))
    put_link(path, "weights", outside)
    put_link(path, "journal/000000000064.rows", outside / "file")
    writer.append(1, np.ones(3))
    with pytest.raises((ts.UnsafeInputError, ts.StoreError)):
        writer.close()


@pytest.mark.parametrize("by_handle", [True, False], ids=["handles", "paths"])
def test_keys_of_a_folder(tmp_path, outside, monkeypatch, by_handle):
    monkeypatch.setattr(folder_module, "_BY_HANDLE", by_handle)
    folder = Folder(tmp_path / "store")
    assert folder.read("a/b") is None
    assert folder.names() == []
    assert list(folder.files()) == []
    folder.write("a/b/c", b"0123456789")
    assert folder.read("a/b/c") == b"0123456789"
    assert folder.read("a/b/c", 2, 5) == b"234"
    assert folder.read("a/b/c", -3) == b"789"
    assert folder.read("a/b/c", 8, 99) == b"89"
    assert folder.read("a/b") is None
    assert folder.read("a/b/c/d") is None
    with pytest.raises(FileExistsError):
        folder.write("a/b/c", b"", exclusive=True)
    folder.write("a/b/c", b"new")
    assert list(folder.files("a")) == ["a/b/c"]
    assert folder.names("a") == ["b"]
    assert folder.size("a/b/c") == 3
    for key in ("../x", "a/../../x", "/etc/x", "a//b", "", "a/..", "a\0b"):
        for act in (folder.read, folder.size, folder.remove, lambda k: folder.write(k, b"")):
            with pytest.raises(ts.UnsafeInputError):
                act(key)
    (tmp_path / "store" / "link").symlink_to(outside)
    (tmp_path / "store" / "a" / "file").symlink_to(outside / "file")
    for act in (folder.read, folder.size, folder.remove, lambda k: folder.write(k, b"")):
        with pytest.raises(ts.UnsafeInputError, match="link"):
            act("link/file")
    with pytest.raises(ts.UnsafeInputError, match="link"):
        folder.read("a/file")
    with pytest.raises(ts.UnsafeInputError, match="link"):
        list(folder.files("link"))
    with pytest.raises(ts.UnsafeInputError, match="link"):
        check_plain(tmp_path / "store")
    if by_handle:
        folder.remove("a")  # the link in it is deleted, and what it leads to stays
        assert folder.names() == ["link"]


# --- results that were saved -----------------------------------------------------------------------------------------


def small_fit():
    draws = xr.Dataset({"mu": (("chain", "draw"), np.arange(16.0).reshape(2, 8))})
    return ts.FitResult("fit_decay", draws, xr.Dataset(), xr.Dataset({"converged": True}))


def test_a_fit_is_saved_beside_links_and_not_through_them(tmp_path, outside):
    (tmp_path / "fit.partial").symlink_to(outside)
    small_fit().save(tmp_path / "fit")
    assert ts.FitResult.load(tmp_path / "fit").kind == "fit_decay"
    for name, target in (("there", outside), ("dangling", tmp_path / "nothing"), ("round", tmp_path / "round")):
        (tmp_path / name).symlink_to(target)
        with pytest.raises(ts.StoreError, match="exists"):
            small_fit().save(tmp_path / name)
    assert not (tmp_path / "nothing").exists()


def test_pairs_are_saved_beside_links_and_not_through_them(tmp_path, outside):
    run = ts.trajectory_dataset(np.ones((8, 4), np.float32), step=range(8))
    real = tmp_path / "real"
    ts.cached_pairs(run.isel(step=slice(0, 6)), real)
    (tmp_path / "pairs").symlink_to(real)
    assert ts.cached_pairs(run, tmp_path / "pairs").sizes["step"] == 8
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    ts.cached_pairs(run, tmp_path / "dangling")
    assert not (tmp_path / "nothing").exists()


def test_a_batch_is_not_written_through_links(tmp_path, outside):
    def fit(data, *, rng):
        return xr.DataArray(np.zeros((2, 8)), dims=("chain", "draw"), name="mu")

    store = tmp_path / "batch"
    ts.fit_batch(fit, {"a": 0}, rng=0, store=store, scheduler="synchronous")
    (member,) = store.glob("a-*")
    member.rename(tmp_path / "moved")
    member.symlink_to(outside)
    with pytest.raises(ts.UnsafeInputError, match="link"):
        ts.fit_batch(fit, {"a": 0}, rng=0, store=store, scheduler="synchronous")


def test_a_report_replaces_a_link(tmp_path, outside):
    from trajstats.report.page.html import Section, write_report

    (tmp_path / "page.html").symlink_to(outside / "file")
    write_report(tmp_path / "page.html", title="A run", lead="What.", sections=[Section("Loss", text=["It fell."])])
    assert not (tmp_path / "page.html").is_symlink()


def test_a_sweep_with_a_link_out_of_its_folder(tmp_path, outside):
    finished(tmp_path / "own.zarr")
    (tmp_path / "sweep").mkdir()
    finished(tmp_path / "sweep" / "a.zarr")
    (tmp_path / "sweep" / "b.zarr").symlink_to(tmp_path / "own.zarr")
    with pytest.raises(ts.UnsafeInputError, match="link"):
        ts.open_sweep(tmp_path / "sweep")


@pytest.mark.parametrize("name", ["lock", "rows"])
def test_folders_in_place_of_files_of_a_journal(tmp_path, name):
    writer = ts.TrajectoryWriter(tmp_path / "live.zarr", {"w": (3,)})
    writer.append(0, np.zeros(3))
    shutil.copytree(tmp_path / "live.zarr", tmp_path / "run.zarr")
    writer.close()
    journal = tmp_path / "run.zarr" / "journal"
    for file in [file for file in journal.iterdir() if file.name.endswith(name)]:
        file.unlink()
        file.mkdir()
    with pytest.raises(ts.TrajstatsError, match=r"run\.zarr"):
        ts.TrajectoryWriter(tmp_path / "run.zarr", {"w": (3,)})
