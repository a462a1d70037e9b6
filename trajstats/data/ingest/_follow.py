"""Ingest a series while it grows: look again and again, and take what has stopped changing."""

from __future__ import annotations

import glob
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trajstats.data.formats._open import open_checkpoint
from trajstats.data.ingest._discovery import find_checkpoints, local_path
from trajstats.data.ingest._in_memory import is_path
from trajstats.data.ingest._plan import IngestPlan
from trajstats.data.ingest._unchanged import Signature, signature_of
from trajstats.errors import ArgumentError, StoreNotFoundError, TrajstatsError

LOOK_AGAIN = 5.0  # seconds


def check_can_grow(paths: Any, follow: float) -> None:
    """Refuse to follow what cannot grow."""
    if not follow > 0:
        msg = f"follow={follow!r}: give the seconds without a new checkpoint after which the series has ended"
        raise ArgumentError(msg)
    path = local_path(paths) if is_path(paths) else None
    if path is None or not (path.is_dir() or glob.has_magic(str(path))):
        msg = f"follow= needs a folder or a glob, which can grow; {paths!s:.200} is neither"
        raise ArgumentError(msg)


def follow_series(
    paths: Any, ingest_some: Callable[[Callable[[Path], bool]], IngestPlan], idle: float
) -> tuple[IngestPlan, list[int]]:
    """Ingest the checkpoints that have stopped changing until nothing new came for `idle` seconds.

    `ingest_some` ingests those for which a function is true. Returned are its last plan and all steps that were added.
    """
    ready: set[Path] = set()
    seen: dict[Path, Signature] = {}
    plan: IngestPlan | None = None
    added: list[int] = []
    changed = time.monotonic()
    while True:
        files, failed = _look(paths)
        new = False
        for file in [file for file in files if file not in ready]:
            now = signature_of(file)
            if seen.get(file) != now:
                seen[file], changed = now, time.monotonic()
            elif (error := _why_not(file)) is not None:
                failed = failed or error
            else:
                ready.add(file)
                new = True
        if new:
            plan = ingest_some(ready.__contains__)
            added += plan.added
            changed = time.monotonic()
        elif time.monotonic() - changed > idle:
            if failed is not None:  # what has not changed for so long is not going to be finished
                raise failed
            assert plan is not None
            return plan, added
        time.sleep(min(LOOK_AGAIN, idle / 4))


def _look(paths: Any) -> tuple[list[Path], TrajstatsError | None]:
    """List the checkpoints that are there now, or say why there is none."""
    try:
        return find_checkpoints(paths).files, None
    except StoreNotFoundError as error:
        return [], error


def _why_not(checkpoint: Path) -> TrajstatsError | None:
    """Say why a checkpoint cannot be read now."""
    try:
        open_checkpoint(checkpoint)
    except ArgumentError:  # it is whole; what must be chosen is said when it is ingested
        return None
    except TrajstatsError as error:
        return error
    return None
