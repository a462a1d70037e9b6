"""The cache of one repository of a model hub: ``models--org--name`` with its ``refs``, ``snapshots`` and ``blobs``.

``refs/step1000`` holds the hash of a commit, ``snapshots/<commit>`` the files of that revision, as links into
``blobs``. Revisions are called by their refs; a hash is never read as a number.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from trajstats.data._naming import natural_key
from trajstats.data.safety._budget import shorten
from trajstats.data.safety._links import cache_of, is_cache
from trajstats.errors import ArgumentError, StoreError, StoreNotFoundError

MAX_REF_BYTES = 1000
MAX_REFS = 100_000
_COMMIT = re.compile(r"[0-9a-fA-F]{7,64}")


@dataclass
class Revisions:
    """The revisions of a cache that have a name, and those that are left out."""

    found: list[tuple[str, Path]]  # Name of the ref, folder of the snapshot
    left_out: dict[str, str] = field(default_factory=dict)  # Names -> why


def find_cache(path: Path) -> Path | None:
    """Find the cache that a path stands for: itself, its ``snapshots``, or the only one in a hub folder."""
    if is_cache(path):
        return path
    if path.name == "snapshots" and is_cache(path.parent):
        return path.parent
    if not path.is_dir():
        return None
    inside = [entry for entry in sorted(path.iterdir()) if entry.name.startswith("models--") and is_cache(entry)]
    if not inside:
        return None
    others = [
        e.name for e in sorted(path.iterdir()) if e.is_dir() and "--" not in e.name and not e.name.startswith(".")
    ]
    if len(inside) > 1 or others:
        names = ", ".join([*(entry.name for entry in inside), *others][:5])
        msg = f"{path} holds {len(inside)} caches of a hub and {len(others)} other folders ({names}); give one of them"
        raise ArgumentError(msg)
    return inside[0]


def read_revisions(cache: Path) -> Revisions:
    """List the revisions of a cache by the names of their refs, in natural order."""
    refs = _read_refs(cache)
    snapshots = {entry.name: entry for entry in (cache / "snapshots").iterdir() if entry.is_dir()}
    revisions = Revisions([])
    for name, commit in refs.items():
        if commit in snapshots:
            revisions.found.append((name, snapshots[commit]))
        else:
            revisions.left_out[f"refs/{name}"] = f"its revision {commit[:12]} is not in the cache; download it"
    _leave_out_unnumbered(revisions)
    for commit in sorted(snapshots.keys() - set(refs.values())):
        revisions.left_out[f"snapshots/{commit}"] = (
            "no ref names this revision, so its step is not known; give it as {step: folder}"
        )
    if not revisions.found:
        beside = "; ".join(f"{name}: {why}" for name, why in list(revisions.left_out.items())[:3])
        msg = (
            f"{cache} has no revision with a name ({beside or 'it is empty'}). Download by the name of a branch or "
            "tag, such as revision='step1000', or give the folders as {step: folder}"
        )
        raise StoreNotFoundError(msg)
    return revisions


def revision_name(file: Path) -> str | None:
    """Call a file of a snapshot by a ref and its place below; None for files elsewhere.

    Of several refs of one revision that is the first with a number; a revision without one is called ``revision``.
    """
    cache = cache_of(file)
    if cache is None:
        return None
    parts = file.absolute().relative_to(cache).parts
    if len(parts) < 2 or parts[0] != "snapshots":
        return None
    names = [name for name, commit in _read_refs(cache).items() if commit == parts[1]]
    numbered = [name for name in names if re.search("[0-9]", name)]
    return "/".join([(numbered or names or ["revision"])[0], *parts[2:]])


def _read_refs(cache: Path) -> dict[str, str]:
    """Read the names of revisions and their commits."""
    folder = cache / "refs"
    found: dict[str, str] = {}
    if not folder.is_dir() or folder.is_symlink():
        return found
    for file in sorted(folder.rglob("*"), key=lambda f: natural_key(f.relative_to(folder).as_posix())):
        if file.is_symlink() or not file.is_file():
            continue
        name = file.relative_to(folder).as_posix()
        if len(found) >= MAX_REFS or file.stat().st_size > MAX_REF_BYTES:
            msg = f"{file}: no more than {MAX_REFS} refs of {MAX_REF_BYTES} bytes are read"
            raise StoreError(msg)
        commit = file.read_bytes().decode("utf-8", "replace").strip()
        if not _COMMIT.fullmatch(commit):
            msg = f"{file} holds {shorten(commit)}, which is not the hash of a commit; delete it, or download again"
            raise StoreError(msg)
        found[name] = commit
    return found


def _leave_out_unnumbered(revisions: Revisions) -> None:
    """Leave out branches without a number, and pull requests, beside a series of numbered ones."""
    series = [name for name, _ in revisions.found if re.search("[0-9]", name) and not name.startswith("pr/")]
    if not series:
        return
    same: dict[Path, str] = {folder: name for name, folder in revisions.found if name in series}
    for name, folder in list(revisions.found):
        if name not in series:
            also = f"; its revision is that of {same[folder]!r}" if folder in same else ""
            what = "a pull request" if name.startswith("pr/") else "a name without a step"
            revisions.left_out[f"refs/{name}"] = f"{what}, beside the series{also}"
            revisions.found.remove((name, folder))
