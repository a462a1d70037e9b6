"""What is odd about a series is said unasked: late content under early steps, jumps, missing steps, stages."""

from __future__ import annotations

import numpy as np
import pytest

import trajstats as ts
from trajstats.data.ingest.into_store import ingest
from trajstats.data.ingest.names._stages import missing_steps, stages_of

SHAPES = {"embed.weight": (40, 8), "layers.0.weight": (20, 20), "layers.0.bias": (20,)}
# 154 revisions as of a well-known public series: 0, powers of two, then every thousand steps.
STEPS = [0, *(2**k for k in range(10)), *range(1000, 144_000, 1000)]


def walk(steps, seed=0, pace=1.0):
    """Brownian motion in the step."""
    rng = np.random.default_rng(seed)
    tree = {name: rng.standard_normal(shape).astype("f4") for name, shape in SHAPES.items()}
    series, before = {}, steps[0]
    for step in steps:
        size = pace * np.sqrt((step - before) / 1000)
        tree = {name: w + size * rng.standard_normal(w.shape).astype("f4") for name, w in tree.items()}
        series[step], before = tree, step
    return series


def test_revisions_that_serve_late_content_are_named(tmp_path):
    series = walk(STEPS)
    late = sorted(np.random.default_rng(1).choice(STEPS[:-1], 86, replace=False).tolist())
    wrong = {step: series[STEPS[-1]] if step in late else tree for step, tree in series.items()}
    for dry_run in (True, False):
        if dry_run:
            plan = ingest(wrong, tmp_path / "run.zarr", dry_run=True)
        else:
            with pytest.warns(UserWarning, match="86 checkpoints hold the weights of step 143000 bit for bit"):
                plan = ingest(wrong, tmp_path / "run.zarr")
        (found,) = [finding for finding in plan.findings if finding.kind == "identical"]
        assert f": steps {', '.join(map(str, late))};" in found.detail
        assert "fit the steps around 143000" in found.detail
        assert found.detail in str(plan)
    assert found.detail in ts.open_trajectory(tmp_path / "run.zarr").findings
    plan = ingest(wrong, tmp_path / "kept.zarr", drop_identical=True)
    assert plan.steps == [step for step in STEPS if step not in late]
    run = ts.open_trajectory(tmp_path / "kept.zarr")
    np.testing.assert_array_equal(run.weights.values[0, -1, :320], series[143_000]["embed.weight"].ravel())


def test_two_equal_checkpoints_of_which_the_later_is_right(tmp_path):
    series = walk(range(0, 20_000, 1000))
    series[3000] = series[15_000]
    (found,) = ingest(series, tmp_path / "run.zarr", dry_run=True).findings
    assert "step 15000 equals step 3000" in found.detail
    assert "fit the steps around 15000" in found.detail
    plan = ingest(series, tmp_path / "run.zarr", drop_identical=True)
    assert 3000 not in plan.steps
    assert 15_000 in plan.steps


@pytest.mark.parametrize("steps", [STEPS, range(0, 30_000, 1000), [2**k for k in range(15)]])
@pytest.mark.parametrize("kind", ["walk", "line", "stationary", "relaxing"])
def test_honest_series_have_no_finding(tmp_path, steps, kind):
    rng, steps = np.random.default_rng(3), list(steps)
    start = {name: rng.standard_normal(shape) for name, shape in SHAPES.items()}
    end = {name: rng.standard_normal(shape) for name, shape in SHAPES.items()}
    series = walk(steps)
    if kind != "walk":
        for step in steps:
            x = {"line": step / steps[-1], "stationary": 0.0, "relaxing": 1 - np.exp(-step / 3000)}[kind]
            noise = 1.0 if kind == "stationary" else 1e-3
            series[step] = {
                name: (start[name] + x * (end[name] - start[name]) + noise * rng.standard_normal(w.shape)).astype("f4")
                for name, w in start.items()
            }
    assert ingest(series, tmp_path / "run.zarr", dry_run=True).findings == []


@pytest.mark.parametrize("at", [1000, 7000, 18_000])
def test_a_checkpoint_of_another_run(tmp_path, at):
    series = walk(range(0, 20_000, 1000), pace=0.1)
    series[at] = walk(range(0, 20_000, 1000), seed=5, pace=0.1)[at]
    (found,) = ingest(series, tmp_path / "run.zarr", dry_run=True).findings
    assert found.kind == "jump"
    assert f"at step {at} the weights are" in found.detail


@pytest.mark.parametrize(
    ("steps", "lost", "rule"),
    [
        ([0, 100, 200, 400, 500, 800, 900, 1000], [300, 600, 700], "steps go by 100"),
        ([1, 2, 4, 16, 32, 64, 128], [8], "steps go by factors of 2"),
        ([s for s in STEPS if s not in (5000, 90_000)], [5000, 90_000], "steps go by 1000"),
        (STEPS, [], ""),
        ([0, 1, 3, 10, 30, 100, 300], [], ""),
        ([0, 100, 300], [], ""),
        ([3, 17, 18, 40, 41, 99], [], ""),
    ],
)
def test_missing_steps(steps, lost, rule):
    found = missing_steps(steps)
    assert found[1] == lost
    assert not lost or found[0] == rule


def test_missing_steps_are_in_the_plan(tmp_path):
    for step in (0, 100, 200, 400, 500, 600):
        np.savez(tmp_path / f"step{step}.npz", w=np.full(8, step, "f4") + np.arange(8))
    (found,) = ingest(tmp_path, tmp_path / "run.zarr", dry_run=True).findings
    assert str(found).endswith("steps go by 100, without 300")


def staged(folder, names):
    for k, name in enumerate(names):
        np.savez(folder / f"{name}.npz", w=np.arange(9.0) * (k + 1) ** 2)
    return folder


def test_stages_that_go_on_are_a_coordinate(tmp_path):
    (tmp_path / "in").mkdir()
    names = ["stage1-step0", "stage1-step1000", "stage2-step2000", "stage2-step3000", "lc-step4000"]
    with pytest.warns(UserWarning, match="of the stage '"):
        plan = ingest(staged(tmp_path / "in", names), tmp_path / "run.zarr")
    run = ts.open_trajectory(tmp_path / "run.zarr")
    assert run.stage.dims == ("step",)
    assert run.stage.values.tolist() == [0, 0, 1, 1, 2]
    assert run.attrs["stages"] == '["stage1", "stage2", "lc"]'
    assert run.stage.attrs["long_name"]
    details = [finding.detail for finding in plan.findings]
    assert details[1] == "steps 2000 to 3000 are of the stage 'stage2', 1 in the coordinate 'stage'"
    assert len(details) == 3
    assert "with stage of each checkpoint" in str(plan)


def test_stages_that_count_their_own_steps_are_never_mixed(tmp_path):
    (tmp_path / "in").mkdir()
    staged(tmp_path / "in", ["stage1-step0", "stage1-step1000", "stage2-step0", "stage2-step1000"])
    with pytest.raises(ts.ArgumentError, match=r"2 stages.*\n  stage1: steps 0 to 1000\n  stage2: steps 0 to 1000"):
        ingest(tmp_path / "in", tmp_path / "run.zarr")
    assert ingest(str(tmp_path / "in" / "stage2-*"), tmp_path / "run.zarr").steps == [0, 1000]


def test_one_stage_is_none():
    assert stages_of(["stage1-step1", "stage1-step2"], [1, 2]) == ([], [])
    assert stages_of(["step1", "step2"], [1, 2]) == ([], [])
