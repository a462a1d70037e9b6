"""Files of one folder, read and written by key without ever following a link out of it."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trajstats.errors import StoreError, UnsafeInputError

PARTIAL = ".partial"
SPARSE = 64 * 2**20  # files of up to this size may have holes
# Where the system can open a name below an open folder, nothing can be put in its place between check and use.
_BY_HANDLE = {os.open, os.mkdir, os.stat, os.unlink, os.rename, os.link} <= os.supports_dir_fd
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_FOLDER = getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_CLOEXEC", 0) | os.O_RDONLY
# A FIFO is opened without waiting for its other end, and refused then.
_FILE = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_CLOEXEC", 0)
_FILE |= getattr(os, "O_BINARY", 0) | _NO_LINK
_LINK_CODES = frozenset({errno.ELOOP, errno.EMLINK, errno.ENOTDIR})
_COPY = "copy the folder without its links (cp -rL) and use the copy"


class FolderInTheWayError(StoreError, IsADirectoryError):
    """A folder lies where a file belongs."""


class Folder:
    """The files below a folder, by keys such as ``weights/c/0/0``.

    A link, pipe or device among the components of a key is an UnsafeInputError. The folder itself may be reached
    through links: its path is the user's own.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def open(self, key: str, flags: int = os.O_RDONLY, *, alone: bool = False) -> int:
        """Open a regular file and return its descriptor; with `alone` refuse one that has a second name elsewhere."""
        with self._parent(key, make=bool(flags & os.O_CREAT)) as (folder, name):
            try:
                handle = os.open(name, flags | _FILE, 0o644, dir_fd=folder)
            except IsADirectoryError as error:
                raise self._in_the_way(key) from error
            except OSError as error:
                self._explain(error, key, folder, name)
                raise
        try:
            self._check_file(handle, key, alone)
        except BaseException:
            os.close(handle)
            raise
        return handle

    def read(self, key: str, start: int = 0, stop: int | None = None) -> bytes | None:
        """Read a file, or the bytes from `start` to `stop`; from the end if `start` is negative; None if absent."""
        try:
            handle = self.open(key)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return None
        with os.fdopen(handle, "rb", buffering=0) as stream:
            size = os.fstat(handle).st_size
            begin = max(0, size + start) if start < 0 else start
            wanted = max(0, (size if stop is None else min(stop, size)) - begin)
            stream.seek(begin)
            found = stream.read(wanted) or b""
            if len(found) == wanted:
                return found
            parts = [found]  # a signal, or a limit of the system on one read
            while piece := stream.read(wanted - sum(map(len, parts))):
                parts.append(piece)
            return b"".join(parts)

    def write(self, key: str, value: Any, *, exclusive: bool = False) -> None:
        """Write a file of these bytes as a whole: it is there with all of them, or not at all."""
        with self._parent(key, make=True) as (folder, name):
            partial = os.path.join(os.path.dirname(name), uuid.uuid4().hex + PARTIAL)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FILE
            with os.fdopen(os.open(partial, flags, 0o644, dir_fd=folder), "wb", buffering=0) as stream:
                try:
                    left = memoryview(value).cast("B")
                    while left:
                        left = left[stream.write(left) or 0 :]
                    if exclusive:  # fails where the name exists
                        os.link(partial, name, src_dir_fd=folder, dst_dir_fd=folder)
                        os.unlink(partial, dir_fd=folder)
                    else:
                        os.replace(partial, name, src_dir_fd=folder, dst_dir_fd=folder)
                except IsADirectoryError as error:
                    os.unlink(partial, dir_fd=folder)
                    msg = f"{self.root}/{key:.200} is a folder where a file belongs; restore the store from a copy"
                    raise StoreError(msg) from error
                except BaseException:
                    os.unlink(partial, dir_fd=folder)
                    raise

    def remove(self, key: str) -> None:
        """Delete a file, or a folder with all that is in it; a link is deleted itself; nothing happens if absent."""
        try:
            with self._parent(key) as (folder, name):
                if stat.S_ISDIR(_lstat(name, folder).st_mode):
                    shutil.rmtree(name, dir_fd=folder)
                else:
                    os.unlink(name, dir_fd=folder)
        except (FileNotFoundError, NotADirectoryError):
            return

    def remove_empty(self, key: str) -> None:
        """Delete a folder, if it is empty."""
        with contextlib.suppress(OSError), self._parent(key) as (folder, name):
            os.rmdir(name, dir_fd=folder)

    def size(self, key: str) -> int | None:
        """Return the bytes of a regular file, or None if there is none of this name."""
        found = self._stat(key)
        return None if found is None else found.st_size

    def inode(self, key: str) -> int | None:
        """Return what identifies a regular file and no other in its place, or None if there is none of this name."""
        found = self._stat(key)
        return None if found is None else found.st_ino

    def _stat(self, key: str) -> os.stat_result | None:
        try:
            with self._parent(key) as (folder, name):
                found = _lstat(name, folder)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return found if stat.S_ISREG(found.st_mode) else None

    def names(self, key: str = "") -> list[str]:
        """List what a folder holds, unordered; nothing if it does not exist."""
        try:
            with self._parent(f"{key}/." if key else ".") as (folder, name):
                return os.listdir(os.path.dirname(name) if folder is None else folder)
        except (FileNotFoundError, NotADirectoryError):
            return []

    def files(self, key: str = "") -> Iterator[str]:
        """List the keys of all regular files below a folder."""
        try:
            with self._parent(f"{key}/." if key else "."):  # none of its components is a link
                pass
        except (FileNotFoundError, NotADirectoryError):
            return
        for path, _, names in os.walk(self.root / key):
            below = os.path.relpath(path, self.root).replace(os.sep, "/")
            for name in names:
                if stat.S_ISREG(os.lstat(os.path.join(path, name)).st_mode):
                    yield name if below == "." else f"{below}/{name}"

    def sync(self, key: str) -> None:
        """Fsync a file or folder."""
        with self._parent(key) as (folder, name):
            try:
                handle = os.open(name, os.O_RDONLY | _FILE, dir_fd=folder)
            except OSError as error:
                self._explain(error, key, folder, name)
                raise
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    @contextlib.contextmanager
    def _parent(self, key: str, *, make: bool = False) -> Iterator[tuple[int | None, str]]:
        """Open the folder that holds a key; where the system has no such handles, give the checked path instead."""
        *above, name = key.split("/")
        if any(part in ("", ".", "..") for part in above) or name in ("", "..") or "\0" in key or "\\" in key:
            msg = f"{self.root}: {key!r:.100} is not a name of something in this folder"
            raise UnsafeInputError(msg)
        if not _BY_HANDLE:
            self._make_root() if make else None
            yield None, self._checked([*above, name], make=make)
            return
        folder = self._open_root(make=make)
        try:
            for part in above:
                inner = self._enter(folder, part, key, make=make)
                os.close(folder)
                folder = inner
            yield folder, name
        finally:
            os.close(folder)

    def _open_root(self, *, make: bool) -> int:
        try:
            return os.open(self.root, _FOLDER)
        except FileNotFoundError:
            if not make:
                raise
        except NotADirectoryError:
            raise
        except OSError as error:
            raise _unreachable(self.root, error) from error
        self._make_root()
        return os.open(self.root, _FOLDER)

    def _make_root(self) -> None:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except FileExistsError as error:
            msg = f"{self.root} is a file, or a link that leads nowhere; choose another path"
            raise StoreError(msg) from error

    def _enter(self, folder: int, name: str, key: str, *, make: bool) -> int:
        try:
            return os.open(name, _FOLDER | _NO_LINK, dir_fd=folder)
        except FileNotFoundError:
            if not make:
                raise
        except OSError as error:
            self._explain(error, key, folder, name)
            raise
        with contextlib.suppress(FileExistsError):  # another thread was faster
            os.mkdir(name, dir_fd=folder)
        return os.open(name, _FOLDER | _NO_LINK, dir_fd=folder)

    def _checked(self, parts: list[str], *, make: bool) -> str:
        # Without handles of folders: each component is looked at, just before it is used.
        path = str(self.root)
        for k, part in enumerate(parts):
            path = os.path.join(path, part)
            try:
                found = os.lstat(path)
            except FileNotFoundError:
                if make and k + 1 < len(parts):
                    os.mkdir(path)
                continue
            if _is_link(found):
                raise _refused(self.root, "/".join(parts), "a link")
        return path

    def _explain(self, error: OSError, key: str, folder: int | None, name: str) -> None:
        # The error for a link that must not be followed differs between systems.
        if error.errno in _LINK_CODES and _is_link(_lstat(name, folder)):
            raise _refused(self.root, key, "a link") from error
        if error.errno in (errno.ENXIO, errno.ENODEV, errno.EOPNOTSUPP):
            raise _refused(self.root, key, "a pipe, socket or device") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG):
            raise _unreachable(self.root / key[:200], error) from error

    def _in_the_way(self, key: str) -> FolderInTheWayError:
        return FolderInTheWayError(f"{self.root / key} is a folder where a file belongs; restore the store from a copy")

    def _check_file(self, handle: int, key: str, alone: bool) -> None:
        found = os.fstat(handle)
        if stat.S_ISDIR(found.st_mode):
            raise self._in_the_way(key)
        if not stat.S_ISREG(found.st_mode):
            raise _refused(self.root, key, "a pipe, socket or device")
        if found.st_size > SPARSE and getattr(found, "st_blocks", found.st_size) * 512 < found.st_size // 16:
            msg = f"{self.root}/{key:.200} claims {found.st_size} bytes, most of which are not there; it is not read"
            raise UnsafeInputError(msg)
        if alone and found.st_nlink > 1:
            msg = (
                f"{self.root}/{key:.200} has a second name (a hard link), so writing it would change another file; "
                "copy the folder (cp -r) and use the copy"
            )
            raise UnsafeInputError(msg)


