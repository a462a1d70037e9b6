"""Files that hold a part of a checkpoint: shards, ranks of a model-parallel run, and state that is not the model's."""

from __future__ import annotations

import glob
import re
from pathlib import Path

import numpy as np

from trajstats.data._naming import natural_key
from trajstats.data.formats._files import read_file
from trajstats.data.formats._tensor import Checkpoint, Tensor, input_size
from trajstats.data.formats.torch_files._deepspeed import ZERO
from trajstats.data.formats.torch_files._ranks import join_ranks
from trajstats.data.safety._budget import Budget
from trajstats.errors import StoreError, StoreNotFoundError, UnsupportedError

_SHARD = re.compile(r"(?P<head>.*?)(?P<part>[0-9]+)-of-(?P<count>[0-9]+)(?P<tail>.*)", re.DOTALL)
_CONSOLIDATED = re.compile(r"consolidated\.(?P<part>[0-9]{2,})\.(?:pth|pt|safetensors)")
_RANK_FILE = re.compile(r"mp_rank_(?P<part>[0-9]{2})(?P<tail>(?:_[0-9]+)?_model_states\.pt)")
# DeepSpeed: ZeRO-3 cuts every weight into pieces; a pipeline keeps each layer in a file, experts have their own.
_ZERO_3 = re.compile(r"zero_pp_rank_(?P<part>[0-9]+)_mp_rank_[0-9]+(?:_[0-9]+)?_model_states\.pt")
_LAYER_FILE = re.compile(r"layer_(?P<layer>[0-9]+)-model_(?P<part>[0-9]+)-model_states\.pt")
_EXPERT_FILE = re.compile(r"(?:layer_[0-9]+_)?expert_[0-9]+_mp_rank_[0-9]+_model_states\.pt")
_WORLD_FILE = re.compile(
    r"(?P<head>.*?)world_size_(?P<count>[0-9]{1,4})_rank_(?P<part>[0-9]{1,4})(?P<tail>\.(?:pt|pth|bin))"
)
_RANK_FOLDER = re.compile(r"mp_rank_(?P<part>[0-9]{2})(?:_[0-9]+)*")
_STATE_STARTS = (
    "optimizer",
    "scheduler",
    "lrscheduler",
    "rngstate",
    "randomstate",
    "trainingargs",
    "trainerstate",
    "trainstate",
    "trainingstate",
    "scaler",
    "gradscaler",
    "optimworldsize",
    "extrastateworldsize",
    "zeropprank",
    "bfzeropprank",
)
_STATE_NAMES = frozenset(
    ["optim", "optims", "opt", "train", "trainer", "rng", "sampler", "dataloader", "hparams", "args", "callbacks"]
    + ["loss", "losses", "metrics", "history", "config"]
)
# How LLaMA's own code splits a weight over the ranks: by rows (0) or columns (1), by the name of its module.
_LLAMA_AXES = {"wq": 0, "wk": 0, "wv": 0, "w1": 0, "w3": 0, "output": 0, "wo": 1, "w2": 1}


def is_training_state(name: str) -> bool:
    """Say by the name of a file or folder whether it holds optimizer, scheduler or trainer state and no model."""
    stem = re.sub(r"(?:\.[A-Za-z]\w{0,11})+$", "", name)
    letters = re.sub(r"[^a-z]", "", stem.lower())
    if "model" in letters:
        return letters.endswith(("optimstates", "optimizerstates"))
    return (
        letters in _STATE_NAMES or letters.startswith(_STATE_STARTS) or letters.endswith(("optimstates", "optimizer"))
    )


def is_tensorflow(file: Path) -> bool:
    """Say whether a file is of a TensorFlow checkpoint or SavedModel."""
    if file.name == "saved_model.pb" or re.search(r"\.data-[0-9]{5}-of-[0-9]{5}$", file.name):
        return True
    return file.suffix == ".index" and any(file.parent.glob(glob.escape(file.stem) + ".data-*-of-*"))


