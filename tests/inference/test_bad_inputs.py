"""Bad options and bad data of every fit: a clear error before any work, and a labelled row in a batch."""

from __future__ import annotations

import re

import numpy as np
import pytest
import xarray as xr

import trajstats as ts
from trajstats.errors import ArgumentError, FitError, NonFiniteError
from trajstats.inference.aging import fit as aging
from trajstats.inference.decay import fit as decay
from trajstats.inference.transition import _joint as joint_divergence
from trajstats.inference.transition import _single as transition

WAIT, LAG = (a.ravel() for a in np.meshgrid(np.geomspace(100, 1e4, 4), np.geomspace(10, 1e4, 5), indexing="ij"))
STEP = np.unique(np.geomspace(1, 1e4, 60).astype(int))
WIDTH = np.repeat([6.0, 8.0, 12.0, 20.0, 40.0], 4)
NAN = float("nan")
FITS = {"aging": ts.fit_subaging, "divergence": ts.fit_divergence, "decay": ts.fit_decay}


def noise(size, sd=0.05):
    return np.exp(sd * np.random.default_rng(0).standard_normal(size))


def two_time(values, **coords):
    own = {"waiting_time": ("pair", WAIT), "lag": ("pair", LAG), **coords}
    return xr.DataArray(values, dims="pair", coords=own)


def curve(values, step=STEP):
    return xr.DataArray(values, dims="step", coords={"step": step})


def times(values, width=WIDTH, **coords):
    return xr.DataArray(values, dims="run", coords={"width": ("run", width), **coords})


MSD = two_time(-np.expm1(-(np.sqrt(WAIT + LAG) - np.sqrt(WAIT)) / 20) * noise(WAIT.size))
LOSS = curve((0.1 + STEP**-0.5) * noise(STEP.size, 0.02))
TIMES = times(100 / (WIDTH - 4) * noise(WIDTH.size))
GOOD = {"aging": MSD, "divergence": TIMES, "decay": LOSS}
TEXT = np.array(["narrow"] * WIDTH.size)
PAIR_OF_LOSSES = xr.concat([TIMES, 2 * TIMES], xr.DataArray([0.1, 0.2], dims="loss", name="loss"))
LAYERS = xr.concat([MSD, MSD], xr.DataArray(["a", "b"], dims="layer", name="layer"))

