"""Names of the arrays in a nest of mappings and lists, the same for recorders and networks; JAX is not imported."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from trajstats.errors import ArgumentError


def named_leaves(tree: Any) -> dict[str, Any]:
    """Name the arrays of a nest of mappings, lists and tuples, or of any other pytree of JAX.

    The recorder and both adapters name weights by this one function. Mappings keep their own order, in which torch and
    checkpoints have them; JAX, where it flattens a tree or returns one from a compiled function, sorts keys.
    """
    named: dict[str, Any] = {}
    for path, leaf in _leaves(tree, ()):
        name = ".".join(path)
        if name in named:
            msg = f"two arrays would both be called {name!r}: the keys {path} and others join to it; rename one"
            raise ArgumentError(msg)
        named[name] = leaf
    return named


def key_path(path: Sequence[Any]) -> tuple[str, ...]:
    """Write the keys on a path of JAX as `named_leaves` does."""
    return tuple(str(next(getattr(key, of) for of in ("key", "idx", "name") if hasattr(key, of))) for key in path)


def _leaves(node: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    jax = sys.modules.get("jax")
    if node is None:
        return
    inner: Iterable[tuple[Any, Any]]
    if isinstance(node, Mapping):
        inner = node.items()
    elif isinstance(node, tuple) and hasattr(node, "_fields"):
        inner = zip(node._fields, node, strict=True)
    elif isinstance(node, list | tuple):
        inner = enumerate(node)
    elif jax is None or jax.tree_util.all_leaves([node]):
        yield path, node
        return
    else:
        # Of a class that JAX was told about: its own order is the only one there is.
        for below, leaf in jax.tree_util.tree_flatten_with_path(node)[0]:
            yield path + key_path(below), leaf
        return
    for key, value in inner:
        yield from _leaves(value, (*path, str(key)))