def refuse_tensorflow(file: Path) -> None:
    """Refuse a TensorFlow checkpoint, with a recipe."""
    if is_tensorflow(file):
        saved = file.name == "saved_model.pb"
        prefix = (
            str(file.parent / "variables" / "variables") if saved else re.sub(r"\.(?:index|data-.*)$", "", str(file))
        )
        msg = (
            f"{file} is of a TensorFlow checkpoint, which is not read. Convert each where TensorFlow is installed:\n"
            f"  reader = tf.train.load_checkpoint({str(prefix)!r})\n"
            "  names = [n for n in reader.get_variable_to_shape_map() if n.endswith('VARIABLE_VALUE') and "
            "'optimizer' not in n]\n"
            "  np.savez('step100.npz', **{n.split('/.')[0].replace('/', '.'): reader.get_tensor(n) for n in names})"
        )
        raise UnsupportedError(msg)


def shards_of(file: Path) -> list[Path]:
    """List the files of a checkpoint that is cut into ``-00001-of-00003``; empty if the file is not such a part."""
    match = _SHARD.fullmatch(file.name)
    if match is None or int(match["count"]) < 2 or int(match["count"]) > 100_000:
        return []
    width = len(match["part"])
    count = int(match["count"])
    first = 0 if (file.parent / f"{match['head']}{0:0{width}d}-of-{match['count']}{match['tail']}").exists() else 1
    return [
        file.parent / f"{match['head']}{k:0{width}d}-of-{match['count']}{match['tail']}"
        for k in range(first, first + count)
    ]


def is_first_part(file: Path) -> bool:
    """Check whether a file is a whole checkpoint, or the part of one that stands for all of them."""
    if shards := shards_of(file):
        there = next((shard for shard in shards if shard.exists()), file)
        return file == there
    if _RANK_FILE.fullmatch(file.name) and _beside(file, _LAYER_FILE):
        return False  # holds counters; the layers are in files of their own
    if _EXPERT_FILE.fullmatch(file.name) and _beside(file, _RANK_FILE):
        return False
    ranks = ranks_of(file)
    if ranks and _WORLD_FILE.fullmatch(file.name):
        return file == next((rank for rank in ranks if rank.exists()), file)
    return len(ranks) < 2 or file == ranks[0]


def _beside(file: Path, pattern: re.Pattern[str]) -> list[Path]:
    """List the files of a folder whose names match, in natural order."""
    return sorted((f for f in file.parent.iterdir() if pattern.fullmatch(f.name)), key=lambda f: natural_key(f.name))


def ranks_of(file: Path) -> list[Path]:
    """List the files of all ranks of a model-parallel checkpoint; empty if the file is not a rank."""
    if _CONSOLIDATED.fullmatch(file.name):
        found = [f for f in file.parent.iterdir() if _CONSOLIDATED.fullmatch(f.name) and f.suffix == file.suffix]
    elif match := _RANK_FILE.fullmatch(file.name):
        found = [f for f in file.parent.iterdir() if (m := _RANK_FILE.fullmatch(f.name)) and m["tail"] == match["tail"]]
    elif match := _WORLD_FILE.fullmatch(file.name):
        name = f"{match['head']}world_size_{match['count']}_rank_{{}}{match['tail']}"
        return [file.parent / name.format(k) for k in range(int(match["count"]))]
    elif pattern := next((p for p in (_ZERO_3, _LAYER_FILE, _EXPERT_FILE) if p.fullmatch(file.name)), None):
        return _beside(file, pattern)
    elif _RANK_FOLDER.fullmatch(file.parent.name):
        folders = [f for f in file.parent.parent.iterdir() if _RANK_FOLDER.fullmatch(f.name)]
        found = [f / file.name for f in folders if (f / file.name).is_file()]
    else:
        return []
    return sorted(found, key=lambda f: (f.parent.name, f.name))


