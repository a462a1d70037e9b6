"""Fragility: exact distances of linear nets, attacks that really flip, censoring."""

from __future__ import annotations

import numpy as np
import pytest

from tests.reference.response_networks import LinearNet, TanhNet
from trajstats import fragility
from trajstats.data.schema import trajectory_dataset
from trajstats.errors import ArgumentError


def run_of(weights, layers=None):
    weights = np.atleast_2d(np.asarray(weights, dtype=np.float64))
    return trajectory_dataset(weights, step=np.arange(len(weights)), layers=layers)


@pytest.mark.parametrize(("norm", "order"), [("linf", 1), ("l2", 2)])
def test_linear_classifier_flips_at_its_distance_in_the_dual_norm(norm, order):
    rng = np.random.default_rng(0)
    w, x = rng.normal(size=(1, 6)), 0.1 * rng.normal(size=(20, 6))
    found = fragility(LinearNet(6), run_of(w), x, norm=norm)
    exact = np.abs(x @ w[0]) / np.linalg.norm(w, ord=order, axis=1)
    # Ten bisections of a grid of ratio 1.35.
    np.testing.assert_allclose(found.fgsm.values.ravel(), exact, rtol=1e-3, atol=2e-6)
    np.testing.assert_allclose(found.pgd.values.ravel(), exact, rtol=1e-3, atol=2e-6)
    np.testing.assert_allclose(found.gradient_norm, np.linalg.norm(w))


def test_linear_classes_flip_to_the_nearest_rival():
    rng = np.random.default_rng(1)
    net = LinearNet(5, 2)
    w, x = rng.normal(size=10), 0.2 * rng.normal(size=(15, 5))
    found = fragility(net, run_of(w), x)
    gap = w.reshape(2, 5)[0] - w.reshape(2, 5)[1]
    np.testing.assert_allclose(found.fgsm.values.ravel(), np.abs(x @ gap) / np.abs(gap).sum(), rtol=1e-3, atol=2e-6)


def test_pgd_is_never_worse_than_fgsm_and_both_flip():
    rng = np.random.default_rng(2)
    net = TanhNet(6, 10, 4)
    x = rng.normal(size=(30, 6))
    found = fragility(net, run_of(1.5 * rng.normal(size=(2, net.n_parameters)), net.layers), x, max_epsilon=4.0)
    fgsm, pgd = found.fgsm.values, found.pgd.values
    assert (pgd <= fgsm + 1e-12)[np.isfinite(fgsm)].all()
    assert np.isfinite(pgd).mean() > 0.9
    assert (pgd < 0.95 * fgsm)[np.isfinite(fgsm)].any()


def test_what_does_not_flip_is_censored():
    found = fragility(LinearNet(2), run_of([1.0, 1.0]), np.array([[5.0, 5.0], [0.1, 0.1]]), max_epsilon=1.0)
    assert found.fgsm_flipped.values.ravel().tolist() == [False, True]
    assert np.isnan(found.fgsm.values.ravel()[0])


def test_larger_weights_of_a_linear_net_change_the_gradient_but_not_the_distance():
    x = np.array([[0.3, 0.1]])
    found = fragility(LinearNet(2), run_of([[1.0, 2.0], [10.0, 20.0]]), x)
    np.testing.assert_allclose(found.fgsm[0, 0], found.fgsm[0, 1], rtol=1e-9)
    np.testing.assert_allclose(found.gradient_norm[0, 1] / found.gradient_norm[0, 0], 10)


@pytest.mark.parametrize("change", [{"norm": "l1"}, {"max_epsilon": 0.0}, {"pgd_steps": 0}, {"sizes": 1}])
def test_bad_arguments_are_named(change):
    with pytest.raises(ArgumentError, match=next(iter(change))):
        fragility(LinearNet(2), run_of([1.0, 1.0]), np.ones((1, 2)), **change)
