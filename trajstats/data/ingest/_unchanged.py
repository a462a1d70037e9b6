"""Notice that a checkpoint changes while it is read: names, sizes and times of its files, before and after."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trajstats.data.formats._parts import ranks_of, shards_of

Signature = tuple[tuple[str, int, int], ...]
# Files beside the weights, which a training may still write to.
TEXT = frozenset([".json", ".jsonl", ".log", ".txt", ".csv", ".yaml", ".yml", ".md"])


@dataclass(frozen=True)
class Source:
    """The file or folder of a checkpoint, as it was at some time."""

    path: Path
    signature: Signature

    @classmethod
    def at(cls, path: Path) -> Source:
        """Look at a file or folder now."""
        return cls(path, signature_of(path))

    @property
    def changed(self) -> str:
        """Name the first file that is not as it was; empty if there is none."""
        now = dict.fromkeys(signature_of(self.path))
        then = dict.fromkeys(self.signature)
        return next((entry[0] for entry in [*then, *now] if (entry in then) != (entry in now)), "")


def signature_of(checkpoint: Path) -> Signature:
    """Give names, sizes and times of change of the files of weights of a checkpoint."""
    if checkpoint.is_dir():
        files = [file for file in checkpoint.rglob("*") if file.suffix not in TEXT and "tfevents" not in file.name]
    elif checkpoint.name.endswith(".index.json"):
        files = [file for file in checkpoint.parent.iterdir() if file.suffix not in TEXT]
    else:
        files = shards_of(checkpoint) or ranks_of(checkpoint) or [checkpoint]
    found = []
    for file in sorted(files):
        try:
            if file.is_file():
                facts = file.stat()
                found.append((str(file), facts.st_size, facts.st_mtime_ns))
        except OSError:  # it was renamed or deleted since it was listed
            continue
    return tuple(found)
