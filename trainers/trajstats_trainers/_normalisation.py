"""What each example counts in a loss, so that nothing depends on how the examples are divided into batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from trajstats.errors import ArgumentError, UnsupportedError

# Examples on which a loss is tried when a network is made: all of them at once, and in two parts.
TRIED = 8
Counts = np.ndarray | None


def example_weights(
    evaluate: Callable[[np.ndarray], tuple[np.ndarray, Sequence[np.ndarray]]],
    targets: np.ndarray,
    given: Counts,
    reduction: str,
    dtype: np.dtype,
) -> Counts:
    r"""Find what each example counts in a loss, and check it on a few examples together and in two parts.

    With counts :math:`c_a` the loss of a batch is :math:`\sum_ac_a\ell_a/\sum_ac_a`. Those given are tried; without
    them, those of the loss itself where it can be seen (torch's cross-entropy with class weights or ignored targets),
    and then equal ones.
    """
    counting = np.arange(len(targets)) if given is None else np.flatnonzero(given)
    few = counting[_unlike(targets[counting])]
    try:
        whole, suggested = evaluate(few)
    except Exception as error:
        hint = ""
        if "scalar type" in str(error) or "dtype" in str(error):
            hint = (
                f" The network computes in {dtype.name}: tensors inside of loss_fn need that precision, or give dtype=."
            )
        msg = f"network and loss cannot be evaluated on {len(few)} examples: {str(error).splitlines()[0][:300]}{hint}"
        raise UnsupportedError(msg) from error
    if whole.size != 1:
        msg = (
            f"loss_fn returns numbers of shape {whole.shape} for {len(few)} examples; give one that returns their mean "
            "(or their sum, with reduction='sum'): reduction='mean' in the losses of torch"
        )
        raise ArgumentError(msg)
    if len(few) < 2:
        return _normalised(given)
    parts = few[: max(1, len(few) // 3)], few[max(1, len(few) // 3) :]
    losses = [float(evaluate(part)[0].reshape(())) for part in parts]
    total = float(whole.reshape(()))
    size = np.finfo(dtype).eps ** 0.5 * max(np.abs([total, *losses]))
    if not np.isfinite(total):
        return _normalised(given)

    def fits(counts: Counts) -> bool:
        shares = [float(len(part) if counts is None else counts[part].sum()) for part in parts]
        mean = sum(share * loss for share, loss in zip(shares, losses, strict=True) if share) / sum(shares)
        return bool(abs(mean - total) <= size)

    if reduction == "sum":
        if abs(sum(losses) - total) <= size:
            return None
        found = "their mean" if fits(None) else "neither their sum nor their mean"
        msg = (
            f"with reduction='sum' the loss of {len(few)} examples must be the sum of those of its parts; it is "
            f"{found}. {_remedy(targets)}"
        )
        raise ArgumentError(msg)
    for counts in [given] if given is not None else [*suggested, None]:
        if fits(counts):
            return _normalised(counts)
    shown = " and ".join(f"{loss:.6g} for {len(part)}" for part, loss in zip(parts, losses, strict=True))
    msg = f"the loss is {total:.6g} for {len(few)} examples, and of its parts {shown}: "
    if abs(sum(losses) - total) <= size:
        msg += "loss_fn sums over the examples; give reduction='sum'"
    else:
        how = "weighted by weight=" if given is not None else "with each example counting the same"
        msg += f"it is not their mean, {how}. {_remedy(targets)}"
    raise ArgumentError(msg)


def given_weights(weight: Any, targets: Any, n: int, reduction: str) -> Counts:
    """Evaluate and check what a user says that each example counts."""
    if weight is None:
        return None
    if reduction == "sum":
        msg = "weight= says what an example counts in a mean; with reduction='sum' leave it out"
        raise ArgumentError(msg)
    counts = np.asarray(weight(targets) if callable(weight) else weight, dtype=np.float64)
    if counts.shape != (n,) or not np.isfinite(counts).all() or (counts < 0).any() or not counts.any():
        msg = (
            f"weight= gives an array of shape {counts.shape} for {n} examples; give one finite number of at least 0 "
            "per example, not all 0: an array (n,), or a function of the targets of all examples"
        )
        raise ArgumentError(msg)
    return counts


def _normalised(counts: Counts) -> Counts:
    if counts is None or np.ptp(counts) <= 1e-12 * np.abs(counts).max():
        return None
    return counts / counts.mean()


def _unlike(targets: np.ndarray) -> np.ndarray:
    # A few examples from all over the data; of sequences those with the most and the fewest special entries too.
    n = len(targets)
    chosen = np.unique(np.linspace(0, n - 1, TRIED).astype(int))
    if targets.ndim < 2 or not np.issubdtype(targets.dtype, np.integer):
        return chosen
    flat = targets.reshape(n, -1)
    special = (flat < 0).sum(axis=1) + (flat == 0).sum(axis=1) / (flat.shape[1] + 1)
    chosen = np.unique([*chosen, int(special.argmax()), int(special.argmin())])
    return chosen[np.argsort(special[chosen], kind="stable")]


def _remedy(targets: np.ndarray) -> str:
    example = (
        "lambda targets: (targets != -100).sum(1)" if targets.ndim > 1 else "lambda targets: class_weight[targets]"
    )
    return (
        f"Give weight=, what each example counts: an array (n,) or a function of the targets ({example}). A loss that "
        "compares the examples of a batch with each other, or a network that draws random numbers or mixes examples, "
        "has no value for a data set: its loss depends on the batch."
    )
