"""Saved results (fits, batches, pairs, spectra): written whole or not at all, opened with care."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import xarray as xr
import zarr
from zarr.storage import StorePath

from trajstats.data.folder import check_plain
from trajstats.data.folder_store import FolderStore
from trajstats.data.formats import check_size
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
        link in the folder.
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


def save_kept(path: Path, data: xr.Dataset | xr.DataTree, /, *, former: Path | None = None) -> None:
    """Write a result to a folder, which takes its place under its name once it is whole.

    Parameters
    ----------
    path : Path
        The folder; what is there under this name, also a link, is replaced and not written into.
    data : Dataset or DataTree
        The result.
    former : Path, optional
        Where the old one is while the new one takes its place; a name that nobody knows if not given.
    """
    scratch = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch.mkdir()  # new, so that nothing can be prepared in it
    try:
        data.to_zarr(FolderStore(scratch), mode="w", consolidated=False)
        _replace(path, scratch, former)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _replace(path: Path, scratch: Path, former: Path | None) -> None:
    if not os.path.lexists(path):
        scratch.rename(path)
        return
    retired = former or path.with_name(f"{path.name}.{uuid.uuid4().hex}.old")
    path.rename(retired)
    try:
        scratch.rename(path)
    except BaseException:
        if not os.path.lexists(path):
            retired.rename(path)
        raise
    remove_kept(retired)


def remove_kept(path: Path, /) -> None:
    """Delete a result; of a link the link alone."""
    if path.is_symlink():
        path.unlink()
    else:
        shutil.rmtree(path)


def _look(place: Path | StorePath) -> None:
    if isinstance(place, Path) and place.exists():
        check_plain(place)


def _believe(place: Path | StorePath, claimed: int) -> None:
    # Of a store elsewhere only its chunks are bounded: to add them up would take a request for each.
    if isinstance(place, Path):
        check_size(str(place), claimed, sum(file.stat().st_size for file in place.rglob("*") if file.is_file()))
