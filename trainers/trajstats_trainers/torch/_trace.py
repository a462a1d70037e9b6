"""Products traced once for arrays of given shapes, and run in memory that is laid out beforehand."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx

Layout = tuple[tuple[int, ...], tuple[int, ...], torch.dtype]


class Traced:
    """A function of fixed arrays and of rows, linear in the rows, as a list of operations.

    Operations that do not depend on the rows run once for each value of the fixed arrays (`at`). The others write into
    arrays that are used again in every call and, within a call, by operations whose lifetimes do not overlap: memory
    fresh from the system costs more than the arithmetic on it.
    """

    def __init__(
        self, function: Callable[..., torch.Tensor], fixed: tuple[torch.Tensor, ...], rows: torch.Tensor
    ) -> None:
        self._module = make_fx(function)(*fixed, rows)
        self._nodes = list(self._module.graph.nodes)
        self._given = [node for node in self._nodes if node.op == "placeholder"]
        self._rows = self._given[-1]
        self._layouts: dict[fx.Node, Layout] = {}
        self._storages: dict[fx.Node, frozenset[int]] = {}
        self._record(fixed, rows)
        self._varying = self._divide()
        # For each operation with an array of its own: its form that writes there, and which block of memory it gets.
        self._placed: dict[fx.Node, tuple[Any, int]] = {}
        self._blocks: list[int] = []
        self._lay_out()

    def at(self, *fixed: torch.Tensor) -> Program:
        """Evaluate all that does not depend on the rows."""
        values = dict(zip(self._given, fixed, strict=False))
        constant = [node for node in self._nodes if node not in self._varying and node is not self._nodes[-1]]
        last = {used: node for node in constant for used in node.all_input_nodes}
        wanted = {used for node in self._varying for used in node.all_input_nodes}
        for node in constant:
            if node not in values:
                values[node] = self._evaluate(node, values)
            for used in node.all_input_nodes:
                if last[used] is node and used not in wanted:
                    del values[used]
        return Program(self, {node: values[node] for node in wanted if node in values})

    def _evaluate(self, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
        if node.op == "get_attr":
            return getattr(self._module, str(node.target))
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
        return node.target(*args, **kwargs)

    def _record(self, fixed: tuple[torch.Tensor, ...], rows: torch.Tensor) -> None:
        # One evaluation shows which values share memory. A value is dropped after its last use, as in any evaluation,
        # and memory counts as shared with values that are still there.
        last = {used: node for node in self._nodes for used in node.all_input_nodes}
        values: dict[fx.Node, Any] = dict(zip(self._given, (*fixed, rows), strict=True))
        alive: dict[int, tuple[int, int]] = {}
        fresh = 0
        for node in self._nodes[:-1]:
            if node not in values:
                values[node] = self._evaluate(node, values)
            found = set()
            for tensor in _tensors(values[node]):
                address = tensor.untyped_storage().data_ptr()
                number, users = alive.get(address, (fresh, 0))
                fresh += number == fresh
                if address:
                    alive[address] = (number, users + 1)
                found.add(number)
            self._storages[node] = frozenset(found)
            if isinstance(values[node], torch.Tensor):
                tensor = values[node]
                self._layouts[node] = (tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype)
            for used in {*node.all_input_nodes, node}:
                if last.get(used, node) is node:
                    for tensor in _tensors(values.pop(used)):
                        address = tensor.untyped_storage().data_ptr()
                        if not address:  # nothing in it
                            continue
                        number, users = alive[address]
                        alive[address] = (number, users - 1)
                        if users == 1:
                            del alive[address]

    def _divide(self) -> set[fx.Node]:
        # The operations that depend on the rows, and those that make what such an operation changes in place.
        varying = {self._rows}
        before = 0
        while before != len(varying):
            before = len(varying)
            touched: set[int] = set()
            for node in self._nodes[:-1]:
                if not varying.isdisjoint(node.all_input_nodes):
                    varying.add(node)
                    touched |= {s for used in written(node) for s in self._storages[used]}
                    continue
                changed = {s for used in written(node) for s in self._storages[used]}
                if not changed:
                    continue
                seen = {s for other in varying for used in other.all_input_nodes for s in self._storages[used]}
                if changed & seen:
                    touched |= changed
            varying |= {node for node in self._nodes[:-1] if self._storages[node] & touched}
        for node in self._nodes[:-1]:
            if node in varying and node is not self._rows and node.op != "call_function":
                msg = "the graph changes its arguments in place"
                raise RuntimeError(msg)
            if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
                msg = "the graph draws random numbers"
                raise RuntimeError(msg)
        return varying

    def _lay_out(self) -> None:
        # Gives each new value the smallest free block that holds it, or that of an argument which ends here.
        order = [node for node in self._nodes if node in self._varying]
        ends = {
            s: step
            for step, node in enumerate(order)
            for used in (*node.all_input_nodes, node)
            for s in self._storages[used]
        }
        result = self._nodes[-1].all_input_nodes
        ends |= {s: len(order) for used in result for s in self._storages[used]}
        block_of: dict[int, int] = {}
        free: list[int] = []
        for step, node in enumerate(order):
            form = self._own_form(node)
            if form is not None:
                (own,) = self._storages[node]
                block = self._argument_to_overwrite(node, step, ends, block_of)
                if block is None:
                    shape, _, dtype = self._layouts[node]
                    size = max(torch.Size(shape).numel() * dtype.itemsize, 1)
                    fitting = [b for b in free if size <= self._blocks[b] <= 2 * size]
                    if fitting:
                        block = min(fitting, key=self._blocks.__getitem__)
                        free.remove(block)
                    else:
                        block = len(self._blocks)
                        self._blocks.append(size)
                block_of[own] = block
                self._placed[node] = (form, block)
            for s in [s for s in block_of if ends[s] <= step]:
                block = block_of.pop(s)
                if block not in block_of.values():
                    free.append(block)

    def _own_form(self, node: fx.Node) -> Any:
        # The operation's form that writes into a given array; None for views and for what has no such form.
        if node is self._rows or node not in self._layouts or written(node):
            return None
        if any(self._storages[node] & self._storages[used] for used in node.all_input_nodes):
            return None
        shape, stride, _ = self._layouts[node]
        dense = sum((n - 1) * s for n, s in zip(shape, stride, strict=True)) == max(torch.Size(shape).numel() - 1, 0)
        return _writing_form(node.target) if dense and torch.Size(shape).numel() else None

    def _argument_to_overwrite(
        self, node: fx.Node, step: int, ends: dict[int, int], block_of: dict[int, int]
    ) -> int | None:
        if node.target is torch.ops.aten.addmm.default:
            # A product on top of the first argument, which must not be read as a factor.
            array, *factors = node.args[:3]
            if any(self._storages[array] & self._storages[factor] for factor in factors):
                return None
            candidates = [array]
        elif torch.Tag.pointwise in node.target.tags:
            candidates = node.all_input_nodes
        else:
            return None
        for used in candidates:
            sharing = [n for n in node.all_input_nodes if self._storages[n] & self._storages[used]]
            block = block_of.get(next(iter(self._storages[used]), -1))
            alike = all(self._layouts.get(n) == self._layouts[node] for n in sharing)
            if block is not None and alike and all(ends[s] == step for s in self._storages[used]):
                return block
        return None


class Program:
    """A traced product at fixed values of all but the rows."""

    def __init__(self, traced: Traced, constants: dict[fx.Node, Any]) -> None:
        shape, _, dtype = traced._layouts[traced._rows]
        blocks = [torch.empty(size, dtype=torch.uint8) for size in traced._blocks]
        self._given = torch.empty(shape, dtype=dtype)
        # Known before any call: constants, arrays laid out beforehand and their views. The rest is named by its node.
        known: dict[fx.Node, Any] = {node: _plain(value) for node, value in constants.items()}
        known[traced._rows] = self._given
        order = [node for node in traced._nodes if node in traced._varying and node is not traced._rows]
        last = {used: node for node in order for used in node.all_input_nodes}
        self._steps: list[tuple[Any, Any, Any, fx.Node | None, list[fx.Node]]] = []
        for node in order:
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda used: known.get(used, used))
            ready = all(used in known for used in node.all_input_nodes)
            if node in traced._placed:
                (form, name), block = traced._placed[node]
                size, stride, kept = traced._layouts[node]
                whole = blocks[block][: torch.Size(size).numel() * kept.itemsize].view(kept)
                known[node] = whole.as_strided(size, stride)
                self._steps.append((form, args, {**kwargs, name: known[node]}, None, []))
            elif ready and not written(node) and _is_view(traced, node):
                known[node] = node.target(*args, **kwargs)
                continue
            else:
                self._steps.append((node.target, args, kwargs, node, []))
            self._steps[-1][4].extend(used for used in node.all_input_nodes if last[used] is node and used not in known)
        (self._result,) = traced._nodes[-1].all_input_nodes
        self._known_result = known.get(self._result)
        # The last operation writes where the caller says, if that is the result.
        written_last = bool(order) and self._result is order[-1] and self._result in traced._placed
        self._last = traced._placed[self._result][0][1] if written_last else None
        self._plain = [
            all(not isinstance(a, fx.Node) for a in flat((args, kwargs))) for _, args, kwargs, _, _ in self._steps
        ]

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """Give the product with rows, in a new array."""
        self._given.copy_(rows)
        passing: dict[fx.Node, Any] = {}
        result = self._known_result
        for step, ((call, args, kwargs, name, ended), plain) in enumerate(zip(self._steps, self._plain, strict=True)):
            if self._last is not None and step == len(self._steps) - 1:
                result = torch.empty_like(result)
                kwargs = {**kwargs, self._last: result}
            if not plain:
                args, kwargs = fx.node.map_arg((args, kwargs), passing.__getitem__)
            value = call(*args, **kwargs)
            if name is not None:
                passing[name] = value
            for used in ended:
                if used is not self._result:
                    passing.pop(used, None)
        if result is None:
            result = passing[self._result]
        return result.clone() if self._last is None else result


def flat(value: Any) -> Iterator[Any]:
    """Go through the leaves of nested arguments."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, tuple | list):
        for part in value:
            yield from flat(part)
    else:
        yield value