def read_group(file: Path, budget: Budget | None = None) -> Checkpoint:
    """List every tensor of a checkpoint by one of its files: the others of its shards or ranks are read too."""
    refuse_tensorflow(file)
    if shards := shards_of(file):
        return read_shards(shards)
    if _RANK_FILE.fullmatch(file.name) and (layers := _beside(file, _LAYER_FILE)):
        file = layers[0]
    if _LAYER_FILE.fullmatch(file.name):
        return read_layers(ranks_of(file))
    _check_deepspeed(file)
    if _WORLD_FILE.fullmatch(file.name) and len(ranks := ranks_of(file)) > 1:
        _check_all_there(ranks)
        return join_ranks(ranks)
    if len(ranks := ranks_of(file)) > 1:
        return read_ranks(ranks)
    return read_file(file, budget)


def _check_deepspeed(file: Path) -> None:
    """Refuse what DeepSpeed cuts into pieces that only its own tools put together."""
    if _ZERO_3.fullmatch(file.name):
        n = len(_beside(file, _ZERO_3))
        msg = (
            f"{file} is one of {n} parts of a DeepSpeed ZeRO-3 checkpoint, which cuts every weight into pieces. {ZERO}"
        )
        raise UnsupportedError(msg)
    is_rank = _RANK_FILE.fullmatch(file.name) or _EXPERT_FILE.fullmatch(file.name)
    if is_rank and (experts := _beside(file, _EXPERT_FILE)):
        msg = (
            f"{file}: the experts of this model are in {len(experts)} files beside it, such as {experts[0].name}, and "
            "how they belong together is not known. Save it as one model: model.save_16bit_model of DeepSpeed"
        )
        raise UnsupportedError(msg)


def read_layers(files: list[Path]) -> Checkpoint:
    """Put the layers of a pipeline of DeepSpeed together; their names begin with the number of the layer."""
    matches = [_LAYER_FILE.fullmatch(file.name) for file in files]
    if parts := sorted({int(match["part"]) for match in matches if match} - {0}):
        msg = (
            f"{files[0]}: each layer is cut into {parts[-1] + 1} parts (the last is {files[-1].name}), and how is not "
            "known. Join them first: ds_to_universal.py of DeepSpeed, or tools/ckpts/convert_neox_to_hf.py of GPT-NeoX"
        )
        raise UnsupportedError(msg)
    found = Checkpoint(str(files[0]), {})
    budget = Budget.for_size(sum(input_size(file) for file in files))
    for file, match in zip(files, matches, strict=True):
        part = read_file(file, budget)
        layer = f"layer_{match['layer']}" if match else file.stem
        found.tensors.update({f"{layer}.{name}": tensor for name, tensor in part.tensors.items()})
        found.passed_over.update({f"{layer}.{name}": why for name, why in part.passed_over.items()})
    return found


def _check_all_there(files: list[Path]) -> None:
    """Refuse a checkpoint of which some files are missing."""
    if lost := [file for file in files if not file.is_file()]:
        there = next((file for file in files if file.is_file()), files[0])
        msg = (
            f"{lost[0]} does not exist: {len(lost)} of the {len(files)} files of {there.name} are missing. "
            "Download all of them"
        )
        raise StoreNotFoundError(msg)


def read_shards(files: list[Path]) -> Checkpoint:
    """Put the shards of a checkpoint together; all must be there, and no name may be in two of them."""
    _check_all_there(files)
    found = Checkpoint(str(files[0]), {})
    for file in files:
        part = read_file(file)
        if twice := found.tensors.keys() & part.tensors.keys():
            msg = f"{file}: tensor {min(twice)!r:.80} is in another shard, too; these are not shards of one checkpoint"
            raise StoreError(msg)
        found.tensors.update(part.tensors)
        found.passed_over.update(part.passed_over)
        found.containers |= part.containers
    return found


