"""Losses of torch: their precision, and what each example counts in them."""

from __future__ import annotations

import copy
import functools
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode


class SeenLosses(TorchFunctionMode):
    """Note the averages over class labels that a loss takes while it is evaluated, whatever function calls them."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: list[tuple[torch.Tensor, torch.Tensor | None, int]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note the arguments of a mean cross-entropy or NLL loss."""
        if func in (torch.nn.functional.cross_entropy, torch.nn.functional.nll_loss):
            names = ("input", "target", "weight", "size_average", "ignore_index", "reduce", "reduction")
            given = dict(zip(names, args, strict=False)) | (kwargs or {})
            if given.get("reduction", "mean") == "mean" and not given["target"].is_floating_point():
                self._calls.append((given["target"], given.get("weight"), given.get("ignore_index", -100)))
        return func(*args, **(kwargs or {}))

    def counts(self, targets: torch.Tensor, few: int) -> list[np.ndarray]:
        """Give what each of all examples counts, one array per way in which the loss may have used the targets."""
        found = []
        for seen, weight, ignored in self._calls:
            for used in (targets, targets[:, 1:] if targets.ndim > 1 else targets):
                # As they are, or the next tokens of a sequence.
                if used[:few].numel() == seen.numel() or targets[:few].numel() == seen.numel():
                    labels = used.reshape(len(used), -1)
                    counted = labels != ignored
                    if weight is not None:
                        counted = counted * weight[labels.clamp(0, len(weight) - 1)]
                    found.append(counted.double().sum(dim=1).numpy())
        return found


def own_loss(loss_fn: Any, dtype: torch.dtype) -> Any:
    """Give a loss whose own tensors, such as class weights, have the network's precision."""
    if isinstance(loss_fn, torch.nn.Module):
        return copy.deepcopy(loss_fn).to("cpu", dtype).requires_grad_(False)
    if isinstance(loss_fn, functools.partial):
        args, named = [_cast(a, dtype) for a in loss_fn.args], {k: _cast(a, dtype) for k, a in loss_fn.keywords.items()}
        return functools.partial(own_loss(loss_fn.func, dtype), *args, **named)
    return loss_fn


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value