def written(node: fx.Node) -> list[fx.Node]:
    """List the arguments that an operation changes in place."""
    schema = getattr(node.target, "_schema", None)
    if schema is None or not schema.is_mutable:
        return []
    given = {argument.name: value for argument, value in zip(schema.arguments, node.args, strict=False)} | dict(
        node.kwargs
    )
    changed = [a.name for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    return [part for name in changed for part in flat(given.get(name)) if isinstance(part, fx.Node)]


def _is_view(traced: Traced, node: fx.Node) -> bool:
    shared = {s for used in node.all_input_nodes for s in traced._storages[used]}
    return node.target is operator.getitem or bool(traced._storages[node]) and traced._storages[node] <= shared


def _plain(value: Any) -> Any:
    # Zeros that torch keeps without memory cannot be read by every operation.
    if isinstance(value, torch.Tensor) and value._is_zerotensor():
        return torch.zeros(value.shape, dtype=value.dtype)
    return value


def _tensors(value: Any) -> list[torch.Tensor]:
    return [part for part in flat(value) if isinstance(part, torch.Tensor)]


def _writing_form(target: Any) -> tuple[Any, str] | None:
    # Overload with the same arguments and one array to write into, and that array's name. torch's generated ones
    # compute elsewhere and copy.
    if not isinstance(target, torch._ops.OpOverload):
        return None
    own = [(a.name, str(a.type)) for a in target._schema.arguments]
    for name in target.overloadpacket.overloads():
        other = getattr(target.overloadpacket, name)
        outs = [a.name for a in other._schema.arguments if a.is_out]
        rest = [(a.name, str(a.type)) for a in other._schema.arguments if not a.is_out]
        if len(outs) == 1 and rest == own and torch.Tag.generated not in other.tags:
            return other, outs[0]
    return None
