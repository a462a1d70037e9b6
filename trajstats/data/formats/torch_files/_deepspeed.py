"""Files of DeepSpeed and Megatron-LM that hold a part of a model say so; a part is refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trajstats.data.formats.torch_files._names import Opaque, View
from trajstats.data.safety._budget import shorten
from trajstats.errors import UnsupportedError

ZERO = (
    "Put them together with the script that DeepSpeed wrote into the folder above: python zero_to_fp32.py . "
    "pytorch_model.bin, and ingest its output"
)

_MEGATRON_SIZES = (
    *("tensor_model_parallel_size", "pipeline_model_parallel_size", "expert_model_parallel_size"),
    "model_parallel_size",
)


def check_whole(where: str, tree: Any) -> None:
    """Refuse what one rank of several wrote, and the states of ZeRO-3, whose tensors are cut into pieces."""
    if isinstance(tree, Mapping) and "checkpoint_version" in tree and isinstance(tree.get("args"), Opaque):
        _check_megatron(where, tree["args"].attributes())
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


def _check_megatron(where: str, arguments: Mapping[str, Any]) -> None:
    """Read from the arguments of the script, which are in the file, over how many ranks the model was split."""
    for name in _MEGATRON_SIZES:
        ranks = arguments.get(name)
        if isinstance(ranks, int) and ranks > 1:
            msg = (
                f"{where} is the part of one of several ranks of Megatron-LM ({name}: {shorten(ranks, 20)}). Join them "
                "first: tools/checkpoint/convert.py of Megatron-LM, to sizes of 1"
            )
            raise UnsupportedError(msg)