# options that every fit has
SHARED = [
    ({"rng": "text"}, "rng='text': give a whole number"),
    ({"rng": NAN}, "rng=nan: give a whole number"),
    ({"rng": -1}, "rng=-1: give a whole number that is not negative"),
    ({"sampler": "nuts"}, "unknown sampler 'nuts'; allowed"),
    ({"sampler": NAN}, "unknown sampler nan; allowed"),
    ({"max_steps": "many"}, "max_steps='many': give a whole number"),
    ({"max_steps": NAN}, "max_steps=nan: give a whole number"),
    ({"max_steps": 0}, "max_steps=0: give a whole number, at least 1"),
    ({"progress": "yes"}, "progress='yes': give True or False"),
    ({"prior": "wide"}, "prior='wide': give a mapping"),
    ({"prior": NAN}, "prior=nan: give a mapping"),
    ({"prior": {"width": (0, 1)}}, "unknown prior 'width'; allowed"),
]
OPTIONS = {
    "aging": [
        ({"prior": {"mu": "wide"}}, "prior mu=wide: give two finite numbers"),
        ({"prior": {"mu": (0, NAN)}}, "prior mu=.*: give two finite numbers"),
        ({"stationary": "no"}, "stationary='no': give True or False"),
        ({"over": "bias"}, "unknown over 'bias'; allowed: 'total'"),
        ({"on_nan": "omit"}, "unknown on_nan 'omit'; allowed: 'raise', 'skip'"),
        ({"clocks": "proper_time"}, "clocks='proper_time': give a mapping"),
        ({"clocks": {"own": None}}, "clock 'own' must be a DataArray along step"),
    ],
    "divergence": [
        ({"nu": "one"}, "nu='one': a fixed exponent is a positive number"),
        ({"nu": NAN}, "nu=nan: a fixed exponent is a positive number"),
        ({"nu": [1, 2]}, r"nu=\[1, 2\]: a fixed exponent"),
        ({"nu": np.inf}, "nu=inf: a fixed exponent"),
        ({"budget": "long"}, "budget='long': the largest time watched is positive"),
        ({"budget": NAN}, "budget=nan: the largest time watched is positive"),
        ({"stuck": "no"}, "stuck='no': give True or False"),
        ({"prior": {"nu": (-2, 1)}}, "nu is at least 0"),
        ({"prior": {"stuck_fraction": (0, 3)}, "stuck": True}, "stuck_fraction is 0 to 1"),
        ({"prior": {"w_c": ("a", 1)}}, "prior w_c=.*: give two finite numbers"),
    ],
    "decay": [
        ({"floor": "no"}, "floor='no': give True or False"),
        ({"clock": ["step"]}, r"clock=\['step'\]: give the name of a coordinate"),
        ({"window": "late"}, "window='late': give two times"),
        ({"window": (1,)}, r"window=\(1,\): give two times"),
        ({"window": (100, 10)}, "the first before the last"),
        ({"window": (NAN, 10)}, r"window=\(nan, 10\): give two times"),
        ({"bins_per_decade": NAN}, "bins_per_decade=nan: give a whole number"),
        ({"prior": {"drift_share": (0, 3)}}, "drift_share is 0 to 1"),
        ({"prior": {"L_inf": (5, 6)}}, "the whole loss lies below this floor"),
    ],
}
DATA = {
    "aging": [
        (xr.DataArray(np.ones((3, 3)), dims=("step", "step_prime")), ArgumentError, "Make one with msd"),
        (MSD.astype(str), ArgumentError, "delta has dtype"),
        (two_time(MSD.values, waiting_time=("pair", ["late"] * LAG.size)), ArgumentError, "waiting_time has dtype"),
        (two_time(MSD.values, waiting_time=3.0), ArgumentError, r"lacks the coordinates \['waiting_time'\] along pair"),
        (xr.concat([MSD, MSD.where(False)], "replica"), NonFiniteError, "first: replica 1"),
        (xr.concat([MSD], "replica")[:0], ArgumentError, "no replica: the selection"),
        (MSD[:0], FitError, "0 waiting time"),
        (MSD[[0, 7]], FitError, "2 points"),
        (NAN * MSD, NonFiniteError, "20 of 20 MSD values are not finite"),
        (xr.concat([MSD, MSD], "replica"), FitError, "replica 1 is a copy of replica 0"),
        (two_time(LAG**-0.5), FitError, "the MSD falls with the lag at 4 of 4 waiting times"),
        (LAYERS.assign_coords(n_parameters=("layer", ["x", "y"])), ArgumentError, "n_parameters has dtype"),
        (LAYERS.assign_coords(n_parameters=("layer", [0, 0])), ArgumentError, "how many weights each has"),
    ],
    "divergence": [
        (None, ArgumentError, "got NoneType"),
        (TIMES[:0], FitError, "none of 0 runs learned"),
        (TIMES[[0, 5]], FitError, "2 runs learned at 2 distinct widths"),
        (NAN * TIMES, NonFiniteError, "20 learning times are NaN"),
        (-TIMES, FitError, "20 learning times are not positive"),
        (TIMES * np.inf, ArgumentError, "no finite budget; give budget="),
        (times(TIMES.values, TEXT), ArgumentError, "width has dtype"),
        (times(TIMES.values, WIDTH.astype(str)), ArgumentError, r"convert it with .astype\(float\)"),
        (times(TEXT), ArgumentError, "learning_time has dtype"),
        (TIMES.drop_vars("width").assign_coords(width=3.0), ArgumentError, "width of each run"),
        (xr.Dataset({"learning_time": TIMES, "learned": ("run", np.full(20, NAN))}), ArgumentError, "learned holds"),
        (xr.Dataset({"learning_time": TIMES, "learned": ("run", TEXT)}), ArgumentError, "learned has dtype"),
        (xr.Dataset({"learning_time": TIMES, "budget": ("run", TEXT)}), ArgumentError, "budget has dtype"),
        (TIMES.assign_coords(depth=("run", TEXT)), ArgumentError, "depth has dtype"),
        (TIMES.assign_coords(depth=("run", [1.0, NAN] * 10)), ArgumentError, "the depth NaN"),
        (PAIR_OF_LOSSES.drop_vars("loss"), ArgumentError, "losses .*: the coordinate loss holds distinct"),
        (PAIR_OF_LOSSES.assign_coords(loss=[0.1, 0.1]), ArgumentError, r"losses \[0.1, 0.1\]"),
        (PAIR_OF_LOSSES.rename(loss="seed"), ArgumentError, "lie along run"),
    ],
    "decay": [
        (LOSS.to_dataset(name="loss"), ArgumentError, "got a Dataset"),
        (LOSS[:0], FitError, "0 bins"),
        (LOSS[:2], FitError, "1 bins"),
        (NAN * LOSS, NonFiniteError, "53 of 53 losses are NaN"),
        (-LOSS, FitError, "53 losses are not positive"),
        (curve(LOSS.values, STEP[[*range(5), 6, 5, *range(7, STEP.size)]]), FitError, "do not increase near row 5"),
        (curve(LOSS.values, STEP.astype(str)), ArgumentError, "step has dtype"),
        (LOSS.astype(complex), ArgumentError, "loss has dtype complex128"),
        (LOSS > 0.2, ArgumentError, "loss has dtype bool"),
        (xr.concat([LOSS, NAN * LOSS], "replica"), ArgumentError, "2 replicas: fit one"),
        (xr.concat([LOSS], "replica")[:0], ArgumentError, "0 replicas"),
        (LOSS ** np.linspace(1, 200, LOSS.size), FitError, "span more than 1e"),
    ],
}


