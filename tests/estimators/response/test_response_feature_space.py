"""Feature-space size: known dimensions, the correction for few inputs, coverage, and the rank-r data bound."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from tests.reference.response_networks import LinearNet, TanhNet
from trajstats import feature_space
from trajstats.data.schema import trajectory_dataset
from trajstats.errors import ArgumentError
from trajstats.estimators.response.features import TANGENT, dimensions


def one_checkpoint(weights, layers=None):
    return trajectory_dataset(np.asarray(weights, dtype=np.float64)[None], step=[0], layers=layers)


def naive_pair_averages(x):
    # E (x_i - x_j).(x_k - x_l) products over four different inputs, by brute force.
    n = len(x)
    first = second = 0.0
    count = 0
    for i, j, k, l in itertools.permutations(range(n), 4):  # noqa: E741
        a, b = x[i] - x[j], x[k] - x[l]
        second += (a @ b) ** 2 / 4
        first += (a @ a) * (b @ b) / 4
        count += 1
    return first / count, second / count


def test_the_centred_participation_ratio_is_the_brute_force_u_statistic():
    x = np.random.default_rng(0).normal(size=(9, 3)) + 5.0
    first, second = naive_pair_averages(x)
    found = dimensions(x @ x.T, centred=True)[0, 0]
    assert found == pytest.approx(first / second, rel=1e-9)


def test_the_raw_participation_ratio_averages_over_pairs():
    x = np.random.default_rng(1).normal(size=(10, 4))
    gram = x @ x.T
    pairs = list(itertools.permutations(range(10), 2))
    first = np.mean([gram[i, i] * gram[j, j] for i, j in pairs])
    second = np.mean([gram[i, j] ** 2 for i, j in pairs])
    assert dimensions(gram, centred=False)[0, 0] == pytest.approx(first / second, rel=1e-12)


def test_few_inputs_do_not_shrink_the_participation_ratio():
    rng = np.random.default_rng(2)
    found = np.array([dimensions((x := rng.normal(size=(60, 40))) @ x.T, centred=True)[0] for _ in range(60)])
    error = found[:, 0].std() / np.sqrt(60)
    # The ratio of two unbiased parts is biased by its own relative variance: below 1 % here.
    assert abs(found[:, 0].mean() - 40) < 3 * error + 0.4
    assert abs(found[:, 1].mean() - 40 * 60 / 100) < 2  # what it looks like uncorrected


def test_intervals_cover_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(3)
    scale = np.array([2.0, 1.0, 1.0, 0.5])
    truth = (scale**2).sum() ** 2 / (scale**4).sum()
    inside = 0
    for _ in range(120):
        x = rng.normal(size=(60, 4)) * scale
        run = one_checkpoint(np.eye(4).ravel())
        size = feature_space(LinearNet(4, 4), run, x, layers=["out"], kernel=False)
        low, high = size.participation_ratio_interval.values.ravel()
        inside += low <= truth <= high
    assert 0.95 - 3 * np.sqrt(0.95 * 0.05 / 120) <= inside / 120 <= 1.0


def test_all_three_measures_agree_on_equal_directions():
    rng = np.random.default_rng(4)
    x = rng.normal(size=(400, 5))
    size = feature_space(LinearNet(5, 5), one_checkpoint(np.eye(5).ravel()), x, layers=["out"], kernel=False)
    for name in ("participation_ratio", "stable_rank", "effective_dimension"):
        assert size[name].item() == pytest.approx(5, abs=4 * size[f"{name}_stderr"].item() + 0.35)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_data_of_rank_r_bound_the_tangent_space_of_a_linear_model(rank):
    rng = np.random.default_rng(5)
    x = rng.normal(size=(200, rank)) @ rng.normal(size=(rank, 6))
    size = feature_space(LinearNet(6), one_checkpoint(rng.normal(size=6)), x)
    assert size.layer.values.tolist() == [TANGENT]
    for name in ("participation_ratio", "stable_rank", "effective_dimension"):
        assert 1 - 1e-6 <= size[f"{name}_uncorrected"].item() <= rank + 1e-9


def test_tangent_kernel_of_a_linear_model_is_the_second_moment_of_the_inputs():
    rng = np.random.default_rng(6)
    x = rng.normal(size=(50, 3)) + 1.0
    size = feature_space(LinearNet(3), one_checkpoint(np.zeros(3)), x)
    eigen = np.linalg.eigvalsh(x.T @ x / 50)
    assert size.participation_ratio_uncorrected.item() == pytest.approx(eigen.sum() ** 2 / (eigen**2).sum())
    assert size.stable_rank_uncorrected.item() == pytest.approx(eigen.sum() / eigen.max())


def test_shifting_features_changes_nothing():
    rng = np.random.default_rng(7)
    x = rng.normal(size=(40, 3))
    shifted = x + 1e3
    a, b = (dimensions(v @ v.T, centred=True) for v in (x, shifted))
    np.testing.assert_allclose(a, b, rtol=1e-6)  # 1e6 squared against 1: six digits are lost in the Gram matrix


def test_dead_features_are_nan_and_not_an_error():
    net = TanhNet(3, 4, 2)
    size = feature_space(
        net,
        one_checkpoint(np.zeros(net.n_parameters), net.layers),
        np.random.default_rng(8).normal(size=(20, 3)),
        layers=["h"],
        kernel=False,
    )
    assert np.isnan(size.participation_ratio.item())


def test_bad_arguments_are_named():
    run = one_checkpoint(np.zeros(3))
    with pytest.raises(ArgumentError, match="at least 8"):
        feature_space(LinearNet(3), run, np.ones((4, 3)))
    with pytest.raises(ArgumentError, match="nothing to measure"):
        feature_space(LinearNet(3), run, np.ones((10, 3)), kernel=False)
