"""Epoch, loss and the sum of the learning rates from the trainer_state.json beside each checkpoint."""

from __future__ import annotations

import json

import numpy as np
import pytest

import trajstats as ts
from trajstats.data.ingest._trainer_state import _sum_of_rates
from trajstats.data.ingest.into_store import ingest


def rate(k):
    return 1e-3 * (1 - k / 1000)


def output(folder, *, every=10, steps=(100, 200, 300), rates=rate, change=lambda step, state: state):
    """Make a folder as a Trainer leaves it."""
    for step in steps:
        log = []
        for k in range(every, step + 1, every):
            log.append({"step": k, "epoch": k / 100, "loss": 2.0 / k, "learning_rate": rates(k), "grad_norm": 1.0})
            log.append({"step": k, "epoch": k / 100, "eval_loss": 3.0 / k})
        state = {"global_step": step, "epoch": step / 100, "log_history": log, "best_metric": None}
        (folder / f"checkpoint-{step}").mkdir(parents=True)
        np.savez(folder / f"checkpoint-{step}" / "model.npz", w=np.arange(5.0) * step)
        changed = change(step, state)
        if changed is not None:
            (folder / f"checkpoint-{step}" / "trainer_state.json").write_text(json.dumps(changed))
    return folder


def test_series_of_a_trainer(tmp_path):
    plan = ingest(output(tmp_path / "in", every=1), tmp_path / "run.zarr")
    assert plan.series == ["epoch", "loss", "proper_time"]
    assert plan.findings == []
    run = ts.open_trajectory(tmp_path / "run.zarr")
    assert run.step.values.tolist() == [100, 200, 300]
    np.testing.assert_array_equal(run.epoch, [1, 2, 3])
    np.testing.assert_allclose(run.loss.values[0], [2 / 100, 2 / 200, 2 / 300])
    wanted = [sum(rate(k) for k in range(1, step + 1)) for step in (100, 200, 300)]
    np.testing.assert_allclose(run.proper_time, wanted, rtol=1e-12)
    assert {run.epoch.dims, run.proper_time.dims} == {("step",)}
    assert ts.time_pairs(run).attrs["clock"] == "proper_time"


def test_rates_logged_now_and_then_are_summed_along_straight_lines_and_it_is_said(tmp_path):
    with pytest.warns(UserWarning, match=r"logged up to 10 steps apart.*straight line"):
        ingest(output(tmp_path / "in"), tmp_path / "run.zarr")
    wanted = [sum(rate(max(k, 10)) for k in range(1, step + 1)) for step in (100, 200, 300)]
    np.testing.assert_allclose(ts.open_trajectory(tmp_path / "run.zarr").proper_time, wanted, rtol=1e-12)


def test_a_constant_rate_needs_no_word(tmp_path):
    plan = ingest(output(tmp_path / "in", rates=lambda k: 0.01), tmp_path / "run.zarr")
    assert plan.findings == []
    np.testing.assert_allclose(ts.open_trajectory(tmp_path / "run.zarr").proper_time, [1, 2, 3])


def test_the_last_loss_at_or_before_a_checkpoint(tmp_path):
    with pytest.warns(UserWarning, match="straight line"):
        ingest(output(tmp_path / "in", every=30), tmp_path / "run.zarr")
    loss = ts.open_trajectory(tmp_path / "run.zarr").loss.values[0]
    np.testing.assert_allclose(loss, [2 / 90, 2 / 180, 2 / 300])


def test_a_state_of_another_step_or_none(tmp_path):
    def change(step, state):
        if step == 200:
            return {**state, "global_step": 300}
        return None if step == 300 else state

    with pytest.warns(UserWarning, match="trainer state") as caught:
        plan = ingest(output(tmp_path / "in", rates=lambda k: 0.01, change=change), tmp_path / "run.zarr")
    text = "\n".join(str(w.message) for w in caught)
    assert "is of step 300, its name says 200" in text
    assert "has no trainer_state.json, which others have" in text
    assert "the clock 'epoch' is not kept" in text
    assert plan.series == ["loss"]
    loss = ts.open_trajectory(tmp_path / "run.zarr").loss.values[0]
    assert np.isnan(loss).tolist() == [False, True, True]


@pytest.mark.parametrize(
    "state",
    [
        {"log_history": 3},
        {"log_history": [3, {"step": "x", "loss": 1}, {"step": 10}, {"step": 10, "loss": "x", "learning_rate": None}]},
        {"log_history": [{"step": 10, "loss": True, "learning_rate": 1e400}], "epoch": "1"},
    ],
)
def test_states_with_other_types(tmp_path, state):
    folder = output(tmp_path / "in", change=lambda step, _: {"global_step": step, **state})
    assert ingest(folder, tmp_path / "run.zarr").series == []


@pytest.mark.parametrize("text", ["[1]", "{", '{"a": 1, "a": 2}'])
def test_damaged_states_are_errors_that_name_the_file(tmp_path, text):
    folder = output(tmp_path / "in")
    (folder / "checkpoint-200" / "trainer_state.json").write_text(text)
    with pytest.raises(ts.TrajstatsError, match=r"checkpoint-200/trainer_state\.json"):
        ingest(folder, tmp_path / "run.zarr")


def test_one_folder_of_files_has_no_state_of_each(tmp_path):
    for step in (1, 2):
        np.savez(tmp_path / f"step{step}.npz", w=np.arange(5.0) * step)
    (tmp_path / "trainer_state.json").write_text('{"global_step": 2, "epoch": 3.0}')
    assert ingest(tmp_path, tmp_path / "run.zarr").series == []


def test_sums_over_many_steps():
    logged = [(1, 0.5), (2_000_000, 0.1), (6_000_000, 0.3)]
    by_hand = np.interp(np.arange(1, 6_000_001), *zip(*logged, strict=True)).sum()
    assert _sum_of_rates(logged, 6_000_000) == pytest.approx(by_hand, rel=1e-9)
