"""Finished curvature tasks on disk: one small zarr group each, put in place by a rename, so whole or absent."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from trajstats.data.safety._budget import shorten
from trajstats.data.safety._seal import seal
from trajstats.data.store._results import kept_attrs, load_kept_arrays
from trajstats.data.store.files._folder import check_plain
from trajstats.data.store.files._folder_store import FolderStore
from trajstats.errors import StoreError, UnsafeInputError

SETTINGS = "trajstats_spectrum"


class TaskStore:
    """A folder of finished tasks, all made with the same settings."""

    def __init__(self, path: str | os.PathLike[str], settings: Mapping[str, Any]) -> None:
        self.path = Path(path)
        given = json.loads(json.dumps(dict(settings)))
        if self.path.exists() and any(self.path.iterdir()):
            self._compare(given)
        else:
            zarr.create_group(self.path, attributes={SETTINGS: given})
        for left in self.path.glob("partial-*"):
            shutil.rmtree(left, ignore_errors=True)

    def _compare(self, given: dict[str, Any]) -> None:
        check_plain(self.path)
        try:
            found: Any = kept_attrs(self.path).get(SETTINGS)
        except (StoreError, UnsafeInputError) as error:
            msg = f"{self.path} is not empty and not a store of spectra ({error!s:.200}); give another path"
            raise StoreError(msg) from error
        if not isinstance(found, dict):
            msg = f"{self.path} is a zarr store of something else; give another path"
            raise StoreError(msg)
        differ = [
            f"{name}: {shorten(found.get(name))} in the store, {shorten(given[name])} now"
            for name in given
            if found.get(name) != given[name]
        ]
        if differ:
            msg = (
                f"{self.path} holds tasks of other settings ({'; '.join(differ)}); give those settings or another path"
            )
            raise StoreError(msg)

    def has(self, name: str) -> bool:
        """Say whether a task is finished."""
        return (self.path / name).is_dir()

    def read(self, name: str) -> dict[str, np.ndarray]:
        """Read the arrays of a finished task."""
        return load_kept_arrays(self.path / name)

    def write(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Keep the arrays of a task, under its name only once they are all written."""
        partial = self.path / f"partial-{uuid.uuid4().hex}"
        partial.mkdir()
        group = zarr.open_group(FolderStore(partial), mode="w")
        for key, value in arrays.items():
            group.create_array(key, data=np.ascontiguousarray(value))
        seal(FolderStore(partial))
        try:
            partial.rename(self.path / name)
        except OSError:
            # Another worker finished the same task first; its numbers are the same.
            shutil.rmtree(partial, ignore_errors=True)
            if not self.has(name):
                raise
