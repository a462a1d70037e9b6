"""The engine of batches: how members share tasks, what a dead process does, what is not allowed."""

from __future__ import annotations

import os
import signal
import sys
import time

import cloudpickle
import dask
import numpy as np
import pytest
import xarray as xr

import trajstats as ts
from trajstats.errors import ArgumentError, ClusterError
from trajstats.inference.batch import _engine as tasks
from trajstats.inference.batch._engine import Member, run_members

# Other processes cannot import test modules.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


def members(n):
    return [Member((k,), float(k), [0, k]) for k in range(n)]


def draw(x, *, rng, seconds=0.0):
    time.sleep(seconds)
    return xr.DataArray(x + rng.standard_normal(), name="x")


def together(n, *, scheduler="synchronous", workers=None, per_task=None, function=draw, **options):
    found = {}
    run_members(
        function, options, members(n), found.__setitem__, scheduler=scheduler, workers=workers, per_task=per_task,
        resume="Call again.",
    )  # fmt: skip
    return [found[k] for k in range(n)]


@pytest.mark.parametrize(("seconds", "shared"), [(0.0, True), (2.0, False)])
def test_cheap_members_share_tasks_and_dear_ones_do_not(seconds, shared, monkeypatch):
    sizes = []
    run = tasks.Task.run

    def counted(task):
        sizes.append(len(task.members))
        return [tasks.Outcome(o.status, o.reason, o.data, seconds or o.seconds) for o in run(task)]

    monkeypatch.setattr(tasks.Task, "run", counted)
    together(40)
    assert sum(sizes) == 40
    assert sizes[:2] == [1, 1]  # measured alone
    assert max(sizes) == (38 // tasks.TASKS_PER_WORKER if shared else 1)


@pytest.mark.filterwarnings("ignore:3 dask workers:RuntimeWarning")
def test_the_number_of_members_per_task_changes_nothing():
    want = [float(o.data["x"]) for o in together(11)]
    assert want == [float(k + np.random.default_rng([0, k]).standard_normal()) for k in range(11)]
    assert [float(o.data["x"]) for o in together(11, per_task=4)] == want
    assert [float(o.data["x"]) for o in together(11, per_task=1, scheduler="threads", workers=3)] == want


@pytest.mark.filterwarnings("ignore:4 dask workers:RuntimeWarning")
def test_tasks_side_by_side_leave_the_settings_of_dask_as_they_were():
    def inside(x, *, rng):
        time.sleep(0.01 * rng.random())
        return xr.DataArray(dask.config.get("scheduler"), name="x")

    for before in ({}, {"scheduler": "threads"}):
        with dask.config.set(before):
            found = together(40, scheduler="threads", workers=4, per_task=1, function=inside)
            assert dask.config.get("scheduler", None) == before.get("scheduler")
        assert {str(o.data["x"].values) for o in found} == {"synchronous"}


def test_outcomes_come_one_by_one():
    seen = []

    def done(k, outcome):
        seen.append((k, outcome.status))

    run_members(draw, {}, members(3), done, scheduler="synchronous", workers=None, per_task=1, resume="")
    assert sorted(seen) == [(0, "ok"), (1, "ok"), (2, "ok")]


def test_what_is_not_allowed():
    for wrong in (0, 1.5, True):
        with pytest.raises(ArgumentError, match=f"per_task={wrong}"):
            together(2, per_task=wrong)
    with pytest.raises(ArgumentError, match="allowed: 'threads', 'processes'"):
        together(2, scheduler="fibres")
    with pytest.raises(ClusterError, match=r"needs a client: make one with distributed.Client"):
        together(2, scheduler="distributed")


def test_an_interruption_says_how_to_go_on():
    def stop(x, *, rng):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        together(2, function=stop)
    assert caught.value.__notes__ == ["Call again."]


def die_at_two(x, *, rng):
    if x == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return draw(x, rng=rng)


@pytest.mark.slow
def test_processes_give_the_same_numbers_and_a_dead_one_is_told():
    want = [float(o.data["x"]) for o in together(6)]
    assert [float(o.data["x"]) for o in together(6, scheduler="processes", workers=1)] == want
    with pytest.raises(ClusterError, match=r"workers died.*Call again"):
        together(6, scheduler="processes", workers=1, function=die_at_two)


def test_lazy_data_stay_whole_until_the_task(no_compute):
    run = ts.trajectory_dataset(np.random.default_rng(0).standard_normal((5, 8)), step=range(5)).chunk({"parameter": 2})
    task = tasks.Task(ts.path_statistics, {}, [Member((0,), run, None)])
    with no_compute():
        delayed = dask.delayed(tasks.Task.run, pure=False)(task)
    assert len(dict(delayed.dask)) == 1
    assert delayed.compute(scheduler="synchronous")[0].status == "ok"


def leave(x, *, rng):
    sys.exit(3)


@pytest.mark.parametrize("scheduler", ["synchronous", "threads"])
def test_a_function_that_leaves_the_program_fails_alone(scheduler):
    outcomes = together(2, function=leave, scheduler=scheduler)
    assert [outcome.status for outcome in outcomes] == ["failed: SystemExit"] * 2


@pytest.mark.parametrize("workers", [0, -1, 1.5, "two", True])
def test_workers_are_counted(workers):
    with pytest.raises(ArgumentError, match="workers="):
        together(1, workers=workers, scheduler="threads")


def test_what_no_member_could_be_given_to_is_refused_before_any_work(tmp_path):
    runs, run = {"a": 1.0}, xr.Dataset(coords={"step": [0], "replica": [0]})
    for call in (
        lambda: ts.fit_batch(draw, runs, rng=0, bogus=1, store=tmp_path / "kept"),
        lambda: ts.map_sweep(ts.fit_decay, {"a": run}, store=tmp_path / "kept"),
    ):
        with pytest.raises(ArgumentError, match=r"cannot be called with .*(bogus|rng)"):
            call()
    assert not (tmp_path / "kept").exists()


def test_labels_are_numbers_text_or_dates():
    def fit(x, *, rng):
        return xr.DataArray(rng.standard_normal(), name="x")

    day = np.datetime64("2026-01-02")
    first, again = (ts.fit_batch(fit, {day: 0, 1: 0}, rng=0, scheduler="synchronous") for _ in range(2))
    xr.testing.assert_identical(first, again)
    with pytest.raises(ArgumentError, match="part of a label"):
        ts.fit_batch(fit, {b"a": 0}, rng=0)


@pytest.mark.parametrize("dims", [("a", "a"), ("status", "a"), ("a", "own")])
def test_parts_of_labels_have_names_of_their_own(dims):
    def fit(x, *, rng):
        return xr.Dataset({"x": ("own", np.zeros(x))})

    with pytest.raises(ArgumentError, match="dims|own"):
        ts.fit_batch(fit, {(1, 2): 3}, rng=0, dims=dims, scheduler="synchronous")
