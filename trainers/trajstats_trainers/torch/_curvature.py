"""Products of the loss curvature of a torch network with many vectors at once."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.func import vmap

from trajstats.errors import UnsupportedError
from trajstats.network import CurvatureKind
from trajstats.runtime._threads import torch_threads
from trajstats_trainers.networks import ARRAYS_PER_VECTOR, FrameworkCurvature
from trajstats_trainers.torch._derivatives import (
    WAYS,
    Forward,
    Function,
    Product,
    Recorded,
    agree,
    first_right,
    gradient_of,
    some_rows,
)

if TYPE_CHECKING:
    from trajstats_trainers.torch._trace import Program, Traced

# Arrays of the size of what is saved for a gradient that are kept for a product, or pass while it is traced.
ARRAYS_HELD = 8
# Tracing patches Python's own functions: one thread at a time.
TRACING = threading.Lock()
# Traced products by network and shapes: a copy of a network that comes with each call finds those of the call before.
TRACES: dict[Any, Traced] = {}
MOST_TRACES = 8
DIFFERENCES = (
    'give TorchNetwork(..., products="finite_difference"), which needs gradients alone (relative error about 1e-9 in '
    "float64, 1e-4 in float32)."
)
# What torch's errors about missing derivatives hold.
NO_DERIVATIVE = ("forward AD", "not implemented", "does not support", "doesn't support", "once_differentiable")


# Buffers that a trace has as arguments, while it is made.
_HELD: ContextVar[dict[str, torch.Tensor] | None] = ContextVar("held", default=None)


class TorchCurvature(FrameworkCurvature):
    """Curvature at one weight vector, with the activations of all examples kept if they fit in ``network.memory``.

    The product is then a traced list of operations, the same at all weights: only its constants are computed for each
    checkpoint. Otherwise, and for networks that cannot be traced, each call goes through the examples in parts that
    fit, with the activations computed again, once per call for all its vectors.
    """

    # The allocator keeps some arrays of the part before.
    _parts_share = 0.85

    def __init__(self, network: Any, weights: np.ndarray, kind: CurvatureKind) -> None:
        super().__init__(network, kind)
        # Programs that no thread is running; each keeps its constants and its memory.
        self._idle: list[Programs] = []
        with torch_threads(network.threads), torch.enable_grad(), remedy():
            self._w = network._flat(weights)
            self._way = self._choose()
            each = bytes_per_example(network, self._w)
            fits = self._fit(ARRAYS_HELD * each, ARRAYS_PER_VECTOR * each)
            if fits and not issubclass(self._way, Recorded):
                self._held = list(self._parts())

    def _matmat(self, vectors: np.ndarray) -> np.ndarray:
        given = np.asarray(vectors, dtype=self.dtype).T
        # Rows of a larger array stay where they are: a trace takes them from there.
        along, inner = given.strides
        there = along > 0 and inner == given.itemsize and given.flags.writeable
        rows = torch.from_numpy(given if there else np.array(given, order="C"))
        free = self._network._free
        with torch_threads(self._network.threads), torch.enable_grad(), remedy():
            if free is not None:
                rows = rows * free
            # Chunks of one size, so that one program serves them all: the last one is filled up with zeros.
            calls = -(-len(rows) // self._width)
            size = -(-len(rows) // calls)
            parts = [self._apply(chunk, size) for chunk in torch.split(rows, size)]
            done = parts[0] if len(parts) == 1 else torch.cat(parts)
            if free is not None:
                done *= free
        return done.numpy().T

    def _apply(self, chunk: torch.Tensor, size: int) -> torch.Tensor:
        programs = self._claim(size) if self._held is not None else None
        if programs is None:
            # New arrays: a product may be its argument itself, or zeros without memory.
            return self._added(chunk, ((1.0, share * product(chunk)) for share, product in self._plain()))
        try:
            padded = chunk
            if len(chunk) < size:
                padded = torch.cat([chunk, chunk.new_zeros(size - len(chunk), chunk.shape[1])])
            terms = ((share, program(padded)[: len(chunk)]) for share, program in programs.parts)
            return self._added(chunk, terms)
        finally:
            self._idle.append(programs)

    def _added(self, chunk: torch.Tensor, terms: Iterator[tuple[float, torch.Tensor]]) -> torch.Tensor:
        # Summed in place in the first: every further array of the result's size costs a few per cent of a product.
        share, total = next(terms)
        if share != 1:
            total.mul_(share)
        for share, term in terms:
            total.add_(term, alpha=share)
        if self._shift:
            total.add_(chunk, alpha=self._shift)
        return total

    def _claim(self, size: int) -> Programs | None:
        # An idle program for so many rows, or a new one; those for other numbers of rows make room for it.
        while self._idle:
            try:
                found = self._idle.pop()
            except IndexError:  # another thread was faster
                break
            if found.size == size:
                return found
        parts = []
        for share, *part in self._held or []:
            traced = self._traced(part, size)
            if traced is None:
                self._held = None
                return None
            parts.append((share, traced.at(*self._fixed(part))))
        return Programs(size, parts)

    def _parts(self) -> Iterator[tuple[float, Any, Any, Any]]:
        for share, x, y, scale in super()._parts():
            yield share, x, y, torch.from_numpy(scale)

    def _traced(self, part: list[torch.Tensor], size: int) -> Traced | None:
        # Traced once for all checkpoints; None where that fails.
        kept = self._network._traced
        key = (self._kind, size, *(tuple(array.shape) for array in part), tuple(self._network._given))
        with TRACING:
            if key not in kept:
                rows = some_rows(size, self._w)
                shared = (self._network._name, key)
                found = TRACES.get(shared)
                # Whoever copied the network may have changed it since.
                if found is None or not self._right(found, part, rows):
                    found = self._trace(part, rows)
                kept[key] = found
                if found is not None:
                    TRACES[shared] = found
                while len(TRACES) > MOST_TRACES:
                    del TRACES[next(iter(TRACES))]
        return kept[key]

    def _of_rows(self) -> Callable[..., torch.Tensor]:
        def of(w: torch.Tensor, x: torch.Tensor, y: torch.Tensor, scale: torch.Tensor, *rest: torch.Tensor) -> Any:
            *buffers, rows = rest
            with _holding(self._network, buffers):
                return self._rows(self._way, w, x, y, scale)(rows)

        return of

    def _fixed(self, part: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        # What a trace has as arguments: buffers too, for they differ between checkpoints.
        return (self._w, *part, *self._network._given.values())

    def _trace(self, part: list[torch.Tensor], rows: torch.Tensor) -> Traced | None:
        try:
            # It is made of parts that torch keeps private: without them there are plain products.
            from trajstats_trainers.torch._trace import Traced

            traced = Traced(self._of_rows(), self._fixed(part), rows)
        except Exception:
            return None
        return traced if self._right(traced, part, rows) else None

    def _right(self, traced: Traced, part: list[torch.Tensor], rows: torch.Tensor) -> bool:
        try:
            program = traced.at(*self._fixed(part))
            # The second call shows whether the first has changed what it needs.
            program(rows)
            found = program(rows)[:2]
        except Exception:
            return False
        return agree(found, self._of_rows()(*self._fixed(part), rows[:2]))

    def _plain(self) -> Iterator[tuple[float, Product]]:
        # The share of each part of the examples, and its product with the rows of a matrix.
        for share, *part in self._parts():
            yield share, self._rows(self._way, self._w, *part)

    def _choose(self) -> type[Forward]:
        # Tried on two examples and one vector, once for all checkpoints.
        network = self._network
        if not self._exact:
            return Differenced
        if self._kind not in network._ways:
            rows = some_rows(2, self._w)
            part = (*network._few(), torch.ones(min(2, network.n_examples), dtype=rows.dtype))
            ways = {name: functools.partial(self._rows, way, self._w, *part) for name, way in WAYS.items()}
            name = first_right(ways, rows)
            self._check_symmetry(rows, ways[name]()(rows))
            network._ways[self._kind] = name
        return WAYS[network._ways[self._kind]]

    def _stages(self, w: torch.Tensor, x: torch.Tensor) -> tuple[Function, Callable[..., torch.Tensor]]:
        # The outputs as one array whose first axis is the example, and the loss of such an array.
        network, layout = self._network, self._network._layout
        if layout.plain:
            return lambda u: network._outputs(u, x), network.loss_fn
        if layout.shared:
            msg = (
                f"kind={self._kind!r} needs outputs with one row per example; the module also returns one of shape "
                f"{tuple(layout.shared[0].shape)} that the examples share: leave it out, or take kind='hessian'"
            )
            raise UnsupportedError(msg)
        with torch.no_grad():
            like = network._outputs(w, x)
        return lambda u: network._rows(u, x), lambda z, y: network.loss_fn(layout.unpack(z, like), y)

    def _check_symmetry(self, rows: torch.Tensor, products: torch.Tensor) -> None:
        (_, one), (other, _) = (rows @ products.T).tolist()
        off, eps = abs(one - other), torch.finfo(rows.dtype).eps
        size = float(torch.linalg.norm(rows[0]) * torch.linalg.norm(products[1]))
        # Below that it is rounding, of a matrix that is zero.
        if off > max(eps**0.5 * size, 10 * eps * float(torch.linalg.norm(rows) ** 2)):
            msg = (
                f"torch's {self._kind} of this network is not symmetric (off by {off / size:.1g} of its "
                "size): the second derivative of an operation in it is wrong. Replace that operation (a custom "
                f"autograd Function, or a fused one), or {DIFFERENCES}"
            )
            raise UnsupportedError(msg)

    def _rows(self, way: type[Forward], *given: torch.Tensor) -> Product:
        return way.rows(self._product(way, *given))

    def _product(
        self, way: type[Forward], w: torch.Tensor, x: torch.Tensor, y: torch.Tensor, scale: torch.Tensor
    ) -> Product:
        network = self._network
        if self._kind == "hessian":
            return way.second(lambda u: network._data_loss(u, x, y), w)
        outputs, loss = self._stages(w, x)
        if self._kind == "gauss_newton":
            out, forward = way.along(outputs, w)
            # The loss as a function of the outputs is plain: its second derivative exists whatever the network's.
            curve = (Recorded if way is Differenced else way).second(lambda z: loss(z, y), out)
            backward = way.back(outputs, w)
            return lambda v: backward(curve(forward(v)))

        def losses(u: torch.Tensor) -> torch.Tensor:
            # Of each example by itself.
            out = outputs(u)
            if issubclass(way, Recorded):
                return scale * torch.stack([loss(out[a : a + 1], y[a : a + 1]) for a in range(len(x))])
            return scale * vmap(lambda z, b: loss(z[None], b[None]))(out, y)

        forward = way.along(losses, w)[1]
        backward = way.back(losses, w)
        return lambda v: backward(forward(v))


def held_buffers(network: Any) -> dict[str, torch.Tensor]:
    """Name the buffers at which a network is evaluated, other than its module's own."""
    held = _HELD.get()
    return network._given if held is None else held


