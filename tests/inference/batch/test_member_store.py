"""A member is found again by what its numbers depend on, and by nothing else."""

from __future__ import annotations

from functools import partial, wraps

import numpy as np
import pytest
import xarray as xr

import trajstats as ts
from trajstats.errors import StoreError
from trajstats.inference.batch._engine import Member, Outcome
from trajstats.inference.batch._member_store import MemberStore, member_key


@pytest.fixture
def path(tmp_path):
    with ts.TrajectoryWriter(tmp_path / "run.zarr", {"w": (6,)}) as run:
        for step in range(8):
            run.append(step, np.random.default_rng(step).standard_normal(6).astype("float32"))
    return tmp_path / "run.zarr"


def key(data, function=ts.fit_subaging, seed=(0, 1), **options):
    return member_key(Member(("a", 1), data, list(seed)), function, options)


def delta(path, lags=4, **options):
    run = ts.open_trajectory(path)
    return ts.msd(run, ts.time_pairs(run, lags_per_decade=lags), **options)


def test_lazy_results_are_known_again_from_what_they_are_made_of(path, no_compute):
    with no_compute():
        one = key(delta(path))
        assert one == key(delta(path))
        assert one == key(delta(str(path)))
        others = [
            key(delta(path, lags=2)),
            key(delta(path, per="all")),
            key(delta(path, on_nan="skip")),
            key(2 * delta(path)),
            key(delta(path).isel(pair=slice(1, None))),
        ]
    assert len({one, *others}) == 6
    assert one.startswith("a-1-")


def test_arrays_are_known_by_their_values_and_labels():
    array = xr.DataArray(np.arange(4.0), dims="pair", coords={"lag": ("pair", [1, 2, 3, 4])})
    assert key(array) == key(array.copy(deep=True)) == key(array.assign_attrs(uid="x", state="writing"))
    others = [
        key(array.astype("float32")),
        key(array.assign_coords(lag=("pair", [1, 2, 3, 5]))),
        key(array.rename(lag="waiting_time")),
        key(array.rename(pair="step")),
        key(array.assign_attrs(units="weight^2")),
        key(array.copy(data=[0.0, 1, 2, 4])),
        key(array.to_dataset(name="value")),
    ]
    assert len({key(array), *others}) == 8


def test_options_seed_and_code_are_part_of_it():
    def fit(data, *, rng):
        return data + 1

    def changed(data, *, rng):
        return data + 2

    changed.__qualname__ = fit.__qualname__
    wrapped, changed_within = wraps(fit)(lambda *_: None), wraps(changed)(lambda *_: None)
    assert key(1.0, wrapped) == key(1.0, fit)
    assert key(1.0, changed_within) == key(1.0, changed)
    keys = [
        key(1.0, fit),
        key(1.0, changed),
        key(1.0, fit, order=3),
        key(1.0, fit, seed=(0, 2)),
        key(1.0, partial(fit, order=3)),
        key(1.0, partial(fit, order=4)),
        key(2.0, fit),
    ]
    assert len(set(keys)) == len(keys)
    assert key(1.0, fit) == key(1.0, fit)
    assert key(1.0, partial(fit, order=3)) == keys[4]


def test_a_store_in_memory_keeps_labels_and_text():
    from zarr.storage import MemoryStore

    data = xr.Dataset({"name": ("coefficient", ["x", "y"]), "value": ("coefficient", [1.0, np.nan])})
    data = data.assign_coords(coefficient=["mu", "nu"]).assign_attrs(units="1")
    target = MemoryStore()
    store, member = MemberStore(target), Member((5, "a b/c"), None, [1])
    name = member_key(member, ts.fit_decay, {})
    store.write(name, member, Outcome("ok", "why", data, 0.5))
    store.write("failed", member, Outcome("failed: OSError", "why"))
    back = MemberStore(target).read(name)
    assert (back.status, back.reason, back.seconds) == ("ok", "why", 0.5)
    xr.testing.assert_identical(back.data, data)
    assert back.data["name"].dtype == back.data["coefficient"].dtype == object
    assert MemberStore(target).read("failed") is None


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(StoreError, match="not empty"):
        MemberStore(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
