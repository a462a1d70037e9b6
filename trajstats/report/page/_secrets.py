"""Keep secrets off a page: what is shown to others never holds a password, a token or a signed link."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trajstats.data.safety._credentials import HIDDEN, without_credentials

# Names under which people keep secrets; "key" alone would hide the names of layers and of random keys.
_SECRET_NAME = re.compile(
    r"passw|secret|credential|(^|[_-])token($|[_-]?(id|value)?$)|api[_-]?key|access[_-]?key|private[_-]?key|authoriz|"
    r"(^|[_-])auth($|[_-])|(^|[_-])(sas|bearer|cookie|session)($|[_-])|account[_-]?key",
    re.IGNORECASE,
)


def without_secrets(text: str) -> str:
    """Take user names, passwords, signatures and tokens out of a text."""
    text = without_credentials(text)
    home = str(Path.home())
    return text.replace(home + "/", "~/") if len(home) > 1 else text


def shown_attrs(attrs: Mapping[Any, Any]) -> dict[str, str]:
    """Word the attributes of a run for a page."""
    shown: dict[str, str] = {}
    for name, value in attrs.items():
        _show(str(name), value, shown)
    return shown


def _show(name: str, value: Any, shown: dict[str, str]) -> None:
    if isinstance(value, str) and value.lstrip()[:1] == "{":
        with contextlib.suppress(ValueError):
            value = json.loads(value)
    if _SECRET_NAME.search(name.rpartition(".")[2]):
        shown[name] = HIDDEN
    elif isinstance(value, Mapping) and value:
        for key, inner in value.items():
            _show(f"{name}.{key}", inner, shown)
    elif isinstance(value, list | tuple) and any(isinstance(inner, Mapping) for inner in value):
        for k, inner in enumerate(value):
            _show(f"{name}.{k}", inner, shown)
    else:
        shown[name] = without_secrets(str(value))
