"""Steps are read from the names that tools and people give to checkpoints, or refused with the candidates."""

from __future__ import annotations

import datetime

import numpy as np
import pytest

import trajstats as ts
from trajstats.data.ingest.names._steps import steps_of, to_step
from trajstats.data.ingest.names._tokens import read_number

READ = {
    "step": (["step0", "step143000", "step512"], [0, 143000, 512]),
    "checkpoint folders": (["checkpoint-500/model.safetensors", "checkpoint-1500/model.safetensors"], [500, 1500]),
    "step before epoch": (["epoch=3-step=1200.ckpt", "epoch=4-step=1600.ckpt"], [1200, 1600]),
    "epoch": (["run2/epoch_1.pt", "run2/epoch_12.pt"], [1, 12]),
    "folders": (["seed5/000100/w.npz", "seed5/001000/w.npz"], [100, 1000]),
    "shards": (["model-00001-of-00002-step7.pt", "model-00001-of-00002-step8.pt"], [7, 8]),
    "zeros": (["iter_0000500", "iter_0001000"], [500, 1000]),
    "tokens beside": (["stage1-step1000-tokens5B", "stage1-step2000-tokens9B"], [1000, 2000]),
    "global step": (["global_step10/x.bin", "global_step20/x.bin"], [10, 20]),
    "the one that changes": (["ckpt1_step3", "ckpt1_step4"], [3, 4]),
    "metric after a decimal point": (["w.01-0.92.h5", "w.02-0.61.h5", "w.03-0.35.h5"], [1, 2, 3]),
    "metric of four digits": (["m-01-0.7310.npz", "m-02-0.8102.npz", "m-03-0.7999.npz"], [1, 2, 3]),
    "metric in per cent": (["model_epoch_9_acc_93.51.pt", "model_epoch_10_acc_92.10.pt"], [9, 10]),
    "metric without a point": (["step_100_loss_2.npz", "step_200_loss_1.npz"], [100, 200]),
    "k and M": (["ckpt_500k.pt", "ckpt_1M.pt", "ckpt_2.5M.pt"], [500_000, 1_000_000, 2_500_000]),
    "k and none": (["step1K.pt", "step500.pt"], [1000, 500]),
    "e-notation": (["step1e5.pt", "step2.5e+05.pt"], [100_000, 250_000]),
    "epoch and update": (["checkpoint_1_5000.pt", "checkpoint_2_10000.pt"], [5000, 10000]),
    "updates within an epoch": (["checkpoint_1_50.pt", "checkpoint_1_100.pt", "checkpoint_2_150.pt"], [50, 100, 150]),
    "labelled epoch and update": (["epoch3_1200.pt", "epoch4_1600.pt"], [1200, 1600]),
    "batches within epochs": (
        ["ep0-ba1000-rank0.pt", "ep0-ba2000-rank0.pt", "ep1-ba3000-rank0.pt"],
        [1000, 2000, 3000],
    ),
    "word behind": (["rl_model_10000_steps.zip", "rl_model_20000_steps.zip"], [10000, 20000]),
    "learning rate": (["w_it100_lr0.001.npz", "w_it200_lr0.0005.npz"], [100, 200]),
    "date": (["run-2024-05-01T10-00-00-it100.npz", "run-2024-05-02T10-10-00-it50.npz"], [100, 50]),
    "time": (["20240501-100000/step_5.pt", "20240502-110000/step_7.pt"], [5, 7]),
    "month": (["May01_10-00-00_host/ckpt5.pt", "May02_10-00-00_host/ckpt3.pt"], [5, 3]),
    "hash beside": (["a1b2c3d-step5.pt", "0b2c3d4-step6.pt"], [5, 6]),
    "size of the model": (["pythia-160m-step512/m.bin", "pythia-160m-step1000/m.bin"], [512, 1000]),
    "two suffixes": (["checkpoint_0001.pth.tar", "checkpoint_0199.pth.tar"], [1, 199]),
    "zeros and millions": (["ckpt-0000100.pt", "ckpt-1000000.pt"], [100, 1_000_000]),
    "one file": (["in/step7.npz"], [7]),
    "one plain number": (["ck/000100.pt"], [100]),
    "the same step twice": (["step2.npz", "again_step2.npz"], [2, 2]),
}


