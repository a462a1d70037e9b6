"""Open one checkpoint, a file or a folder, as named tensors that are read later."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trajstats.data.formats._folders import read_folder, read_index
from trajstats.data.formats._parts import read_group
from trajstats.data.formats._selection import choose_tensors
from trajstats.data.formats._tensor import Checkpoint, input_size
from trajstats.data.safety._budget import Budget
from trajstats.errors import StoreError, TrajstatsError, UnsafeInputError


def open_checkpoint(
    path: str | Path,
    *,
    optimizer: bool = False,
    part: str | Sequence[str] | None = None,
    budget: Budget | None = None,
) -> Checkpoint:
    """Read the header of a checkpoint of any known format; its tensors are read later, range by range."""
    return choose_tensors(_read_all(Path(path), budget), optimizer=optimizer, part=part)


def _read_all(path: Path, budget: Budget | None) -> Checkpoint:
    """List every tensor of a checkpoint; what its files cause becomes an error of trajstats."""
    try:
        if path.is_dir() or (path.is_file() and path.name.endswith(".index.json")):
            budget = budget or Budget.for_size(input_size(path))
            return (read_folder if path.is_dir() else read_index)(path, budget)
        return read_group(path, budget)
    except TrajstatsError:
        raise
    except OSError as error:  # no permission, a loop of links, a disk that fails
        msg = f"{path} cannot be read: {type(error).__name__}: {error.strerror or error!s:.200}"
        raise StoreError(msg) from error
    except (RecursionError, MemoryError) as error:
        msg = f"{path}: its header is nested or sized beyond reason ({type(error).__name__}); it is not read"
        raise UnsafeInputError(msg) from error
