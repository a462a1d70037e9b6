"""Products of the loss curvature of a JAX network with many vectors at once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from trajstats.errors import UnsupportedError
from trajstats.network import CurvatureKind
from trajstats_trainers.networks import ARRAYS_PER_VECTOR, FrameworkCurvature


class JaxCurvature(FrameworkCurvature):
    """Curvature at one weight vector, linearised once if the residuals of all examples fit in ``network.memory``.

    The weights are an argument of the compiled functions and the linearised function is a value between them, so one
    compilation serves every checkpoint. Where the residuals do not fit, each call linearises one part of the examples
    after the other.
    """

    def __init__(self, network: Any, weights: np.ndarray, kind: CurvatureKind) -> None:
        super().__init__(network, kind)
        with network._precision(), remedy():
            self._w = network._flat(weights)
            if self._exact:
                self._linearise = network._jit(("linearise", kind), _linearised(network, kind))
                # A function of this network alone: JAX keeps what it compiled as long as the function lives.
                self._apply_to = network._jit(("apply", kind), lambda *given: _applied(*given))
                each = self._bytes_per_example()
                if self._fit(each, ARRAYS_PER_VECTOR * each):
                    self._held = [(share, self._linearise(self._w, *part)) for share, *part in self._parts()]

    def _bytes_per_example(self) -> int:
        totals = []
        for count in (1, 2):
            x, y = self._network._examples(np.arange(min(count, self._network.n_examples)))
            scale = np.ones(len(x), self.dtype)
            shapes = jax.tree_util.tree_leaves(jax.eval_shape(self._linearise, self._w, x, y, scale))
            totals.append(sum(leaf.size * leaf.dtype.itemsize for leaf in shapes))
        return max(totals[1] - totals[0], 1)

    def _matmat(self, vectors: np.ndarray) -> np.ndarray:
        rows = np.ascontiguousarray(np.asarray(vectors).T, dtype=self.dtype)
        with self._network._precision(), remedy():
            # XLA takes the rows where they are, and gives its array without a copy.
            parts = [rows[start : start + self._width] for start in range(0, len(rows), self._width)]
            done = [np.asarray(self._added(part)) for part in parts]
            return (done[0] if len(done) == 1 else np.concatenate(done)).T

    def _added(self, rows: np.ndarray) -> Any:
        # The L2 term goes with the first part of the examples.
        total, shift = None, self._shift
        for share, product in self._products():
            term = product(rows, share, shift)
            # JAX takes the memory of all that is asked of it at once: one part is done and gone before the next.
            del product
            total, shift = jax.block_until_ready(term if total is None else total + term), 0.0
        return total

    def _products(self) -> Iterator[tuple[float, Callable[..., Any]]]:
        if self._held is not None:
            for share, maps in self._held:
                yield share, functools.partial(self._apply_to, maps)
        elif self._exact:
            for share, *part in self._parts():
                yield share, functools.partial(self._apply_to, self._linearise(self._w, *part))
        else:
            differenced = self._network._jit(("difference", self._kind), _differenced(self._network, self._kind))
            for share, *part in self._parts():
                yield share, functools.partial(differenced, self._w, *part)


def _applied(maps: tuple[Any, ...], rows: Any, share: float, shift: float) -> Any:
    return share * jax.vmap(_chain(maps))(rows) + shift * rows


def _differenced(network: Any, kind: CurvatureKind) -> Callable[..., Any]:
    # Products with the rows of a matrix, one after the other: some fused kernels cannot be batched either.
    def product(w: Any, v: Any, x: Any, y: Any, scale: Any) -> Any:
        if kind == "hessian":
            return _central(lambda u: jax.grad(_data_loss(network))(u, x, y), w, v)
        if kind == "gauss_newton":
            along = _central(lambda u: network._outputs(u, x), w, v)
            out, pull = jax.vjp(lambda u: network._outputs(u, x), w)
            return pull(jax.jvp(jax.grad(lambda z: network.loss_fn(z, y)), (out,), (along,))[1])[0]
        losses = _losses(network, x, y, scale)
        return jax.vjp(losses, w)[1](_central(losses, w, v))[0]

    def of_rows(w: Any, x: Any, y: Any, scale: Any, rows: Any, share: float, shift: float) -> Any:
        return jax.lax.map(lambda v: share * product(w, v, x, y, scale) + shift * v, rows)

    return of_rows


def _data_loss(network: Any) -> Callable[..., Any]:
    return lambda w, x, y: network.loss_fn(network._outputs(w, x), y)


def _losses(network: Any, x: Any, y: Any, scale: Any) -> Callable[[Any], Any]:
    return lambda u: scale * jax.vmap(lambda z, b: network.loss_fn(z[None], b[None]))(network._outputs(u, x), y)


def _linearised(network: Any, kind: CurvatureKind) -> Callable[..., tuple[Any, ...]]:
    # Gives linear maps, to be applied one after the other; they are pytrees, so that they pass between jitted calls.
    def hessian(w: Any, x: Any, y: Any, scale: Any) -> tuple[Any, ...]:
        return (jax.linearize(lambda u: jax.grad(_data_loss(network))(u, x, y), w)[1],)

    def gauss_newton(w: Any, x: Any, y: Any, scale: Any) -> tuple[Any, ...]:
        out, forward = jax.linearize(lambda u: network._outputs(u, x), w)
        curve = jax.linearize(jax.grad(lambda z: network.loss_fn(z, y)), out)[1]
        return forward, curve, jax.vjp(lambda u: network._outputs(u, x), w)[1]

    def fisher(w: Any, x: Any, y: Any, scale: Any) -> tuple[Any, ...]:
        losses = _losses(network, x, y, scale)
        return jax.linearize(losses, w)[1], jax.vjp(losses, w)[1]

    return {"hessian": hessian, "gauss_newton": gauss_newton, "fisher": fisher}[kind]


def _chain(maps: tuple[Any, ...]) -> Callable[[Any], Any]:
    def apply(v: Any) -> Any:
        for linear in maps:
            v = linear(v)
        # A pulled-back vector comes as a tuple of one.
        return v[0] if isinstance(v, tuple) else v

    return apply


def _central(function: Callable[[Any], Any], at: Any, v: Any) -> Any:
    # Central differences; the step balances rounding (eps / h) against the third derivative (h^2).
    largest = jnp.abs(v).max()
    size = jnp.finfo(at.dtype).eps ** (1 / 3) * (1 + jnp.abs(at).max())
    h = size / jnp.where(largest > 0, largest, 1)
    # along nothing the two evaluations may still differ by rounding
    return jnp.where(largest > 0, (function(at + h * v) - function(at - h * v)) / (2 * h), 0)


@contextmanager
def remedy() -> Iterator[None]:
    """Turn JAX's errors about missing derivatives into one that says what to do."""
    try:
        yield
    except (TypeError, NotImplementedError, ValueError) as error:
        text = str(error)
        if not any(word in text for word in ("forward-mode", "jvp", "Differentiation rule", "not differentiable")):
            raise
        msg = (
            f"JAX cannot differentiate this network twice: {text.splitlines()[0][:200]} Use an operation with a jvp "
            "rule (custom_jvp in place of custom_vjp, plain attention in place of a fused kernel), or "
            'JaxNetwork(..., products="finite_difference"), which needs gradients alone.'
        )
        raise UnsupportedError(msg) from error
