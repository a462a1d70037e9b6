"""Which tensors of a checkpoint are its parameters, which are buffers, and which belong to something else."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from trajstats.data._buffers import is_buffer
from trajstats.data._naming import without_wrappers
from trajstats.data.formats._tensor import FLOATING, MAX_TENSORS, Checkpoint, Tensor
from trajstats.data.safety._budget import shorten
from trajstats.errors import ArgumentError, UnsafeInputError

# Mappings that hold a model's tensors inside a file.
MODEL_KEYS = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model_weights",
    "model",
    "module",
    "params",
    "weights",
    "network_weights",
    "network",
    "net",
)
OPTIMIZER_KEYS = frozenset(
    [
        "optimizer",
        "optimizers",
        "optim",
        "optims",
        "opt",
        "opt_state",
        "optimizer_states",
        "optimizer_state",
        "optimizer_state_dict",
        "optim_state_dict",
        "optim_state",
        "optimizer_weights",
        "lr_scheduler",
        "lr_schedulers",
        "scheduler",
        "scheduler_state_dict",
        "lr_scheduler_state_dict",
        "schedulers",
    ]
)
TRAINER_KEYS = frozenset(
    [
        "callbacks",
        "loops",
        "trainer",
        "scaler",
        "grad_scaler",
        "grad_scaler_state",
        "amp",
        "amp_scaling_state",
        "rng",
        "rng_state",
        "rng_states",
        "random_state",
        "cuda_rng_state",
        "random_rng_state",
        "np_rng_state",
        "torch_rng_state",
        "rng_tracker_states",
        "sampler",
        "dataloader",
        "hyper_parameters",
        "datamodule_hyper_parameters",
        "hparams",
        "hparams_name",
        "config",
        "args",
        "history",
        "metrics",
        "losses",
        "logs",
        "criterion",
        "loss_fn",
        "lightning_module_hooks",
        "fit_loop",
        "state_dict_hooks",
        "train_metrics",
        "val_metrics",
    ]
)
STATISTICS_KEYS = frozenset(["batch_stats", "buffers"])  # next to the parameters, and part of the model
MOMENTS = frozenset(
    ["exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "square_avg", "acc_delta", "grad_avg"]
)
_VALUE = re.compile(r"\.(?:raw_)?value$")  # around every array of flax nnx
_AVERAGED = re.compile(
    r"(?:^|_)(?:ema|average|averaged|avg|swa|shadow|teacher|target|momentum|best)(?:_|$)", re.IGNORECASE
)
_SCALAR = re.compile(
    r"(?:^|_)(?:best|epoch|step|iter|iteration|lr|loss|acc\d*|acc1|acc5|accuracy|score|metric|prec\d*|psnr|ppl|elapsed|time|seed|"
    r"fitness|val|train|test|valid)(?:_|\d|$)",
    re.IGNORECASE,
)
_KERAS = re.compile(r"(?P<layer>(?:.*\.)?(?P<kind>batch_normalization|normalization)(?:_\d+)?)\.vars\.(?P<k>\d+)")


def choose_tensors(
    found: Checkpoint, *, optimizer: bool = False, part: str | Sequence[str] | None = None
) -> Checkpoint:
    """Separate the parameters and buffers of one model from everything else in a file.

    Optimizer and trainer state are passed over. Where a file holds several sets of weights, such as a model and its
    moving average, `part` names the one that is meant.
    """
    if len(found.tensors) > MAX_TENSORS:
        msg = f"{found.path}: {len(found.tensors)} tensors; at most {MAX_TENSORS} are believed"
        raise UnsafeInputError(msg)
    passed = dict(found.passed_over)
    names = []
    for name in found.tensors:
        if (why := _other_state(name, found.containers)) and not (optimizer and why == "optimizer state"):
            passed[name] = why
            continue
        names.append(name)
    if part is not None:
        names = _named_parts(found, names, [part] if isinstance(part, str) else list(part), passed)
    elif not optimizer:
        names = _one_model(found, names, passed)
    tensors, twins = _without_twins(found, names, passed)
    around = part if isinstance(part, str) else None
    short = _unwrapped(list(tensors), found.containers, around)
    chosen = _split(found.path, {short[name]: tensor for name, tensor in tensors.items()}, passed)
    if twins:
        every = _unwrapped([*tensors, *twins], found.containers, around)
        same = all(every[name] == short[name] for name in tensors)
        chosen.twins = {every[name]: every[kept] for name, kept in twins.items()} if same else {}
    return chosen


def _other_state(name: str, containers: frozenset[str]) -> str:
    """Return what a tensor belongs to if it is not part of a model; empty if it may be."""
    parts = [part.lower() for part in name.replace("/", ".").split(".")]
    if not OPTIMIZER_KEYS.isdisjoint(parts[:-1]) or parts[-1] in MOMENTS or parts[0] in OPTIMIZER_KEYS:
        return "optimizer state"
    if name.partition(".")[0] in containers and parts[0] in TRAINER_KEYS:
        return "trainer state"
    bare = "." not in name and name not in containers
    return "trainer state" if bare and parts[0] in TRAINER_KEYS else ""


def _one_model(found: Checkpoint, names: list[str], passed: dict[str, str]) -> list[str]:
    """Keep the names of the one model; refuse to choose between several sets of weights."""
    sets: dict[str, list[str]] = {}
    for name in names:
        head = name.partition(".")[0]
        sets.setdefault(head if head in found.containers and head != name else "", []).append(name)
    bare = sets.pop("", [])
    known = [head for head in sets if head in MODEL_KEYS and _is_weights(found, sets[head])]
    others = [head for head in sets if head not in known and head not in STATISTICS_KEYS]
    rivals = [head for head in others if _is_weights(found, sets[head]) and (known or _AVERAGED.search(head))]
    if len(known) > 1 or (rivals and len(sets) > 1):
        listed = ", ".join(f"part={head!r:.80} ({_described(found, sets[head])})" for head in [*known, *others])
        msg = f"{found.path} holds several sets of weights. Choose one with part= (--part): {listed}"
        raise ArgumentError(msg)
    if known:
        for name in [*bare, *(name for head in others for name in sets[head])]:
            passed[name] = f"beside the model, which is in {known[0]!r}"
        dropped = {*bare, *(name for head in others for name in sets[head])}
        return [name for name in names if name not in dropped]
    scalars = [name for name in bare if found.tensors[name].size == 1]
    dropped = {n for n in scalars if _SCALAR.search(n) or (sets and found.tensors[n].dtype not in FLOATING)}
    passed.update(dict.fromkeys(dropped, "a number beside the weights"))
    return [name for name in names if name not in dropped]


def _is_weights(found: Checkpoint, names: Iterable[str]) -> bool:
    """Check whether a mapping in a file holds weights of a network: a floating tensor that is more than one number."""
    return any(found.tensors[name].dtype in FLOATING and found.tensors[name].size > 1 for name in names)


def _described(found: Checkpoint, names: Sequence[str]) -> str:
    return f"{len(names)} tensors, {sum(found.tensors[name].size for name in names):,} numbers"


def _named_parts(found: Checkpoint, names: list[str], parts: list[str], passed: dict[str, str]) -> list[str]:
    """Keep the tensors below the mappings that the user named."""
    heads = tuple(f"{part}." for part in parts)
    kept = [name for name in names if name.startswith(heads)]
    if lost := [part for part in parts if not any(name.startswith(f"{part}.") for name in names)]:
        there = sorted({name.rpartition(".")[0].partition(".")[0] for name in names} - {""})
        msg = f"{found.path} has no part {lost[0]!r:.80}; it has: {shorten(there, 300)}"
        raise ArgumentError(msg)
    passed.update({name: "not in the part that was chosen" for name in names if not name.startswith(heads)})
    return kept


def _without_twins(
    found: Checkpoint, names: Iterable[str], passed: dict[str, str]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Keep each stored tensor once, by a name that does not depend on their order in the file; list its others."""
    twins: dict[str, str] = {}
    kept: dict[str, Tensor] = {}
    seen: dict[Any, str] = {}
    wanted = list(names)
    for name in sorted(wanted):
        tensor = found.tensors[name]
        key = (tensor.storage, tensor.shape)
        if tensor.storage is not None and key in seen:
            passed[name] = f"the same tensor as {seen[key]}"
            twins[name] = seen[key]
            continue
        if tensor.storage is not None:
            seen[key] = name
        kept[name] = tensor
    return {name: kept[name] for name in wanted if name in kept}, twins


