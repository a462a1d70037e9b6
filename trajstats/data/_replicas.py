"""Find copies among replicas, and join the attributes of runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# Two runs differ by far more (by 1e-4 for a hundred million weights that move independently); the same weights in
# another order of additions or in float32 differ by less.
_ALIKE = 1e-6


def copied_rows(values: np.ndarray) -> list[tuple[int, int]]:
    """Find rows that are copies of an earlier row, exactly or up to rounding."""
    rows = np.asarray(values, dtype=np.float64).reshape(len(values), -1)
    usable = np.isfinite(rows)
    found: list[tuple[int, int]] = []
    for later in range(1, len(rows)):
        for first in range(later):
            both = usable[later] & usable[first]
            a, b = rows[later, both], rows[first, both]
            # one number, or one and the same number everywhere, may agree by chance
            if a.size < 2 or np.ptp(a) == 0 or not np.array_equal(usable[later], usable[first]):
                continue
            if (np.abs(a - b) <= _ALIKE * np.maximum(np.abs(a), np.abs(b))).all():
                found.append((later, first))
                break
    return found


def copies_message(copies: Sequence[tuple[int, int]], labels: Sequence[Any], what: str = "replica") -> str:
    """Format the error message for replicas that are copies."""
    shown = "; ".join(f"{what} {labels[later]} is a copy of {what} {labels[first]}" for later, first in copies[:5])
    more = f"; {len(copies) - 5} more" if len(copies) > 5 else ""
    return f"{shown}{more}: copies are no independent runs, and errors over them would be 0. Keep one of each."


def joined_attrs(attrs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Join the attributes of runs: what is the same stays, what differs becomes a JSON list in the order of the runs.

    Settings saved as a JSON object are joined key by key.
    """
    names = dict.fromkeys(name for one in attrs for name in one)
    joined = {name: _joined([_parsed(one.get(name)) for one in attrs]) for name in names}
    first = {name: next(one[name] for one in attrs if name in one) for name in names}
    same = {name: all(name in one and _same(one[name], first[name]) for one in attrs) for name in names}
    return {name: first[name] if same[name] else json.dumps(joined[name], default=str) for name in names}


def _same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and bool(np.array_equal(one, other))


def _joined(values: list[Any]) -> Any:
    if all(isinstance(value, dict) for value in values):
        names = dict.fromkeys(name for value in values for name in value)
        return {name: _joined([value.get(name) for value in values]) for name in names}
    return values[0] if all(value == values[0] for value in values[1:]) else values


def _parsed(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, str) and value[:1] in ("{", "["):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value
