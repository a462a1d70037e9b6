"""Copies of torch modules that can be evaluated with other weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch

from trajstats.errors import UnsupportedError


def own_copy(module: torch.nn.Module) -> torch.nn.Module:
    """Copy a module, without the wrappers that run it in parallel or compile it."""
    inner = unwrapped(module)
    # What the hooks of weight_norm and spectral_norm have computed hangs on the record; they compute it again.
    memo = {id(t): t.detach().clone() for part in inner.modules() for t in _computed(vars(part))}
    try:
        found = copy.deepcopy(inner, memo)
    except Exception as error:
        msg = (
            f"the module {type(inner).__name__} cannot be copied: {str(error).splitlines()[0][:200]} Take that object "
            "out of the module, or give the module a __deepcopy__."
        )
        raise UnsupportedError(msg) from error
    for part in found.modules():
        if isinstance(part, torch.nn.Embedding | torch.nn.EmbeddingBag):
            # A sparse gradient cannot be put into the flat vector; the numbers are the same.
            part.sparse = False
    for parent in list(found.modules()):
        for name, child in list(parent.named_children()):
            if unwrapped(child) is not child:
                setattr(parent, name, unwrapped(child))
    return found


def unwrapped(module: torch.nn.Module) -> torch.nn.Module:
    """Take the wrappers of torch off a module: DataParallel, DistributedDataParallel, torch.compile."""
    parallel = (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)
    while True:
        if isinstance(module, parallel):
            module = module.module
        elif isinstance(getattr(module, "_orig_mod", None), torch.nn.Module):
            module = module._orig_mod
        else:
            return module


def _computed(value: Any) -> Iterator[torch.Tensor]:
    # Tensors that came out of an operation on parameters.
    if isinstance(value, torch.Tensor):
        if not value.is_leaf:
            yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _computed(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _computed(part)
