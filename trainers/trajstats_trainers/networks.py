"""What the networks of every framework have in common: checked settings, sizes, batches of examples, one curvature."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

import numpy as np
from scipy.sparse.linalg import LinearOperator

from trajstats.data._arrays import to_numpy
from trajstats.errors import ArgumentError, SchemaError, unknown_name_message
from trajstats.network import CURVATURE_KINDS, CurvatureKind
from trajstats_trainers._normalisation import Counts, example_weights, given_weights

PRODUCTS = ("exact", "finite_difference")
REDUCTIONS = ("mean", "sum")
DTYPES = ("float32", "float64")
# Vectors of one batched product: enough to fill the matrix products; more would push the tangents out of cache.
VECTORS_PER_CALL = 16
# Arrays of the size of what is saved for a gradient that one vector needs on its way forward and back.
ARRAYS_PER_VECTOR = 3
# Arrays of the weights' size that one vector needs: itself, its copies, its product.
VECTORS_PER_VECTOR = 4


class FrameworkNetwork(ABC):
    """Settings, data and sizes of a network; what a framework adds is how to evaluate and to differentiate.

    Parameters
    ----------
    loss_fn : callable (outputs, targets) -> scalar
        Mean (or sum, see `reduction`) over the batch.
    data : (inputs, targets)
        Arrays whose first axis is the example.
    l2 : float
        The factor of the L2 term.
    reduction : str
        ``"mean"`` or ``"sum"``.
    dtype : str
        ``"float32"`` or ``"float64"``.
    batch_size : int
        Examples evaluated at once.
    memory : int
        Budget in bytes of a curvature product.
    products : str
        ``"exact"`` or ``"finite_difference"``.

    Attributes
    ----------
    example_weights : ndarray (n,) or None
        What each example counts in a mean, with mean 1; None where all count the same.

    Raises
    ------
    ArgumentError
        If `reduction`, `dtype` or `products` is not known, `batch_size` or `memory` is not positive, or inputs and
        targets differ in length.
    """

    _layers: Mapping[str, tuple[int, ...]]
    _buffers: Mapping[str, tuple[int, ...]]

    def __init__(
        self,
        loss_fn: Callable[[Any, Any], Any],
        data: tuple[Any, Any],
        *,
        l2: float,
        reduction: str,
        dtype: str,
        batch_size: int,
        memory: int,
        products: str,
    ) -> None:
        name = np.dtype(dtype).name
        for what, given, allowed in (
            ("reduction", reduction, REDUCTIONS),
            ("dtype", name, DTYPES),
            ("products", products, PRODUCTS),
        ):
            if given not in allowed:
                raise ArgumentError(unknown_name_message(what, given, allowed))
        for what, count in (("batch_size", batch_size), ("memory", memory)):
            if count < 1:
                msg = f"{what}={count}: give an integer of at least 1"
                raise ArgumentError(msg)
        if len(data[0]) != len(data[1]) or len(data[0]) == 0:
            msg = f"{len(data[0])} inputs and {len(data[1])} targets: give as many targets as inputs, at least one"
            raise ArgumentError(msg)
        self.dtype = np.dtype(dtype)
        self.loss_fn = loss_fn
        self.l2 = float(l2)
        self.reduction = reduction
        self.batch_size = int(batch_size)
        self.memory = int(memory)
        self.products = products
        self.example_weights: Counts = None
        # One entry, shared with the networks that `with_buffers` makes.
        self._latest: list[tuple[Any, LinearOperator]] = []
        # Buffers given by `with_buffers`, as arrays of the framework, and a hash of their values.
        self._given: dict[str, Any] = {}
        self._given_hash = 0
        self._inputs = self._cast(data[0])
        self._targets = self._cast(data[1])

    def _settle(self, weight: Any) -> None:
        # The last call of a constructor: the loss is tried on a few examples at once and in two parts.
        given = given_weights(weight, self._targets, self.n_examples, self.reduction)
        targets = np.asarray(self._targets)
        self.example_weights = example_weights(self._try, targets, given, self.reduction, self.dtype)

    def _counts(self, indices: np.ndarray) -> np.ndarray:
        return np.ones(len(indices)) if self.example_weights is None else self.example_weights[indices]

    @abstractmethod
    def _try(self, indices: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        """Evaluate the loss of some examples near the first weights; what all examples may count, as the loss shows."""

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_latest": []}

    @property
    def layers(self) -> Mapping[str, tuple[int, ...]]:
        """Name -> shape, in the order of the flat vector."""
        return self._layers

    @property
    def buffers(self) -> Mapping[str, tuple[int, ...]]:
        """Name -> shape of what is not trained and that checkpoints hold; `with_buffers` takes it."""
        return self._buffers

    @property
    def n_parameters(self) -> int:
        """Length of the flat vector."""
        return sum(math.prod(shape) for shape in self._layers.values())

    @property
    def n_examples(self) -> int:
        """Number of examples."""
        return len(self._inputs)

    @property
    def n_inputs(self) -> int:
        """Features of one example."""
        return math.prod(self._inputs.shape[1:])

    def curvature(self, weights: np.ndarray, kind: CurvatureKind = "hessian") -> LinearOperator:
        """Linearise at these weights; ``matmat(V)`` takes (n_parameters, k) in batched calls.

        ``hessian`` and ``gauss_newton`` hold the L2 term; ``fisher`` is the mean (or sum) over examples of g g^T with g
        the example gradients of the data's loss (the empirical Fisher). Rows and columns of frozen parameters are zero.
        """
        if kind not in CURVATURE_KINDS:
            raise ArgumentError(unknown_name_message("kind", kind, CURVATURE_KINDS))
        key = (kind, hash(np.asarray(weights).tobytes()), self._given_hash)
        latest = self._latest[0] if self._latest else None
        if latest is None or latest[0] != key:
            # One entry: the tasks of one checkpoint follow each other. Another thread may put its own there meanwhile.
            latest = (key, self._linearise(weights, kind))
            self._latest[:] = [latest]
        return latest[1]

    def with_buffers(self, buffers: Mapping[str, Any]) -> Self:
        """Give the same network with other values of some of its buffers; it shares everything else with this one."""
        arrays = {str(name): np.array(to_numpy(value)) for name, value in buffers.items()}
        for name, array in arrays.items():
            if name not in self._buffers:
                raise SchemaError(unknown_name_message("buffer", name, self._buffers))
            if array.shape != self._buffers[name]:
                msg = f"buffer {name!r} has shape {array.shape}; the network's has {self._buffers[name]}"
                raise SchemaError(msg)
        view = object.__new__(type(self))
        view.__dict__.update(self.__dict__)
        view._given = {**self._given, **{name: self._cast(array) for name, array in arrays.items()}}
        view._given_hash = hash((self._given_hash, *((name, array.tobytes()) for name, array in arrays.items())))
        return view

    def _jacobian(
        self, forward: Callable[[np.ndarray], np.ndarray], backward: Callable[[np.ndarray], np.ndarray]
    ) -> LinearOperator:
        # Products of the Jacobian at one input, and of its transpose, with the columns of a matrix.
        return LinearOperator(
            (self.n_outputs, self.n_inputs),
            matvec=lambda v: forward(v.reshape(-1, 1))[:, 0],
            rmatvec=lambda v: backward(v.reshape(-1, 1))[:, 0],
            matmat=forward,
            rmatmat=backward,
            dtype=self.dtype,
        )

    @property
    @abstractmethod
    def n_outputs(self) -> int:
        """Outputs of one example."""

    @abstractmethod
    def _linearise(self, weights: np.ndarray, kind: CurvatureKind) -> LinearOperator:
        """Give the curvature's operator."""

    @abstractmethod
    def _cast(self, array: Any) -> Any:
        """Give an array of the framework, floats in the network's precision."""

    @abstractmethod
    def _examples(self, indices: np.ndarray) -> tuple[Any, Any]:
        """Give some inputs and their targets."""

    def _checked(self, weights: Any) -> np.ndarray:
        weights = np.asarray(weights)
        if weights.shape != (self.n_parameters,):
            msg = (
                f"weights have shape {weights.shape}; this network has ({self.n_parameters},). Is it the run's network?"
            )
            raise SchemaError(msg)
        return np.array(weights, dtype=self.dtype)

    def _batches(self, indices: np.ndarray | None = None) -> Iterator[tuple[float, Any, Any]]:
        # The weight of each batch in the loss, its inputs and its targets.
        for share, part in self._divided(indices, self.batch_size):
            yield share, *self._examples(part)

    def _divided(self, indices: np.ndarray | None, size: int) -> Iterator[tuple[float, np.ndarray]]:
        # The weight of each batch in the loss, and its examples; those that count nothing are left out.
        chosen = np.arange(self.n_examples) if indices is None else np.asarray(indices)
        counts = self._counts(chosen)
        if not counts.all():
            chosen, counts = chosen[counts > 0], counts[counts > 0]
            if not len(chosen):
                msg = "none of the chosen examples counts in the loss (all their targets are ignored): choose others"
                raise ArgumentError(msg)
        for start in range(0, len(chosen), size):
            part = slice(start, start + size)
            share = counts[part].sum() / counts.sum() if self.reduction == "mean" else 1.0
            yield float(share), chosen[part]


