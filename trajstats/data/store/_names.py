"""What a writer is given: layers, names of series."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np
import zarr

from trajstats.data.safety._budget import foreign
from trajstats.data.schema import LAYER
from trajstats.data.store._layout import RESERVED, SERIES_NAME, array_of
from trajstats.errors import ArgumentError


def check_layers(layers: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
    """Check names and shapes of layers."""
    if not isinstance(layers, Mapping) or not layers:
        msg = f"layers={layers!r:.80}: give a mapping name -> shape with at least one layer, such as {{'w': (10, 784)}}"
        raise ArgumentError(msg)
    checked = {}
    for name, shape in layers.items():
        sizes = tuple(int(n) for n in (shape if isinstance(shape, Sequence) else tuple(shape)))
        if not isinstance(name, str) or any(n < 0 for n in sizes):
            msg = f"layer {name!r} of shape {sizes}: names are text and sizes are >= 0"
            raise ArgumentError(msg)
        # A lone surrogate cannot be written as UTF-8.
        checked[name.encode("utf-8", "backslashreplace").decode()] = sizes
    return checked


def check_same_layers(group: zarr.Group, layers: Mapping[str, tuple[int, ...]]) -> None:
    """Check that a store holds the layers a writer is about to append."""
    with foreign(f"{group.store}: the layers", "They are damaged; restore the store from a copy"):
        names = [str(name) for name in np.asarray(array_of(group, LAYER)[...])]
        shapes = [tuple(json.loads(str(text))) for text in np.asarray(array_of(group, "layer_shape")[...])]
        stored = dict(zip(names, shapes, strict=True))
    if list(stored.items()) != list(layers.items()):
        pairs = zip([*stored.items(), ("nothing", ())], [*layers.items(), ("nothing", ())], strict=False)
        old, new = next((a, b) for a, b in pairs if a != b)
        msg = f"this store holds other layers: {old[0]} {old[1]} where the writer was given {new[0]} {new[1]}"
        raise ArgumentError(msg)


def check_series_name(name: str) -> None:
    """Check that a scalar series may be stored under a name."""
    if not SERIES_NAME.fullmatch(name) or name in RESERVED:
        msg = f"series name {name!r}: use letters, digits and underscores, and none of {', '.join(sorted(RESERVED))}"
        raise ArgumentError(msg)
