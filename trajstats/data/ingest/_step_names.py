"""The optimiser steps that the names of a series of checkpoints stand for.

Each name is cut into tokens: numbers with the word they belong to, dates, hashes, versions. Tokens of the same word are
compared along the series. Those that are whole numbers in every name and change are candidates; what is labelled a step
goes before an epoch, an epoch before any other number. Candidates that put the checkpoints into different orders are
refused with a list: nothing is guessed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal, InvalidOperation
from typing import Any

import numpy as np

from trajstats.errors import ArgumentError

UNITS = {"k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9, "t": 10**12}
STEP_WORDS = frozenset(
    [
        "step",
        "steps",
        "globalstep",
        "trainstep",
        "iter",
        "iters",
        "iteration",
        "iterations",
        "itr",
        "it",
        "its",
        "update",
        "updates",
        "ba",
        "batch",
        "batches",
    ]
)
EPOCH_WORDS = frozenset(["epoch", "epochs", "ep", "e"])
GENERIC_WORDS = frozenset(
    [
        "checkpoint",
        "checkpoints",
        "ckpt",
        "chkpt",
        "cp",
        "model",
        "weights",
        "weight",
        "params",
        "state",
        "snapshot",
        "save",
    ]
)
# Numbers after these words are never steps: sizes of the data seen, scores, settings, and which of several runs it is.
OTHER_WORDS = frozenset(
    [
        "tokens",
        "token",
        "tok",
        "samples",
        "sample",
        "examples",
        "images",
        "seen",
        "loss",
        "acc",
        "accuracy",
        "val",
        "valid",
        "score",
        "psnr",
        "ssim",
        "fid",
        "auc",
        "map",
        "iou",
        "miou",
        "bleu",
        "wer",
        "cer",
        "ppl",
        "perplexity",
        "error",
        "err",
        "mse",
        "mae",
        "rmse",
        "top",
        "dice",
        "reward",
        "return",
        "kl",
        "bpc",
        "metric",
        "lr",
        "wd",
        "bs",
        "bsz",
        "batchsize",
        "dropout",
        "temp",
        "alpha",
        "beta",
        "gamma",
        "momentum",
        "seed",
        "run",
        "fold",
        "version",
        "v",
        "rank",
        "replica",
        "trial",
        "exp",
        "experiment",
        "job",
        "id",
        "stage",
        "phase",
        "part",
        "shard",
        "tp",
        "pp",
        "mp",
        "dp",
        "gpu",
        "node",
        "worker",
        "split",
        "cv",
        "ensemble",
        "member",
        "layer",
        "layers",
        "dim",
        "width",
        "depth",
        "heads",
        "commit",
        "sha",
        "rev",
        "date",
        "time",
    ]
)
_SUFFIX = re.compile(
    r"(?:-?[0-9]+-of-[0-9]+|\.(?:h5|hdf5|weights\.h5|safetensors\.index\.json|[a-z_]{1,12}))$", re.IGNORECASE
)
_CLOCK = r"[0-9]{2}[-:._h]?[0-9]{2}(?:[-:._m]?[0-9]{2}(?:[.,][0-9]+)?)?Z?"
_DAY = r"(?:19|20)[0-9]{2}[-_.][0-9]{2}[-_.][0-9]{2}|[0-9]{2}[-.][0-9]{2}[-.](?:19|20)[0-9]{2}"
_MONTH = r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[0-9]{2}"
_NEVER = re.compile(  # hashes, dates and times, versions
    r"(?<![0-9a-z])(?P<hash>[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}|[0-9a-f]{7,64})(?![0-9a-z])"
    rf"|(?<![0-9a-z])(?:(?:{_DAY})(?:[T_ -]{_CLOCK})?|(?:19|20)[0-9]{{6}}[-_T]{_CLOCK}|{_MONTH}[-_]{_CLOCK})(?![0-9])"
    r"|(?<![0-9])[0-9]+(?:\.[0-9]+){2,}",
    re.IGNORECASE,
)
_NUMBER = re.compile(
    r"(?P<number>[0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]{1,2}(?![0-9a-z]))?(?:[kmgbt](?![a-z0-9]))?)(?P<tail>[a-z]*)",
    re.IGNORECASE,
)
PATTERN = "([0-9.]+[kKmMgGbBtT]?)"


@dataclass(frozen=True)
class _Token:
    """A number, date or hash in a name."""

    kind: str  # "step", "epoch", "number", or "" where it is never a step
    word: str  # the word it belongs to; empty if none
    after: bool  # whether the word follows it
    value: int | None
    tail: str  # letters glued to its end
    where: str  # pattern that finds it
    shown: str = ""  # the name with the number in brackets


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


def read_number(text: str) -> int | None:
    """Read a whole number with an exponent or a unit of thousands: ``1e5``, ``500k``, ``1.5M``; None if it is not."""
    text = text.strip().lower()
    unit = UNITS.get(text[-1:], 1)
    try:
        value = Decimal(text[:-1] if unit > 1 else text) * unit
    except InvalidOperation:
        return None
    if not value.is_finite() or abs(value) >= 2**63 or value != value.to_integral_value():
        return None
    return int(value)


def to_step(value: Any, where: str) -> int:
    """Check a step that a user or a file gives: a whole number that fits into 64 bits; nothing is cut or wrapped."""
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
    """Say whether some number of updates per epoch, rounded up or down by an epoch, explains both numbers."""
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
    """Say whether unlabelled numbers are all dates such as 20240501, or all seconds or milliseconds of the clock."""
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


def _tokens(name: str) -> list[_Token]:
    """Cut a name into its numbers, dates and hashes, from the outermost folder to the end."""
    found = []
    for folder in name.replace("\\", "/").split("/"):
        part = folder
        for _ in range(3):
            part = _SUFFIX.sub("", part)
        position = 0
        while (number := _NUMBER.search(part, position)) is not None:
            never = _NEVER.search(part, position)
            while never is not None and never["hash"] and not _is_hash(never["hash"]):
                never = _NEVER.search(part, never.end())
            text = part[position : (never if never and never.start() <= number.start() else number).start()]
            word = re.search(r"([A-Za-z]+)[-_=.: ]*$", text)
            if never is not None and never.start() <= number.start():
                found.append(_Token("", word[1].lower() if word else "", False, None, "", ""))
                position = never.end()
            else:
                found.append(_number(part, position, number, word[1] if word else ""))
                position = number.end("number")
    return found


def _number(part: str, position: int, match: re.Match[str], word: str) -> _Token:
    """Describe one number of a name: its value, and the word before or after it."""
    value, tail = read_number(match["number"]), match["tail"]
    later = re.match(r"[-_ ]?([A-Za-z]+)(?![A-Za-z0-9]|[-_=. ]*[0-9])", part[match.end("number") :])
    after = _kind(word) == "number" and later is not None and _kind(later[1]) in {"step", "epoch"}
    if after and later is not None:
        word, tail = later[1], ""
        where = f"{PATTERN}[-_ ]?{word}"
    elif word:
        where = f"{word}[-_=.: ]*{PATTERN}"
    else:
        where = re.sub(r"[0-9]+(?:\\\.[0-9]+)?", "[0-9.]+", re.escape(part[: match.start()])) + PATTERN
    unit = match["number"][-1] if match["number"][-1].lower() in UNITS else ""
    shown = f"{part[: match.start()]}({match['number']}){part[match.end('number') :]}"
    return _Token(_kind(word), word.lower(), after, value, tail or unit, where, shown)


def _kind(word: str) -> str:
    """Say what a number after a word is: a step, an epoch, some number, or (empty) never a step."""
    word = word.lower()
    if word in STEP_WORDS:
        return "step"
    if word in EPOCH_WORDS:
        return "epoch"
    return "" if word in OTHER_WORDS else "number"


def _is_hash(word: str) -> bool:
    """Say whether a word of hexadecimal digits is a hash: letters among the digits, not one word and one number."""
    if word.isdigit() or re.fullmatch(r"[A-Za-z]+[0-9]*", word):
        return False
    return re.fullmatch(r"[0-9]+[kKmMgGtTB]", word) is None
