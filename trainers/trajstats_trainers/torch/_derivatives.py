"""Derivatives of functions of one tensor in several ways: the fastest first, and the one that serves all last."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.func import grad, jvp, linearize, vjp, vmap
from torch.overrides import TorchFunctionMode

try:
    from torch.utils._python_dispatch import TorchDispatchMode
except ImportError:  # a private part of torch, which may move: then nothing is transformed, and all is recorded

    class TorchDispatchMode:  # type: ignore[no-redef]
        """Raises where it is used."""


Function = Callable[[torch.Tensor], torch.Tensor]
Product = Callable[[torch.Tensor], torch.Tensor]


class Unfused(TorchFunctionMode):
    """Evaluate fused operations by plain ones: they have no second derivative, or one that is wrong."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replace attention and weight normalisation."""
        return PLAIN.get(func, func)(*args, **(kwargs or {}))


def _attention(query: Any, key: Any, value: Any, attn_mask: Any = None, *rest: Any, **named: Any) -> Any:
    plain = getattr(torch.ops.aten, "_scaled_dot_product_attention_math", None)
    if plain is None:  # a private part of torch, which may go
        return torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask, *rest, **named)
    given = dict(zip(("dropout_p", "is_causal", "scale", "enable_gqa"), rest, strict=False)) | named
    return plain(query, key, value, attn_mask, **given)[0]


def _weight_norm(v: torch.Tensor, g: torch.Tensor, dim: int = 0) -> torch.Tensor:
    # In torch's own second derivative the norm counts as a constant.
    others = [axis for axis in range(v.ndim) if axis != dim % v.ndim] if dim != -1 else list(range(v.ndim))
    return v * (g / torch.linalg.vector_norm(v, dim=others, keepdim=True))


def _multi_head_attention(*args: Any, need_weights: bool = True, **named: Any) -> Any:
    # Where the weights of attention are wanted, torch computes them without a fused kernel.
    out, weights = torch.nn.functional.multi_head_attention_forward(*args, need_weights=True, **named)
    return out, weights if need_weights else None


PLAIN: dict[Any, Callable[..., Any]] = {
    torch.nn.functional.multi_head_attention_forward: _multi_head_attention,
    torch.nn.functional.scaled_dot_product_attention: _attention,
    getattr(torch, "_weight_norm", None): _weight_norm,
}


class RealZeros(TorchDispatchMode):
    """Make zeros that have memory where forward mode makes symbolic ones.

    A traced operation that is composed of others reads the missing memory of a symbolic zero and ends the process; an
    operation that changes one in place raises an error (the second derivative of ``mse_loss`` does both).
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replace the symbolic zero by an array."""
        if func is torch.ops.aten._efficientzerotensor.default:
            func = torch.ops.aten.zeros.default
        return func(*args, **(kwargs or {}))


