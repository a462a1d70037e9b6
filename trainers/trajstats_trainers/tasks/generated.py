"""Generated tasks, whose best possible answer is known."""

from __future__ import annotations

import math

import numpy as np

from trajstats.errors import ArgumentError, unknown_name_message
from trajstats_trainers.architectures.mlp import mlp_init
from trajstats_trainers.tasks.digits import Task

TARGETS = ("labels", "outputs")


def two_gaussians(n_examples: int, n_inputs: int, *, distance: float, seed: int) -> Task:
    r"""Draw two classes with equal odds from Gaussians of unit variance whose means are `distance` apart.

    :math:`x=(y-\frac12)\,\delta\,u+\xi` with labels :math:`y\in\{0,1\}`, a random direction :math:`|u|=1` and
    :math:`\xi\sim N(0,1)` in every input. The best classifier, the sign of :math:`u\cdot x`, errs with

    .. math:: P_\mathrm{Bayes}=\Phi(-\delta/2)=\tfrac12\,\mathrm{erfc}\!\left(\frac{\delta}{2\sqrt2}\right)

    whatever the number of inputs.

    Parameters
    ----------
    n_examples, n_inputs : int
        Sizes.
    distance : float
        :math:`\delta\ge0`, in standard deviations.
    seed : int
        Seed of direction, labels and noise.

    Returns
    -------
    Task
        With ``bayes_error``.

    Raises
    ------
    ArgumentError
        If a size is below 1 or the distance is negative.

    References
    ----------
    Textbook result; a test simulates it.

    Examples
    --------
    >>> task = two_gaussians(1_000, 20, distance=2.0, seed=0)
    >>> task.inputs.shape, round(task.bayes_error, 4)
    ((1000, 20), 0.1587)
    """
    if n_examples < 1 or n_inputs < 1 or distance < 0:
        msg = f"n_examples={n_examples}, n_inputs={n_inputs}, distance={distance}: give sizes >= 1 and a distance >= 0"
        raise ArgumentError(msg)
    rng = np.random.default_rng(seed)
    direction = rng.standard_normal(n_inputs)
    direction /= np.linalg.norm(direction)
    labels = rng.integers(2, size=n_examples, dtype=np.int32)
    inputs = (labels[:, None] - 0.5) * distance * direction + rng.standard_normal((n_examples, n_inputs))
    return Task(
        name=f"two-gaussians{n_examples}x{n_inputs}",
        inputs=inputs.astype(np.float32),
        targets=labels,
        provenance=f"generated: two unit Gaussians in {n_inputs} dimensions, means {distance:g} apart, seed {seed}",
        bayes_error=0.5 * math.erfc(distance / (2 * math.sqrt(2))),
    )


def teacher_student(
    n_examples: int, sizes: tuple[int, ...], *, targets: str = "labels", noise: float = 0.0, seed: int
) -> Task:
    r"""Let a random tanh perceptron, the teacher, answer Gaussian inputs.

    :math:`x\sim N(0,1)`, :math:`y=f_\mathrm{teacher}(x)+\sigma\xi` with the teacher's weights from `mlp_init`; labels
    are the largest of y. A student of the same sizes can reach zero error if :math:`\sigma=0`.

    Parameters
    ----------
    n_examples : int
        Examples.
    sizes : tuple of int
        Widths of the teacher from input to output.
    targets : str
        ``"labels"`` (classes, needs two outputs or more) or ``"outputs"`` (regression).
    noise : float
        :math:`\sigma`, on the teacher's outputs.
    seed : int
        Seed of teacher, inputs and noise.

    Returns
    -------
    Task
        Targets (n,) of labels, or (n, sizes[-1]).

    Raises
    ------
    ArgumentError
        If `targets` is not known, or an argument is out of range.

    Examples
    --------
    >>> task = teacher_student(100, (8, 4, 3), seed=0)
    >>> task.inputs.shape, task.n_classes
    ((100, 8), 3)
    """
    if targets not in TARGETS:
        raise ArgumentError(unknown_name_message("targets", targets, TARGETS))
    if n_examples < 1 or len(sizes) < 2 or noise < 0 or (targets == "labels" and sizes[-1] < 2):
        msg = (
            f"n_examples={n_examples}, sizes={sizes}, noise={noise}: give one example or more, widths from input to "
            "output (two outputs or more for labels), and noise >= 0"
        )
        raise ArgumentError(msg)
    teacher = mlp_init(sizes, seed)
    rng = np.random.default_rng([seed, 1])  # another stream than the teacher's
    inputs = rng.standard_normal((n_examples, sizes[0])).astype(np.float32)
    answer = inputs.astype(np.float64)
    for layer in range(len(sizes) - 1):
        answer = answer @ teacher[f"{layer}.weight"].T.astype(np.float64) + teacher[f"{layer}.bias"]
        answer = np.tanh(answer) if layer < len(sizes) - 2 else answer
    answer = answer + noise * rng.standard_normal(answer.shape)
    widths = "-".join(str(n) for n in sizes)
    return Task(
        name=f"teacher{widths}-{n_examples}",
        inputs=inputs,
        targets=answer.argmax(axis=1).astype(np.int32) if targets == "labels" else answer.astype(np.float32),
        provenance=f"generated: Gaussian inputs, {targets} of a random tanh perceptron {widths}, noise {noise:g}, "
        f"seed {seed}",
    )
