"""The optimiser steps that the names of a series of checkpoints stand for.

Each name is cut into tokens: numbers with the word they belong to, dates, hashes, versions. Tokens of the same word are
compared along the series. Those that are whole numbers in every name and change are candidates; what is labelled a step
goes before an epoch, an epoch before any other number. Candidates that put the checkpoints into different orders are
rejected with a list of the candidates; nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np

from trajstats.data.ingest.names._tokens import GENERIC_WORDS, UNITS, _Token, _tokens
from trajstats.errors import ArgumentError


@dataclass(frozen=True)
class _Candidate:
    """Steps of the whole series by one reading of the names."""

    kind: str
    rule: str
    pattern: str
    steps: tuple[int, ...]

    @property
    def distinct(self) -> bool:
        """Whether every checkpoint has a step of its own."""
        return len(set(self.steps)) == len(self.steps)


def to_step(value: Any, where: str) -> int:
    """Check a step that a user or a file gives: a whole number that fits into 64 bits."""
    remedy = ""
    kind = getattr(getattr(value, "dtype", None), "kind", "")
    if kind in {"m", "M"} or type(value).__module__ == "datetime":
        remedy = "is a time; steps are whole numbers: count the optimiser steps, or use 0, 1, 2, ..."
    elif isinstance(value, bool | np.bool_) or not np.isscalar(value) and np.ndim(value) != 0:
        remedy = "is not a number"
    else:
        try:
            number = float(value) if not isinstance(value, int | np.integer | str) else int(value)
        except (TypeError, ValueError, OverflowError):
            remedy = "is not a whole number"
        else:
            if number != number or abs(number) >= 2**63:
                remedy = "does not fit into 64 bits"
            elif number == int(number):
                return int(number)
            else:
                remedy = "is not a whole number; multiply epochs by the optimiser steps of an epoch"
    msg = f"step {value!r:.60} of {where} {remedy}"
    raise ArgumentError(msg)


def steps_of(names: Sequence[str]) -> tuple[list[int], str]:
    """Read the steps of a series from its names."""
    tokens = [_tokens(name) for name in names]
    found = _candidates(tokens)
    if len(names) == 1:
        return _single(names[0], tokens[0], found)
    changing = [c for c in found if len(set(c.steps)) > 1]
    steps = [c for c in changing if c.kind == "step"]
    epochs = [c for c in changing if c.kind == "epoch"]
    numbers = [c for c in changing if c.kind == "number"]
    if own := [c for c in steps if c.distinct]:
        chosen = own[-1]
        _check_order(chosen, [*steps, *epochs], names)
    elif own := [c for c in [*epochs, *numbers] if c.distinct]:
        _check_order(own[0], [*steps, *epochs, *[c for c in numbers if c.distinct]], names)
        chosen = _finest(own, names)
        _check_order(chosen, [*epochs, *numbers], names)
    elif len(changing) > 1 and len(set(zip(*(c.steps for c in changing), strict=True))) == len(names):
        _refuse(changing, names, "none of the numbers in the names is different for every checkpoint")
    elif fixed := changing or [c for c in found if c.kind in {"step", "epoch"}]:
        chosen = fixed[0]
    else:
        bad = next((name for name, has in zip(names, tokens, strict=True) if not has), names[0])
        msg = (
            f"no step in the name {bad!r:.120}: no whole number stands at the same place in all {len(names)} names and "
            "changes. Give step_from=r'an expression with one group' or a function of the path, or {step: path}"
        )
        raise ArgumentError(msg)
    return list(chosen.steps), chosen.rule


def _single(name: str, tokens: Sequence[_Token], found: Sequence[_Candidate]) -> tuple[list[int], str]:
    """Read the step of a single checkpoint, for which no number can be seen to change."""
    for kind in ("step", "epoch"):
        if of_kind := [c for c in found if c.kind == kind]:
            return list(of_kind[-1].steps), of_kind[-1].rule
    # Without other names to compare, a number glued to a word ("gpt2") is part of the word.
    plain = {t.where for t in tokens if not t.word or t.word in GENERIC_WORDS}
    numbers = [c for c in found if c.pattern in plain]
    if len({c.steps for c in numbers}) == 1:
        return list(numbers[0].steps), numbers[0].rule
    if numbers:
        _refuse(numbers, [name], "several numbers could be the step")
    msg = f"no step in the name {name!r:.120}; give step_from=, or {{step: path}} such as {{0: {name!r:.120}}}"
    raise ArgumentError(msg)


def _finest(own: Sequence[_Candidate], names: Sequence[str]) -> _Candidate:
    """Choose between numbers of one order: of an epoch and its update, the update."""
    best = max(own, key=lambda c: (c.steps[-1], c.kind == "epoch"))
    for other in own:
        if other.steps == best.steps or other is best:
            continue
        if not _is_epoch_of(other.steps, best.steps):
            if own[0].kind == "epoch":
                return own[0]
            _refuse(own, names, "several numbers in the names could be the step")
    return next(c for c in own if c.steps == best.steps)


def _is_epoch_of(epochs: Sequence[int], updates: Sequence[int]) -> bool:
    """Check whether some number of updates per epoch, rounded up or down by an epoch, explains both numbers."""
    low = max(u / (e + 1) for e, u in zip(epochs, updates, strict=True))
    high = min((u / (e - 1) for e, u in zip(epochs, updates, strict=True) if e > 1), default=float("inf"))
    return low <= high


def _check_order(chosen: _Candidate, others: Sequence[_Candidate], names: Sequence[str]) -> None:
    order = np.argsort(np.array(chosen.steps, dtype=np.int64), kind="stable")
    for other in others:
        along = np.array(other.steps, dtype=np.int64)[order]
        if (along[1:] < along[:-1]).any():
            _refuse([chosen, other], names, "two numbers in the names put the checkpoints into different orders")


def _refuse(candidates: Sequence[_Candidate], names: Sequence[str], why: str) -> None:
    """Raise with the candidates and how to choose one."""
    shown = "".join(
        f"\n  step_from=r'{c.pattern}': {', '.join(map(str, c.steps[:6]))}{', ...' * (len(c.steps) > 6)} ({c.rule})"
        for c in candidates
    )
    msg = (
        f"{why} (first name: {names[0]!r:.120}). Choose one:{shown}\n"
        "or give step_from=a function of the path, or the checkpoints as {step: path}"
    )
    raise ArgumentError(msg)


def _candidates(tokens: Sequence[Sequence[_Token]]) -> list[_Candidate]:
    """List the readings that give every name a whole number, in the order of the first name."""
    keyed = []
    for has in tokens:
        keys: dict[tuple[str, int], _Token] = {}
        seen: dict[str, int] = {}
        for token in reversed(has):  # counted from the end: folders above a series vary in number
            keys[token.word, seen.setdefault(token.word, 0)] = token
            if token.kind in {"step", "epoch"}:  # step and iteration are one thing; the last one counts
                keys.setdefault((f"<{token.kind}>", 0), token)
            seen[token.word] += 1
        keyed.append(keys)
    found: list[_Candidate] = []
    for key, first in reversed(keyed[0].items()):
        column = [keys.get(key) for keys in keyed]
        same = [token for token in column if token is not None and token.value is not None]
        if len(same) != len(tokens) or not first.kind or _is_date([t.value for t in same], first.kind):
            continue
        tails = {token.tail for token in same}
        if len(tails) > 1 and any(len(tail) > 1 or tail.lower() not in UNITS for tail in tails if tail):
            continue
        steps = tuple(int(token.value) for token in same if token.value is not None)
        if all(steps != other.steps or first.kind != other.kind for other in found):
            word = "before" if first.after else "after"
            rule = (
                f"the number {word} {first.word!r}" if first.word else f"the number in brackets in {first.shown!r:.120}"
            )
            found.append(_Candidate(first.kind, rule, first.where, steps))
    return found


def _is_date(values: Sequence[int | None], kind: str) -> bool:
    """Check whether unlabelled numbers are all dates such as 20240501, or all seconds or milliseconds of the clock."""
    if kind != "number":
        return False
    if all(
        value is not None and 1_400_000_000 <= value / (1000 if value > 10**12 else 1) < 2_000_000_000
        for value in values
    ):
        return True
    for value in values:
        try:
            day = date(int(value or 0) // 10_000, int(value or 0) // 100 % 100, int(value or 0) % 100)
        except (ValueError, OverflowError):
            return False
        if not 1990 <= day.year < 2100:
            return False
    return True
