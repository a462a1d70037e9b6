"""Where the checkpoints of a series are: files, folders, globs, in natural order."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import Any

from trajstats.data.formats import SKIPPED_FILES
from trajstats.data.formats_tree import is_checkpoint_folder
from trajstats.data.guard import check_links
from trajstats.data.naming import natural_key
from trajstats.errors import StoreNotFoundError

SUFFIXES = (
    ".safetensors",
    ".pt",
    ".pth",
    ".bin",
    ".ckpt",
    ".npz",
    ".npy",
    ".h5",
    ".hdf5",
    ".keras",
    ".msgpack",
    ".flax",
)
REFUSED_SUFFIXES = (".pkl", ".pickle")


def find_checkpoints(paths: Any) -> tuple[list[Path], Path | None]:
    """List the checkpoints that paths, a glob or a folder stand for, in natural order.

    Parameters
    ----------
    paths : path, glob pattern, or sequence of them
        Files, checkpoint folders, or one folder of them.

    Returns
    -------
    files : list of Path
        Checkpoint files and folders.
    root : Path or None
        The folder that was searched.

    Raises
    ------
    StoreNotFoundError
        If nothing is found.
    """
    if isinstance(paths, str | Path):
        text = str(paths)
        if Path(text).is_dir():
            root = Path(text)
            check_links(root)
            if is_checkpoint_folder(root):
                return [root], root.parent
            found = _search(root, 0)
            if not found:
                msg = f"{root} holds no checkpoint of a known format ({', '.join(SUFFIXES)}, orbax or sharded folders)"
                raise StoreNotFoundError(msg)
            return sorted(found, key=natural_key), root
        if glob.has_magic(text) and not Path(text).exists():
            found = [Path(name) for name in sorted(glob.glob(text), key=natural_key)]
            if not found:
                msg = f"no file matches {text!r}"
                raise StoreNotFoundError(msg)
            return found, None
        paths = [text]
    listed = [Path(path) for path in paths]
    for path in listed:
        if not path.exists():
            msg = f"{path} does not exist"
            raise StoreNotFoundError(msg)
    if not listed:
        msg = "the list of checkpoints is empty"
        raise StoreNotFoundError(msg)
    return listed, None


def _search(folder: Path, depth: int) -> list[Path]:
    found: list[Path] = []
    for entry in sorted(folder.iterdir(), key=lambda e: natural_key(e.name)):
        if entry.name.startswith((*SKIPPED_FILES, ".")):
            continue
        if entry.is_dir():
            if is_checkpoint_folder(entry):
                found.append(entry)
            elif depth < 3:
                found += _search(entry, depth + 1)
        elif entry.name.endswith((*SUFFIXES, *REFUSED_SUFFIXES)):
            found.append(entry)
    return found