def read_ranks(files: list[Path]) -> Checkpoint:
    """Join the ranks of a model-parallel checkpoint where the split is known, that is for LLaMA; refuse others."""
    if _CONSOLIDATED.fullmatch(files[0].name):
        numbers = [int(file.name.split(".")[1]) for file in files]
        if numbers != list(range(len(files))):
            msg = f"{files[0]}: of the ranks of this checkpoint only {numbers} are there. Download all of them"
            raise StoreNotFoundError(msg)
        joined = _join_llama([read_file(file) for file in files])
        if joined is not None:
            return joined
    tool = "tools/checkpoint/convert.py of Megatron-LM, with a tensor-parallel size of 1"
    if files[0].name.startswith("consolidated"):
        tool = "convert_llama_weights_to_hf.py of transformers"
    elif files[0].name.endswith("_model_states.pt"):
        tool = "ds_to_universal.py of DeepSpeed, or the converter of the code that trained it"
    last = files[-1].relative_to(files[0].parent if files[-1].parent == files[0].parent else files[0].parent.parent)
    msg = (
        f"{files[0]} is one of {len(files)} parts of a model-parallel checkpoint (the last is {last}). Each holds a "
        f"part of every weight, and how they were split is not known. Join them first: {tool}"
    )
    raise UnsupportedError(msg)


def _join_llama(ranks: list[Checkpoint]) -> Checkpoint | None:
    """Join ranks with the names of LLaMA's own code; None if a name or shape is not that of LLaMA."""
    first = ranks[0]
    norm = first.tensors.get("norm.weight")
    if norm is None or len(norm.shape) != 1:
        return None
    width = norm.shape[0]
    joined = Checkpoint(first.path, {}, first.passed_over)
    for name, tensor in first.tensors.items():
        pieces = [rank.tensors.get(name) for rank in ranks]
        same = [
            piece
            for piece in pieces
            if piece is not None and (piece.shape, piece.dtype) == (tensor.shape, tensor.dtype)
        ]
        if len(same) != len(ranks):
            return None
        module = name.split(".")[-2] if "." in name else ""
        axis = _LLAMA_AXES.get(module)
        if module == "tok_embeddings" and len(tensor.shape) == 2:  # by rows since LLaMA 3, by columns before
            axis = 0 if tensor.shape[1] == width else 1 if tensor.shape[1] * len(ranks) == width else None
        elif len(tensor.shape) == 1 and all(_equal(tensor, piece) for piece in same):
            joined.tensors[name] = tensor
            continue
        elif axis is not None and (len(tensor.shape) != 2 or tensor.shape[1 - axis] != width):
            return None
        if axis is None:
            return None
        joined.tensors[name] = _by_rows(same) if axis == 0 else _by_columns(same)
    return joined


def _equal(one: Tensor, other: Tensor) -> bool:
    return bool(np.array_equal(one.read(0, one.size), other.read(0, other.size), equal_nan=True))


def _by_rows(pieces: list[Tensor]) -> Tensor:
    """Put matrices on top of each other."""
    rows, columns = pieces[0].shape
    size = rows * columns

    def read(start: int, stop: int) -> np.ndarray:
        parts = [
            piece.read(max(start - k * size, 0), min(stop - k * size, size))
            for k, piece in enumerate(pieces)
            if k * size < stop and (k + 1) * size > start
        ]
        return np.concatenate(parts or [pieces[0].read(0, 0)])

    return Tensor((rows * len(pieces), columns), pieces[0].dtype, read)


def _by_columns(pieces: list[Tensor]) -> Tensor:
    """Join matrices side by side."""
    rows, columns = pieces[0].shape
    width = columns * len(pieces)

    def read(start: int, stop: int) -> np.ndarray:
        low, high = start // width, -(-stop // width)
        block = np.hstack([piece.read(low * columns, high * columns).reshape(high - low, columns) for piece in pieces])
        return block.reshape(-1)[start - low * width : stop - low * width]

    return Tensor((rows, width), pieces[0].dtype, read)
