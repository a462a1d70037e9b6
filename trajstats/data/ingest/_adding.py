"""More checkpoints for a store that an ingest made: which rows are there, and do the files hold the same."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trajstats.data._buffer_tensors import BufferTensor
from trajstats.data._digests import TensorDigest
from trajstats.data.formats._tensor import Checkpoint
from trajstats.data.ingest._continuity import PROBE, PROBED
from trajstats.data.ingest._series import Finding, Series
from trajstats.data.safety._budget import read_attribute
from trajstats.data.store._buffer_rows import check_stored_buffers
from trajstats.data.store._layout import COMMITTED, CREATING, DIGEST, FINISHED, STATE, array_of
from trajstats.data.store._names import check_same_layers
from trajstats.data.store._recovery import check_store, refuse_changed, refuse_missing, state_of, stored_steps
from trajstats.data.store._tiles import Tiles
from trajstats.data.store.files._place import Place
from trajstats.errors import ArgumentError, SchemaError, StoreError

MADE_BY = "ingest"  # attribute of the stores that an ingest made
READ = 2**20  # numbers of a tensor that are digested at a time


@dataclass
class Held:
    """What a store holds of a series before an ingest adds to it."""

    steps: list[int] = field(default_factory=list)  # Steps of its rows
    findings: list[Finding] = field(default_factory=list)  # Of earlier ingests
    finished: bool = False

    def new(self, steps: Sequence[int]) -> list[int]:
        """List the steps that come after the rows of the store."""
        return [step for step in steps if not self.steps or step > self.steps[-1]]


def held_in(place: Place, series: Series, buffers: Sequence[BufferTensor], replica: int) -> Held:
    """Look up what of a series is stored already; a store that these checkpoints do not continue is refused."""
    if state_of(place) in (None, CREATING):
        return Held()
    tiles = Tiles(place)
    known = check_store(tiles)
    if MADE_BY not in known:
        msg = f"{place} exists and was not made by ingest; choose another path, or delete it first"
        raise StoreError(msg)
    rows = read_attribute(place, known, COMMITTED, int)
    refuse_changed(tiles)
    refuse_missing(tiles, rows)
    group = place.group()
    assert group is not None
    held = Held(stored_steps(tiles, rows), _findings(place, known), known.get(STATE) == FINISHED)
    try:
        check_same_layers(group, series.layers)
        check_stored_buffers(tiles, list(buffers))
    except ArgumentError as error:
        msg = f"{place} exists and was not made from these checkpoints: {error}. Choose another path, or delete it"
        raise StoreError(msg) from error
    stored = int(np.asarray(array_of(group, "replica")[...]).reshape(-1)[0])
    if stored != replica:
        msg = f"{place} holds replica {stored}, and replica={replica} was given; give the same to add to it"
        raise ArgumentError(msg)
    if np.result_type(tiles.layout.dtype, series.dtype) != tiles.layout.dtype:
        msg = (
            f"{place} holds {tiles.layout.dtype} and these checkpoints need {series.dtype}; ingest all of them into "
            "another path"
        )
        raise SchemaError(msg)
    if held.steps:
        _check_steps(place, held.steps, series)
        _check_values(place, tiles, held.steps, series)
    return held


def _check_steps(place: Place, stored: Sequence[int], series: Series) -> None:
    """Refuse a series that shares no step with the store, or that has steps between its rows."""
    known = set(stored)
    shared = [step for step in series.steps if step in known]
    if between := [step for step in series.steps if step <= stored[-1] and step not in known]:
        msg = (
            f"{place} holds {len(stored)} steps from {stored[0]} to {stored[-1]}, without step {between[0]}, which is "
            "among these checkpoints. Rows are added at the end only: ingest all checkpoints into another path"
        )
        raise StoreError(msg)
    if not shared:
        msg = (
            f"{place} exists, and none of its {len(stored)} steps is among these checkpoints, so nothing shows that "
            f"they are of the same run. Give the checkpoint of step {stored[-1]} with them, or choose another path"
        )
        raise StoreError(msg)


def _check_values(place: Place, tiles: Tiles, stored: Sequence[int], series: Series) -> None:
    """Compare the first numbers of the largest tensors of all shared checkpoints, and the last of them entirely."""
    rows = {step: row for row, step in enumerate(stored)}
    shared = [(rows[step], k) for k, step in enumerate(series.steps) if step in rows]
    stops = np.cumsum([math.prod(shape) for shape in series.layers.values()], dtype=np.int64)
    sizes = np.diff(stops, prepend=0)
    names = list(series.layers)
    array = tiles.array(len(stored))
    for j in np.argsort(-sizes, kind="stable")[:PROBED].tolist():
        begin, wide = int(stops[j] - sizes[j]), min(PROBE, int(sizes[j]))
        for first in range(0, len(stored), tiles.layout.rows):
            within = [(row, k) for row, k in shared if first <= row < first + tiles.layout.rows]
            if not within:
                continue
            block = np.asarray(array[0, first : first + tiles.layout.rows, begin : begin + wide])
            for row, k in within:
                values = series.checkpoints[k].tensors[names[j]].read(0, wide).astype(block.dtype)
                if not np.array_equal(block[row - first], values, equal_nan=True):
                    raise _differs(place, series.steps[k], series.checkpoints[k], names[j])
    group = place.group()
    assert group is not None
    if DIGEST not in group:
        return
    row, k = shared[-1]
    digests = np.asarray(array_of(group, DIGEST)[0, row])
    for name, size, digest in zip(names, sizes.tolist(), digests.tolist(), strict=True):
        found = TensorDigest()
        for start in range(0, size, READ):
            values = series.checkpoints[k].tensors[name].read(start, min(size, start + READ))
            found.update(values.astype(tiles.layout.dtype))
        if found.value != digest:
            raise _differs(place, series.steps[k], series.checkpoints[k], name)


def _differs(place: Place, step: int, checkpoint: Checkpoint, name: str) -> StoreError:
    return StoreError(
        f"{place} exists and was not made from these checkpoints: at step {step} it holds other values of {name!r:.80} "
        f"than {checkpoint.path}. Choose another path, or delete it"
    )


def _findings(place: Place, known: Mapping[str, Any]) -> list[Finding]:
    """Read the findings that a store keeps, of a finished ingest or of one that was interrupted."""
    names = [name for name in ("findings", "content_findings") if name in known]
    return [finding for name in names for finding in read_attribute(place, known, name, findings_from_json)]


def findings_from_json(text: Any) -> list[Finding]:
    """Read findings, each a list of four texts; anything else is a ValueError."""
    entries = json.loads(text)
    if not isinstance(entries, list) or not all(
        isinstance(entry, list) and len(entry) == 4 and all(isinstance(part, str) for part in entry)
        for entry in entries
    ):
        msg = "findings are lists of four texts"
        raise ValueError(msg)
    return [Finding(*entry) for entry in entries]
