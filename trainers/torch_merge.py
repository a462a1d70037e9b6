"""A traced graph again, with products of many matrices with one that they share as single wide products."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.utils._pytree import tree_map

aten = torch.ops.aten
RESHAPES = {aten.view.default, aten._unsafe_view.default}
SAME = {*RESHAPES, aten.alias.default, aten.expand.default}
VIEWS = {*SAME, aten.t.default, aten.transpose.int, aten.permute.default}
PRODUCTS = {aten.mm.default, aten.bmm.default, aten.mul.Tensor}
ZEROS = {aten.zeros.default, aten.zeros_like.default}
SUMS = {aten.add.Tensor, aten.sub.Tensor}
# Views that another view undoes.
TURNS = VIEWS - {aten.expand.default}


@dataclass(frozen=True)
class Held:
    """A node of the new graph, its value, whether that is zero whatever the arguments, and of which product it is."""

    node: fx.Node
    value: Any
    zero: bool = False
    product: Product | None = None


@dataclass(frozen=True)
class Product:
    """The factors of a matrix product, and the turns after it: the shape before, the operation and its arguments."""

    factors: tuple[Held, Held]
    turns: tuple[tuple[torch.Size, Any, tuple[Any, ...]], ...] = ()


def merged(module: fx.GraphModule, arguments: tuple[torch.Tensor, ...]) -> fx.GraphModule:
    r"""Merge the batched matrix products of a graph.

    Under vmap over s vectors, :math:`AB_s` with a matrix A that all share becomes s products of narrow matrices. Side
    by side the :math:`B_s` are one wide matrix: the same arithmetic, nearer to the processor's peak. What such a
    product leaves is ordered by row, vector and column; operations between products keep the order, so that products
    follow each other without a copy. A product that is only added to another array is taken on top of it. Sums with the
    zeros that forward mode makes of what does not depend on the weights are left out, and copies in the same precision.

    Parameters
    ----------
    module : torch.fx.GraphModule
        A graph of aten operations on real arrays.
    arguments : tuple of Tensor
        Of the shapes that it was traced with.

    Returns
    -------
    torch.fx.GraphModule
        The same function up to rounding; `module` itself where an operation changes in place what others may read.
    """
    module.graph.eliminate_dead_code()
    nodes = list(module.graph.nodes)
    if not all(_unseen(used) for node in nodes for used in written(node)):
        return module
    found = _Merging(module)
    found.run(nodes, iter(arguments))
    found.graph.lint()
    found.graph.eliminate_dead_code()
    return fx.GraphModule(module, found.graph)


def written(node: fx.Node) -> list[fx.Node]:
    """List the arguments that an operation changes in place.

    Parameters
    ----------
    node : torch.fx.Node
        The operation.

    Returns
    -------
    list of Node
    """
    schema = getattr(node.target, "_schema", None)
    if schema is None or not schema.is_mutable:
        return []
    given = {argument.name: value for argument, value in zip(schema.arguments, node.args, strict=False)} | dict(
        node.kwargs
    )
    changed = [a.name for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    return [part for name in changed for part in flat(given.get(name)) if isinstance(part, fx.Node)]


def flat(value: Any) -> Iterator[Any]:
    """Go through the leaves of nested arguments.

    Parameters
    ----------
    value : object
        Lists, tuples, dicts and leaves.

    Yields
    ------
    object
        One leaf after the other.
    """
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, tuple | list):
        for part in value:
            yield from flat(part)
    else:
        yield value


def _unseen(node: fx.Node) -> bool:
    # A new array that the operation which changes it is the only one to read.
    target = node.target
    fresh = node.op == "call_function" and target not in VIEWS | SUMS and isinstance(target, torch._ops.OpOverload)
    return fresh and len(node.users) == 1 and all(a.alias_info is None for a in target._schema.returns)


class _Merging:
    # Goes through the nodes in order and evaluates what it puts in their place, so that layouts are known.

    def __init__(self, module: fx.GraphModule) -> None:
        self._module = module
        self.graph = fx.Graph()
        self._held: dict[fx.Node, Held] = {}

    def run(self, nodes: list[fx.Node], given: Iterator[torch.Tensor]) -> None:
        # Rows of all vectors below each other, times one matrix, and apart again: one product.
        stacks = {node: parts for node in nodes if (parts := _stack(node)) is not None}
        inside = {node.args[0] for node in stacks}
        inside |= {product.args[0] for product in inside}
        reads = {node: stacks.get(node, node.all_input_nodes) for node in nodes if node not in inside}
        last = {used: node for node, parts in reads.items() for used in parts}
        for node, parts in reads.items():
            if node.op == "placeholder":
                self._held[node] = Held(self.graph.placeholder(str(node.target)), next(given))
            elif node.op == "get_attr":
                self._held[node] = Held(self.graph.get_attr(str(node.target)), getattr(self._module, str(node.target)))
            elif node.op == "output":
                self.graph.output(fx.node.map_arg(node.args[0], lambda used: self._held[used].node))
            elif node in stacks:
                self._held[node] = self._stacked(*(self._held[used] for used in parts))
            else:
                self._held[node] = self._again(node)
            for used in {*parts, node}:
                if last.get(used, node) is node:
                    self._held.pop(used, None)

    def _again(self, node: fx.Node) -> Held:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), self._held.__getitem__)
        if node.target is aten.bmm.default and args[0].value.shape[0] > 1:
            left, right = args
            if left.value.stride(0) == 0:
                return self._beside(self._emit(aten.select.int, left, 0, 0), right)
            if right.value.stride(0) == 0:
                return self._stacked(left, self._emit(aten.select.int, right, 0, 0))
        if node.target is aten._to_copy.default and not any(node in written(user) for user in node.users):
            # In one precision it changes nothing.
            (array,) = args
            if set(kwargs) <= {"dtype", "layout", "device"} and kwargs.get("dtype") == array.value.dtype:
                return array
        if node.target in SUMS and len(args) == 2 and not kwargs:
            kept = self._without_zeros(node.target, *args)
            if kept is not None:
                return kept
        if node.target is aten.add.Tensor and len(args) == 2 and not kwargs:
            for one, other, used in ((*args, node.args[1]), (*args[::-1], node.args[0])):
                added = self._on_top(one, other) if _only_here(used) else None
                if added is not None:
                    return added
        if node.target in RESHAPES:
            try:
                return self._emit(aten.view.default, *args)
            except RuntimeError:  # in the new order, other than in the old, it takes a copy
                return self._emit(aten.view.default, self._copy(args[0]), *args[1:])
        return self._emit(node.target, *args, **kwargs)

    def _emit(self, target: Any, *args: Any, **kwargs: Any) -> Held:
        parts = [part for part in flat((args, kwargs)) if isinstance(part, Held)]
        zero = target in ZEROS or (target in VIEWS and parts[0].zero)
        zero |= target in PRODUCTS and any(part.zero for part in parts)
        node = self.graph.call_function(
            target, *tree_map(lambda a: a.node if isinstance(a, Held) else a, (args, kwargs))
        )
        values, named = tree_map(lambda a: a.value if isinstance(a, Held) else a, (args, kwargs))
        product = None
        if target is aten.mm.default:
            product = Product(args)
        elif target in TURNS and args[0].product is not None:
            turn = (args[0].value.shape, target, args[1:])
            product = Product(args[0].product.factors, (*args[0].product.turns, turn))
        return Held(node, target(*values, **named), zero, product)

    def _copy(self, array: Held) -> Held:
        # In C order, by an operation that can write into memory laid out beforehand.
        return self._emit(aten.cat.default, [array])

    def _beside(self, matrix: Held, columns: Held) -> Held:
        # (m, k) times (s, k, n): all columns beside each other, (k, s n).
        s, k, n = columns.value.shape
        turned = self._emit(aten.permute.default, columns, [1, 0, 2])
        if _merges(turned.value, 1):
            wide = self._emit(aten.view.default, turned, [k, s * n])
        else:
            # Weights are stored with the columns as rows.
            rows = self._emit(aten.transpose.int, columns, 1, 2)
            rows = rows if rows.value.is_contiguous() else self._copy(rows)
            wide = self._emit(aten.t.default, self._emit(aten.view.default, rows, [s * n, k]))
        found = self._emit(aten.mm.default, matrix, wide)
        return self._turned(self._emit(aten.view.default, found, [len(matrix.value), s, n]))

    def _stacked(self, rows: Held, matrix: Held) -> Held:
        # (s, m, k) times (k, n): all rows below each other, in the order in which they are stored.
        s, m, k = rows.value.shape
        turned = self._turned(rows)
        inner = not _merges(rows.value, 0) and _merges(turned.value, 0)
        if inner:
            rows = turned
        elif not _merges(rows.value, 0):
            rows = self._copy(rows)
        found = self._emit(aten.mm.default, self._emit(aten.view.default, rows, [s * m, k]), matrix)
        parts = self._emit(aten.view.default, found, [*rows.value.shape[:2], matrix.value.shape[1]])
        return self._turned(parts) if inner else parts

    def _on_top(self, array: Any, other: Any) -> Held | None:
        # array + other, which is a matrix product and then turned: the array is turned back, and the sum again.
        if not (isinstance(array, Held) and isinstance(other, Held)) or other.product is None:
            return None
        if array.value.shape != other.value.shape or array.value.dtype != other.value.dtype:
            return None
        try:
            for shape, target, how in reversed(other.product.turns):
                array = self._back(array, shape, target, how)
        except RuntimeError:  # it takes a copy
            return None
        found = self._emit(aten.addmm.default, array, *other.product.factors)
        for _, target, how in other.product.turns:
            found = self._emit(target, found, *how)
        return found

    def _back(self, array: Held, shape: torch.Size, target: Any, how: tuple[Any, ...]) -> Held:
        if target is aten.permute.default:
            return self._emit(target, array, [how[0].index(axis) for axis in range(len(how[0]))])
        if target in RESHAPES:
            return self._emit(aten.view.default, array, list(shape))
        return self._emit(target, array, *how)

    def _turned(self, array: Held) -> Held:
        return self._emit(aten.permute.default, array, [1, 0, 2])

    def _without_zeros(self, target: Any, one: Any, other: Any) -> Held | None:
        if not (isinstance(one, Held) and isinstance(other, Held)):
            return None
        if other.zero:
            kept = one
        elif one.zero and target is aten.add.Tensor:
            kept = other
        else:
            return None
        shape = torch.broadcast_shapes(one.value.shape, other.value.shape)
        if torch.result_type(one.value, other.value) != kept.value.dtype:
            return None
        return kept if kept.value.shape == shape else self._emit(aten.expand.default, kept, list(shape))


def _merges(array: torch.Tensor, axis: int) -> bool:
    # Whether an axis and the next are one in memory.
    return array.stride(axis) == array.shape[axis + 1] * array.stride(axis + 1)


def _only_here(node: Any) -> bool:
    # Whether a matrix product and its views have one reader each.
    while isinstance(node, fx.Node) and len(node.users) == 1:
        if node.target not in TURNS:
            return node.target in {aten.mm.default, aten.bmm.default}
        node = node.args[0]
    return False


def _stack(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    # The arrays (s, m, k) and (k, n) of view(mm(view(rows, (s m, k)), matrix), (s, m, n)).
    product = node.args[0] if node.target in RESHAPES else None
    if not isinstance(product, fx.Node) or product.target is not aten.mm.default or len(product.users) > 1:
        return None
    below, matrix = product.args
    if not isinstance(below, fx.Node) or below.target not in RESHAPES or len(below.users) > 1:
        return None
    rows, apart = below.args[0], node.args[1]
    known = rows.meta.get("tensor_meta")
    if known is None or len(known.shape) != 3 or len(apart) != 3 or list(apart[:2]) != list(known.shape[:2]):
        return None
    return (rows, matrix) if len(below.meta["tensor_meta"].shape) == 2 else None
