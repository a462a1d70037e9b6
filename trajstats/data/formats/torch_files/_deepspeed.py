"""Files of DeepSpeed that hold a part of a model say so in their numbers; a part is refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trajstats.data.formats.torch_files._names import View
from trajstats.data.safety._budget import shorten
from trajstats.errors import UnsupportedError

ZERO = (
    "Put them together with the script that DeepSpeed wrote into the folder above: python zero_to_fp32.py . "
    "pytorch_model.bin, and ingest its output"
)


def check_whole(where: str, tree: Any) -> None:
    """Refuse the model states of one rank of several, and those of ZeRO-3, whose tensors are cut into pieces."""
    if not isinstance(tree, Mapping) or not isinstance(tree.get("module"), Mapping) or "ds_version" not in tree:
        return
    ranks = tree.get("mp_world_size")
    if isinstance(ranks, int) and ranks > 1:
        msg = (
            f"{where} is the part of one of {ranks} model-parallel ranks of DeepSpeed. Each holds a part of every "
            "weight, and how they were split is not known. Join them first: ds_to_universal.py of DeepSpeed, or the "
            "converter of the code that trained it"
        )
        raise UnsupportedError(msg)
    groups = tree.get("param_shapes")
    for group in groups if isinstance(groups, list | tuple) else ():
        for name, shape in group.items() if isinstance(group, Mapping) else ():
            view = tree["module"].get(name) if isinstance(name, str) else None
            if isinstance(view, View) and view.shape != shape:
                msg = (
                    f"{where}: {shorten(name)} has shape {shorten(view.shape)}, and should have {shorten(shape)}: "
                    f"ZeRO-3 cuts every weight into pieces. {ZERO}"
                )
                raise UnsupportedError(msg)
