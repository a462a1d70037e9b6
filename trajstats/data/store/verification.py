"""Is a store whole? Every tile is read once, and the damaged ones are named with the rows and layers they hold."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trajstats.data.safety._budget import foreign
from trajstats.data.safety._seal import ROOT, SEALED
from trajstats.data.schema import LAYER, SKETCH
from trajstats.data.store._guard import check_zarr, node_names, read_json
from trajstats.data.store._layout import BUFFER_BYTES, COMMITTED, FINISHED, STATE, Layout, array_of
from trajstats.data.store._results import damage_of_kept
from trajstats.data.store._tiles import Tiles, slabs, tile_key
from trajstats.data.store.files._place import Place
from trajstats.data.store.journal._files import open_journal
from trajstats.data.store.journal._records import COUNT, Damage
from trajstats.errors import StoreError, UnsafeInputError


@dataclass(frozen=True)
class DamagedTile:
    """A tile that cannot be read as it was written."""

    file: str  # Key of the file below the store
    rows: range  # Positions along `step`
    # Positions along `parameter` (along the flat hash x bucket for sketches, bytes of a row for buffers)
    parameters: range
    layers: tuple[str, ...]  # Layers, or buffers, that have values in it
    reason: str  # ``missing``, or what the decoder said

    def __str__(self) -> str:
        names = ", ".join(f"{name!r:.60}" for name in self.layers[:4]) + (", ..." if len(self.layers) > 4 else "")
        return (
            f"{self.file}: rows {self.rows.start} to {self.rows.stop}, parameters {self.parameters.start} to "
            f"{self.parameters.stop} (layers {names}): {self.reason}"
        )


@dataclass
class Verification:
    """What :func:`verify` found."""

    path: str  # The store
    checked: int  # Tiles read
    tiles: list[DamagedTile] = field(default_factory=list)  # All that are damaged, and no other
    other: list[str] = field(default_factory=list)  # Damaged coordinates, series and metadata
    # First damaged record of the journal, if the store is not finished. A torn one is the end of a write that was
    # cut off, which is not a row
    journal: Damage | None = None
    # Saved results without checksums, of which damage cannot be seen
    unverified: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is damaged; a torn end of the journal does not count as damage."""
        return not self.tiles and not self.other and (self.journal is None or self.journal.torn)

    def __str__(self) -> str:
        lines = [f"{self.path}: {self.checked} tiles read, {len(self.tiles)} damaged"]
        lines += [f"  {tile}" for tile in self.tiles] + [f"  {text}" for text in self.other]
        if self.journal is not None and self.journal.where == COUNT:
            lines.append(f"  journal: {self.journal}")
        elif self.journal is not None:
            kind = "a write that was cut off, or a file cut short" if self.journal.torn else "damaged"
            lines.append(
                f"  journal/{self.journal.where} at byte {self.journal.offset} (row {self.journal.row}): {kind}; "
                f"{self.journal.after} whole rows follow"
            )
        lines += [f"  {place}: saved without checksums, so that damage cannot be seen" for place in self.unverified]
        return "\n".join(lines)


def verify(target: Any, /) -> Verification:
    """Read every tile, coordinate and journal record of a store once, and name what is damaged.

    Saved fits, pairs, batches and spectra are checked too: every file of them against its checksum.

    Parameters
    ----------
    target : path, URL, zarr store or repository
        The store or saved result.

    Returns
    -------
    Verification
        All damaged tiles and no other; prints as a list.

    Raises
    ------
    StoreNotFoundError
        If there is no store.
    UnsafeInputError
        If the metadata cannot be believed.

    Notes
    -----
    Reads the whole store, one tile at a time. What a checksum cannot show: a store put back to an earlier copy as a
    whole, and a journal elsewhere than on a local disk that lost its last rows.

    Examples
    --------
    >>> import tempfile
    >>> from trajstats.data.store.open import TrajectoryWriter
    >>> path = tempfile.mkdtemp() + "/run.zarr"
    >>> with TrajectoryWriter(path, {"w": (3,)}) as run:
    ...     run.append(0, np.zeros(3))
    >>> verify(path).ok
    True
    """
    place = Place(target)
    if (results := _saved_results(place)) is not None:
        return _verify_results(place, results)
    attrs = check_zarr(place)
    tiles = Tiles(place)
    rows = int(attrs.get(COMMITTED, tiles.array().shape[1]))
    report = Verification(str(place), 0)
    report.other += [f"{key}: changed since the store was written" for key in tiles.changed_metadata()]
    names = _small_arrays(tiles, rows, report)
    lost = set(tiles.missing(rows))
    _tiles(tiles, tiles.layout, rows, names, lost, report)
    if tiles.buffers is not None:
        stops = np.cumsum(tiles.buffer_bytes, dtype=np.int64)
        _tiles(tiles, tiles.buffers, rows, ([tensor.name for tensor in tiles.tensors], stops), lost, report)
    if attrs.get(STATE, FINISHED) != FINISHED:
        journal = open_journal(place, tiles.layout.row_bytes, tiles.layout.rows, tiles.buffer_bytes)
        report.journal = journal.scan(rows)[1]
    return report


