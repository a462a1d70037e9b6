"""Refuse symbolic links that lead out of folders from others; a hub cache may point into its own blobs."""

from __future__ import annotations

import os
from pathlib import Path

from trajstats.errors import StoreNotFoundError, UnsafeInputError


def check_links(folder: Path) -> None:
    """Check that no symbolic link under a folder leads out of it, or out of the hub cache that it is a part of."""
    root = folder.resolve()
    todo = [root]
    while todo:
        with os.scandir(todo.pop()) as entries:
            for entry in entries:
                if entry.is_symlink():
                    check_link(Path(entry.path), root)
                elif entry.is_dir(follow_symlinks=False):
                    todo.append(Path(entry.path))


def check_link(link: Path, root: Path) -> None:
    """Check that a symbolic link leads to something under a folder, or to a blob of the hub cache around it."""
    goal = Path(os.path.realpath(link))
    root = Path(os.path.realpath(root))
    if root == goal or root in goal.parents:
        return
    cache = cache_of(Path(os.path.realpath(link.parent)) / link.name)
    if cache is None:
        msg = (
            f"{link} is a link that leads out of {root}; it is not followed. If you made it and trust where it leads, "
            "give the links themselves: a list of paths, or a glob"
        )
        raise UnsafeInputError(msg)
    blobs = Path(os.path.realpath(cache)) / "blobs"
    if goal.parent != blobs:
        msg = (
            f"{link} is a link to {goal}, which is not a blob of its cache {cache}; it is not followed. Copy the "
            f"snapshot with its files (cp -rL), or download it into a folder of its own (local_dir)"
        )
        raise UnsafeInputError(msg)
    if not goal.is_file():
        msg = f"{link} is a link to {goal}, which is missing: the download was not finished. Download it again"
        raise StoreNotFoundError(msg)


def is_cache(folder: Path) -> bool:
    """Check whether a folder is the cache of one repository of a model hub."""
    named = folder.name.startswith(("models--", "datasets--", "spaces--"))
    return named and (folder / "snapshots").is_dir() and not (folder / "snapshots").is_symlink()


def cache_of(path: Path) -> Path | None:
    """Find the hub cache whose snapshot a path is, or lies in."""
    for above in path.absolute().parents:
        if above.name == "snapshots" and is_cache(above.parent):
            return above.parent
    return path if is_cache(path) else None
