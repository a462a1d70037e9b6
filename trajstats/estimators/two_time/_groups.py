"""Which parameters an estimate is taken over: all of them, each layer, each kind of layer, or the user's own groups."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from trajstats.data.schema import LAYER
from trajstats.errors import ArgumentError, unknown_name_message
from trajstats.estimators.two_time._sums import block_of

PER = ("layer", "kind", "all")
Per = str | Mapping[str, str | Sequence[str]]


@dataclass(frozen=True)
class Groups:
    """Groups of whole layers: the result of reading ``per=``."""

    dim: str | None  # Dimension of the result along the groups; None for the whole network
    names: tuple[str, ...]  # One name per group
    of_layer: np.ndarray  # The group of each layer, -1 where a layer is in none
    sizes: np.ndarray  # Parameters in each group, the M of every mean
    argument: object  # What `per` was, for the attributes of the result

    def __len__(self) -> int:
        return len(self.names)

    def coords(self) -> dict[str, tuple]:
        """Give the coordinates of a result along the groups."""
        if self.dim is None:
            return {"n_parameters": ((), int(self.sizes[0]))}
        return {
            self.dim: ((self.dim,), np.array(self.names, dtype=object)),
            "n_parameters": ((self.dim,), self.sizes),
        }

    def block_sizes(self, layer_stop: np.ndarray, n_blocks: int, seed: int) -> np.ndarray:
        """Count the parameters of each random block of each group."""
        sizes = np.zeros(len(self) * n_blocks, dtype=np.int64)
        for layer, (a, b) in enumerate(zip([0, *layer_stop[:-1]], layer_stop, strict=True)):
            if self.of_layer[layer] >= 0:
                key = self.of_layer[layer] * n_blocks + block_of(np.arange(a, b), n_blocks, seed)
                sizes += np.bincount(key, minlength=sizes.size)
        return sizes


def read_groups(trajectory: xr.Dataset, per: Per) -> Groups:
    """Read ``per=`` against the layers of a trajectory."""
    layers = [str(name) for name in trajectory[LAYER].values]
    sizes = np.diff(trajectory["layer_stop"].values, prepend=0)
    argument: object = per
    if isinstance(per, Mapping):
        dim, names, of_layer = "group", tuple(map(str, per)), _match(per, layers)
        argument = {str(k): v if isinstance(v, str) else list(v) for k, v in per.items()}
    elif per == "all":
        dim, names, of_layer = "", ("all",), np.zeros(len(layers), dtype=np.int64)
    elif per == "kind":
        kinds = [str(k) for k in trajectory["layer_kind"].values]
        dim, names = "kind", tuple(dict.fromkeys(kinds))
        of_layer = np.array([names.index(k) for k in kinds], dtype=np.int64)
    elif per == "layer":
        dim, names, of_layer = LAYER, tuple(layers), np.arange(len(layers))
    else:
        raise ArgumentError(
            unknown_name_message("per", per, PER, do="A mapping name -> layer names or patterns makes own groups.")
        )
    total = np.bincount(of_layer[of_layer >= 0], sizes[of_layer >= 0], minlength=len(names)).astype(np.int64)
    if total.sum() == 0:
        msg = f"per={argument!r} selects no parameter; the layers are {layers[:20]}"
        raise ArgumentError(msg)
    return Groups(dim or None, names, of_layer, total, argument)


def _match(per: Mapping[str, str | Sequence[str]], layers: list[str]) -> np.ndarray:
    of_layer = np.full(len(layers), -1, dtype=np.int64)
    for index, (name, patterns) in enumerate(per.items()):
        wanted = [patterns] if isinstance(patterns, str) else list(patterns)
        found = False
        for pattern in wanted:
            hits = [k for k, layer in enumerate(layers) if layer == pattern or fnmatch.fnmatchcase(layer, pattern)]
            if not hits:
                raise ArgumentError(
                    unknown_name_message("layer or pattern", pattern, layers, do=f"It is asked for by group {name!r}.")
                )
            for k in hits:
                if of_layer[k] not in {-1, index}:
                    other = list(per)[of_layer[k]]
                    msg = (
                        f"groups {other!r} and {name!r} overlap: both hold layer {layers[k]!r}. Groups must be "
                        "disjoint, so that they sum to the total; call twice for overlapping ones."
                    )
                    raise ArgumentError(msg)
                of_layer[k] = index
            found = True
        if not found:
            msg = f"group {name!r} is empty; give it layer names or patterns out of {layers[:20]}"
            raise ArgumentError(msg)
    if not per:
        msg = f"per={{}} holds no group; give name -> layer names or patterns out of {layers[:20]}"
        raise ArgumentError(msg)
    return of_layer
