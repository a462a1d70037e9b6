"""Outputs of torch modules that are tuples or mappings, as one matrix with a row for each example."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_unflatten

from trajstats.errors import UnsupportedError


class Outputs:
    """Where the examples are in what a module returns, found from its outputs for one example and for two."""

    def __init__(self, one: Any, two: Any) -> None:
        (first, _), (second, _) = tree_flatten(one), tree_flatten(two)
        self.plain = isinstance(one, torch.Tensor)
        # For each leaf the axis of the examples; None where it has none.
        self._axes = [_axis(a, b) for a, b in zip(first, second, strict=True)]
        self.shared = [a for a, axis in zip(first, self._axes, strict=True) if axis is None and _is_float(a)]
        if all(axis is None for axis in self._axes):
            msg = (
                f"the module returns {type(one).__name__} without an array that has one row per example; return a "
                "tensor, or a tuple or mapping of tensors"
            )
            raise UnsupportedError(msg)
        self.width = self.pack(one).shape[1]

    def pack(self, out: Any) -> torch.Tensor:
        """Put the arrays with a row per example beside each other."""
        if self.plain:
            return out.reshape(len(out), -1)
        leaves = tree_flatten(out)[0]
        chosen = [leaf.movedim(axis, 0) for leaf, axis in zip(leaves, self._axes, strict=True) if axis is not None]
        return torch.cat([leaf.reshape(len(leaf), -1) for leaf in chosen], dim=1)

    def unpack(self, packed: torch.Tensor, like: Any) -> Any:
        """Turn a matrix with a row per example into what the module returns."""
        leaves, spec = tree_flatten(like)
        start, found = 0, []
        for leaf, axis in zip(leaves, self._axes, strict=True):
            if axis is None:
                found.append(leaf)
                continue
            shape = leaf.movedim(axis, 0).shape[1:]
            part = packed[:, start : start + shape.numel()]
            found.append(part.reshape(len(packed), *shape).movedim(0, axis))
            start += shape.numel()
        return tree_unflatten(found, spec)


def _is_float(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.is_floating_point()


def _axis(one: Any, two: Any) -> int | None:
    if not _is_float(one):
        return None
    grown = [axis for axis, (a, b) in enumerate(zip(one.shape, two.shape, strict=True)) if b == 2 * a and b]
    return grown[0] if grown else None
