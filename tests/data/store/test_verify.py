"""Damage: all and only the damaged tiles are named, and nothing damaged is ever read as a number."""

from __future__ import annotations

import contextlib
import shutil

import numpy as np
import pytest
import xarray as xr

import trajstats as ts
from trajstats.data.store.verification import verify

LAYERS = {"a": (50,), "e": (0,), "b": (45,)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "run.zarr"
    weights = np.random.default_rng(5).standard_normal((30, 95)).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trajstats.data.store._layout.TILE_ROWS", 8)
        patch.setattr("trajstats.data.store._layout.TILE_BYTES", 8 * 4 * 20)
        with ts.TrajectoryWriter(path, LAYERS, attrs={"lr": 0.1}) as writer:
            for k, row in enumerate(weights):
                writer.append(k, row, loss=k, epoch=k / 2)
    return path, weights


@pytest.fixture
def store(whole, tmp_path):
    return shutil.copytree(whole[0], tmp_path / "run.zarr"), whole[1]


def expected(file):
    """Rows and parameters of a tile file, from the specification: tiles of 8 rows x 20 parameters."""
    slab, column = (int(part) for part in file.parts[-2:])
    return range(8 * slab, min(8 * slab + 8, 30)), range(20 * column, min(20 * column + 20, 95))


def test_a_whole_store(whole):
    report = verify(whole[0])
    assert report.ok
    assert report.checked == 4 * 5


@pytest.mark.parametrize("seed", range(3))
def test_all_and_only_the_damaged_tiles_are_named(store, seed):
    path, weights = store
    rng = np.random.default_rng(seed)
    files = sorted(f for f in (path / "weights" / "c").rglob("*") if f.is_file())
    chosen = rng.choice(len(files), 4, replace=False)
    for k, at in enumerate(chosen):
        raw = bytearray(files[at].read_bytes())
        if k == 0:
            files[at].unlink()
            continue
        if k == 1:
            raw = raw[: int(rng.integers(len(raw)))]
        else:
            raw[int(rng.integers(len(raw)))] ^= 1 << int(rng.integers(8))
        files[at].write_bytes(raw)
    report = verify(path)
    assert not report.other
    named = {(tile.file, tile.rows, tile.parameters) for tile in report.tiles}
    assert named == {(files[at].relative_to(path).as_posix(), *expected(files[at])) for at in chosen}
    for tile in report.tiles:
        hit = [
            n
            for n, (s, e) in {"a": (0, 50), "b": (50, 95)}.items()
            if tile.parameters.start < e and tile.parameters.stop > s
        ]
        assert list(tile.layers) == hit
    bad = {name for tile in report.tiles for name in tile.layers}
    left = ts.open_trajectory(path, damaged="drop")
    assert left.layer.values.tolist() == [name for name in LAYERS if name not in bad]
    if "b" not in bad:
        np.testing.assert_array_equal(left.weights.values[0], weights[:, 50:])


def test_every_flipped_bit_of_every_file_is_reported(store):
    path, weights = store
    rng = np.random.default_rng(1)
    for file in sorted(f for f in path.rglob("*") if f.is_file()):
        raw = file.read_bytes()
        for position in rng.integers(0, len(raw), 3).tolist():
            bad = bytearray(raw)
            bad[position] ^= 1 << int(rng.integers(8))
            file.write_bytes(bad)
            try:
                report = verify(path)
            except ts.TrajstatsError:
                pass
            else:
                assert not report.ok, f"{file.relative_to(path)} byte {position}"
            try:
                got = ts.open_trajectory(path).load()
            except ts.TrajstatsError:
                continue
            np.testing.assert_array_equal(got.weights.values[0], weights, err_msg=f"{file} byte {position} is silent")
            np.testing.assert_array_equal(got.step.values, np.arange(30))
            np.testing.assert_array_equal(got.loss.values[0], np.arange(30))
        file.write_bytes(raw)
    assert verify(path).ok


def test_every_deleted_file_is_reported(store):
    path, _ = store
    for file in sorted(f for f in path.rglob("*") if f.is_file()):
        raw = file.read_bytes()
        file.unlink()
        with contextlib.suppress(ts.TrajstatsError):
            assert not verify(path).ok, file
        with pytest.raises(ts.TrajstatsError):
            ts.open_trajectory(path)
        file.write_bytes(raw)


def test_plain_xarray_refuses_damaged_tiles_too(store):
    path, _ = store
    file = path / "weights" / "c" / "0" / "1" / "1"
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(raw)
    with xr.open_zarr(path, consolidated=False) as plain, pytest.raises(ValueError, match="checksum"):
        plain.weights.load()