def _unwrapped(names: list[str], containers: frozenset[str], part: str | None) -> dict[str, str]:
    """Take off what is around all names: the mapping that holds the model, and the marks of wrappers."""
    aside = [name for name in names if name.partition(".")[0] in STATISTICS_KEYS & containers]
    names = [name for name in names if name not in set(aside)]
    start = len(part) + 1 if part is not None and names and all(n.startswith(f"{part}.") for n in names) else 0
    while names:
        head = names[0][start:].partition(".")[0]
        whole = names[0][:start] + head
        around = all(name.startswith(f"{whole}.") for name in names)
        # A dotted name may begin with "model." on its own; only a mapping of the file is not part of the name.
        if not around or head not in MODEL_KEYS or not (whole in containers or head.endswith("state_dict")):
            break
        start = len(whole) + 1
    short = without_wrappers([*(name[start:] for name in names), *aside])
    return {name: short[name[start:]] for name in names} | {name: short[name] for name in aside}


def _split(path: str, tensors: Mapping[str, Tensor], passed: dict[str, str]) -> Checkpoint:
    """Separate parameters from buffers."""
    known = _keras_buffers(tensors) | _statistics_of_norms(tensors)
    chosen = Checkpoint(path, {}, passed)
    for name, tensor in tensors.items():
        plain = _VALUE.sub("", re.sub(r":\d+$", "", name))
        buffer = tensor.dtype not in FLOATING or name in known or is_buffer(plain, tensor.dtype, tensor.shape)
        (chosen.buffers if buffer else chosen.tensors)[name] = tensor
    return chosen


def _statistics_of_norms(names: Iterable[str]) -> set[str]:
    """List mean and variance that lie beside a scale or bias, as flax nnx keeps those of a BatchNorm."""
    beside: dict[str, dict[str, str]] = {}
    for name in names:
        parent, _, leaf = _VALUE.sub("", name).rpartition(".")
        beside.setdefault(parent, {})[leaf] = name
    norms = [found for found in beside.values() if {"mean", "var"} <= found.keys() and {"scale", "bias"} & found.keys()]
    return {found[leaf] for found in norms for leaf in ("mean", "var")}


def _keras_buffers(names: Iterable[str]) -> set[str]:
    """List the moving statistics in files of Keras 3, which numbers variables: the last two of a layer."""
    layers: dict[str, list[tuple[int, str, str]]] = {}
    for name in names:
        if match := _KERAS.fullmatch(name):
            layers.setdefault(match["layer"], []).append((int(match["k"]), name, match["kind"]))
    found = set()
    for entries in layers.values():
        entries.sort()
        found |= {name for _, name, kind in entries if kind == "normalization"}
        found |= {name for _, name, _ in entries[-2:]}
    return found
