"""A folder as a zarr store whose files are opened without following links."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype

from trajstats.data.store.files._folder import Folder
from trajstats.errors import UnsupportedError

_METADATA = "zarr.json"


class FolderStore(Store):
    """The zarr store of a local folder, like zarr's `LocalStore`, but no component of a key may be a link."""

    supports_writes = True
    supports_deletes = True
    supports_partial_writes = False
    supports_listing = True

    def __init__(self, root: Path, *, read_only: bool = False) -> None:
        super().__init__(read_only=read_only)
        self.root = root
        self.folder = Folder(root)

    def with_read_only(self, read_only: bool = False) -> FolderStore:
        """Return the same store with other rights."""
        return type(self)(self.root, read_only=read_only)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self.root == other.root

    __hash__ = None  # type: ignore[assignment]

    def __str__(self) -> str:
        return str(self.root)

    __repr__ = __str__

    def read(self, key: str, byte_range: ByteRequest | None = None) -> bytes | None:
        """Read an object, or part of it."""
        if byte_range is None:
            return self.folder.read(key)
        if isinstance(byte_range, RangeByteRequest):
            return self.folder.read(key, byte_range.start, byte_range.end)
        if isinstance(byte_range, OffsetByteRequest):
            return self.folder.read(key, byte_range.offset)
        return self.folder.read(key, -byte_range.suffix) if byte_range.suffix else b""

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Read an object, or part of it."""
        # A thread costs more than to read a document of some hundred bytes.
        found = self.read(key, byte_range) if key.endswith(_METADATA) else None
        if not key.endswith(_METADATA):
            found = await asyncio.to_thread(self.read, key, byte_range)
        return None if found is None else (prototype or default_buffer_prototype()).buffer.from_bytes(found)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Read parts of objects."""
        return list(await asyncio.gather(*(self.get(key, prototype, within) for key, within in key_ranges)))

    async def exists(self, key: str) -> bool:
        """Check whether an object is there."""
        return self.folder.size(key) is not None

    async def getsize(self, key: str) -> int:
        """Return the bytes of an object."""
        size = self.folder.size(key)
        if size is None:
            raise FileNotFoundError(key)
        return size

    async def set(self, key: str, value: Buffer) -> None:
        """Write an object as a whole."""
        self._check_writable()
        await asyncio.to_thread(self.folder.write, key, value.as_numpy_array())

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """Write an object unless there is one of its name."""
        self._check_writable()
        try:
            await asyncio.to_thread(self.folder.write, key, value.as_numpy_array(), exclusive=True)
        except FileExistsError:
            return

    async def set_partial_values(self, key_start_values: Iterable[tuple[str, int, Any]]) -> None:
        """Refuse: objects are written as a whole."""
        msg = f"{self}: objects are written as a whole"
        raise UnsupportedError(msg)

    async def delete(self, key: str) -> None:
        """Delete an object, or a prefix with all that is under it."""
        self._check_writable()
        await asyncio.to_thread(self.folder.remove, key)

    async def delete_dir(self, prefix: str) -> None:
        """Delete everything under a prefix."""
        self._check_writable()
        keys = [prefix.strip("/")] if prefix.strip("/") else self.folder.names()
        for key in keys:
            await asyncio.to_thread(self.folder.remove, key)

    async def list(self) -> AsyncIterator[str]:
        """List all keys."""
        for key in self.folder.files():
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """List the keys under a prefix."""
        for key in self.folder.files(prefix.strip("/")):
            yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """List the members of a prefix."""
        for name in self.folder.names(prefix.strip("/")):
            yield name
