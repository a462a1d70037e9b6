"""Nests of parameters as one flat vector, and back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from trajstats_trainers._pytrees import key_path, named_leaves


def flat_order(params: Any) -> tuple[list[str], list[Any], list[int], Any]:
    """Name the leaves of a pytree in the order of the flat vector.

    JAX sorts the keys of mappings; checkpoints and torch keep their own order. Here mappings keep theirs, so that the
    same network has the same flat vector in both frameworks.

    Parameters
    ----------
    params : pytree of arrays
        The weights.

    Returns
    -------
    names : list of str
        As `trajstats_trainers._pytrees.named_leaves` names them, in flat order.
    leaves : list of array
        In flat order.
    order : list of int
        ``order[k]`` is the position in flat order of JAX's k-th leaf.
    treedef : PyTreeDef
        To rebuild the pytree from JAX's order.
    """
    with_paths, treedef = jax.tree_util.tree_flatten_with_path(params)
    named = named_leaves(params)
    places = {name: place for place, name in enumerate(named)}
    order = [places[".".join(key_path(path))] for path, _ in with_paths]
    return list(named), list(named.values()), order, treedef


def unravel(w: Any, shapes: Sequence[tuple[int, ...]], order: Sequence[int], treedef: Any) -> Any:
    """Cut a flat vector into the pytree of `flat_order` (works under jit).

    Parameters
    ----------
    w : array, (n_parameters,)
        The flat vector.
    shapes : sequence of tuple
        Shapes in flat order.
    order, treedef
        As `flat_order` gives them.

    Returns
    -------
    pytree of arrays
    """
    stops = np.cumsum([math.prod(shape) for shape in shapes]).tolist()
    parts = [w[start:stop].reshape(shape) for start, stop, shape in zip([0, *stops[:-1]], stops, shapes, strict=True)]
    return jax.tree_util.tree_unflatten(treedef, [parts[place] for place in order])
