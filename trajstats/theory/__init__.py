"""Reference curves and reference glasses."""

from __future__ import annotations

import importlib
from types import ModuleType

_MODULES = ("glasses", "random_matrix")


def __getattr__(name: str) -> ModuleType:
    if name in _MODULES:
        return importlib.import_module(f"trajstats.theory.{name}")
    msg = f"module 'trajstats.theory' has no attribute {name!r}; modules: {', '.join(_MODULES)}"
    raise AttributeError(msg)
