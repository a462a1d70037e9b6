"""Generated tasks against their known answers."""

from __future__ import annotations

import numpy as np
import pytest
from trajstats_trainers.architectures.mlp import JaxMLP, mlp_init
from trajstats_trainers.tasks.generated import teacher_student, two_gaussians

from trajstats.errors import ArgumentError, UnsupportedError


@pytest.mark.parametrize("distance", [0.0, 1.0, 2.5])
def test_bayes_error_is_that_of_the_best_rule(distance):
    n = 100_000
    task = two_gaussians(n, 6, distance=distance, seed=4)
    # The difference of class means points along u; its error at this n costs far less than the tolerance.
    means = [task.inputs[task.targets == label].mean(axis=0) for label in (0, 1)]
    wrong = ((task.inputs @ (means[1] - means[0]) > 0) != task.targets).mean()
    p = task.bayes_error
    assert abs(wrong - p) < 4 * np.sqrt(p * (1 - p) / n)
    assert task.describe()["bayes_error"] == p
    assert np.linalg.norm(means[1] - means[0]) == pytest.approx(distance, abs=0.03)


def test_teacher_answers_its_own_inputs():
    sizes = (8, 4, 3)
    labels = teacher_student(500, sizes, seed=2)
    outputs = teacher_student(500, sizes, targets="outputs", seed=2)
    np.testing.assert_array_equal(labels.inputs, outputs.inputs)
    np.testing.assert_array_equal(outputs.targets.argmax(axis=1), labels.targets)
    # A student with the teacher's weights is right.
    np.testing.assert_allclose(JaxMLP(sizes)(mlp_init(sizes, 2), outputs.inputs), outputs.targets, atol=1e-5)
    # Inputs and teacher come from different streams.
    weights = np.concatenate([w.ravel() for w in mlp_init(sizes, 2).values()])
    assert not np.isin(np.round(outputs.inputs.ravel(), 5), np.round(weights * np.sqrt(8), 5)).any()


def test_noise_has_its_size():
    clean, noisy = (teacher_student(20_000, (5, 2), targets="outputs", noise=s, seed=0) for s in (0.0, 0.3))
    assert (noisy.targets - clean.targets).std() == pytest.approx(0.3, rel=4 / np.sqrt(2 * 40_000))


def test_what_is_refused():
    with pytest.raises(ArgumentError, match="distance=-1"):
        two_gaussians(10, 2, distance=-1, seed=0)
    with pytest.raises(ArgumentError, match="outputs"):
        teacher_student(10, (3, 2), targets="output", seed=0)
    with pytest.raises(ArgumentError, match="two outputs or more"):
        teacher_student(10, (3, 1), seed=0)
    with pytest.raises(UnsupportedError, match="no classes"):
        _ = teacher_student(10, (3, 1), targets="outputs", seed=0).n_classes
