"""Stages of a training in the names of its checkpoints, and steps that a regular series lacks."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from trajstats.errors import ArgumentError

STAGE = "stage"
_STAGE = re.compile(
    r"(?<![A-Za-z0-9])((?:stage|phase|ingredient)[-_]?[0-9]+|lc|long[-_]?context|anneal(?:ing|ed)?|cooldown|decay"
    r"|warm[-_]?up|pre[-_]?train(?:ing|ed)?|mid[-_]?train(?:ing|ed)?|fine[-_]?tun(?:e|ing|ed)|sft|dpo|rlhf)(?![A-Za-z0-9])",
    re.IGNORECASE,
)
MOSTLY = 0.6  # part of the distances that must be equal for a series to be regular
AT_LEAST = 5  # steps


def stages_of(names: Sequence[str], steps: Sequence[int]) -> tuple[list[str], list[int]]:
    """Find the stages in the names of a series: their names in the order of the steps, and the stage of each name.

    Nothing is returned where there is only one. Stages whose steps overlap are refused: each counts its own steps.
    """
    texts = ["-".join(_STAGE.findall(name)).lower() for name in names]
    if len(set(texts)) < 2:
        return [], []
    ranges: dict[str, list[int]] = {}
    for text, step in zip(texts, steps, strict=True):
        ranges.setdefault(text, []).append(step)
    order = sorted(ranges, key=lambda text: (min(ranges[text]), max(ranges[text])))
    for one, other in zip(order, order[1:], strict=False):
        if max(ranges[one]) >= min(ranges[other]):
            listed = "".join(f"\n  {text or 'no stage'}: steps {min(r)} to {max(r)}" for text, r in ranges.items())
            msg = (
                f"the names are of {len(order)} stages of training whose steps overlap, so that each seems to count "
                f"its own:{listed}\nGive one stage, by a glob such as '{one or '*'}*', or all of them as "
                "{step: path} with steps that go on"
            )
            raise ArgumentError(msg)
    return [text or "no stage" for text in order], [order.index(text) for text in texts]


def missing_steps(steps: Sequence[int]) -> tuple[str, list[int]]:
    """List the steps that a series lacks which goes mostly by equal distances or by equal ratios, and say by which."""
    if len(steps) < AT_LEAST:
        return "", []
    gaps = [b - a for a, b in zip(steps, steps[1:], strict=False)]
    gap, count = Counter(gaps).most_common(1)[0]
    if count >= MOSTLY * len(gaps):
        lost = [
            a + gap * k
            for a, d in zip(steps, gaps, strict=False)
            if d > gap and d % gap == 0
            for k in range(1, d // gap)
        ]
        return (f"steps go by {gap}", lost) if len(lost) < len(steps) else ("", [])
    pairs = [(a, b) for a, b in zip(steps, steps[1:], strict=False) if a > 0]
    ratio, count = Counter(round(b / a, 2) for a, b in pairs).most_common(1)[0]
    if ratio < 1.5 or count < MOSTLY * len(pairs):
        return "", []
    lost = []
    for a, b in pairs:
        at = a * ratio
        while at * ratio <= b * 1.01:
            lost.append(round(at))
            at *= ratio
    return (f"steps go by factors of {ratio:g}", lost) if len(lost) < len(steps) else ("", [])
