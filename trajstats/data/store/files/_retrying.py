"""Try again what failed for a moment: a store elsewhere, behind a network."""

from __future__ import annotations

import asyncio
import errno
import random
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, TypeVar

from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import WrapperStore

from trajstats.data.safety._credentials import without_credentials
from trajstats.errors import StoreError

ATTEMPTS = 5
FIRST_PAUSE = 0.2  # seconds; doubled each time, half of it by chance, so that many workers do not come back together
PERMANENT = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError)
PERMANENT_CODES = frozenset({errno.EINVAL, errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.ENAMETOOLONG})
# Errors of aiohttp, botocore, requests and urllib3 that are not OSErrors, by the names of their classes.
TRANSIENT_NAMES = frozenset(
    {"ClientConnectionError", "ClientPayloadError", "HTTPClientError", "ConnectionError", "IncompleteRead"}
    | {"IncompleteReadError", "ProtocolError", "ServerTimeoutError"}
)
REFUSED_NAMES = frozenset({"NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError"})
METADATA = ("zarr.json", ".zgroup", ".zarray", ".zattrs", ".zmetadata")
T = TypeVar("T")


class RetryingStore(WrapperStore[Any]):
    """A zarr store whose reads and whole-object writes are tried up to `ATTEMPTS` times.

    Pauses are 0.2, 0.4, 0.8 and 1.6 s, each up to half shorter by chance. What will not pass by waiting is not tried
    again: an object that is not there, a refusal, a full disk. The last error is a StoreError without credentials.
    """

    memory: dict[str, Buffer | None] | None = None

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Read an object, or part of it."""
        if self.memory is None or byte_range is not None or not key.endswith(METADATA):
            return await self._again("read", key, lambda: self._store.get(key, prototype, byte_range))
        if key not in self.memory:
            self.memory[key] = await self._again("read", key, lambda: self._store.get(key, prototype))
        return self.memory[key]

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Read parts of objects."""
        wanted = list(key_ranges)
        first = wanted[0][0] if wanted else ""
        return await self._again("read", first, lambda: self._store.get_partial_values(prototype, wanted))

    async def _get_many(
        self, requests: Iterable[tuple[str, BufferPrototype, ByteRequest | None]]
    ) -> AsyncGenerator[tuple[str, Buffer | None], None]:
        for request in requests:
            yield request[0], await self.get(*request)

    async def exists(self, key: str) -> bool:
        """Check whether an object is there."""
        return await self._again("read", key, lambda: self._store.exists(key))

    async def set(self, key: str, value: Buffer) -> None:
        """Write an object as a whole."""
        await self._again("write", key, lambda: self._store.set(key, value))

    async def _set_many(self, values: Iterable[tuple[str, Buffer]]) -> None:
        await asyncio.gather(*(self.set(key, value) for key, value in values))

    async def delete(self, key: str) -> None:
        """Delete an object."""
        await self._again("delete", key, lambda: self._store.delete(key))

    async def delete_dir(self, prefix: str) -> None:
        """Delete everything under a prefix."""
        await self._again("delete", prefix, lambda: self._store.delete_dir(prefix))

    def list(self) -> AsyncIterator[str]:
        """List all keys."""
        return self._listed("", self._store.list)

    def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """List the keys under a prefix."""
        return self._listed(prefix, lambda: self._store.list_prefix(prefix))

    def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """List the members of a prefix."""
        return self._listed(prefix, lambda: self._store.list_dir(prefix))

    async def _listed(self, prefix: str, keys: Callable[[], AsyncIterator[str]]) -> AsyncIterator[str]:
        async def every() -> list[str]:
            return [key async for key in keys()]

        for key in await self._again("list", prefix, every):
            yield key

    async def _again(self, verb: str, key: str, call: Callable[[], Awaitable[T]]) -> T:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return await call()
            except Exception as error:
                refused = isinstance(error, PermissionError) or bool(_names(error) & REFUSED_NAMES)
                if not refused and not is_transient(error):
                    raise
                if refused or attempt == ATTEMPTS:
                    raise _told(self._store, verb, key, error, attempt, refused) from _unless_secret(error)
            await asyncio.sleep(FIRST_PAUSE * 2 ** (attempt - 1) * (1 - 0.5 * random.random()))
        raise AssertionError


def is_transient(error: BaseException) -> bool:
    """Check whether an error is temporary, so that waiting may help."""
    if isinstance(error, OSError):
        return not isinstance(error, (*PERMANENT, StoreError)) and error.errno not in PERMANENT_CODES
    return bool(_names(error) & TRANSIENT_NAMES)


def _names(error: BaseException) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__}


def _told(store: Store, verb: str, key: str, error: BaseException, attempts: int, refused: bool) -> StoreError:
    do = (
        "Credentials are taken from the environment or the file system's own configuration; see the page Remote stores."
        if refused
        else "What was written before is safe; try again when the server answers."
    )
    times = "" if attempts == 1 else f" after {attempts} attempts"
    shown = without_credentials(f"{type(error).__name__}: {error!s:.300}")
    return StoreError(f"{without_credentials(store)}: cannot {verb} {key}{times} ({shown}). {do}")


def _unless_secret(error: BaseException) -> BaseException | None:
    # A cause is printed as it is: with the credentials that its message may hold.
    text = f"{error!s} {error!r}"
    return error if without_credentials(text) == text else None
