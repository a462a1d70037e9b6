"""Tensors that are called differently in a later checkpoint: found by their names, and confirmed by their values."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from trajstats.data._naming import plain_name
from trajstats.data.formats._tensor import Checkpoint

SAMPLE = 4096
MAX_COMPARED = 400  # names that are compared letter by letter
ALIKE = 0.7
CONTINUED = 0.5  # squared distance to the values before, relative to that of unrelated values


def align_wrappers(checkpoint: Checkpoint, names: Sequence[str]) -> Checkpoint:
    """Call tensors as the series does, where the names differ in the marks of wrappers only."""
    have = [*checkpoint.tensors, *checkpoint.buffers]
    known = set(names)
    if set(have) == known:
        return checkpoint
    wanted = {plain_name(name): name for name in names}
    plain = [plain_name(name) for name in have]
    if len(wanted) != len(names) or len(set(plain)) != len(have):
        return checkpoint
    give = {name: wanted.get(short, name) for name, short in zip(have, plain, strict=True)}
    # "module" around a submodule may also be a name of its own, so it is left out only where that decides.
    bare = {_bare_name(name): name for name in names}
    lost = [name for name in have if give[name] not in known]
    if lost and len(bare) == len(names):
        give |= {name: bare[_bare_name(name)] for name in lost if _bare_name(name) in bare}
    if len(set(give.values())) != len(have):
        return checkpoint
    return Checkpoint(
        checkpoint.path,
        {give[name]: tensor for name, tensor in checkpoint.tensors.items()},
        {wanted.get(plain_name(name), name): why for name, why in checkpoint.passed_over.items()},
        {give[name]: tensor for name, tensor in checkpoint.buffers.items()},
        checkpoint.containers,
        {wanted.get(plain_name(a), a): wanted.get(plain_name(b), b) for a, b in checkpoint.twins.items()},
    )


def _bare_name(name: str) -> str:
    """Take wrappers out of a name, and every "module" inside it."""
    *inner, last = plain_name(name).split(".")
    return ".".join([*(part for part in inner if part != "module"), last])


def tied_names(checkpoints: Sequence[Checkpoint]) -> dict[str, set[str]]:
    """List which names are one tensor in some checkpoint: name -> all names of that tensor."""
    groups: dict[str, set[str]] = {}
    for checkpoint in checkpoints:
        for a, b in checkpoint.twins.items():
            both = groups.get(a, {a}) | groups.get(b, {b})
            groups |= dict.fromkeys(both, both)
    return groups


def align_twins(checkpoint: Checkpoint, first: Checkpoint, tied: Mapping[str, set[str]]) -> Checkpoint:
    """Call a tensor that has several names as the first checkpoint does, if no other tensor here has one of them."""
    given: dict[str, str] = {}
    for name in first.tensors.keys() - checkpoint.tensors.keys():
        here = [other for other in tied.get(name, ()) if other in checkpoint.tensors]
        if len(here) == 1 and here[0] not in first.tensors:
            given[here[0]] = name
    if not given:
        return checkpoint
    tensors = {given.get(name, name): tensor for name, tensor in checkpoint.tensors.items()}
    passed = {name: why for name, why in checkpoint.passed_over.items() if name not in given.values()}
    return replace(checkpoint, tensors=tensors, passed_over=passed)


def find_renames(
    missing: Sequence[str], extra: Sequence[str], before: Checkpoint, after: Checkpoint
) -> dict[str, tuple[str, str]]:
    """Propose for missing tensors which extra one they are: missing name -> (new name, prefix that explains all).

    A proposal needs the same shape, names that are alike, and values that are nearer to the earlier ones than those of
    every other tensor of that shape.
    """
    pairs, prefix = _by_prefix(missing, extra)
    if not pairs:
        pairs, prefix = _by_likeness(missing, extra, before, after), ""
    same = {m: e for m, e in pairs.items() if before.tensors[m].shape == after.tensors[e].shape}
    samples = {e: _sample(after, e) for e in extra}
    confirmed = {}
    for m, e in same.items():
        old = _sample(before, m)
        rivals = [other for other in extra if after.tensors[other].shape == before.tensors[m].shape]
        distances = {other: float(np.sum((samples[other] - old) ** 2)) for other in rivals}
        apart = float(np.sum(samples[e] ** 2) + np.sum(old**2))  # about the distance of unrelated values
        if distances[e] <= min(*distances.values(), CONTINUED * apart):
            confirmed[m] = (e, prefix)
    return confirmed


def _sample(checkpoint: Checkpoint, name: str) -> np.ndarray:
    tensor = checkpoint.tensors[name]
    return tensor.read(0, min(tensor.size, SAMPLE)).astype(np.float64)


def _by_prefix(missing: Sequence[str], extra: Sequence[str]) -> tuple[dict[str, str], str]:
    """Pair names that differ by one and the same prefix, in front of the new or of the old ones."""
    for old, new, turned in ((missing, extra, False), (extra, missing, True)):
        prefixes: Counter[str] = Counter()
        known = set(new)
        for name in known:
            parts = name.split(".")
            for k in range(1, len(parts)):
                if ".".join(parts[k:]) in set(old[:1]):
                    prefixes[".".join(parts[:k]) + "."] += 1
        for prefix, _ in prefixes.most_common():
            pairs = {name: prefix + name for name in old if prefix + name in known}
            if len(pairs) == len(old):
                return ({b: a for a, b in pairs.items()} if turned else pairs), ("" if turned else prefix)
    return {}, ""


def _by_likeness(missing: Sequence[str], extra: Sequence[str], before: Checkpoint, after: Checkpoint) -> dict[str, str]:
    """Pair names that are most like each other, both ways, among tensors of one shape."""
    if len(missing) > MAX_COMPARED or len(extra) > MAX_COMPARED:
        return {}

    def like(one: str, other: str) -> float:
        return difflib.SequenceMatcher(None, one, other, autojunk=False).ratio()

    scores: Mapping[tuple[str, str], float] = {
        (m, e): like(m, e)
        for m in missing
        for e in extra
        if before.tensors[m].shape == after.tensors[e].shape and _numbers(m) == _numbers(e)
    }
    pairs = {}
    for (m, e), score in scores.items():
        rivals = [s for (a, b), s in scores.items() if (a == m) != (b == e)]
        if score >= ALIKE and all(score > rival for rival in rivals):
            pairs[m] = e
    return pairs


def _numbers(name: str) -> list[str]:
    """List the numbers in a name: the block that a tensor belongs to."""
    return re.findall("[0-9]+", name)