def _saved_results(place: Place) -> list[str] | None:
    """List the groups of a saved result, or None if this is a trajectory."""
    attrs = (read_json(place, ROOT) or {}).get("attributes")
    attrs = attrs if isinstance(attrs, dict) else {}
    if SEALED in attrs or "fit" in attrs or "estimator" in attrs:
        return [""]
    if not {"trajstats_batch", "trajstats_spectrum"} & set(attrs):
        return None
    return [name for name in node_names(place) if not name.startswith("partial-")]


def _verify_results(place: Place, names: list[str]) -> Verification:
    report = Verification(str(place), 0)
    for name in names:
        where = place.path(name) if place.local is None else place.local / name if name else place.local
        objects, damaged, sealed = damage_of_kept(where)
        report.checked += objects
        report.other += damaged
        report.unverified += [] if sealed else [str(where)]
    return report


def _small_arrays(tiles: Tiles, rows: int, report: Verification) -> tuple[list[str], np.ndarray]:
    lost = {key: name for key, name in tiles.small_chunks(rows).items() if tiles.place.get(key, 0, 1) is None}
    report.other += [f"{key}: missing" for key in lost]
    stops = "bucket_layer_stop" if tiles.variable == SKETCH else "layer_stop"
    kept: dict[str, np.ndarray] = {}
    for name, array in tiles.arrays(committed=True).items():
        if name in (tiles.variable, BUFFER_BYTES) or name in lost.values():
            continue
        try:
            with foreign(name):
                values = np.asarray(array[...])
        except (UnsafeInputError, StoreError) as error:
            report.other.append(f"{name}: {error!s:.200}")
            continue
        if name in (LAYER, stops):
            kept[name] = values
    return [str(name) for name in kept.get(LAYER, [])], kept.get(stops, np.zeros(0, dtype=np.int64))


def _tiles(
    tiles: Tiles,
    layout: Layout,
    rows: int,
    known: tuple[list[str], np.ndarray],
    lost: set[str],
    report: Verification,
) -> None:
    group = tiles.place.group()
    if not rows or not layout.size or group is None:
        return
    array = array_of(group, layout.variable)
    last = layout.row_shape[-1]
    for slab in range(slabs(layout, rows)):
        within = range(slab * layout.rows, min(rows, (slab + 1) * layout.rows))
        for lead in np.ndindex(*layout.row_shape[:-1]):
            offset = int(np.ravel_multi_index(lead, layout.row_shape[:-1])) * last if lead else 0
            for begin in range(0, last, layout.columns):
                end = min(begin + layout.columns, last)
                key = tile_key(layout, slab, *lead, begin // layout.shard)
                report.checked += 1
                reason = "missing"
                if key not in lost:
                    try:
                        with foreign("the tile"):
                            array[(slice(0, 1), slice(within.start, within.stop), *lead, slice(begin, end))]
                        continue
                    except (UnsafeInputError, StoreError) as error:
                        reason = f"{error!s:.200}"
                where = range(offset + begin, offset + end)
                columns = range(begin, end)
                report.tiles.append(DamagedTile(key, within, where, _layers_in(columns, *known), reason))


def _layers_in(columns: range, names: list[str], stops: np.ndarray) -> tuple[str, ...]:
    if len(names) != stops.size:
        return ()
    starts = np.concatenate([[0], stops[:-1]])
    hit = np.flatnonzero((starts < columns.stop) & (stops > columns.start) & (stops > starts))
    return tuple(names[k] for k in hit)
