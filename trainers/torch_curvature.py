"""Products of the loss curvature of a torch network with many vectors at once."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.func import grad, jvp, linearize, vjp, vmap

from trainers.networks import ARRAYS_PER_VECTOR, FrameworkCurvature
from trainers.torch_trace import UNTRACEABLE, Program, Traced
from trajstats.errors import UnsupportedError
from trajstats.network import CurvatureKind
from trajstats.threads import torch_threads

if TYPE_CHECKING:
    from trainers.torch_adapter import TorchNetwork

# Arrays of the size of what is saved for a gradient that are kept for a product, or pass while it is traced.
ARRAYS_HELD = 8
# Tracing patches Python's own functions: one thread at a time.
TRACING = threading.Lock()
# Traced products by network and shapes: a copy of a network that comes with each call finds those of the call before.
TRACES: dict[Any, Traced] = {}
MOST_TRACES = 8
Product = Callable[[torch.Tensor], torch.Tensor]
Run = Callable[[Callable[..., Any], torch.Tensor], tuple[torch.Tensor, Product]]


# Buffers that a trace has as arguments, while it is made.
_HELD: ContextVar[dict[str, torch.Tensor] | None] = ContextVar("held", default=None)


class TorchCurvature(FrameworkCurvature):
    """Curvature at one weight vector, with the activations of all examples kept if they fit in ``network.memory``.

    The product is then a traced list of operations, the same at all weights: only its constants are computed for each
    checkpoint. Otherwise, and for networks that cannot be traced, each call goes through the examples in parts that
    fit, with the activations computed again, once per call for all its vectors.

    Parameters
    ----------
    network : TorchNetwork
        The network, its loss and its data.
    weights : ndarray, (n_parameters,)
        Where.
    kind : str
        ``"hessian"``, ``"gauss_newton"`` or ``"fisher"``.
    """

    # The allocator keeps some arrays of the part before.
    _parts_share = 0.85

    def __init__(self, network: TorchNetwork, weights: np.ndarray, kind: CurvatureKind) -> None:
        super().__init__(network, kind)
        # Programs that no thread is running; each keeps its constants and its memory.
        self._idle: list[Programs] = []
        with torch_threads(network.threads), torch.enable_grad(), remedy():
            self._w = network._flat(weights)
            each = bytes_per_example(network, self._w)
            fits = self._fit(ARRAYS_HELD * each, ARRAYS_PER_VECTOR * each)
            if self._exact and fits:
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
        for share, x, y in self._held or []:
            traced = self._traced(x, y, size)
            if traced is None:
                self._held = None
                return None
            parts.append((share, traced.at(*self._fixed(x, y))))
        return Programs(size, parts)

    def _traced(self, x: torch.Tensor, y: torch.Tensor, size: int) -> Traced | None:
        # Traced once for all checkpoints; None where that fails.
        kept = self._network._traced
        key = (self._kind, size, tuple(x.shape), tuple(y.shape), tuple(self._network._given))
        with TRACING:
            if key not in kept:
                rows = torch.from_numpy(np.random.default_rng(0).standard_normal((size, len(self._w)))).to(
                    self._w.dtype
                )
                shared = (self._network._name, key)
                found = TRACES.get(shared)
                # Whoever copied the network may have changed it since.
                if found is None or not self._right(found, x, y, rows):
                    found = self._trace(x, y, rows)
                kept[key] = found
                if found is not None:
                    TRACES[shared] = found
                while len(TRACES) > MOST_TRACES:
                    del TRACES[next(iter(TRACES))]
        return kept[key]

    def _of_rows(self) -> Callable[..., torch.Tensor]:
        def of(w: torch.Tensor, x: torch.Tensor, y: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
            *buffers, rows = rest
            with _holding(self._network, buffers):
                return vmap(self._product(_forward, w, x, y))(rows)

        return of

    def _fixed(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        # What a trace has as arguments: buffers too, for they differ between checkpoints.
        return (self._w, x, y, *self._network._given.values())

    def _trace(self, x: torch.Tensor, y: torch.Tensor, rows: torch.Tensor) -> Traced | None:
        try:
            traced = Traced(self._of_rows(), self._fixed(x, y), rows)
        except UNTRACEABLE:
            return None
        return traced if self._right(traced, x, y, rows) else None

    def _right(self, traced: Traced, x: torch.Tensor, y: torch.Tensor, rows: torch.Tensor) -> bool:
        try:
            program = traced.at(*self._fixed(x, y))
            # The second call shows whether the first has changed what it needs.
            program(rows)
            found = program(rows)[:2]
        except UNTRACEABLE:
            return False
        return agree(found, self._of_rows()(*self._fixed(x, y), rows[:2]))

    def _plain(self) -> Iterator[tuple[float, Product]]:
        # The share of each part of the examples, and its product with the rows of a matrix.
        for share, x, y in self._parts():
            if self._exact:
                yield share, vmap(self._product(_forward, self._w, x, y))
            else:
                yield share, _one_by_one(self._product(_differenced, self._w, x, y))

    def _product(self, derive: Run, w: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> Product:
        network = self._network
        if self._kind == "hessian":
            return derive(lambda u: grad(network._data_loss)(u, x, y), w)[1]
        if self._kind == "gauss_newton":
            out, forward = derive(lambda u: network._outputs(u, x), w)
            # The loss as a function of the outputs is plain: its second derivative exists whatever the network's.
            curve = _forward(grad(lambda z: network.loss_fn(z, y)), out)[1]
            backward = vjp(lambda u: network._outputs(u, x), w)[1]
            return lambda v: backward(curve(forward(v)))[0]

        def losses(u: torch.Tensor) -> torch.Tensor:
            return vmap(lambda z, b: network.loss_fn(z[None], b[None]))(network._outputs(u, x), y)

        forward = derive(losses, w)[1]
        backward = vjp(losses, w)[1]
        scale = 1.0 / len(x) if network.reduction == "mean" else 1.0
        return lambda v: scale * backward(forward(v))[0]


def held_buffers(network: TorchNetwork) -> dict[str, torch.Tensor]:
    """Name the buffers at which a network is evaluated, other than its module's own."""
    held = _HELD.get()
    return network._given if held is None else held


