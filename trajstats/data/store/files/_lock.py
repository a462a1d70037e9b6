"""One writer at a time: a lock that names its holder and is released when its process ends.

The package `filelock` opens a path, so it would follow a link in place of the folder `journal`; it also neither names
the holder in its error nor notices a lock left by another host.
"""

from __future__ import annotations

import importlib
import json
import os
import socket
import time
from typing import Any

from trajstats.data.store._layout import JOURNAL
from trajstats.data.store.files._place import Place
from trajstats.errors import StoreError

fcntl: Any
try:
    fcntl = importlib.import_module("fcntl")
except ImportError:  # systems without POSIX locks fall back on the process id in the file
    fcntl = None

_HELD: dict[str, int] = {}


class WriterLock:
    """The right to write one store.

    On a local disk this is a POSIX lock on ``journal/lock``, which the system releases when the process ends however
    it ends; the file names process, host and time. Elsewhere it is an object with the same content.
    """

    def __init__(self, place: Place, *, take_over: bool = False) -> None:
        self._place = place
        self._key = f"{JOURNAL}/lock" if place.local is not None else f"{JOURNAL}/lock/zarr.json"
        self._handle: int | None = None
        self._name = os.path.realpath(place.local) if place.local is not None else ""
        holder = json.dumps(
            {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%FT%TZ", time.gmtime())}
        )
        if place.local is not None:
            self._take_file(holder, take_over)
        else:
            raw = place.get(self._key)
            self._refuse(_holder(raw), take_over, alive=None)
            node = {"zarr_format": 3, "node_type": "group", "attributes": json.loads(holder)}
            place.set(self._key, json.dumps(node).encode())

    def _take_file(self, holder: str, take_over: bool) -> None:
        if self._name in _HELD:
            self._refuse({"pid": os.getpid(), "host": socket.gethostname()}, False, alive=True)
        handle = self._place.folder.open(self._key, os.O_RDWR | os.O_CREAT, alone=True)
        try:
            found = _holder(os.read(handle, 4096))
            if fcntl is not None:
                try:
                    fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:
                    self._refuse(found or {"pid": "?", "host": "?"}, False, alive=True)
                if self._place.folder.inode(self._key) != os.fstat(handle).st_ino:
                    msg = f"{self._place} was being finished by another writer just now; open it again"
                    raise StoreError(msg)
                self._refuse(found, take_over, alive=False)
            else:
                self._refuse(found, take_over, alive=None)
            os.ftruncate(handle, 0)
            os.pwrite(handle, holder.encode(), 0) if hasattr(os, "pwrite") else os.write(handle, holder.encode())
        except BaseException:
            os.close(handle)
            raise
        self._handle = handle
        _HELD[self._name] = os.getpid()

    def _refuse(self, found: dict[str, Any] | None, take_over: bool, *, alive: bool | None) -> None:
        if found is None or take_over:
            return
        here = found.get("host") == socket.gethostname()
        who = f"process {found.get('pid')!s:.20} on {found.get('host')!s:.80} since {found.get('since', 'now')!s:.40}"
        if alive is None:
            alive = not here or _alive(found.get("pid"))
        if alive:
            msg = (
                f"{self._place} is being written by {who}. Close that writer first; if it is certain that it no longer "
                "runs, open with take_over=True. To read meanwhile, use open_trajectory."
            )
            raise StoreError(msg)
        if not here:
            msg = (
                f"{self._place} was last opened by {who}, another host than this one ({socket.gethostname()}), which "
                "cannot be asked whether it still runs. If it does not, the lock is stale: open with take_over=True."
            )
            raise StoreError(msg)

    def release(self, *, remove_journal: bool = False) -> None:
        """Give the right back."""
        if self._place.local is None:
            if remove_journal:
                self._place.delete_under(JOURNAL)
            elif self._place.get(self._key) is not None:
                self._place.delete(self._key)
        elif self._handle is not None:
            os.ftruncate(self._handle, 0)
            if remove_journal:  # the lock goes last, while it is still held, so that no rows of another writer are hit
                for name in self._place.folder.names(JOURNAL):
                    if f"{JOURNAL}/{name}" != self._key:
                        self._place.folder.remove(f"{JOURNAL}/{name}")
                self._place.folder.remove(self._key)
            os.close(self._handle)
            self._handle = None
            _HELD.pop(self._name, None)
            if remove_journal:
                self._place.folder.remove_empty(JOURNAL)  # another writer may have begun in the meantime


def _holder(raw: bytes | None) -> dict[str, Any] | None:
    try:
        found = json.loads(raw) if raw else None
    except (ValueError, RecursionError):
        return None
    if isinstance(found, dict):
        found = found.get("attributes", found)
    return found if isinstance(found, dict) else None


def _alive(pid: Any) -> bool:
    if not isinstance(pid, int):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OverflowError:  # no number of a process
        return False
    except OSError:
        return True
    return True