def transformable(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function so that it can be differentiated in forward mode and traced, in this thread alone."""

    def wrapped(*given: Any) -> Any:
        with RealZeros(), Unfused():
            return function(*given)

    return wrapped


def unfused(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function so that it can be differentiated twice, in this thread alone."""

    def wrapped(*given: Any) -> Any:
        with Unfused():
            return function(*given)

    return wrapped


class Forward:
    """Forward mode over reverse mode, for many vectors at once."""

    @staticmethod
    def along(function: Function, at: torch.Tensor) -> tuple[torch.Tensor, Product]:
        """Give the value and the product of the derivative J with a vector."""
        # Under vmap over the vectors the primal is computed once for all of them.
        function = transformable(function)
        return function(at), lambda v: jvp(function, (at,), (v,))[1]

    @staticmethod
    def back(function: Function, at: torch.Tensor) -> Product:
        """Give the product of J^T with a vector."""
        pull = vjp(transformable(function), at)[1]
        return lambda c: pull(c)[0]

    @classmethod
    def second(cls, function: Function, at: torch.Tensor) -> Product:
        """Give the product of a scalar function's second derivative with a vector."""
        return cls.along(grad(function), at)[1]

    @staticmethod
    def rows(product: Product) -> Product:
        """Apply a product to the rows of a matrix."""
        return vmap(product)


class Reverse(Forward):
    """Reverse mode over reverse mode, for many vectors at once: more operations can be differentiated so."""

    @staticmethod
    def along(function: Function, at: torch.Tensor) -> tuple[torch.Tensor, Product]:
        """Give the value and the product of J with a vector: the derivative of J^T c by c, transposed."""
        value, pull = vjp(transformable(function), at)
        turned = vjp(lambda c: pull(c)[0], torch.zeros_like(value))[1]
        return value, lambda v: turned(v)[0]

    @classmethod
    def second(cls, function: Function, at: torch.Tensor) -> Product:
        """Give the product of a scalar function's second derivative, which is symmetric, with a vector."""
        return cls.back(grad(function), at)


class Recorded(Forward):
    """Reverse mode over reverse mode on torch's own record, one vector at a time: for all that has a second one.

    Functions that cannot be transformed (custom ones of the old form, cells that change arrays in place) are served.
    """

    @staticmethod
    def along(function: Function, at: torch.Tensor) -> tuple[torch.Tensor, Product]:
        """Give the value and the product of J with a vector."""
        point = at.detach().clone().requires_grad_()
        value = unfused(function)(point)
        _check_second(value)
        cotangent = torch.zeros_like(value, requires_grad=True)
        pulled = derive(value, point, cotangent, create_graph=True)
        return value.detach(), lambda v: derive(pulled, cotangent, v).detach()

    @staticmethod
    def back(function: Function, at: torch.Tensor) -> Product:
        """Give the product of J^T with a vector."""
        point = at.detach().clone().requires_grad_()
        value = unfused(function)(point)
        return lambda c: derive(value, point, c).detach()

    @classmethod
    def second(cls, function: Function, at: torch.Tensor) -> Product:
        """Give the product of a scalar function's second derivative with a vector."""
        point = at.detach().clone().requires_grad_()
        value = unfused(function)(point)
        _check_second(value)
        slope = derive(value, point, None, create_graph=True)
        return lambda v: derive(slope, point, v).detach()

    @staticmethod
    def rows(product: Product) -> Product:
        """Apply a product to one row after the other."""
        return lambda rows: torch.stack([product(v) for v in rows])


WAYS: Mapping[str, type[Forward]] = {"forward": Forward, "reverse": Reverse, "recorded": Recorded}


def derive(value: torch.Tensor, point: torch.Tensor, cotangent: Any, create_graph: bool = False) -> torch.Tensor:
    """Pull a cotangent back to a point; zeros where the value does not depend on it."""
    if not value.requires_grad:
        return torch.zeros_like(point)
    (found,) = torch.autograd.grad(
        value, point, cotangent, create_graph=create_graph, retain_graph=True, materialize_grads=True
    )
    return found.to_dense() if found.is_sparse else found


def _check_second(value: torch.Tensor) -> None:
    # torch leaves the second derivative of such functions out without a word where it is asked for certain inputs.
    seen: set[Any] = set()
    nodes = [value.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        nodes.extend(following for following, _ in node.next_functions)
        custom = getattr(type(node), "_forward_cls", None)
        code = getattr(getattr(custom, "backward", None), "__code__", None)
        if custom is not None and code is not None and code.co_filename == torch.autograd.function.__file__:
            msg = f"{custom.__name__}.backward is marked once_differentiable: it has no second derivative."
            raise NotImplementedError(msg)


def gradient_of(function: Function, at: torch.Tensor) -> torch.Tensor:
    """Differentiate a scalar function once on torch's own record, which serves every module."""
    point = at.detach().clone().requires_grad_()
    with torch.enable_grad():
        return derive(function(point), point, None).detach()


def first_right(ways: Mapping[str, Callable[[], Product]], rows: torch.Tensor) -> str:
    """Find the first way whose product, at its second call too, equals that of the last one."""
    *fast, last = ways
    known: torch.Tensor | None = None
    cause: Exception | None = None
    try:
        known = ways[last]()(rows)
    except Exception as error:
        cause = error
    for name in fast:
        try:
            product = ways[name]()
            product(rows)
            # The second call shows whether the first has changed what it needs.
            found = product(rows)
        except Exception:
            continue
        if known is None or agree(found, known):
            return name
    if cause is not None:
        raise cause
    return last


def agree(found: torch.Tensor, known: torch.Tensor) -> bool:
    """Say whether two results are alike to half the digits."""
    off = torch.linalg.norm(found - known)
    return bool(off <= torch.finfo(known.dtype).eps ** 0.5 * torch.linalg.norm(known))


def linearized(function: Function, at: torch.Tensor) -> tuple[torch.Tensor, Product]:
    """Linearise a function once.

    torch.func.linearize folds constants, and in-place operations on them (attention) change them at each call, so that
    the first product is right and later ones are not. It also keeps views, which fail on several vectors at once where
    a pooling layer has changed the strides. `first_right` finds both out.
    """
    with warnings.catch_warnings():
        # torch's constant folding warns about a graph node of its own making.
        warnings.filterwarnings("ignore", message="Attempted to insert a get_attr Node", category=UserWarning)
        return linearize(transformable(function), at)


def _along_rows(way: type[Forward], function: Function, at: torch.Tensor) -> Product:
    return way.rows(way.along(function, at)[1])


def _back_rows(way: type[Forward], function: Function, at: torch.Tensor) -> Product:
    return way.rows(way.back(function, at))


def derivative(function: Function, at: torch.Tensor) -> Product:
    """Give the derivative of a function on the rows of a matrix, in the fastest way that is right."""
    ways: dict[str, Callable[[], Product]] = {
        "linearized": lambda: vmap(linearized(function, at)[1]),
        **{name: partial(_along_rows, way, function, at) for name, way in WAYS.items()},
    }
    return ways[first_right(ways, some_rows(2, at))]()


def transposed(function: Function, at: torch.Tensor) -> Product:
    """Give the transposed derivative of a function on the rows of a matrix, in the fastest way that is right."""
    ways: dict[str, Callable[[], Product]] = {
        name: partial(_back_rows, way, function, at) for name, way in WAYS.items() if name != "reverse"
    }
    with torch.no_grad():
        value = function(at)
    return ways[first_right(ways, some_rows(2, value))]()


def some_rows(count: int, like: torch.Tensor) -> torch.Tensor:
    """Draw vectors to try a product on, the same ones each time."""
    drawn = np.random.default_rng(0).standard_normal((count, *like.shape))
    return torch.from_numpy(drawn).to(like.dtype)