@contextmanager
def _holding(network: Any, buffers: list[torch.Tensor]) -> Iterator[None]:
    before = _HELD.set(dict(zip(network._given, buffers, strict=True)))
    try:
        yield
    finally:
        _HELD.reset(before)


@dataclass(frozen=True)
class Programs:
    """Traced products of the parts of the examples, with their shares, for `size` rows."""

    size: int
    parts: list[tuple[float, Program]]


def _differenced(function: Callable[..., Any], at: torch.Tensor) -> tuple[torch.Tensor, Product]:
    # Central differences; the step balances rounding (eps / h) against the third derivative (h^2).
    size = torch.finfo(at.dtype).eps ** (1 / 3) * (1 + float(at.abs().max()))

    def product(v: torch.Tensor) -> torch.Tensor:
        largest = float(v.abs().max())
        if largest == 0:
            return torch.zeros_like(function(at))
        h = size / largest
        return (function(at + h * v) - function(at - h * v)) / (2 * h)

    return function(at).detach(), product


class Differenced(Recorded):
    """Differences of gradients, one vector at a time: for what has no second derivative at all."""

    @staticmethod
    def along(function: Function, at: torch.Tensor) -> tuple[torch.Tensor, Product]:
        """Give the value and the product of J with a vector."""
        return _differenced(lambda u: function(u).detach(), at)

    @classmethod
    def second(cls, function: Function, at: torch.Tensor) -> Product:
        """Give the product of a scalar function's second derivative with a vector."""
        return _differenced(lambda u: gradient_of(function, u), at)[1]


def bytes_per_example(network: Any, w: torch.Tensor) -> int:
    """Measure what one more example adds to the activations saved for a gradient."""
    totals = []
    for count in (1, 2):
        saved = 0

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal saved
            saved += tensor.numel() * tensor.element_size()
            return tensor

        x, y = network._few(count)
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            network._data_loss(w.clone().requires_grad_(), x, y)
        totals.append(saved)
    return max(totals[1] - totals[0], 1)


@contextmanager
def remedy() -> Iterator[None]:
    """Turn torch's errors about missing derivatives into one that says what to do."""
    try:
        yield
    except (RuntimeError, NotImplementedError) as error:
        text = str(error)
        if not any(word in text for word in NO_DERIVATIVE):
            raise
        msg = (
            f"torch cannot differentiate this network twice: {text.splitlines()[0][:200]} Replace that operation, or "
            f"{DIFFERENCES}"
        )
        raise UnsupportedError(msg) from error
