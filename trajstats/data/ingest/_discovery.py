"""Find the checkpoints of a series (files, folders, globs) in natural order, and list what is left out."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from trajstats.data._naming import natural_key
from trajstats.data.formats._folders import is_checkpoint_folder, is_orbax_folder, is_unfinished_folder
from trajstats.data.formats._parts import is_first_part, is_tensorflow, is_training_state, refuse_tensorflow
from trajstats.data.hub._cache import find_cache, read_revisions, revision_name
from trajstats.data.safety._links import check_links
from trajstats.errors import ArgumentError, StoreNotFoundError, UnsupportedError

SUFFIXES = (
    ".safetensors",
    ".pt",
    ".pth",
    ".pth.tar",
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
MAX_FOLDERS = 8  # deep
SPECIAL_WORDS = frozenset(["best", "last", "latest", "final", "newest"])
_LABELLED = re.compile(r"(?:step|iter|iteration|epoch|ep|checkpoint|ckpt|update|ba|batch)s?[-_=.]?[0-9]", re.IGNORECASE)
_ENGINE = re.compile(r"global_step[0-9]+")
_UNFINISHED = re.compile(r"^tmp[-_]|[._-]tmp(?:[-._]|$)|\.(?:part|partial|incomplete|download)$", re.IGNORECASE)


@dataclass
class Discovery:
    """The checkpoints that a folder, a glob or a list stands for."""

    files: list[Path]
    root: Path | None = None  # the folder that was searched
    left_out: dict[str, str] = field(default_factory=dict)  # other files -> why they are left out
    names: list[str] = field(default_factory=list)  # what the files are called, where that is not their path


def find_checkpoints(paths: Any) -> Discovery:
    """List the checkpoints that paths, a glob or a folder stand for, in natural order."""
    if isinstance(paths, str | Path):
        path = local_path(paths)
        if path.is_dir():
            cache = find_cache(path)
            return _called_by_refs(_find_in_folder(path)) if cache is None else _find_in_cache(cache)
        if glob.has_magic(str(path)) and not path.exists():
            names = sorted(glob.glob(str(path), recursive=True), key=natural_key)
            if not names:
                msg = f"no file matches {str(path)!r}"
                raise StoreNotFoundError(msg)
            return _called_by_refs(_without_copies([Path(name) for name in names], None, {}))
        paths = [path]
    listed = [local_path(path) for path in paths]
    for path in listed:
        if not path.exists():
            msg = f"{path} does not exist"
            raise StoreNotFoundError(msg)
    if not listed:
        msg = "the list of checkpoints is empty"
        raise StoreNotFoundError(msg)
    return _called_by_refs(_without_copies(listed, None, {}) if len(listed) > 1 else Discovery(listed))


def local_path(given: Any) -> Path:
    """Turn what a user gives into a path on this machine: ``~`` is expanded, other machines are refused."""
    text = str(given)
    if "://" in text:
        parts = urlsplit(text)
        if parts.scheme != "file":
            msg = f"{text:.200}: checkpoints are read from this machine only; download them and give their folder"
            raise UnsupportedError(msg)
        text = unquote(parts.path)
    return Path(text).expanduser() if text.startswith("~") else Path(text)


def _find_in_folder(root: Path) -> Discovery:
    check_links(root)
    kinds = {name for name in ("zarr.json", ".zgroup", ".zmetadata") if (root / name).exists()}
    if kinds:
        msg = (
            f"{root} is a zarr group, not a folder of checkpoints. A trajectory is opened with open_trajectory; "
            "for a series of other data name its dimension of time: dims={'step': 'time'} or --step-dim time"
        )
        raise ArgumentError(msg)
    left_out: dict[str, str] = {}
    found = _search(root, root, 0, left_out)
    if not found:
        for file in (entry for entry in root.rglob("*") if entry.suffix in (".index", ".pb")):
            refuse_tensorflow(file)
        beside = f"; beside them: {', '.join(list(left_out)[:5])}" if left_out else ""
        msg = f"{root} holds no checkpoint of a known format ({', '.join(SUFFIXES)}, orbax or sharded folders){beside}"
        raise StoreNotFoundError(msg)
    if found == [root]:
        return Discovery([root], root.parent, left_out)
    return _without_copies(sorted(found, key=natural_key), root, left_out)


def _find_in_cache(cache: Path) -> Discovery:
    """List the checkpoints of the revisions of a hub cache; they are called by their refs."""
    revisions = read_revisions(cache)
    where = Discovery([], cache, revisions.left_out)
    for name, snapshot in revisions.found:
        check_links(snapshot)
        inner: dict[str, str] = {}
        found = _search(snapshot, snapshot, 0, inner)
        where.left_out |= {f"{name}/{file}": why for file, why in inner.items()}
        if not found:
            where.left_out[name] = "no weights of a known format in this revision"
        for file in sorted(found, key=natural_key):
            below = file.relative_to(snapshot).as_posix() if file != snapshot else ""
            where.files.append(file)
            where.names.append("/".join(filter(None, [name, below])))
    if not where.files:
        msg = f"{cache}: none of its {len(revisions.found)} revisions holds weights of a known format"
        raise StoreNotFoundError(msg)
    return where


def _called_by_refs(where: Discovery) -> Discovery:
    """Call files of a hub cache by their refs; files that a user's own links lead to are called as the links are."""
    names = [revision_name(file) for file in where.files]
    if any(name is not None for name in names):
        where.names = [name or file.as_posix() for name, file in zip(names, where.files, strict=True)]
    return where


