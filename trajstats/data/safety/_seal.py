"""Checksums of a saved result: of every file, saved in the metadata of its root and checked at each read."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable
from typing import Any

import google_crc32c
from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.core.sync import sync

from trajstats.errors import StoreError, UnsupportedError

ROOT = "zarr.json"
# Two marks, so that one damaged name cannot make a sealed result look like one that never had checksums.
CHECKSUMS, SEALED = "checksums", "sealed"
_DO = "Restore it from a copy, or remove it and compute it again."


def seal(store: Store, prefix: str = "") -> None:
    """Write the checksums of all objects under a group into the metadata of the group."""
    start = f"{prefix}/" if prefix else ""
    node = json.loads(sync(_read(store, start + ROOT)) or b"{}")
    keys = sync(_list(store, prefix))
    sums = {key.removeprefix(start): _crc(sync(_read(store, key))) for key in keys if key != start + ROOT}
    node["attributes"] = {**node.get("attributes", {}), CHECKSUMS: dict(sorted(sums.items())), SEALED: 1}
    node["attributes"][CHECKSUMS][""] = _crc_of_root(node)
    sync(store.set(start + ROOT, default_buffer_prototype().buffer.from_bytes(json.dumps(node).encode())))


def sums_of(node: dict[str, Any], where: str) -> dict[str, int] | None:
    """Read the checksums from the metadata of a root; None if it was saved without; damage is a StoreError."""
    attrs = node.get("attributes")
    attrs = attrs if isinstance(attrs, dict) else {}
    if CHECKSUMS not in attrs and SEALED not in attrs:
        return None
    sums = attrs.get(CHECKSUMS)
    if not isinstance(sums, dict) or not all(type(value) is int for value in sums.values()):
        msg = f"{where}/{ROOT}: its checksums are damaged. {_DO}"
        raise StoreError(msg)
    if sums.get("") != _crc_of_root(node):
        msg = f"{where}/{ROOT} changed since it was saved. {_DO}"
        raise StoreError(msg)
    return {key: value for key, value in sums.items() if key}


def without_seal(attrs: dict[Any, Any]) -> dict[Any, Any]:
    """Return the attributes of a result without its checksums."""
    return {key: value for key, value in attrs.items() if key not in (CHECKSUMS, SEALED)}


class SealedStore(Store):
    """A zarr store for reading a sealed result: what changed or is missing is a StoreError."""

    supports_writes = False
    supports_deletes = False
    supports_partial_writes = False
    supports_listing = True

    def __init__(self, store: Store, prefix: str, sums: dict[str, int]) -> None:
        super().__init__(read_only=True)
        self.store, self.prefix, self.sums = store, prefix, sums

    def with_read_only(self, read_only: bool = False) -> SealedStore:
        """Return the store: it cannot be written."""
        if not read_only:
            msg = f"{self}: a saved result is not changed; save another one"
            raise UnsupportedError(msg)
        return self

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self.__dict__ == other.__dict__

    __hash__ = None  # type: ignore[assignment]

    def __str__(self) -> str:
        return f"{self.store}/{self.prefix}" if self.prefix else str(self.store)

    __repr__ = __str__

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Read an object whose checksum holds, or part of it."""
        if key != ROOT and key not in self.sums:
            return None
        found = await _read(self.store, f"{self.prefix}/{key}" if self.prefix else key)
        if found is None:
            msg = f"{self}: {key:.200} is missing. {_DO}"
            raise StoreError(msg)
        if key != ROOT and _crc(found) != self.sums[key]:
            msg = f"{self}: {key:.200} changed since it was saved. {_DO}"
            raise StoreError(msg)
        if isinstance(byte_range, RangeByteRequest):
            found = found[byte_range.start : byte_range.end]
        elif isinstance(byte_range, OffsetByteRequest):
            found = found[byte_range.offset :]
        elif byte_range is not None:
            found = found[max(0, len(found) - byte_range.suffix) :]
        return (prototype or default_buffer_prototype()).buffer.from_bytes(found)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Read parts of objects."""
        return [await self.get(key, prototype, within) for key, within in key_ranges]

    async def exists(self, key: str) -> bool:
        """Check whether an object belongs to the result."""
        return key == ROOT or key in self.sums

    async def set(self, key: str, value: Buffer) -> None:
        """Refuse: a saved result is not changed."""
        self._check_writable()

    async def delete(self, key: str) -> None:
        """Refuse: a saved result is not changed."""
        self._check_writable()

    async def set_partial_values(self, key_start_values: Iterable[tuple[str, int, Any]]) -> None:
        """Refuse: a saved result is not changed."""
        self._check_writable()

    async def list(self) -> AsyncIterator[str]:
        """List all keys of the result."""
        for key in (ROOT, *self.sums):
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """List the keys under a prefix."""
        for key in (ROOT, *self.sums):
            if key.startswith(prefix):
                yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """List the members of a prefix."""
        start = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        inside = (key.removeprefix(start) for key in (ROOT, *self.sums) if key.startswith(start))
        for name in dict.fromkeys(key.partition("/")[0] for key in inside):
            yield name


async def _read(store: Store, key: str) -> bytes | None:
    found = await store.get(key, default_buffer_prototype())
    return None if found is None else found.to_bytes()


async def _list(store: Store, prefix: str) -> list[str]:
    return [key async for key in store.list_prefix(f"{prefix}/" if prefix else "")]


def _crc(raw: bytes | None) -> int:
    return int(google_crc32c.value(raw or b""))


def _crc_of_root(node: dict[str, Any]) -> int:
    # Everything in it but this number: the checksums of the other objects too.
    attrs = node.get("attributes", {})
    sums = attrs.get(CHECKSUMS)
    sums = {key: value for key, value in sums.items() if key} if isinstance(sums, dict) else sums
    return _crc(json.dumps({**node, "attributes": {**attrs, CHECKSUMS: sums}}, sort_keys=True).encode())
