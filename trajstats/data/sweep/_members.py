"""Where the stores of a sweep are: folders, patterns and URLs, and the names of the runs in them."""

from __future__ import annotations

import glob
import os
from pathlib import Path
from typing import Any

from trajstats.data._naming import natural_key
from trajstats.data.safety._credentials import without_credentials
from trajstats.errors import ArgumentError, StoreError, StoreNotFoundError, UnsafeInputError

SUFFIX = ".zarr"
_DEEPEST = 4


def sweep_members(paths: Any) -> dict[str, Any]:
    """Find the stores of a sweep, without opening one."""
    if isinstance(paths, str | os.PathLike):
        found, root = _remote(str(paths)) if "://" in str(paths) else _local(str(paths))
    elif isinstance(paths, list | tuple):
        found = list(paths)
        text = [str(Path(p).absolute()) for p in found if isinstance(p, str | os.PathLike) and "://" not in str(p)]
        root = os.path.commonpath([os.path.dirname(p) for p in text]) if text and len(text) == len(found) else ""
    else:
        msg = f"a sweep is a folder, a pattern or a list of stores; got {type(paths).__name__}"
        raise ArgumentError(msg)
    if not found:
        msg = f"no trajectory store at {paths}; check the path, or the pattern and the folder it starts from"
        raise StoreNotFoundError(msg)
    named: dict[str, Any] = {}
    for k, place in enumerate(found):
        name = _node_name(place, root) or f"run{k}"
        if name in named:
            msg = f"{named[name]} and {place} would both be the run {name!r}; rename one of them"
            raise ArgumentError(msg)
        named[name] = place
    return named


def _node_name(place: Any, root: str) -> str:
    if not isinstance(place, str | os.PathLike):
        return ""
    text = str(place) if "://" in str(place) else str(Path(place).absolute())
    inside = text.removeprefix(root) if root else text.rstrip("/").rpartition("/")[2]
    parts = [part for part in inside.replace(os.sep, "/").split("/") if part]
    return ".".join(parts).removesuffix(SUFFIX)


def _local(text: str) -> tuple[list[str], str]:
    if Path(text).is_dir():
        root = Path(text)
        if _is_store(root):
            return [text], str(root.absolute().parent)
        inside = os.path.realpath(root)
        return sorted(_below(root, 1, inside), key=natural_key), str(root.absolute())
    if glob.has_magic(text):
        found = sorted((p for p in glob.glob(text, recursive=True) if Path(p).is_dir()), key=natural_key)
        return found, _fixed_part(str(Path(text).absolute()))
    msg = f"{text} does not exist; check the path"
    raise StoreNotFoundError(msg)


def _is_store(folder: Path) -> bool:
    return (folder / "zarr.json").is_file() or folder.name.endswith(SUFFIX)


def _below(folder: Path, depth: int, inside: str) -> list[str]:
    found: list[str] = []
    for entry in folder.iterdir():
        if entry.name.startswith(".") or not entry.is_dir():
            continue
        if entry.is_symlink() and not os.path.realpath(entry).startswith(os.path.join(inside, "")):
            msg = f"{entry} is a link that leads out of {inside}; give the stores to open in a list, or a pattern"
            raise UnsafeInputError(msg)
        if _is_store(entry):
            found.append(str(entry))
        elif depth < _DEEPEST:
            found += _below(entry, depth + 1, inside)
    return found


def _fixed_part(pattern: str) -> str:
    parts = pattern.split("/")
    magic = next((k for k, part in enumerate(parts) if glob.has_magic(part)), len(parts) - 1)
    return "/".join(parts[:magic])


def _remote(url: str) -> tuple[list[str], str]:
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(url)
        if glob.has_magic(path):
            found, root = system.glob(path), _fixed_part(path)
        else:
            marks = system.find(path, maxdepth=_DEEPEST + 1)
            tops = sorted({mark.rpartition("/")[0] for mark in marks if mark.endswith("/zarr.json")}, key=len)
            found, root = [], path.rstrip("/")
            for top in tops:  # the arrays of a store have a zarr.json of their own
                if not any(top.startswith(f"{store}/") for store in found):
                    found.append(top)
    except (ImportError, ValueError, OSError) as error:
        shown = without_credentials(f"cannot list {url}: {error}")
        msg = f"{shown}. Give a local path, or install the fsspec package for this protocol."
        raise StoreError(msg) from None
    urls = [system.unstrip_protocol(name) for name in sorted(found, key=natural_key)]
    return urls, system.unstrip_protocol(root)