class FrameworkCurvature(LinearOperator):
    """Curvature of a network at one weight vector: symmetric, with an L2 term, in parts that fit ``network.memory``.

    Parameters
    ----------
    network : FrameworkNetwork
        The network, its loss and its data.
    kind : str
        ``"hessian"``, ``"gauss_newton"`` or ``"fisher"``.
    """

    # Of the budget, for the arrays of one part of the examples.
    _parts_share = 1.0

    def __init__(self, network: Any, kind: CurvatureKind) -> None:
        n = network.n_parameters
        super().__init__(network.dtype, (n, n))
        self._network = network
        self._kind = kind
        self._shift = 2 * network.l2 if kind != "fisher" else 0.0
        self._exact = network.products == "exact"
        self._examples = network.batch_size
        # Vectors of one call.
        self._width = VECTORS_PER_CALL
        # Linearised once for all examples where their saved arrays fit.
        self._held: list[Any] | None = None

    def _fit(self, held: int, passing: int) -> bool:
        # `held` bytes are kept per example and `passing` needed per example and vector of a call. Says whether all
        # examples fit at once with a vector or more; otherwise how many examples do.
        memory, n = self._network.memory, self._network.n_examples
        vector = VECTORS_PER_VECTOR * self._network.n_parameters * self.dtype.itemsize
        self._width = min((memory - n * held) // (n * passing + vector), VECTORS_PER_CALL)
        if self._width >= 1:
            return True
        # Where the weights are many and the budget is small, fewer vectors, so that half is left for the examples.
        self._width = max(1, min(memory // (2 * vector), VECTORS_PER_CALL))
        memory = int(self._parts_share * memory)
        self._examples = max(1, (memory - self._width * vector) // (held + passing * self._width))
        return False

    def _parts(self) -> Iterator[tuple[float, Any, Any, np.ndarray]]:
        # The weight of each part, its inputs and targets, and what a Fisher matrix multiplies its gradients with.
        network = self._network
        each = network.n_examples**-0.5 if network.reduction == "mean" else 1.0
        for share, part in network._divided(None, min(self._examples, network.batch_size)):
            scale = (each * network._counts(part)).astype(self.dtype)
            yield share if self._kind != "fisher" else 1.0, *network._examples(part), scale

    def _matvec(self, v: np.ndarray) -> np.ndarray:
        return self._matmat(np.asarray(v).reshape(-1, 1))[:, 0]

    def _rmatvec(self, v: np.ndarray) -> np.ndarray:
        return self._matvec(v)
