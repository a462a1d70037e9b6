"""Where a store lives: a folder, a URL, a zarr store object or a transactional repository."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import url2pathname

import zarr
from zarr.abc.store import RangeByteRequest, Store
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import LocalStore, MemoryStore, StorePath

from trajstats.data.safety._budget import foreign
from trajstats.data.safety._credentials import without_credentials
from trajstats.data.store.files._folder import Folder, check_plain
from trajstats.data.store.files._folder_store import FolderStore
from trajstats.data.store.files._retrying import RetryingStore
from trajstats.errors import ArgumentError, StoreError, StoreNotFoundError


class Place:
    """Read and write the objects of one store by key."""

    def __init__(self, target: Any, *, write: bool = False, branch: str = "main") -> None:
        self.local: Path | None = None
        self.writable = write
        self._repository: Any = None
        self._session: Any = None
        self._branch = branch
        self._prefix = ""
        self._store: Store | None = None
        self.folder: Folder
        if isinstance(target, Place):
            target = target.target
        self.target: Any = target
        if isinstance(target, str | os.PathLike) and (path := _local_path(str(target))) is not None:
            self.local = path
            if not write and not self.local.exists():
                msg = f"{target} does not exist; check the path, or record a run with trajstats.TrajectoryWriter"
                raise StoreNotFoundError(msg)
            if self.local.exists() and not self.local.is_dir():
                msg = f"{target} is a file; a trajectory store is a folder. Checkpoint files are read with ingest(...)"
                raise ArgumentError(msg)
            self._store = FolderStore(self.local, read_only=not write)
        elif isinstance(target, str):
            self._store, self._prefix = _from_url(target)
        elif isinstance(target, StorePath):
            self._store, self._prefix = target.store, target.path.strip("/")
            if isinstance(self._store, LocalStore):
                self._store = FolderStore(self._store.root, read_only=self._store.read_only)
            elif not isinstance(self._store, FolderStore | MemoryStore | RetryingStore):
                self._store = RetryingStore(self._store)
        elif isinstance(target, Store):
            self._store = target
            if write and target.read_only:
                msg = f"{target} is opened for reading only; give the path, or a store that may be written"
                raise StoreError(msg)
            if isinstance(target, LocalStore | FolderStore):
                self.local = target.root
                self._store = FolderStore(self.local, read_only=target.read_only)
            elif not isinstance(target, MemoryStore | RetryingStore):
                self._store = RetryingStore(target)
        elif hasattr(target, "writable_session"):
            self._repository = target
        else:
            msg = f"{type(target).__name__} is not a place for a store; give a path, a URL or a zarr store object"
            raise ArgumentError(msg)

        if self.local is not None:
            self.folder = Folder(self.local)
        if write and isinstance(self._store, FolderStore):
            check_plain(self._store.root / self._prefix)

    def __repr__(self) -> str:
        return without_credentials(self.target)

    @property
    def transactional(self) -> bool:
        """Whether commits are transactions of the store itself."""
        return self._repository is not None

    @property
    def store(self) -> Store:
        """The zarr store; for a repository that of the current transaction."""
        if self._store is not None:
            return self._store
        if self._session is None:
            if self.writable:
                self._session = self._repository.writable_session(self._branch)
            else:
                self._session = self._repository.readonly_session(self._branch)
        return self._session.store

    @contextmanager
    def remembering(self) -> Iterator[None]:
        """Read each metadata document of a store elsewhere once: for as long as nobody can be writing it."""
        if not isinstance(self._store, RetryingStore):
            yield
            return
        self._store.memory = {}
        try:
            yield
        finally:
            self._store.memory = None

    def path(self, key: str = "") -> StorePath:
        """Address one node of the hierarchy, in the form zarr takes."""
        return StorePath(self.store, "/".join(part for part in (self._prefix, key) if part))

    def group(self) -> zarr.Group | None:
        """Open the root group, or return None where there is none."""
        try:
            with foreign(f"{self}/zarr.json", "It is damaged; restore it from a copy"):
                return zarr.open_group(self.path(), mode="r+" if self.writable else "r", use_consolidated=False)
        except StoreError as error:
            if isinstance(error.__cause__, FileNotFoundError | KeyError):
                return None
            raise

    def get(self, key: str, start: int | None = None, stop: int | None = None) -> bytes | None:
        """Read an object, or the bytes from `start` to `stop` of it; None if it does not exist."""
        wanted = None if start is None or stop is None else RangeByteRequest(start, stop)
        if isinstance(self.store, FolderStore):  # without a turn through the event loop
            return self.store.read(self._key(key), wanted)
        found = sync(self.store.get(self._key(key), default_buffer_prototype(), wanted))
        return None if found is None else found.to_bytes()

    def set(self, key: str, value: bytes) -> None:
        """Write an object as a whole."""
        sync(self.store.set(self._key(key), default_buffer_prototype().buffer.from_bytes(value)))

    def delete(self, key: str) -> None:
        """Delete an object, if it is there."""
        sync(self.store.delete(self._key(key)))

    def delete_under(self, key: str) -> None:
        """Delete everything under a key."""
        sync(self.store.delete_dir(self._key(key)))

    def list_under(self, key: str) -> list[str]:
        """List the keys under a prefix, relative to the store."""
        prefix = self._key(key).rstrip("/") + "/"
        cut = len(self._prefix) + 1 if self._prefix else 0

        async def every() -> list[str]:
            return [name async for name in self.store.list_prefix(prefix)]

        return [name[cut:] for name in sync(every())]

    def make_durable(self, keys: Iterable[str] = (), message: str = "trajstats") -> None:
        """Make what was written survive a power cut: fsync files and their folders, or commit the transaction."""
        if self._repository is not None:
            if self._session is not None and self._session.has_uncommitted_changes:
                self._session.commit(message)
            self._session = None
        elif self.local is not None:
            folders = set()
            for key in keys:
                folders.add(key.rpartition("/")[0] or ".")
                self.folder.sync(key)
            for folder in folders if os.name == "posix" else ():  # others have no handles of folders
                self.folder.sync(folder)

    def _key(self, key: str) -> str:
        return f"{self._prefix}/{key}" if self._prefix else key


def _local_path(text: str) -> Path | None:
    # A file URL is a path of this machine, with all the guarantees of one.
    if text.startswith(("file://", "local://")):
        return Path(url2pathname(text.partition("://")[2]))
    return None if "://" in text else Path(text)


def _from_url(url: str) -> tuple[Store, str]:
    from zarr.storage import FsspecStore  # fsspec is imported only for URLs

    try:
        return RetryingStore(FsspecStore.from_url(url)), ""
    except (ImportError, ValueError, TypeError, OSError) as error:
        shown = without_credentials(f"cannot open {url}: {error}")
        msg = f"{shown}. Give a local path, or install the fsspec package for this protocol."
        raise StoreError(msg) from None