def cases():
    # each: name of the fit, data, options, kind of error, words
    for fit in FITS:
        for options, words in [*SHARED, *OPTIONS[fit]]:
            yield fit, GOOD[fit], options, ArgumentError, words
        for data, error, words in DATA[fit]:
            yield fit, data, {}, error, words
    yield "divergence", PAIR_OF_LOSSES, {"evidence": True}, ArgumentError, "one loss and one depth"


BAD = list(cases())


@pytest.mark.parametrize(("fit", "data", "options", "error", "words"), BAD)
def test_what_is_wrong_is_said_before_any_work(fit, data, options, error, words, monkeypatch):
    def worked(*_args, **_options):
        raise AssertionError(words)

    for module, work in ((aging, "pilot_fit"), (transition, "maximum"), (joint_divergence, "maximum")):
        monkeypatch.setattr(module, work, worked)
    monkeypatch.setattr(decay, "maximum", worked)
    with pytest.raises(error, match=words):
        FITS[fit](data, **{"rng": 0, **options})


def one(case, *, rng):
    fit, data, options = case
    quick = {"sampler": "grid"} if fit == "aging" else {"max_steps": 100}
    return FITS[fit](data, **{"rng": rng, **quick, **options})


def test_a_batch_of_bad_cases_labels_each_and_leaves_the_good_ones_as_they_were():
    clean = {("good", k): (fit, GOOD[fit], {}) for k, fit in enumerate(("aging", "divergence"))}
    bad = {("bad", k): case[:3] for k, case in enumerate(BAD)}
    options = {"rng": 0, "dims": ("kind", "number"), "scheduler": "synchronous"}
    mixed = ts.fit_batch(one, {**dict(list(bad.items())[::2]), **clean, **dict(list(bad.items())[1::2])}, **options)
    alone = ts.fit_batch(one, clean, **options)
    kept = mixed.isel(case=mixed["kind"].values == "good")
    for name in ("value", "stderr", "interval"):
        np.testing.assert_array_equal(kept[name], alone[name])
    failed = mixed.isel(case=mixed["kind"].values == "bad").sortby("number")
    assert np.isnan(failed["value"]).all()
    for (_, _, _, error, words), status, reason in zip(
        BAD, failed["status"].values, failed["reason"].values, strict=True
    ):
        assert status == f"failed: {error.__name__}"
        assert re.search(words, reason)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rng": "text"}, "rng='text'"),
        ({"rng": NAN}, "rng=nan"),
        ({"rng": -3}, "rng=-3"),
        ({"rng": np.random.default_rng(0)}, "seed of a batch"),
        ({"dims": "case"}, "dims='case'"),
    ],
)
def test_a_batch_itself_is_asked_for_properly(change, words):
    with pytest.raises(ArgumentError, match=words):
        ts.fit_batch(ts.fit_decay, {"a": LOSS}, **{"rng": 0, **change})
    with pytest.raises(ArgumentError, match="give a mapping from label"):
        ts.fit_batch(ts.fit_decay, [LOSS], rng=0)
    with pytest.raises(ArgumentError, match="a str cannot be called"):
        ts.fit_batch("fit_decay", {"a": LOSS}, rng=0)


@pytest.mark.parametrize(
    ("start", "words"),
    [
        ({"beta": (0.5, 0.1)}, "three finite numbers"),
        ({"beta": 0.5}, "three finite numbers"),
        ({"beta": (0.5, 1.0, 2.0)}, "the start between its bounds"),
        ({"beta": (0.5, 0.0, np.inf)}, "three finite numbers"),
        ({"beta": "abc"}, "three finite numbers"),
        ({"mu": (0.5, 0.0, 1.0)}, "which the fit has"),
        ({"my beta": (0.5, 0.0, 1.0)}, "a word of letters"),
        ([("beta", (0.5, 0.0, 1.0))], "a mapping name"),
    ],
)
def test_a_master_curve_says_what_its_coefficients_need(start, words):
    with pytest.raises(ArgumentError, match=words):
        ts.MasterCurve("mine", lambda x, c: c["beta"] * x, start)
