"""Checksums of a store's metadata, saved in the attributes of its root and replaced with every commit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import google_crc32c

from trajstats.data.schema import STEP
from trajstats.data.store._guard import read_json
from trajstats.data.store._layout import CHECKSUMS, COMMITTED, FINISHED, STATE, STRUCTURAL, WRITING
from trajstats.data.store.files._place import Place

ROOT = "zarr.json"
ATTRIBUTES = "zarr.json (attributes)"
CONSOLIDATED = "consolidated_metadata"
_OF_STRUCTURE, _OF_ATTRIBUTES = ".", "*"


def array_sum(place: Place, name: str, state: Any) -> int | None:
    """Compute the checksum of the metadata of one array; while a store grows, its length along `step` is left out."""
    raw = place.get(f"{name}/{ROOT}")
    if raw is None:
        return None
    if state == FINISHED:
        return int(google_crc32c.value(raw))
    node = read_json(place, f"{name}/{ROOT}") or {}
    return crc({**node, "shape": [None if dim == STEP else n for dim, n in _lengths(node)]})


def rows_of(place: Place, name: str) -> int | None:
    """Read the length of an array along `step`; None if it has no such dimension."""
    node = read_json(place, f"{name}/{ROOT}") or {}
    return next((n for dim, n in _lengths(node) if dim == STEP), None)


def with_sums(attrs: Mapping[str, Any], arrays: Mapping[str, int | None]) -> dict[str, Any]:
    """Add checksums of arrays, of what decides how they are read, and of all attributes, to those of a root."""
    new = json.loads(json.dumps({key: value for key, value in attrs.items() if key != CHECKSUMS}))
    structure = crc({name: new.get(name) for name in STRUCTURAL})
    return {**new, CHECKSUMS: {**arrays, _OF_STRUCTURE: structure, _OF_ATTRIBUTES: crc(new)}}


def committed_names(attrs: Mapping[str, Any]) -> set[str] | None:
    """List the arrays that count in a store that is being written; None where all do."""
    sums = attrs.get(CHECKSUMS)
    return set(sums) if attrs.get(STATE) == WRITING and isinstance(sums, dict) else None


def changed_metadata(place: Place, attrs: Mapping[str, Any]) -> list[str]:
    """List the metadata that differ from their checksums; nothing of a store that was written without any."""
    sums = attrs.get(CHECKSUMS)
    if sums is None:
        return []
    if not isinstance(sums, dict):
        return [ROOT]
    state, rows = attrs.get(STATE), attrs.get(COMMITTED)
    arrays = [name for name in sums if name not in (_OF_STRUCTURE, _OF_ATTRIBUTES)]
    bad = [f"{name}/{ROOT}" for name in arrays if array_sum(place, name, state) != sums[name]]
    if state != FINISHED and not bad:
        short = {name: rows_of(place, name) for name in arrays}
        bad = [f"{name}/{ROOT}" for name, n in short.items() if n is not None and isinstance(rows, int) and n < rows]
    known = {key: value for key, value in attrs.items() if key != CHECKSUMS}
    if crc({name: known.get(name) for name in STRUCTURAL}) != sums.get(_OF_STRUCTURE):
        return [*bad, ROOT]
    inline = (read_json(place, ROOT) or {}).get(CONSOLIDATED)
    if inline is not None and state == FINISHED and not bad and inline != consolidated(place, arrays):
        return [ROOT]
    return bad if bad or crc(known) == sums.get(_OF_ATTRIBUTES) else [ATTRIBUTES]


def consolidated(place: Place, names: list[str]) -> dict[str, Any]:
    """Collect the metadata of all arrays in one document, as zarr does."""
    nodes = {name: read_json(place, f"{name}/{ROOT}") for name in sorted(names)}
    return {"kind": "inline", "must_understand": False, "metadata": nodes}


def crc(values: Mapping[str, Any]) -> int:
    """Compute the crc32c of values as JSON with sorted keys."""
    return int(google_crc32c.value(json.dumps(values, sort_keys=True).encode()))


def _lengths(node: Mapping[str, Any]) -> list[tuple[Any, Any]]:
    dims, shape = node.get("dimension_names"), node.get("shape")
    shape = shape if isinstance(shape, list) else []
    dims = dims if isinstance(dims, list) and len(dims) == len(shape) else [None] * len(shape)
    return list(zip(dims, shape, strict=True))
