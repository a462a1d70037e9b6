"""Replicas at the door of a fit: copies, one of another level, NaN in one, and an MSD that falls with the lag."""

from __future__ import annotations

from typing import Any

import numpy as np

from trajstats.data._replicas import copied_rows, copies_message
from trajstats.errors import ArgumentError, FitError, unknown_name_message

ON_NAN = ("raise", "skip")
# A level this many times that of the other replicas is another experiment.
OTHER_LEVEL = 10.0
# Exponent of a fall over the lags that is no plateau, and how many standard errors it must be away from 0.
_FALL, _SIGNIFICANT = -0.05, 2.0


def check_on_nan(on_nan: Any) -> None:
    """Check the option that says what NaN does."""
    if on_nan not in ON_NAN:
        raise ArgumentError(unknown_name_message("on_nan", on_nan, ON_NAN))


def finite_part(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Choose replicas and points without NaN or infinity.

    Replicas that are not finite at more than half of the points go first, then points that are not finite in one of the
    replicas left: the mean over replicas is always over the same ones.
    """
    fine = np.isfinite(values)
    rows = fine.mean(axis=1) >= 0.5 if values.size else np.ones(len(values), dtype=bool)
    return rows, fine[rows].all(axis=0)


def check_copies(values: np.ndarray, labels: Any) -> None:
    """Refuse replicas that are copies of each other."""
    if copies := copied_rows(values):
        raise FitError(copies_message(copies, list(labels)))


def level_flags(values: np.ndarray, labels: Any) -> list[str]:
    """Word it when the level of a replica is ten times that of the others, or a tenth."""
    if len(values) < 2:
        return []
    level = np.log(values).mean(axis=1)
    flags = []
    for r in range(len(values)):
        apart = float(level[r] - np.median(np.delete(level, r)))
        if abs(apart) < np.log(OTHER_LEVEL) or (len(values) == 2 and apart < 0):
            continue
        size = f"{np.exp(apart):.3g} times" if apart > 0 else f"1/{np.exp(-apart):.3g} of"
        flags.append(
            f"replica {labels[r]} has {size} the others' MSD: it is another experiment, or in another unit; the mean "
            "over replicas is that of the largest. Look at it by itself, or leave it out"
        )
    return flags


def falling_waiting_times(waiting: np.ndarray, lag: np.ndarray, log_msd: np.ndarray) -> tuple[int, int]:
    """Count the waiting times at which the MSD falls over the lags as a whole; local dips do not count.

    The trend is the slope of a straight line on log-log axes; it falls where it is below -0.05 by two of its standard
    errors, so that noise on a plateau does not.
    """
    falling = judged = 0
    for level in np.unique(waiting):
        here = waiting == level
        x, y = np.log(lag[here]), log_msd[here]
        x, y = x - x.mean(), y - y.mean()
        power = float(x @ x)
        if here.sum() < 3 or power == 0:
            continue
        judged += 1
        slope = float(x @ y) / power
        error = float(np.sqrt(np.square(y - slope * x).sum() / (here.sum() - 2) / power))
        falling += slope < _FALL and slope < -_SIGNIFICANT * error
    return falling, judged


def check_trend(waiting: np.ndarray, lag: np.ndarray, values: np.ndarray, labels: Any) -> list[str]:
    """Refuse an MSD that falls with the lag at most waiting times."""
    falling, judged = falling_waiting_times(waiting, lag, np.log(values.mean(axis=0)))
    if 2 * falling > judged:
        msg = (
            f"the MSD falls with the lag at {falling} of {judged} waiting times: a displacement grows, or stays on a "
            "plateau. Are these values of trajstats.msd (and not a correlation or an overlap), with waiting_time and "
            "lag the right way round?"
        )
        raise FitError(msg)
    flags = []
    for row, label in zip(values, labels, strict=True):
        falling, judged = falling_waiting_times(waiting, lag, np.log(row))
        if len(values) > 1 and 2 * falling > judged:
            flags.append(f"replica {label} falls with the lag at {falling} of {judged} waiting times")
    return flags
