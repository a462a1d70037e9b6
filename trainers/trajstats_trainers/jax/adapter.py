"""JaxNetwork: the Network protocol for any JAX model."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.sparse.linalg import LinearOperator

from trajstats.errors import ArgumentError, UnsupportedError, unknown_name_message
from trajstats.network import CurvatureKind
from trajstats_trainers._pytrees import named_leaves
from trajstats_trainers.jax._curvature import JaxCurvature
from trajstats_trainers.jax._parameters import flat_order, unravel
from trajstats_trainers.networks import VECTORS_PER_CALL, FrameworkNetwork

# How many threads XLA starts on a CPU; read once, when JAX first computes. (In JAX 0.10 its flag
# xla_cpu_multi_thread_eigen changes nothing.)
THREADS_VARIABLE = "PJRT_NPROC"


# Buffers of the call that is being compiled.
_HELD: ContextVar[list[Any] | None] = ContextVar("held", default=None)


class JaxNetwork(FrameworkNetwork):
    r"""A JAX model, its loss and its data as a function of the flat weight vector.

    :math:`L(w)=\frac1n\sum_a\ell(f_w(x_a),y_a)+\lambda\sum_iw_i^2`.

    Parameters
    ----------
    apply_fn : callable (params, inputs) -> outputs (b, n_outputs)
        The model; (params, buffers, inputs) if `buffers` are given. If it has methods ``features`` and
        ``jacobian_factors`` of the same arguments, they are used.
    params : pytree of arrays
        Gives names (as the recorder does), shapes and order of the weights: depth first, mappings in their own order.
    loss_fn : callable (outputs, targets) -> scalar
        Mean (or sum, see `reduction`) over the batch.
    data : (inputs, targets)
        Arrays whose first axis is the example.
    buffers : pytree of arrays, optional
        What the model holds and does not train, such as flax's ``batch_stats``. Estimators give each checkpoint's own
        where the run holds them.
    l2 : float
        The factor :math:`\lambda` of the L2 term.
    reduction : str
        ``"mean"`` or ``"sum"``: what `loss_fn` does over the batch.
    weight : array (n,) or callable (targets) -> array (n,), optional
        What each example counts in the mean, if `loss_fn` averages over tokens that are not padding, or by class
        weights, instead of over examples: the loss of a batch is :math:`\sum_ac_a\ell_a/\sum_ac_a`. With it no result
        depends on `batch_size` or `memory`. Whether the loss of a few examples follows from
        those of two parts of them is checked when the network is made.
    dtype : str
        ``"float32"`` or ``"float64"``.
    batch_size : int
        Examples evaluated at once.
    memory : int
        Budget in bytes for the residuals and tangents of a curvature product.
    products : str
        How curvature products are made: ``"exact"`` by differentiating twice, ``"finite_difference"`` from gradients
        (relative error about 1e-9 in float64, 1e-4 in float32), for operations that cannot be differentiated twice.

    Raises
    ------
    ArgumentError
        If `reduction` or `dtype` is not known, inputs and targets differ in length, or the loss of a few examples does
        not follow from those of two parts of them.

    Examples
    --------
    >>> def apply_fn(params, x):
    ...     return x @ params["w"]
    >>> def loss_fn(outputs, targets):
    ...     return ((outputs - targets) ** 2).mean()
    >>> data = (np.eye(2, dtype="float32"), np.ones((2, 1), "float32"))
    >>> network = JaxNetwork(apply_fn, {"w": np.zeros((2, 1), "float32")}, loss_fn, data)
    >>> network.loss(np.zeros(2)), network.gradient(np.zeros(2)).tolist()
    (1.0, [-1.0, -1.0])
    """

    def __init__(
        self,
        apply_fn: Callable[..., Any],
        params: Any,
        loss_fn: Callable[[Any, Any], Any],
        data: tuple[Any, Any],
        *,
        buffers: Any = None,
        l2: float = 0.0,
        reduction: str = "mean",
        weight: Any = None,
        dtype: str = "float32",
        batch_size: int = 5_000,
        memory: int = 2**28,
        products: str = "exact",
    ) -> None:
        super().__init__(
            loss_fn,
            data,
            l2=l2,
            reduction=reduction,
            dtype=dtype,
            batch_size=batch_size,
            memory=memory,
            products=products,
        )
        self.apply_fn = apply_fn
        names, leaves, self._order, self._treedef = flat_order(params)
        self._layers = {name: tuple(np.shape(leaf)) for name, leaf in zip(names, leaves, strict=True)}
        state = {} if buffers is None else named_leaves(buffers)
        self._buffers = {name: tuple(np.shape(leaf)) for name, leaf in state.items()}
        self._state_order: Any = None
        self._state_treedef: Any = None
        if buffers is not None:
            self._state_order, self._state_treedef = flat_order(buffers)[2:]
        self._given = {name: self._cast(leaf) for name, leaf in state.items()}
        self._compiled: dict[Any, Any] = {}
        start = np.concatenate([np.ravel(leaf) for leaf in leaves]).astype(np.float64)
        # Nearby, where the outputs of different examples differ even if the weights given are all zero.
        size = 0.1 * (float(np.sqrt(np.mean(start**2))) or 1.0)
        self._start = start + size * np.random.default_rng(0).standard_normal(start.shape)
        self._settle(weight)
        del self._start

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_compiled": {}}

    def __reduce__(self) -> tuple[Any, ...]:
        # The call comes before the state, whose arrays may be JAX's own, is unpickled.
        return _arrived, (type(self),), self.__getstate__()

    @property
    def n_outputs(self) -> int:
        """Outputs of one example."""
        if "n_outputs" not in self._compiled:
            with self._precision():
                flat = jax.ShapeDtypeStruct((self.n_parameters,), self.dtype)
                one = jax.ShapeDtypeStruct((1, *self._inputs.shape[1:]), self._inputs.dtype)
                self._compiled["n_outputs"] = math.prod(jax.eval_shape(self._outputs, flat, one).shape[1:])
        return self._compiled["n_outputs"]

    def loss(self, weights: np.ndarray) -> float:
        """Evaluate the loss over the data set, in batches."""
        with self._precision():
            run = self._jit("loss", lambda w, x, y: self.loss_fn(self._outputs(w, x), y))
            w = self._flat(weights)
            total = sum(share * float(run(w, x, y)) for share, x, y in self._batches())
            return total + self.l2 * float(jnp.sum(w * w))

    def gradient(self, weights: np.ndarray, indices: np.ndarray | None = None) -> np.ndarray:
        """Differentiate the loss over all examples, or over those at `indices`: (n_parameters,)."""
        with self._precision():
            run = self._jit("gradient", jax.grad(lambda w, x, y: self.loss_fn(self._outputs(w, x), y)))
            w = self._flat(weights)
            total = sum(share * run(w, x, y) for share, x, y in self._batches(indices))
            return np.asarray(total + 2 * self.l2 * w)

    def example_gradients(self, weights: np.ndarray, indices: np.ndarray) -> np.ndarray:
        """Differentiate each example's share of the loss: (b, n_parameters), no L2 term; their mean is the gradient."""
        with self._precision():
            one = jax.grad(lambda w, x, y: self.loss_fn(self._outputs(w, x[None]), y[None]))
            run = self._jit("example_gradients", jax.vmap(one, in_axes=(None, 0, 0)))
            rows = np.asarray(indices)
            counts = self._counts(rows).astype(self.dtype)[:, None]
            # An example without a target that counts has no loss of its own.
            return np.where(counts > 0, np.asarray(run(self._flat(weights), *self._examples(rows))) * counts, 0)

    def outputs(self, weights: np.ndarray, inputs: np.ndarray) -> np.ndarray:
        """Evaluate the network: (b, n_outputs)."""
        with self._precision():
            out = self._jit("outputs", self._outputs)(self._flat(weights), self._cast(inputs))
            return np.asarray(out).reshape(len(inputs), -1)

    def output_jvp(self, weights: np.ndarray, inputs: np.ndarray, tangents: np.ndarray) -> np.ndarray:
        """Differentiate the outputs along weight directions (k, n_parameters): (k, b, n_outputs)."""
        with self._precision():

            def along(w: Any, v: Any, x: Any) -> Any:
                return jax.jvp(lambda u: self._outputs(u, x).reshape(x.shape[0], -1), (w,), (v,))[1]

            run = self._jit("output_jvp", jax.vmap(along, in_axes=(None, 0, None)))
            w, x = self._flat(weights), self._cast(inputs)
            rows = np.asarray(tangents, dtype=self.dtype)
            parts = [rows[a : a + VECTORS_PER_CALL] for a in range(0, len(rows), VECTORS_PER_CALL)]
            return np.concatenate([np.asarray(run(w, part, x)) for part in parts])

    def output_vjp(self, weights: np.ndarray, inputs: np.ndarray, cotangents: np.ndarray) -> np.ndarray:
        """Differentiate c_a . f(x_a) with respect to the weights, cotangents c (b, n_outputs): (b, n_parameters)."""
        with self._precision():
            one = jax.grad(lambda w, x, c: self._outputs(w, x[None]).reshape(-1) @ c)
            run = self._jit("output_vjp", jax.vmap(one, in_axes=(None, 0, 0)))
            cast = np.asarray(cotangents, dtype=self.dtype)
            return np.asarray(run(self._flat(weights), self._cast(inputs), cast))

    def features(self, weights: np.ndarray, inputs: np.ndarray, layer: str) -> np.ndarray:
        """Evaluate the activations of a named layer: (b, width)."""
        found = getattr(self.apply_fn, "features", None)
        if found is None:
            msg = "this apply_fn has no features(params, inputs) -> {name: activations}; give it one (see JaxMLP)"
            raise UnsupportedError(msg)
        with self._precision():
            run = self._jit("features", lambda w, x: found(*self._model(w), x))
            named = run(self._flat(weights), self._cast(inputs))
            if layer not in named:
                raise ArgumentError(unknown_name_message("layer", layer, named))
            return np.asarray(named[layer]).reshape(len(inputs), -1)

    def input_jacobian(self, weights: np.ndarray, inputs: np.ndarray) -> np.ndarray:
        """Differentiate outputs with respect to inputs: (b, n_outputs, n_inputs)."""
        derive = jax.jacrev if self.n_outputs <= self.n_inputs else jax.jacfwd
        with self._precision():
            one = derive(lambda x, w: self._outputs(w, x[None])[0].reshape(-1))
            run = self._jit("input_jacobian", jax.vmap(one, in_axes=(0, None)))
            return np.asarray(run(self._cast(inputs), self._flat(weights))).reshape(
                len(inputs), self.n_outputs, self.n_inputs
            )

    def jacobian_operator(self, weights: np.ndarray, point: np.ndarray) -> LinearOperator:
        """Apply the Jacobian at one input, and its transpose, without forming it: (n_outputs, n_inputs)."""
        with self._precision():
            w, x = self._flat(weights), self._cast(point)

        def of(x: Any, w: Any) -> Any:
            return self._outputs(w, x[None])[0].reshape(-1)

        def forward(w: Any, x: Any, v: Any) -> Any:
            return jax.jvp(lambda y: of(y, w), (x,), (v.reshape(x.shape),))[1]

        def backward(w: Any, x: Any, v: Any) -> Any:
            return jax.vjp(lambda y: of(y, w), x)[1](v)[0].reshape(-1)

        def applied(name: str, function: Callable[..., Any]) -> Callable[[np.ndarray], np.ndarray]:
            def call(columns: np.ndarray) -> np.ndarray:
                with self._precision():
                    run = self._jit(name, jax.vmap(function, in_axes=(None, None, 1), out_axes=1))
                    return np.asarray(run(w, x, np.asarray(columns, dtype=self.dtype)))

            return call

        return self._jacobian(applied("jacobian_jvp", forward), applied("jacobian_vjp", backward))

    def jacobian_factors(self, weights: np.ndarray, inputs: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """Pairs D_l (b, width), W_l, first layer first."""
        found = getattr(self.apply_fn, "jacobian_factors", None)
        if found is None:
            msg = (
                "this apply_fn has no jacobian_factors(params, inputs); use input_jacobian, or give it one (see JaxMLP)"
            )
            raise UnsupportedError(msg)
        with self._precision():
            run = self._jit("jacobian_factors", lambda w, x: found(*self._model(w), x))
            pairs = run(self._flat(weights), self._cast(inputs))
            return [(np.asarray(d), np.asarray(matrix)) for d, matrix in pairs]

    def _linearise(self, weights: np.ndarray, kind: CurvatureKind) -> LinearOperator:
        return JaxCurvature(self, weights, kind)

    def _cast(self, array: Any) -> np.ndarray:
        array = np.asarray(array)
        return array.astype(self.dtype) if np.issubdtype(array.dtype, np.floating) else array

    @contextmanager
    def _precision(self) -> Iterator[None]:
        with jax.enable_x64(self.dtype == np.float64):
            yield

    def _jit(self, name: Any, function: Callable[..., Any]) -> Any:
        # Buffers are an argument of what is compiled, for they differ between checkpoints.
        if name not in self._compiled:

            def at(buffers: list[Any], *given: Any) -> Any:
                before = _HELD.set(buffers)
                try:
                    return function(*given)
                finally:
                    _HELD.reset(before)

            self._compiled[name] = jax.jit(at)
        return functools.partial(self._compiled[name], list(self._given.values()))

    def _flat(self, weights: Any) -> Any:
        return jnp.asarray(self._checked(weights))

    def _params(self, w: Any) -> Any:
        return unravel(w, list(self._layers.values()), self._order, self._treedef)

    def _model(self, w: Any) -> tuple[Any, ...]:
        # The model's arguments before the inputs.
        if self._state_order is None:
            return (self._params(w),)
        held = _HELD.get()
        leaves = list(self._given.values()) if held is None else held
        return self._params(w), jax.tree_util.tree_unflatten(
            self._state_treedef, [leaves[k] for k in self._state_order]
        )

    def _outputs(self, w: Any, x: Any) -> Any:
        return self.apply_fn(*self._model(w), x)

    def _try(self, indices: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        with self._precision():
            x, y = self._examples(indices)
            return np.asarray(self.loss_fn(self._outputs(self._flat(self._start), x), y)), []

    def _examples(self, indices: np.ndarray) -> tuple[Any, Any]:
        return jnp.asarray(self._inputs[indices]), jnp.asarray(self._targets[indices])


def cross_entropy(outputs: Any, targets: Any) -> Any:
    """Mean cross-entropy of logits (b, n_classes) against class labels (b,), in nats.

    Parameters
    ----------
    outputs : array, (b, n_classes)
        Logits.
    targets : array of int, (b,)
        Class labels.

    Returns
    -------
    scalar array
    """
    logp = jax.nn.log_softmax(outputs)
    return -jnp.mean(jnp.take_along_axis(logp, targets[:, None], axis=1))


def accuracy(outputs: Any, targets: Any) -> Any:
    """Share of examples whose largest logit is the label's.

    Parameters
    ----------
    outputs : array, (b, n_classes)
        Logits.
    targets : array of int, (b,)
        Class labels.

    Returns
    -------
    scalar array
    """
    return jnp.mean(jnp.argmax(outputs, axis=1) == targets)


def _arrived(kind: type[JaxNetwork]) -> JaxNetwork:
    # Unpickled, so in a worker process: one thread per task is what the workers are for. The environment is as it was
    # again before anything else sees it.
    if THREADS_VARIABLE not in os.environ:
        os.environ[THREADS_VARIABLE] = "1"
        try:
            jax.devices()
        finally:
            del os.environ[THREADS_VARIABLE]
    return kind.__new__(kind)
