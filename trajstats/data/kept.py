"""Results that were kept (fits, batches, pairs, spectra), opened as carefully as a trajectory of a stranger."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import xarray as xr
import zarr
from zarr.storage import StorePath

from trajstats.data.formats import check_size
from trajstats.data.guard import check_links
from trajstats.data.unpacking import bounded_codecs

# Format 3 has no codec that runs code; both readers are told so, else they look for format 2 as well.
_HOW: dict[str, Any] = {"consolidated": False, "chunks": None, "zarr_format": 3}


def open_kept(place: Path | StorePath, /) -> xr.Dataset:
    """Open a result lazily.

    Parameters
    ----------
    place : Path or StorePath
        Its zarr group.

    Returns
    -------
    xarray.Dataset
        Chunks that unpack to more than the metadata say raise UnsafeInputError when they are read, and so does here a
        link that leads out of a folder.
    """
    _look(place)
    with bounded_codecs():
        return xr.open_zarr(place, **_HOW)


def load_kept(place: Path | StorePath, /) -> xr.Dataset:
    """Read a result into memory.

    Parameters
    ----------
    place : Path or StorePath
        Its zarr group.

    Returns
    -------
    xarray.Dataset
        A folder whose metadata claim more than 64 MiB and a hundred times its size raises UnsafeInputError.
    """
    found = open_kept(place)
    _believe(place, found.nbytes)
    return found.load()


def load_kept_tree(place: Path, /) -> xr.DataTree:
    """Read a tree of results into memory.

    Parameters
    ----------
    place : Path
        Its zarr group.

    Returns
    -------
    xarray.DataTree
        With the checks of `load_kept`.
    """
    _look(place)
    with bounded_codecs():
        tree = xr.open_datatree(place, engine="zarr", **_HOW)
    _believe(place, tree.nbytes)
    return tree.load()


@contextmanager
def kept_arrays(place: Path, /) -> Iterator[zarr.Group]:
    """Open a group whose arrays are read in here.

    Parameters
    ----------
    place : Path
        The group.

    Yields
    ------
    zarr.Group
        Its arrays have the codecs of `open_kept`.
    """
    _look(place)
    with bounded_codecs():
        yield zarr.open_group(place, mode="r", zarr_format=3)


def _look(place: Path | StorePath) -> None:
    if isinstance(place, Path) and place.exists():
        check_links(place)


def _believe(place: Path | StorePath, claimed: int) -> None:
    # Of a store elsewhere only its chunks are bounded: to add them up would take a request for each.
    if isinstance(place, Path):
        check_size(str(place), claimed, sum(file.stat().st_size for file in place.rglob("*") if file.is_file()))