@contextmanager
def _holding(network: TorchNetwork, buffers: list[torch.Tensor]) -> Iterator[None]:
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


def linearized(function: Callable[..., Any], at: torch.Tensor) -> tuple[torch.Tensor, Product]:
    """Linearise a function once.

    Parameters
    ----------
    function : callable
        Of one tensor.
    at : Tensor
        Where.

    Returns
    -------
    value : Tensor
        Its value.
    product : callable
        Its derivative times a vector.
    """
    with warnings.catch_warnings():
        # torch's constant folding warns about a graph node of its own making.
        warnings.filterwarnings("ignore", message="Attempted to insert a get_attr Node", category=UserWarning)
        return linearize(function, at)


def repeats(product: Product, plain: Product, at: torch.Tensor) -> bool:
    """Say whether a linearised product gives at its second call what plain forward mode gives.

    torch.func.linearize folds constants, and in-place operations on them (attention) change them at each call, so that
    the first product is right and later ones are not. It also keeps views, which fail on several vectors at once where
    a pooling layer has changed the strides.

    Parameters
    ----------
    product, plain : callable
        The two, on the rows of a matrix.
    at : Tensor, (n,)
        Where they were taken: length and precision of a row.

    Returns
    -------
    bool
    """
    rows = torch.from_numpy(np.random.default_rng(0).standard_normal((2, len(at)))).to(at.dtype)
    known = plain(rows)
    try:
        product(rows)
        return agree(product(rows), known)
    except RuntimeError:  # not the network's fault: plain forward mode could do it
        return False


def agree(found: torch.Tensor, known: torch.Tensor) -> bool:
    """Say whether two results are alike to half the digits.

    Parameters
    ----------
    found, known : Tensor
        Of one shape.

    Returns
    -------
    bool
    """
    off = torch.linalg.norm(found - known)
    return bool(off <= torch.finfo(known.dtype).eps ** 0.5 * torch.linalg.norm(known))


def derivative(function: Callable[..., Any], at: torch.Tensor) -> Product:
    """Give the derivative of a function on the rows of a matrix, linearised once where that can be trusted.

    Parameters
    ----------
    function : callable
        Of one tensor.
    at : Tensor, (n,)
        Where.

    Returns
    -------
    callable
        (k, n) to (k, ...).
    """
    held, plain = (vmap(derive(function, at)[1]) for derive in (linearized, _forward))
    return held if repeats(held, plain, at) else plain


def _forward(function: Callable[..., Any], at: torch.Tensor) -> tuple[torch.Tensor, Product]:
    # Under vmap over the vectors the primal is computed once for all of them.
    return function(at), lambda v: jvp(function, (at,), (v,))[1]


def _differenced(function: Callable[..., Any], at: torch.Tensor) -> tuple[torch.Tensor, Product]:
    # Central differences; the step balances rounding (eps / h) against the third derivative (h^2).
    size = torch.finfo(at.dtype).eps ** (1 / 3) * (1 + float(at.abs().max()))

    def product(v: torch.Tensor) -> torch.Tensor:
        largest = float(v.abs().max())
        if largest == 0:
            return torch.zeros_like(function(at))
        h = size / largest
        return (function(at + h * v) - function(at - h * v)) / (2 * h)

    return function(at), product


def _one_by_one(product: Product) -> Product:
    # Some fused kernels cannot be batched either.
    return lambda rows: torch.stack([product(v) for v in rows])


def bytes_per_example(network: TorchNetwork, w: torch.Tensor) -> int:
    """Measure what one more example adds to the activations saved for a gradient.

    Parameters
    ----------
    network : TorchNetwork
        The network.
    w : Tensor, (n_parameters,)
        Flat weights.

    Returns
    -------
    int
        At least 1.
    """
    totals = []
    for count in (1, 2):
        saved = 0

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal saved
            saved += tensor.numel() * tensor.element_size()
            return tensor

        x, y = network._examples(np.arange(min(count, network.n_examples)))
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            network._data_loss(w.clone().requires_grad_(), x, y)
        totals.append(saved)
    return max(totals[1] - totals[0], 1)


@contextmanager
def remedy() -> Iterator[None]:
    """Turn torch's errors about missing derivatives into one that says what to do.

    Yields
    ------
    None
        Runs the body.

    Raises
    ------
    UnsupportedError
        Where an operation has no forward-mode or second derivative.
    """
    try:
        yield
    except (RuntimeError, NotImplementedError) as error:
        text = str(error)
        if not any(word in text for word in ("forward AD", "not implemented", "does not support", "doesn't support")):
            raise
        msg = (
            f"torch cannot differentiate this network twice: {text.splitlines()[0][:200]} Attention: run it with "
            "torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH) in the module's forward. Anything "
            'else: TorchNetwork(..., products="finite_difference"), which needs gradients alone.'
        )
        raise UnsupportedError(msg) from error