@pytest.mark.parametrize("kind", READ)
def test_steps_from_names(kind):
    names, steps = READ[kind]
    assert steps_of(names)[0] == steps


@pytest.mark.parametrize(
    ("names", "rule"),
    [
        (["epoch=3-step=1200.ckpt", "epoch=4-step=1600.ckpt"], "the number after 'step'"),
        (["m_100_steps", "m_200_steps"], "the number before 'steps'"),
        (["checkpoint_1_5000.pt", "checkpoint_2_10000.pt"], "the number in brackets in 'checkpoint_1_(5000)'"),
    ],
)
def test_the_rule_is_named(names, rule):
    assert steps_of(names)[1] == rule


NONE = {
    "no number": ["step1.pt", "other.pt"],
    "hashes": ["a1b2c3d/m.pt", "deadbe3/m.pt", "1234567/m.pt"],
    "hash that looks like a power of ten": ["m-1234567a.pt", "m-12e4567.pt"],
    "long hash": [f"snapshots/{c}123456789abcdef0123456789abcdef01234567/m.pt" for c in "03"],
    "dates": ["20240501.pt", "20240502.pt"],
    "seconds of the clock": ["m_1714557600.pt", "m_1714558600.pt"],
    "letters": ["1a.pt", "1b.pt", "1c.pt"],
    "fractions": ["model_0.5.pt", "model_1.0.pt"],
    "scores only": ["model_loss_3.pt", "model_loss_2.pt"],
    "versions": ["m-1.2.3.pt", "m-1.2.4.pt"],
    "one name of a model": ["gpt2-finetuned/model.safetensors"],
}


@pytest.mark.parametrize("kind", NONE)
def test_what_is_no_step_is_refused(kind):
    with pytest.raises(ts.ArgumentError, match=r"no step in the name .*step_from="):
        steps_of(NONE[kind])


AMBIGUOUS = {
    "steps that begin again": (["epoch0_step900.pt", "epoch1_step100.pt"], ["900, 100", "0, 1"]),
    "steps within epochs": (["epoch_1_iter_1.pt", "epoch_1_iter_2.pt", "epoch_2_iter_1.pt"], ["1, 1, 2", "1, 2, 1"]),
    "step or score": (["model_10_91.pt", "model_20_93.pt"], ["10, 20", "91, 93"]),
    "step or falling score": (["model_10_93.pt", "model_20_91.pt"], ["10, 20", "93, 91"]),
}


@pytest.mark.parametrize("kind", AMBIGUOUS)
def test_two_readings_are_refused_with_both(kind):
    names, readings = AMBIGUOUS[kind]
    with pytest.raises(ts.ArgumentError, match="Choose one") as caught:
        steps_of(names)
    assert all(f": {reading} (" in str(caught.value) for reading in readings)


def test_the_patterns_that_are_offered_work(tmp_path):
    for a, b in [(10, 91), (20, 93)]:
        np.savez(tmp_path / f"model_{a}_{b}.npz", w=np.full(3, a, "f4"))
    with pytest.raises(ts.ArgumentError) as caught:
        ts.ingest(tmp_path, tmp_path / "out.zarr")
    offered = [line.split("'")[1] for line in str(caught.value).splitlines() if "step_from=r'" in line]
    steps = [ts.ingest(tmp_path, tmp_path / "out.zarr", step_from=p, dry_run=True).steps for p in offered]
    assert steps == [[10, 20], [91, 93]]


@pytest.mark.parametrize(
    ("text", "number"), [("500k", 500_000), ("1.5M", 1_500_000), ("1e5", 100_000), ("0.5", None), ("1e30", None)]
)
def test_numbers(text, number):
    assert read_number(text) == number


@pytest.mark.parametrize("step", [3, np.int64(3), 3.0, np.float32(3), "3", np.array(3)])
def test_whole_numbers_are_steps(step):
    assert to_step(step, "here") == 3


@pytest.mark.parametrize(
    "step",
    [0.5, np.nan, np.inf, 2**63, 1e300, True, None, "x", np.datetime64("2024-01-01"), np.timedelta64(3, "s")]
    + [datetime.datetime(2024, 1, 1), datetime.timedelta(3), [1], 1 + 2j],
)
def test_nothing_is_cut_or_wrapped(step):
    with pytest.raises(ts.ArgumentError, match="of here"):
        to_step(step, "here")
