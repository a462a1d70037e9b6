"""Names: natural order, and names of weights without their wrappers."""

from __future__ import annotations

import re
from collections.abc import Iterable


def natural_key(name: object) -> list[tuple[int, int, str]]:
    """Make a sort key that counts: ``step9`` before ``step10``."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"([0-9]+)", str(name)) if part]


# What training code and checkpoint files put in front of the names of all weights, and what wrappers around submodules
# put between their parts (compilation, sharding, recomputed activations).
WRAPPERS = (
    "module",
    "model",
    "net",
    "network",
    "params",
    "weights",
    "batch_stats",
    "state_dict",
    "model_state_dict",
    "base_model",
)
INNER_WRAPPERS = ("_orig_mod", "_forward_module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
_PYTREE_KEY = re.compile(r"""\[(?:'([^']*)'|"([^"]*)"|(?:<flat index )?([0-9]+)>?)\]""")


def plain_name(name: str) -> str:
    """Take wrappers out of the name of a weight, so that the names of one weight in two programs can be compared."""
    name = _PYTREE_KEY.sub(lambda key: "." + next(part for part in key.groups() if part is not None), str(name))
    parts = [part for part in name.replace("/", ".").split(".") if part and part not in INNER_WRAPPERS]
    start = 0
    while start < len(parts) - 1 and parts[start] in WRAPPERS:
        start += 1
    return ".".join(parts[start:]) or name


def without_wrappers(names: Iterable[str]) -> dict[str, str]:
    """Take wrappers out of the names of all tensors of one checkpoint."""
    names = list(names)
    parts = [[part for part in name.split(".") if part not in INNER_WRAPPERS] for name in names]
    while parts and all(len(p) > 1 and p[0] == "module" for p in parts):
        parts = [p[1:] for p in parts]
    short = [".".join(p) or name for p, name in zip(parts, names, strict=True)]
    return dict(zip(names, short if len(set(short)) == len(names) else names, strict=True))
