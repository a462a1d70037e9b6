"""Refuse what would decompress far beyond the bytes that are there."""

from __future__ import annotations

from trajstats.errors import UnsafeInputError

BOMB_RATIO = 100
BOMB_BYTES = 64 * 2**20


def check_size(where: str, claimed: int, present: int) -> None:
    """Refuse data that unpack to far more than is there."""
    if claimed > BOMB_BYTES and claimed > BOMB_RATIO * max(1, present):
        msg = f"{where}: {present} bytes claim to unpack to {claimed}; this looks like a bomb and is not read"
        raise UnsafeInputError(msg)
