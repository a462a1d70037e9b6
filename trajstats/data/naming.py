"""Names: natural order, the optimiser step a checkpoint's name stands for, names of weights without their wrappers."""

from __future__ import annotations

import re

from trajstats.errors import ArgumentError


def natural_key(name: object) -> list[tuple[int, int, str]]:
    """Make a sort key that counts: ``step9`` before ``step10``.

    Parameters
    ----------
    name : str or path
        A name.

    Returns
    -------
    list
        A key for `sorted`.

    Examples
    --------
    >>> sorted(["step10", "step9"], key=natural_key)
    ['step9', 'step10']
    """
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
    """Take wrappers out of the name of a weight, so that the names of one weight in two programs can be compared.

    Parameters
    ----------
    name : str
        Name of a tensor, with dots or slashes between its parts, or as JAX writes a path of keys.

    Returns
    -------
    str
        The parts joined by dots: without inner wrappers (`INNER_WRAPPERS`), and without leading ones (`WRAPPERS`).

    Examples
    --------
    >>> plain_name("module._orig_mod.fc.weight"), plain_name("params/Dense_0/kernel"), plain_name("['hidden']['b'][0]")
    ('fc.weight', 'Dense_0.kernel', 'hidden.b.0')
    """
    name = _PYTREE_KEY.sub(lambda key: "." + next(part for part in key.groups() if part is not None), str(name))
    parts = [part for part in name.replace("/", ".").split(".") if part and part not in INNER_WRAPPERS]
    start = 0
    while start < len(parts) - 1 and parts[start] in WRAPPERS:
        start += 1
    return ".".join(parts[start:]) or name


# Rules from the surest to the least sure; the first that all names of a series obey is taken.
_STEP = re.compile(
    r"(?:(?<![a-z])|(?<=_))(?:global[_-]?step|steps?|checkpoints?|ckpt|iter(?:ation)?s?|itr)[=_\-. ]?0*([0-9]+)",
    re.IGNORECASE,
)
_EPOCH = re.compile(r"(?<![a-z])(?:epochs?|ep)[=_\-. ]?0*([0-9]+)", re.IGNORECASE)
_LAST = re.compile(r"([0-9]+)(?![^/]*[0-9])")
_NOISE = re.compile(
    r"-?[0-9]+-of-[0-9]+|\.(?:safetensors|weights\.h5|h5|hdf5|msgpack|npz|npy|keras|[a-z]{1,8})$", re.IGNORECASE
)
STEP_RULES = {"step": _STEP, "epoch": _EPOCH, "number": _LAST}


def step_of(name: str, rule: str) -> int | None:
    """Read the step out of the name of a checkpoint by one rule.

    Parameters
    ----------
    name : str
        Path of the checkpoint below the folder of the series, with ``/`` between folders.
    rule : str
        ``"step"`` (a number after step, checkpoint, ckpt or iteration), ``"epoch"``, or ``"number"`` (the last one).

    Returns
    -------
    int or None
        The number nearest to the end of the path; None if the rule finds none.

    Examples
    --------
    >>> step_of("epoch=3-step=1200.ckpt", "step"), step_of("run2/checkpoint-500", "step"), step_of("17/w.npz", "number")
    (1200, 500, 17)
    """
    for part in reversed(name.replace("\\", "/").split("/")):
        part = _NOISE.sub("", _NOISE.sub("", part))
        found = STEP_RULES[rule].findall(part)
        if found:
            return int(found[-1])
    return None


def steps_of(names: list[str]) -> tuple[list[int], str]:
    """Read the steps of a series by the surest rule that gives each checkpoint one.

    Parameters
    ----------
    names : list of str
        Paths of the checkpoints below the folder of the series.

    Returns
    -------
    steps : list of int
        One for each name. They may repeat; that is for the caller to judge.
    rule : str
        The rule that was taken.

    Raises
    ------
    ArgumentError
        If no rule gives every checkpoint a number.

    Examples
    --------
    >>> steps_of(["step512", "step1000"])
    ([512, 1000], 'step')
    """
    whole: list[tuple[list[int], str]] = []
    for rule in STEP_RULES:
        steps = [step_of(name, rule) for name in names]
        if all(step is not None for step in steps):
            whole.append(([step for step in steps if step is not None], rule))
    distinct = [found for found in whole if len(set(found[0])) == len(names)]
    if whole:
        return (distinct or whole)[0]
    bad = next(name for name in names if step_of(name, "number") is None)
    msg = f"no step in the name {bad!r:.120}; give step_from=r'an expression with one group', or a function of it"
    raise ArgumentError(msg)
