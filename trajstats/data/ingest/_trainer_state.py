"""What ``trainer_state.json`` beside a checkpoint says: epoch, training loss and the sum of the learning rates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from trajstats.data.formats._archives import MAX_JSON
from trajstats.data.safety._budget import Budget, json_object
from trajstats.data.safety._links import check_link
from trajstats.errors import UnsafeInputError

NAME = "trainer_state.json"
EPOCH, LOSS, PROPER_TIME = "epoch", "loss", "proper_time"


@dataclass
class TrainerStates:
    """Numbers of each checkpoint, and what is odd about them."""

    rows: list[dict[str, float]] = field(default_factory=list)  # One for each checkpoint; empty if there is no state
    oddities: list[tuple[int, str]] = field(default_factory=list)  # Position of the checkpoint, what is odd


def read_trainer_states(files: Sequence[Path], steps: Sequence[int]) -> TrainerStates:
    """Read the states beside the checkpoints of a series.

    A clock is kept only if all checkpoints have it. The loss is the one that was logged last, at the step of the
    checkpoint or before it: the mean over the steps since the log entry before.
    """
    found = TrainerStates()
    places = [(file if file.is_dir() else file.parent) / NAME for file in files]
    shared = len(set(places)) < len(places)  # one folder for all checkpoints: its state is that of the last one
    if shared or not any(place.is_file() for place in places):
        return found
    for k, (place, step) in enumerate(zip(places, steps, strict=True)):
        found.rows.append({})
        if not place.is_file():
            found.oddities.append((k, f"has no {NAME}, which others have"))
            continue
        state = _read(place)
        if EPOCH not in state and not state.get("log_history"):
            continue  # it says nothing
        if state.get("global_step") != step:
            said = state.get("global_step")
            found.oddities.append((k, f"its {NAME} is of step {said!r:.40}, its name says {step}; it is left out"))
            continue
        found.rows[k] = _numbers(state, step)
    for name in (EPOCH, PROPER_TIME):
        have = [name in row for row in found.rows]
        if any(have) and not all(have):
            lacking = have.index(False)
            found.oddities.append((lacking, f"the clock {name!r} is not kept, as this checkpoint has none"))
            for row in found.rows:
                row.pop(name, None)
    if any(PROPER_TIME in row for row in found.rows) and (how := _coarseness(_read(places[-1]), steps[-1])):
        found.oddities.append((len(files) - 1, how))
    if not any(found.rows):
        found.rows = []
    return found


def _read(file: Path) -> dict[str, Any]:
    check_link(file, file.parent)
    if file.stat().st_size > MAX_JSON:
        msg = f"{file} has {file.stat().st_size} bytes; at most {MAX_JSON} are read"
        raise UnsafeInputError(msg)
    raw = file.read_bytes()
    return json_object(raw, str(file), Budget.for_size(len(raw)))


def _numbers(state: dict[str, Any], step: int) -> dict[str, float]:
    """Take epoch, loss and proper time from one state."""
    found = {EPOCH: _number(state.get(EPOCH))}
    losses = _logged(state, LOSS, step)
    found[LOSS] = losses[-1][1] if losses else math.nan
    found[PROPER_TIME] = _sum_of_rates(_logged(state, "learning_rate", step), step)
    clocks = {name: value for name, value in found.items() if not math.isnan(value)}
    return {LOSS: found[LOSS], **clocks} if losses else clocks


def _number(value: Any) -> float:
    good = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2.0**63
    return float(value) if good else math.nan


def _logged(state: dict[str, Any], name: str, step: int) -> list[tuple[int, float]]:
    """List the values of a name in the log, up to a step: (step, value), by step."""
    log = state.get("log_history")
    found = {}
    for entry in log if isinstance(log, list) else []:
        if isinstance(entry, dict) and name in entry and isinstance(entry.get("step"), int):
            value = _number(entry[name])
            if 0 <= entry["step"] <= step and not math.isnan(value):
                found[entry["step"]] = value
    return sorted(found.items())


def _sum_of_rates(logged: Sequence[tuple[int, float]], step: int) -> float:
    """Sum the learning rates of steps 1 to `step`; between logged steps they lie on straight lines."""
    if step == 0:
        return 0.0
    if not logged:
        return math.nan
    at, rates = np.array([k for k, _ in logged], dtype=np.float64), np.array([rate for _, rate in logged])
    if step <= 2**22:
        return float(np.interp(np.arange(1, step + 1), at, rates).sum())
    knots = np.unique(np.concatenate([[1.0], at[at >= 1], [float(step)]]))
    values = np.interp(knots, at, rates)
    lengths = np.diff(knots)  # the sum of a straight line is its mean times the number of steps
    return float(values[0] + np.sum(lengths * (values[:-1] + values[1:]) / 2 + (values[1:] - values[:-1]) / 2))


def _coarseness(state: dict[str, Any], step: int) -> str:
    """Say how far apart the logged learning rates are, where they are not of every step and not constant."""
    logged = _logged(state, "learning_rate", step)
    at = [k for k, _ in logged if k >= 1]
    if len(at) == step or len({rate for _, rate in logged}) < 2:
        return ""
    apart = max(np.diff([0, *at, step]).tolist())
    return (
        f"proper_time is summed from {len(at)} learning rates, logged up to {apart} steps apart; between them a "
        "straight line is assumed, before the first and after the last a constant"
    )
