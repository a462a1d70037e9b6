"""What the values of a series say before it is ingested: equal checkpoints, and checkpoints that are out of line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from trajstats.data.ingest._continuity import PROBED, equal_checkpoints
from trajstats.data.ingest._series import Finding, Series
from trajstats.errors import SchemaError

SAMPLE = 256  # numbers of each of the largest tensors, fewer in a long series
SAMPLES = 4_000_000  # numbers in all
FEW = 3  # equal checkpoints that are listed one by one
CLEARLY = 0.7  # the distance to the neighbours at another place, relative to the first place
JUMP, OVER_MEDIAN = 2.0, 3.0
ENOUGH = 64  # numbers; distances of fewer scatter
AT_LEAST = 5  # checkpoints


def check_contents(series: Series, *, drop: bool, strict: bool, whole: bool = True) -> None:
    """Report equal checkpoints and jumps; with `drop`, keep of equal ones the one that fits its neighbours.

    Without `whole`, a few numbers of each checkpoint are read and no more.
    """
    twins = equal_checkpoints(series.checkpoints, series.layers, whole=whole)
    groups: dict[int, dict[int, str]] = {}
    for k, first, how in twins:
        groups.setdefault(first, {})[k] = how
    samples = _samples(series)
    dropped: set[int] = set()
    for first, others in groups.items():
        members = [first, *others]
        owner = _owner(members, samples)
        found = _describe(series, members, others, owner)
        if drop:
            rest = [k for k in members if k != owner]
            dropped.update(rest)
            same = f"equals step {series.steps[owner]} ({series.checkpoints[owner].path})"
            series.left_out |= {series.checkpoints[k].path: f"step {series.steps[k]} {same}" for k in rest}
        else:
            series.findings += found
    if twins and strict and not drop:
        raise SchemaError("\n".join(str(f) for f in series.findings if f.kind == "identical"))
    equal = {k for first, others in groups.items() for k in (first, *others)}
    series.findings += _jumps(series, samples, equal)
    if dropped:
        _take_out(series, dropped)


def _take_out(series: Series, dropped: set[int]) -> None:
    kept = [k for k in range(len(series.steps)) if k not in dropped]
    series.steps = [series.steps[k] for k in kept]
    series.checkpoints = [series.checkpoints[k] for k in kept]
    series.sources = [series.sources[k] for k in kept] if series.sources else []
    series.rows = [series.rows[k] for k in kept] if series.rows else []


def _samples(series: Series) -> np.ndarray:
    """Read a few numbers of the largest tensors of every checkpoint: (checkpoint, number)."""
    most = max(8, min(SAMPLE, SAMPLES // (PROBED * len(series.checkpoints))))
    largest = sorted(series.layers, key=lambda name: -np.prod(series.layers[name], dtype=float))[:PROBED]
    rows = []
    for checkpoint in series.checkpoints:
        tensors = [checkpoint.tensors[name] for name in largest]
        rows.append(np.concatenate([t.read(0, min(t.size, most)).astype(np.float64) for t in tensors]))
    return np.nan_to_num(np.array(rows), posinf=0.0, neginf=0.0)


def _owner(members: Sequence[int], samples: np.ndarray) -> int:
    """Say at which of its places a repeated content fits its neighbours; the first place if none is clearly better."""
    others = [k for k in range(len(samples)) if k not in set(members)]
    apart = []
    for k in members:
        near = [max((o for o in others if o < k), default=-1), min((o for o in others if o > k), default=-1)]
        distances = [float(np.linalg.norm(samples[k] - samples[o])) for o in near if o >= 0]
        apart.append(float(np.mean(distances)) if distances else np.inf)
    if not min(apart) < CLEARLY * apart[0]:
        return members[0]
    # Next to each other they fit alike; content that early steps serve, too, is of the latest.
    return members[max(i for i, distance in enumerate(apart) if distance <= 1.01 * min(apart))]


def _describe(series: Series, members: Sequence[int], others: Mapping[int, str], owner: int) -> list[Finding]:
    steps, files = series.steps, [checkpoint.path for checkpoint in series.checkpoints]
    do = "; leave out with drop_identical=True (--drop-identical)"
    fits = f"; the values fit the steps around {steps[owner]} and not those around the others" * (owner != members[0])
    if len(members) <= FEW:
        first = members[0]
        return [
            Finding(
                "identical",
                files[k],
                "",
                f"step {steps[k]} equals step {steps[first]} {how} ({files[first]}){fits}{do}",
            )
            for k, how in others.items()
        ]
    hows = set(others.values())
    how = hows.pop() if len(hows) == 1 else "up to the sign of zeros"
    rest = [k for k in members if k != owner]
    listed = ", ".join(str(steps[k]) for k in rest)
    detail = f"{len(rest)} checkpoints hold the weights of step {steps[owner]} {how}: steps {listed}{fits}{do}"
    return [Finding("identical", files[owner], "", detail)]


def _jumps(series: Series, samples: np.ndarray, equal: set[int]) -> list[Finding]:
    """Find checkpoints that are far from both their neighbours, which are near to each other."""
    kept = [k for k in range(len(samples)) if k not in equal]
    if len(kept) < AT_LEAST or samples.shape[1] < ENOUGH:
        return []
    ratios = []
    for a, k, b in zip(kept, kept[1:], kept[2:], strict=False):
        away = min(float(np.linalg.norm(samples[k] - samples[o])) for o in (a, b))
        apart = float(np.linalg.norm(samples[b] - samples[a]))
        ratios.append(away / apart if apart > 0 else 0.0)
    limit = max(JUMP, OVER_MEDIAN * float(np.median(ratios)))
    return [
        Finding(
            "jump",
            series.checkpoints[k].path,
            "",
            f"at step {series.steps[k]} the weights are {ratio:.0f} times farther from those of the steps before and "
            "after it than these are from each other; the file may be of another step or run",
        )
        for k, ratio in zip(kept[1:], ratios, strict=False)
        if ratio > limit
    ]
