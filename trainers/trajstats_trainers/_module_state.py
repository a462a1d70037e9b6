"""What a torch module trains and what it only keeps, told apart by the module itself; no framework is imported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def is_module(source: Any) -> bool:
    """Tell whether an object names its parameters and buffers as a torch module does."""
    return all(hasattr(source, name) for name in ("named_parameters", "named_buffers", "state_dict"))


def module_parameters(module: Any) -> dict[str, Any]:
    """List the parameters of a module by name, tied ones once."""
    return dict(module.named_parameters())


def module_buffers(module: Any) -> dict[str, Any]:
    """List the buffers of a module that a checkpoint of it holds, shared ones once."""
    kept = module.state_dict()
    return {name: value for name, value in module.named_buffers() if name in kept}


def split_state(
    state: Mapping[str, Any], layers: Mapping[str, Any], buffers: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split a state dict into layers and buffers by the names a run was opened with.

    Second names of a tied tensor are left out; whatever else is not known stays among the layers, whose writer refuses
    it by name.
    """
    held = {name: value for name, value in state.items() if name in buffers}
    known = {_place(state[name]) for name in (*layers, *buffers) if name in state} - {None}
    trained = {
        name: value
        for name, value in state.items()
        if name not in held and (name in layers or _place(value) not in known)
    }
    return trained, held


def _place(value: Any) -> tuple[Any, ...] | None:
    """Say where a tensor lies in memory; None where that is not known."""
    if not hasattr(value, "data_ptr") or not value.numel():
        return None
    return (str(value.device), value.data_ptr(), tuple(value.shape), tuple(value.stride()))