def _search(folder: Path, root: Path, depth: int, left_out: dict[str, str]) -> list[Path]:
    """List the checkpoints in a folder; the folder alone if it is one itself and holds no series."""
    whole = is_checkpoint_folder(folder)
    if whole and is_orbax_folder(folder):
        return [folder]
    if is_unfinished_folder(folder):
        left_out[_name(folder, root)] = "a torch distributed checkpoint without .metadata: not finished"
        return []
    files: list[Path] = []
    below: list[Path] = []
    inner: dict[str, str] = {}
    for entry in sorted(folder.iterdir(), key=lambda e: natural_key(e.name)):
        if entry.name.startswith("."):
            continue
        if _UNFINISHED.search(entry.name):
            inner[_name(entry, root)] = "not finished"
        elif entry.is_symlink() and Path(os.path.realpath(entry)) in {root.resolve(), *_above(folder, root)}:
            inner[_name(entry, root)] = "a link to a folder above it"
        elif entry.is_dir():
            if depth < MAX_FOLDERS and not is_training_state(entry.name):
                below += _search(entry, root, depth + 1, inner)
        elif is_tensorflow(entry):
            inner[_name(entry, root)] = "of a TensorFlow checkpoint, which is not read"
        elif entry.name.endswith((*SUFFIXES, *REFUSED_SUFFIXES)) and is_first_part(entry):
            if is_training_state(entry.name):
                inner[_name(entry, root)] = "optimizer or trainer state"
            else:
                files.append(entry)
    first = {path.relative_to(folder).parts[0] for path in below}
    if whole and len(first) == 1 and _ENGINE.fullmatch(next(iter(first))):
        # transformers and accelerate keep what DeepSpeed writes beside the whole model
        left_out |= {_name(path, root): "the files of DeepSpeed beside the whole model" for path in below}
        below = []
    series = any(_LABELLED.search(path.relative_to(folder).parts[0]) for path in below)
    if whole and not series:
        return [folder]
    if series:  # a model without a number next to folders that have one: the last, or the best
        for file in list(files):
            if whole or not re.search("[0-9]", file.name.partition(".")[0]):
                inner[_name(file, root)] = "the model in the folder itself, beside the series"
                files.remove(file)
    left_out |= inner
    return files + below


def _above(folder: Path, root: Path) -> set[Path]:
    """List a folder and those above it up to the root."""
    return {place.resolve() for place in (folder, *folder.parents) if place == root or root in place.parents}


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def _without_copies(files: Sequence[Path], root: Path | None, left_out: dict[str, str]) -> Discovery:
    """Leave out training state, links to other checkpoints, and parts that their first part stands for."""
    kept: list[Path] = []
    targets = {os.path.realpath(file) for file in files if not file.is_symlink()}
    for file in files:
        name = _name(file, root) if root is not None else str(file)
        refuse_tensorflow(file)
        if file.is_symlink() and os.path.realpath(file) in targets:
            left_out[name] = f"a link to {os.path.basename(os.path.realpath(file))}"
        elif is_training_state(file.name) and len(files) > 1:
            left_out[name] = "optimizer or trainer state"
        elif file.is_dir() or is_first_part(file):
            kept.append(file)
    return Discovery(kept or list(files), root, left_out)


def set_special_apart(names: Sequence[str]) -> dict[int, str]:
    """Find checkpoints called best, last, latest or final among others: position -> why it is left out."""
    special = {}
    for k, name in enumerate(names):
        if words := SPECIAL_WORDS & set(_words(name)):
            special[k] = f"called {sorted(words)[0]!r}, beside the series"
    return special if len(special) < len(names) else {}


def _words(name: str) -> Iterable[str]:
    return (word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name))