def check_plain(root: Path) -> int:
    """Check that a folder, if it exists, holds folders and regular files alone, before anything of it is opened.

    The number of files is returned.
    """
    todo, files = [str(root)] if root.is_dir() else [], 0
    while todo:
        with os.scandir(todo.pop()) as entries:
            for entry in entries:
                if entry.is_symlink() or _is_junction(entry):
                    raise _refused(root, os.path.relpath(entry.path, root), "a link")
                if entry.is_dir(follow_symlinks=False):
                    todo.append(entry.path)
                elif entry.is_file(follow_symlinks=False):
                    files += 1
                else:
                    raise _refused(root, os.path.relpath(entry.path, root), "a pipe, socket or device")
    return files


def _lstat(name: str, folder: int | None) -> os.stat_result:
    return os.stat(name, dir_fd=folder, follow_symlinks=False)


def _is_link(found: os.stat_result) -> bool:
    reparse = getattr(found, "st_file_attributes", 0) & getattr(stat, "FILE_ATTRIBUTE_REPARSE_POINT", 0)
    return stat.S_ISLNK(found.st_mode) or bool(reparse)


def _is_junction(entry: os.DirEntry[str]) -> bool:
    return os.name == "nt" and _is_link(entry.stat(follow_symlinks=False))


def _unreachable(where: Path, error: OSError) -> StoreError:
    return StoreError(f"{where}: {error.strerror}; check the path and who may read and write it")


def _refused(root: Path, key: str, what: str) -> UnsafeInputError:
    return UnsafeInputError(f"{root}/{key:.200} is {what}, which a store never holds; nothing was opened: {_COPY}")
