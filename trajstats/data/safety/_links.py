"""Refuse symbolic links in folders from others."""

from __future__ import annotations

import os
from pathlib import Path

from trajstats.errors import UnsafeInputError


def check_links(folder: Path) -> None:
    """Check that no symbolic link under a folder leads out of it."""
    root = folder.resolve()
    todo = [root]
    while todo:
        with os.scandir(todo.pop()) as entries:
            for entry in entries:
                if entry.is_symlink():
                    goal = Path(os.path.realpath(entry.path))
                    if root != goal and root not in goal.parents:
                        msg = f"{entry.path} is a link that leads out of {folder}; it is not followed"
                        raise UnsafeInputError(msg)
                elif entry.is_dir(follow_symlinks=False):
                    todo.append(Path(entry.path))
