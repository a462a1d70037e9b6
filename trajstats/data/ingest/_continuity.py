"""Equal checkpoints, and tensors that belong to another step: found by comparing values along a series."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from trajstats.data._digests import tensor_digest
from trajstats.data.formats._tensor import Checkpoint

PROBED = 16  # tensors
PROBE = 1024  # numbers of each
FIRST_NUMBERS = "in the first numbers of its largest tensors"
SMALL = 8  # numbers; a tensor of fewer may return to an earlier value by rounding


def equal_checkpoints(
    checkpoints: Sequence[Checkpoint], layers: Mapping[str, tuple[int, ...]], *, whole: bool = True
) -> list[tuple[int, int, str]]:
    """List the checkpoints that equal an earlier one: (position, earlier position, how they are equal).

    A few numbers of each are compared first, and everything only where those agree and the `whole` is wanted.
    """
    sizes = {name: math.prod(shape) for name, shape in layers.items()}
    largest = sorted(sizes, key=lambda name: -sizes[name])[:PROBED]
    groups: dict[tuple[int, ...], list[int]] = {}
    found = []
    for k, checkpoint in enumerate(checkpoints):
        probe = tuple(tensor_digest(checkpoint.tensors[n].read(0, min(PROBE, sizes[n]))) for n in largest)
        for twin in groups.setdefault(probe, []):
            if how := compare_weights(checkpoints[twin], checkpoint, sizes) if whole else FIRST_NUMBERS:
                found.append((k, twin, how))
                break
        else:
            groups[probe].append(k)
    return found


def compare_weights(one: Checkpoint, other: Checkpoint, sizes: Mapping[str, int]) -> str:
    """Say how two checkpoints are equal: ``"bit for bit"``, ``"up to the sign of zeros"``, or not (empty)."""
    exact = True
    for low, high in ((0, 256), (256, None)):  # all beginnings first: most differences show there
        for name, size in sizes.items():
            end = size if high is None else min(high, size)
            for start in range(low, end, 2**20):
                stop = min(end, start + 2**20)
                a, b = (checkpoint.tensors[name].read(start, stop) for checkpoint in (one, other))
                if not np.array_equal(a, b, equal_nan=True):
                    return ""
                exact = exact and a.tobytes() == b.tobytes()
    return "bit for bit" if exact else "up to the sign of zeros"


def repeated_tensors(
    digests: np.ndarray, layers: Mapping[str, tuple[int, ...]]
) -> list[tuple[str, int, int, list[str]]]:
    """Find tensors that equal those of another step although the rest of the checkpoint differs.

    Parameters are digests (step, layer). The result lists (kind, position, other position, names of layers): of kind
    ``"repeated"`` where the layer has other values in between, so that this may be a file of another step, and
    ``"unchanged"`` where it stands still between two steps while it moves before and after.
    """
    names = list(layers)
    moving = [j for j in range(len(names)) if len(set(digests[:, j].tolist())) > 1]
    whole = [digests[k, moving].tolist() for k in range(len(digests))]
    found: dict[tuple[str, int, int], list[str]] = {}
    for j in moving:
        if math.prod(layers[names[j]]) < SMALL:
            continue
        column = digests[:, j].tolist()
        last: dict[int, int] = {}
        for k, value in enumerate(column):
            before = last.get(value)
            last[value] = k
            if before is None or whole[before] == whole[k]:
                continue
            if before < k - 1 and any(v != value for v in column[before:k]):
                found.setdefault(("repeated", before, k), []).append(names[j])
            elif (
                len(layers[names[j]]) > 1
                and before > 0
                and column[before - 1] != value
                and k + 1 < len(column)
                and column[k + 1] != value
            ):
                found.setdefault(("unchanged", before, k), []).append(names[j])
    return [(kind, k, before, found[kind, before, k]) for kind, before, k in sorted(found, key=lambda f: f[1:])]


def out_of_line(around: Sequence[Checkpoint], name: str) -> float:
    """Compare how far a tensor lies from both its neighbours with how far they lie from each other: about 1 or less.

    Given are three checkpoints in a row; of fewer nothing is known, and the result is 0.
    """
    if len(around) != 3:
        return 0.0
    size = min(around[1].tensors[name].size, 2**16)
    before, here, after = (checkpoint.tensors[name].read(0, size).astype(np.float64) for checkpoint in around)
    with np.errstate(invalid="ignore"):
        away = min(float(np.linalg.norm(here - before)), float(np.linalg.norm(after - here)))
        apart = float(np.linalg.norm(after - before))
    return away / apart if apart > 0 else 0.0
