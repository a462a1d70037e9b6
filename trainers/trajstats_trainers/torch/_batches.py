"""Derivatives of each example of a batch by itself, at once where torch can do that, else one by one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.func import grad, jacfwd, jacrev, vmap

from trajstats_trainers.torch._derivatives import Function, derive, first_right, gradient_of, transformable


def each_gradient(
    function: Callable[..., torch.Tensor], w: torch.Tensor, examples: tuple[torch.Tensor, ...], known: dict[Any, str]
) -> torch.Tensor:
    """Differentiate a scalar function of the weights and one example, for each example."""

    def at_once(*rows: torch.Tensor) -> torch.Tensor:
        return vmap(grad(function), in_dims=(None, *(0 for _ in rows)))(w, *rows)

    def alone(*row: torch.Tensor) -> torch.Tensor:
        return gradient_of(lambda u: function(u, *row), w)

    def one_by_one(*rows: torch.Tensor) -> torch.Tensor:
        return torch.stack([alone(*row) for row in zip(*rows, strict=True)])

    ways = {"at once": at_once, "one by one": one_by_one}
    if function.__name__ not in known:
        few = tuple(rows[:2] for rows in examples)
        tried = {name: (lambda way=way: lambda _: way(*few)) for name, way in ways.items()}
        known[function.__name__] = first_right(tried, w)
    return ways[known[function.__name__]](*examples)


def _itself(way: Function) -> Function:
    return way


def input_jacobians(function: Function, inputs: torch.Tensor, known: dict[Any, str]) -> torch.Tensor:
    """Differentiate the outputs (b, n_outputs) of a function of a batch by each example's own inputs."""

    def alone(x: torch.Tensor) -> torch.Tensor:
        return function(x[None])[0]

    def forward(x: torch.Tensor) -> torch.Tensor:
        return vmap(jacfwd(transformable(alone)))(x)

    def reverse(x: torch.Tensor) -> torch.Tensor:
        return vmap(jacrev(alone))(x)

    def recorded(x: torch.Tensor) -> torch.Tensor:
        point = x.detach().clone().requires_grad_()
        # An example's outputs depend on its own inputs alone: a sum over examples mixes nothing.
        return torch.stack([derive(column.sum(), point, None) for column in function(point).T], dim=1)

    n_outputs, n_inputs = function(inputs[:1]).shape[1], inputs[0].numel()
    ways = {"reverse": reverse, "recorded": recorded}
    if n_outputs > n_inputs:
        ways = {"forward": forward, **ways}
    if "input_jacobian" not in known:
        known["input_jacobian"] = first_right({name: partial(_itself, way) for name, way in ways.items()}, inputs[:2])
    return ways[known["input_jacobian"]](inputs)
