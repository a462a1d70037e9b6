"""Stores as wholes: finished, appended to, cut."""

from __future__ import annotations

import numpy as np
import pytest

import trajstats as ts
from trajstats.data.store.maintenance import append_from, compact, delete_after
from trajstats.data.store.verification import verify

LAYERS = {"a": (300,), "b": (10, 20)}


@pytest.fixture
def weights():
    return np.random.default_rng(2).standard_normal((100, 500)).astype(np.float32)


def record(path, weights, start=0, **options):
    with ts.TrajectoryWriter(path, LAYERS, **options) as writer:
        for k, row in enumerate(weights, start=start):
            writer.append(k, row, loss=k, epoch=k / 4)
    return path


@pytest.mark.parametrize("keep", [0, 1, 63, 64, 65, 99, 100])
def test_delete_after(tmp_path, weights, keep):
    path = record(tmp_path / "a.zarr", weights)
    delete_after(path, keep - 1)
    run = ts.open_trajectory(path)
    np.testing.assert_array_equal(run.weights.values[0], weights[:keep])
    assert verify(path).ok
    record(path, weights[keep:], start=keep)
    np.testing.assert_array_equal(ts.open_trajectory(path).weights.values[0], weights)


def test_delete_after_asks_for_one_limit(tmp_path, weights):
    path = record(tmp_path / "a.zarr", weights[:2])
    with pytest.raises(ts.ArgumentError, match="last step"):
        delete_after(path)


def test_append_from(tmp_path, weights):
    whole = record(tmp_path / "a.zarr", weights)
    part = record(tmp_path / "b.zarr", weights[:30])
    append_from(part, whole)
    append_from(tmp_path / "c.zarr", ts.open_trajectory(whole))
    for path in (part, tmp_path / "c.zarr"):
        run = ts.open_trajectory(path)
        np.testing.assert_array_equal(run.weights.values[0], weights)
        np.testing.assert_array_equal(run.loss.values[0], np.arange(100))
        np.testing.assert_array_equal(run.epoch.values, np.arange(100) / 4)


def test_compact_finishes_what_a_kill_left(tmp_path, weights):
    path = tmp_path / "a.zarr"
    writer = ts.TrajectoryWriter(path, LAYERS)
    for k, row in enumerate(weights):
        writer.append(k, row)
    with pytest.raises(ts.StoreError, match="being written"):
        compact(path)
    writer._journal.close()
    writer._lock.release()
    compact(path)
    compact(path)
    run = ts.open_trajectory(path)
    assert run.state == "finished"
    np.testing.assert_array_equal(run.weights.values[0], weights)
