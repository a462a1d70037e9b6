"""One-time statistics against definitions, random walks and losses with known corners."""

from __future__ import annotations

import numpy as np
import pytest

import trajstats as ts
from trajstats.data.schema import trajectory_dataset
from trajstats.data.synthetic.processes import ballistic, brownian
from trajstats.errors import ArgumentError


@pytest.mark.parametrize("per", ["all", "layer"])
def test_path_is_what_numpy_says(per):
    run = brownian([0, 1, 5, 20, 21], rng=0, layers={"a": (40, 50), "b": (70,)}, start=1.0, diffusion=1e-2)
    got = ts.path_statistics(run, per=per).compute()
    got = got if per == "all" else got.sel(layer="a")
    w = run.weights.values[0, :, : 2070 if per == "all" else 2000].astype(np.float64)
    np.testing.assert_allclose(got.norm[0], np.linalg.norm(w, axis=1), rtol=1e-12)
    np.testing.assert_allclose(got.distance_from_start[0], np.linalg.norm(w - w[0], axis=1), rtol=1e-6)
    np.testing.assert_allclose(got.distance_from_end[0], np.linalg.norm(w - w[-1], axis=1), rtol=1e-6)
    d = np.diff(w, axis=0)
    length = np.linalg.norm(d, axis=1)
    np.testing.assert_allclose(got.step_length[0, :-1], length, rtol=1e-6)
    cosine = (d[1:] * d[:-1]).sum(1) / length[1:] / length[:-1]
    np.testing.assert_allclose(got.turning_cosine[0, 1:-1], cosine, atol=1e-5)
    assert np.isnan(got.turning_cosine[0, [0, -1]]).all()


def test_straight_path_does_not_turn():
    path = ts.path_statistics(ballistic([0, 1, 2, 3], rng=0, dtype="float64")).compute()
    np.testing.assert_allclose(path.turning_cosine[0, 1:-1], 1, atol=1e-9)


def test_pca_agrees_with_svd_of_the_weights():
    run = brownian(range(12), rng=0, n_parameters=4000, dtype="float64")
    pca = ts.trajectory_pca(ts.all_pairs(run).msd, components=4)
    w = run.weights.values[0]
    u, s, _ = np.linalg.svd(w - w.mean(axis=0), full_matrices=False)
    np.testing.assert_allclose(pca.explained[0], (s**2 / (s**2).sum())[:4], rtol=1e-8)
    np.testing.assert_allclose(np.abs(pca.score[0]), np.abs(u * s)[:, :4], rtol=1e-6, atol=1e-8)
    share = s**2 / (s**2).sum()
    assert float(pca.participation_rank[0]) == pytest.approx(1 / (share**2).sum())
    assert float(pca.entropy_rank[0]) == pytest.approx(np.exp(-(share[:-1] * np.log(share[:-1])).sum()), rel=1e-6)


def test_random_walk_in_many_dimensions_has_the_known_shares():
    # Antognini & Sohl-Dickstein: 6 / (pi k)^2 for many steps in many dimensions; corrections are O(1/T), O(T/N).
    pca = ts.trajectory_pca(ts.all_pairs(brownian(range(200), rng=0, n_parameters=20_000)).msd, components=3)
    np.testing.assert_allclose(pca.explained[0], 6 / (np.pi * np.arange(1, 4)) ** 2, rtol=0.03)


def loss_run(loss, t, replicas=1):
    return trajectory_dataset(np.zeros((replicas, t.size, 1)), step=t, series={"loss": loss})


T = np.unique(np.geomspace(1, 1e6, 1500).astype(int))


def test_regimes_of_a_noisy_loss_are_covered():
    true1, true2 = 3e2, 2e4
    clean = np.interp(np.log(T), np.log([true1, true2]), [2.3, 0.4])
    rng = np.random.default_rng(0)
    inside = 0
    found = ts.loss_regimes(loss_run(clean + 0.1 * rng.standard_normal((40, T.size)), T, 40), rng=1, resamples=200)
    inside = int(((found.t1_low < true1) & (true1 < found.t1_high)).sum())
    inside += int(((found.t2_low < true2) & (true2 < found.t2_high)).sum())
    # 80 intervals at 95 %: fewer than 68 has a probability below 1e-3.
    assert inside >= 68
    np.testing.assert_allclose(found.plateau, 2.3, atol=0.1)
    assert float(np.log(found.t1 / true1).std()) < 0.3


def test_a_fall_that_is_cut_off_is_censored():
    falling = ts.loss_regimes(loss_run(3 - 0.2 * np.log(T), T), rng=0)
    assert not falling.floor_reached.any()
    assert not falling.plateau_seen.any()
    assert falling.t1.isnull().all()
    assert falling.t2.isnull().all()


def test_bad_series_are_named():
    run = loss_run(np.log(T + 1.0), T)
    with pytest.raises(ArgumentError, match=r"unknown series 'los'.*did you mean 'loss'"):
        ts.loss_regimes(run, rng=0, series="los")
    with pytest.raises(ArgumentError, match=r"12 are needed"):
        ts.loss_regimes(run.isel(step=slice(0, 5)), rng=0)
    bad = run.copy(deep=True)
    bad["loss"][0, 7] = np.nan
    with pytest.raises(ArgumentError, match=rf"not finite at step \[{T[7]}\]"):
        ts.loss_regimes(bad, rng=0)
    with pytest.raises(ArgumentError, match="1 checkpoint"):
        ts.path_statistics(run.isel(step=[0]))
    with pytest.raises(ArgumentError, match="components=9"):
        ts.trajectory_pca(ts.all_pairs(brownian([0, 1], rng=0)).msd, components=9)
