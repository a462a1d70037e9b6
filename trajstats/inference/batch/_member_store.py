"""One zarr store for the results of a batch: a group for each member, valid once its last attribute is written."""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import CodeType
from typing import Any

import numpy as np
import xarray as xr
import zarr
from dask.base import tokenize
from zarr.storage import StorePath

from trajstats import __version__
from trajstats.data.safety._seal import seal
from trajstats.data.store._results import UNVERIFIED, kept_attrs, load_kept
from trajstats.data.store.files._place import Place
from trajstats.errors import StoreError, StoreNotFoundError
from trajstats.inference.batch._engine import Member, Outcome
from trajstats.inference.results import storable

MARK = "trajstats_batch"
FINISHED = "finished"
# Numbers do not depend on these; the values themselves are looked at.
_PROVENANCE = frozenset({"uid", "source", "state", "committed_rows"})
# Data that are neither in memory nor dask's are read for their fingerprint up to this size.
_SMALL_BYTES = 64 * 2**20


class MemberStore:
    """The finished members of batches, found again by what determines their numbers."""

    def __init__(self, target: Any) -> None:
        self._place = Place(target, write=True)
        root = self._root()
        if root is None:
            if self._place.local is not None and self._place.local.exists() and any(self._place.local.iterdir()):
                msg = f"{target} is not empty and not a store of a batch; give another path"
                raise StoreError(msg)
            zarr.create_group(self._place.path(), attributes={MARK: 1})
        elif MARK not in root:
            msg = f"{target} is a zarr store of something else; give another path"
            raise StoreError(msg)

    def _root(self) -> dict[str, Any] | None:
        try:
            return kept_attrs(self._folder(""))
        except StoreNotFoundError:
            return None

    def read(self, key: str) -> Outcome | None:
        """Read a member."""
        try:
            known = json.loads(str(kept_attrs(self._folder(key))[FINISHED]))
            outcome = Outcome(str(known["status"]), str(known["reason"]), None, float(known["seconds"]))
            data = load_kept(self._folder(key))
        except (KeyError, TypeError, ValueError, StoreError):
            return None  # never begun, or damaged: it is made again rather than trusted
        data.attrs.pop(FINISHED, None)
        data.attrs.pop(UNVERIFIED, None)
        text = {str(name): v.astype(object) for name, v in data.variables.items() if v.dtype.kind == "T"}
        data = data.assign({k: v for k, v in text.items() if k in data.data_vars}).assign_coords(
            {k: v for k, v in text.items() if k in data.coords}
        )
        return replace(outcome, data=data)

    def _folder(self, key: str) -> Path | StorePath:
        local = self._place.local
        return self._place.path(key) if local is None else local / key if key else local

    def write(self, key: str, member: Member, outcome: Outcome) -> None:
        """Keep a member; one that failed is not kept, for it is to be tried again."""
        if outcome.data is None:
            return
        path = self._place.path(key)
        storable(outcome.data).drop_encoding().to_zarr(path, mode="w", consolidated=False)
        facts = {"status": outcome.status, "reason": outcome.reason, "seconds": outcome.seconds}
        label = [str(part) for part in member.label]
        zarr.open_group(path, mode="r+", use_consolidated=False).attrs[FINISHED] = json.dumps({"label": label, **facts})
        seal(path.store, path.path)


def member_key(member: Member, function: Callable[..., Any], options: Mapping[str, Any]) -> str:
    """Name a member by its label and by a digest of all that its numbers depend on."""
    parts = [__version__, _code(function), tokenize(dict(options)), member.seed, _data(member.data)]
    digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
    label = "-".join(re.sub(r"[^A-Za-z0-9_.]+", "_", str(part)) for part in member.label)[:100]
    return f"{label}-{digest}"


def _code(function: Callable[..., Any]) -> Any:
    # What a function is called and what it does; the values it closes over are not looked at.
    if isinstance(function, partial):
        return [_code(function.func), tokenize(function.args, function.keywords)]
    function = inspect.unwrap(function)
    code = getattr(function, "__code__", None)
    if code is None:
        return tokenize(function)
    return [str(getattr(function, "__module__", "")), function.__qualname__, _instructions(code)]


def _instructions(code: CodeType) -> list[Any]:
    constants = [_instructions(one) if isinstance(one, CodeType) else repr(one) for one in code.co_consts]
    return [code.co_code.hex(), list(code.co_names), constants]


def _data(data: Any) -> Any:
    if isinstance(data, xr.DataArray):
        return ["array", _data(data.to_dataset(name="value")), _attrs(data.attrs)]
    if not isinstance(data, xr.Dataset):
        return tokenize(data)
    parts = [[str(name), list(map(str, v.dims)), _values(v), _attrs(v.attrs)] for name, v in data.variables.items()]
    return ["dataset", sorted(parts, key=lambda part: part[0]), _attrs(data.attrs)]


def _attrs(attrs: Mapping[Any, Any]) -> str:
    kept = {str(key): value for key, value in attrs.items() if key not in _PROVENANCE}
    return json.dumps(kept, default=str, sort_keys=True)


def _values(variable: xr.Variable) -> str:
    if variable.chunks is not None:
        return str(variable.data.name)  # dask names lazy data by what they are made from
    if not variable._in_memory and variable.nbytes > _SMALL_BYTES:
        return tokenize(object())
    values = np.asarray(variable.values)
    raw = json.dumps(values.tolist(), default=str).encode() if values.dtype.kind == "O" else values.tobytes()
    return f"{values.dtype} {values.shape} {hashlib.sha256(raw).hexdigest()}"
