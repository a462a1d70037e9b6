"""Splitting a response and naming its decay: laws planted and found again."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from trajstats import fit_response_decay, separate_response
from trajstats.errors import ArgumentError, FitError, NonFiniteError

STEP = np.unique(np.geomspace(1, 1e4, 40).astype(int))
LAWS = {
    "constant": np.ones(STEP.size),
    "exponential": np.exp(-STEP / 4000),
    "power_law": (1 + STEP / 10) ** -0.6,
}


def planted(decay, *, noise=0.0, n=12, replicas=1, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 4))
    values = decay[None, :, None, None] * (x @ x.T)
    values = values + noise * rng.normal(size=(replicas, STEP.size, n, n))
    return xr.Dataset(
        {"response": (("replica", "step", "input", "probe"), values)}, {"step": STEP, "replica": np.arange(replicas)}
    )


def test_an_exact_product_is_explained_completely():
    split = separate_response(planted(LAWS["power_law"]))
    assert split.unexplained.item() < 1e-12
    np.testing.assert_allclose(split.decay[0, 0] / split.decay[0, 0, 0], LAWS["power_law"] / LAWS["power_law"][0])


def test_unexplained_share_is_that_of_a_planted_second_product():
    rng = np.random.default_rng(1)
    time = np.linalg.qr(rng.normal(size=(STEP.size, 2)))[0]
    pairs = np.linalg.qr(rng.normal(size=(900, 2)))[0]
    values = (time * np.array([3.0, 1.0]) @ pairs.T).reshape(1, STEP.size, 30, 30)
    found = separate_response(xr.Dataset({"response": (("replica", "step", "input", "probe"), values)}, {"step": STEP}))
    assert found.unexplained.item() == pytest.approx(0.1, rel=1e-9)
    low, high = found.unexplained_interval.values.ravel()
    assert 0.05 < low < 0.1 < high < 0.2


@pytest.mark.parametrize("law", LAWS)
def test_the_planted_law_is_found(law):
    rng = np.random.default_rng(2)
    noisy = LAWS[law] * np.exp(0.01 * rng.normal(size=STEP.size))
    fit = fit_response_decay(separate_response(planted(noisy), n_bootstrap=20))
    assert fit.law.values[fit.weight.argmax("law").item()] == law


def test_coefficients_are_within_their_intervals():
    inside = 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        noisy = LAWS["power_law"] * np.exp(0.05 * rng.normal(size=STEP.size))
        split = xr.Dataset(
            {"decay": (("replica", "stage", "step"), noisy[None, None])}, {"step": STEP, "stage": ["whole"]}
        )
        low, high = fit_response_decay(split).exponent_interval.values.ravel()
        inside += low <= 0.6 <= high
    assert inside >= 9  # 11.4 of 12 expected; 9 is three binomial standard deviations below


def test_stages_come_from_the_loss_and_are_split_one_by_one():
    decay = np.where(STEP < 1000, 1.0, (STEP / 1000) ** -0.5)
    response = planted(decay, replicas=2)
    stages = xr.Dataset({"t1": ("replica", [100.0, 100.0]), "t2": ("replica", [1000.0, np.nan])})
    split = separate_response(response, stages=stages, n_bootstrap=20)
    assert split.stage.values.tolist() == ["whole", "plateau", "descent", "floor"]
    shown = np.isfinite(split.decay)
    assert (shown.sel(stage="plateau").sum("step") == (STEP < 100).sum()).all()
    assert shown.sel(stage="floor").sum("step").values.tolist() == [(STEP >= 1000).sum(), 0]
    assert shown.sel(stage="descent").sum("step").values.tolist() == [
        ((STEP >= 100) & (STEP < 1000)).sum(),
        (STEP >= 100).sum(),
    ]


def test_replicas_are_not_mixed():
    response = planted(LAWS["exponential"], noise=0.3, replicas=2)
    both = separate_response(response, n_bootstrap=20)
    alone = separate_response(response.isel(replica=[1]), n_bootstrap=20)
    np.testing.assert_allclose(both.decay[1], alone.decay[0])


def test_bad_input_is_named():
    response = planted(LAWS["constant"])
    with pytest.raises(ArgumentError, match="at least 3"):
        separate_response(response.isel(step=[0, 1]))
    with pytest.raises(ArgumentError, match="loss_regimes"):
        separate_response(response, stages=xr.Dataset({"t1": 1.0}))
    with pytest.raises(NonFiniteError):
        separate_response(response * np.nan)
    with pytest.raises(ArgumentError, match="stage 'floor'"):
        fit_response_decay(separate_response(response, n_bootstrap=20), stage="floor")
    negative = xr.Dataset(
        {"decay": (("replica", "stage", "step"), -np.ones((1, 1, 8)))}, {"step": np.arange(8), "stage": ["whole"]}
    )
    with pytest.raises(FitError, match="positive"):
        fit_response_decay(negative)
