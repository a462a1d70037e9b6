"""A series of checkpoints: which files, which steps, which tensors, and what is wrong with them, before any is read."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trajstats.data._naming import natural_key
from trajstats.data.formats._open import open_checkpoint
from trajstats.data.formats._selection import choose_tensors
from trajstats.data.formats._tensor import Checkpoint
from trajstats.data.ingest._discovery import Discovery, find_checkpoints, local_path, set_special_apart
from trajstats.data.ingest._in_memory import in_memory, is_path, take_apart
from trajstats.data.ingest._trainer_state import read_trainer_states
from trajstats.data.ingest._unchanged import Source
from trajstats.data.ingest._whole_series import read_series
from trajstats.data.ingest.names._renames import align_twins, align_wrappers, find_renames, tied_names
from trajstats.data.ingest.names._stages import STAGE, missing_steps, stages_of
from trajstats.data.ingest.names._steps import steps_of, to_step
from trajstats.data.ingest.names._tokens import read_number
from trajstats.errors import ArgumentError, UnsupportedError

# Kinds that leave no way to put the checkpoints into one array.
FATAL = ("missing", "extra", "reshaped", "duplicate step", "renamed")


@dataclass(frozen=True)
class Finding:
    """Something worth knowing about a series."""

    # ``missing``, ``extra``, ``renamed``, ``reshaped``, ``dtype``, ``duplicate step``, ``out of order``, ``not
    # finite``, ``identical``, ``repeated``, ``unchanged``, ``jump``, ``missing steps``, ``stage`` or ``trainer state``
    kind: str
    checkpoint: str  # Path of the checkpoint
    tensor: str  # Name of the tensor, where there is one
    detail: str  # What was found, and what to do

    def __str__(self) -> str:
        tensor = f", tensor {self.tensor!r:.120}" if self.tensor else ""
        return f"{self.kind}: {self.checkpoint}{tensor}: {self.detail}"


@dataclass
class Series:
    """Checkpoints in the order of their steps, with the layers they share."""

    steps: list[int]  # Strictly increasing
    checkpoints: list[Checkpoint]  # One for each step
    layers: dict[str, tuple[int, ...]]  # In an order that does not depend on the files
    dtype: str  # Stored type that holds every source exactly
    source_dtype: str  # Coarsest type among the sources
    rule: str  # How steps were found
    findings: list[Finding] = field(default_factory=list)  # What is known from headers alone
    # State that is not trained and that every checkpoint holds
    buffers: dict[str, tuple[tuple[int, ...], str]] = field(default_factory=dict)
    # Files that are not part of the series, and buffers that not every checkpoint holds
    left_out: dict[str, str] = field(default_factory=dict)
    # Clocks and scalars of each checkpoint (epoch, loss, ...), where the source has any; else empty
    rows: list[dict[str, float]] = field(default_factory=list)
    # File or folder of each checkpoint, as it was before its header was read; none for what is in memory
    sources: list[Source] = field(default_factory=list)
    stages: list[str] = field(default_factory=list)  # Names of the stages that the series `stage` counts


@dataclass
class Headers:
    """The checkpoints of a series as they were found, with their steps, in the order they were found."""

    steps: list[int]  # Step of each checkpoint
    checkpoints: list[Checkpoint]  # Their tensors, unread
    rule: str  # How steps were found
    findings: list[Finding] = field(default_factory=list)  # Order of steps
    left_out: dict[str, str] = field(default_factory=dict)  # Files that are not part of the series
    rows: list[dict[str, float]] = field(default_factory=list)  # Clocks and scalars of each checkpoint
    # File or folder of each checkpoint, as it was before its header was read; none for what is in memory
    sources: list[Source] = field(default_factory=list)
    stages: list[str] = field(default_factory=list)  # Names of the stages that the series `stage` counts


def read_headers(
    paths: Any,
    *,
    step_from: str | Callable[[str], int] | Mapping[str, int] | None,
    dims: Mapping[str, str] | None,
    optimizer: bool,
    workers: int,
    part: str | Sequence[str] | None = None,
    only: Callable[[Path], bool] | None = None,
) -> Headers:
    """Find the checkpoints, or those of them for which a function is true, their steps and their tensors."""
    if dims is not None:
        pairs, epochs = read_series(local_path(paths), dims)
        checkpoints = [choose_tensors(found, optimizer=optimizer, part=part) for _, found in pairs]
        rows = [{"epoch": epoch} for epoch in epochs]
        return Headers([step for step, _ in pairs], checkpoints, f"dimension {next(iter(dims.values()))}", rows=rows)
    steps: list[int] | None = None
    if not is_path(paths):
        steps, paths = take_apart(paths)
        if steps is not None and not is_path(paths[0]):
            trees = [in_memory(step, tree) for step, tree in zip(steps, paths, strict=True)]
            return Headers(steps, [choose_tensors(tree, optimizer=optimizer, part=part) for tree in trees], "given")
    where = find_checkpoints(paths) if steps is None else Discovery([Path(path) for path in paths])
    names = where.names or [_below(file, where.root, where.files) for file in where.files]
    kept = [k for k, file in enumerate(where.files) if only is None or only(file)]
    where.files, names = [where.files[k] for k in kept], [names[k] for k in kept]
    findings: list[Finding] = []
    if steps is None:
        steps, rule, names = _steps(where, names, step_from)
        for before, after, file in zip(steps, steps[1:], where.files[1:], strict=False):
            if after < before and step_from is None and not is_path(paths):
                detail = f"step {after} is listed after step {before}; checkpoints are put in the order of their steps"
                findings.append(Finding("out of order", str(file), "", detail))
    else:
        rule = "given"
    sources = [Source.at(file) for file in where.files]
    with ThreadPoolExecutor(workers) as pool:
        read = lambda file: open_checkpoint(file, optimizer=optimizer, part=part)  # noqa: E731
        checkpoints = list(pool.map(read, where.files))
    headers = Headers(steps, checkpoints, rule, findings, where.left_out, sources=sources)
    _read_beside(headers, names)
    return headers


def _read_beside(headers: Headers, names: Sequence[str]) -> None:
    """Read what names and files beside the checkpoints say: stages, epochs, losses, learning rates, missing steps."""
    paths = [source.path for source in headers.sources]
    states = read_trainer_states(paths, headers.steps)
    headers.rows = states.rows
    headers.findings += [Finding("trainer state", str(paths[k]), "", what) for k, what in states.oddities]
    headers.stages, stage = stages_of(names, headers.steps)
    if headers.stages:
        headers.rows = headers.rows or [{} for _ in paths]
        for row, number in zip(headers.rows, stage, strict=True):
            row[STAGE] = float(number)
        for k, name in enumerate(headers.stages):
            within = [step for step, number in zip(headers.steps, stage, strict=True) if number == k]
            detail = f"steps {min(within)} to {max(within)} are of the stage {name!r}, {k} in the coordinate 'stage'"
            headers.findings.append(Finding(STAGE, str(paths[stage.index(k)]), "", detail))
    rule, lost = missing_steps(sorted(headers.steps))
    if lost:
        shown = ", ".join(map(str, lost[:20])) + (f", ... {len(lost) - 20} more" if len(lost) > 20 else "")
        headers.findings.append(Finding("missing steps", str(paths[0].parent), "", f"{rule}, without {shown}"))


def _below(file: Path, root: Path | None, files: Sequence[Path]) -> str:
    if root is not None:
        return file.relative_to(root).as_posix()
    parts = [f.parts for f in files]
    shared = 0
    while len(files) > 1 and all(len(p) > shared + 1 for p in parts) and len({p[shared] for p in parts}) == 1:
        shared += 1
    return "/".join(file.parts[shared if len(files) > 1 else -2 :])


def _steps(
    where: Discovery, names: list[str], step_from: str | Callable[[str], int] | Mapping[str, int] | None
) -> tuple[list[int], str, list[str]]:
    """Read the steps and name what they are of; what is called best, last and the like is moved to what is left out."""
    pattern = re.compile(step_from) if isinstance(step_from, str) else None
    if pattern is not None and pattern.groups != 1:
        msg = f"step_from={step_from!r} has {pattern.groups} groups; it needs one, around the number"
        raise ArgumentError(msg)
    # An expression may look at the whole path; that of a hub cache has a hash where its ref has the step.
    texts = names if where.names else [file.as_posix() for file in where.files]
    if step_from is None or pattern is not None:
        special = set_special_apart(names)
        if pattern is not None:
            special = {k: why for k, why in special.items() if not pattern.search(texts[k])}
        where.left_out |= {names[k]: why for k, why in special.items()}
        where.files = [file for k, file in enumerate(where.files) if k not in special]
        names = [name for k, name in enumerate(names) if k not in special]
        texts = [text for k, text in enumerate(texts) if k not in special]
    if step_from is None:
        return *steps_of(names), names
    if pattern is not None:
        steps = []
        for file, text in zip(where.files, texts, strict=True):
            found = pattern.search(text)
            number = read_number(found[1] or "") if found is not None else None
            if number is None:
                msg = f"step_from={step_from!r} finds no whole number in {file}"
                raise ArgumentError(msg)
            steps.append(number)
        return steps, f"step_from={step_from!r}", names
    give = step_from.__getitem__ if isinstance(step_from, Mapping) else step_from
    assert not isinstance(give, str)
    assert give is not None
    try:
        values = [give(str(file)) for file in where.files]
    except (KeyError, TypeError, ValueError) as error:
        msg = f"step_from gives no step for one of the checkpoints: {error!r}"
        raise ArgumentError(msg) from error
    return [to_step(value, str(file)) for value, file in zip(values, where.files, strict=True)], "given", names


def make_series(
    headers: Headers,
    *,
    include: str | Callable[[str], bool] | Iterable[str] | None,
    rename: Mapping[str, str] | Callable[[str], str] | None,
) -> Series:
    """Put checkpoints in order and compare their tensors with those of the first."""
    found = list(headers.findings)
    order = sorted(
        range(len(headers.steps)), key=lambda k: (headers.steps[k], natural_key(headers.checkpoints[k].path))
    )
    chosen = [_chosen(headers.checkpoints[k], include, rename) for k in order]
    steps = [headers.steps[k] for k in order]
    found += _repeated_steps(steps, chosen)
    first = chosen[0]
    if not first.tensors:
        integers = " (integers are not weights: a quantised model cannot be analysed)" if first.buffers else ""
        beside = {**dict.fromkeys(first.buffers, "a buffer"), **first.passed_over}
        msg = f"{first.path} holds no floating tensor to keep{integers}; passed over: {dict(list(beside.items())[:5])}"
        raise UnsupportedError(msg)
    # Natural order of names: the order inside a file means nothing and differs between writers.
    layers = {name: first.tensors[name].shape for name in sorted(first.tensors, key=natural_key)}
    kinds = {name: tensor.dtype for name, tensor in first.tensors.items()}
    names = [*first.tensors, *first.buffers]
    chosen = [first, *(align_wrappers(checkpoint, names) for checkpoint in chosen[1:])]
    tied = tied_names(chosen)
    chosen = [first, *(align_twins(checkpoint, first, tied) for checkpoint in chosen[1:])]
    for before, checkpoint in zip(chosen, chosen[1:], strict=False):
        found += _compare(checkpoint, layers, kinds, first, before)
    every = {tensor.dtype for checkpoint in chosen for tensor in checkpoint.tensors.values()}
    buffers, lost = _shared_buffers(chosen)
    return Series(
        steps,
        chosen,
        layers,
        _common(every),
        coarsest(every),
        headers.rule,
        found,
        buffers,
        {**headers.left_out, **lost},
        [headers.rows[k] for k in order] if headers.rows else [],
        [headers.sources[k] for k in order] if headers.sources else [],
        headers.stages,
    )


def _repeated_steps(steps: Sequence[int], checkpoints: Sequence[Checkpoint]) -> list[Finding]:
    found = []
    for k in range(1, len(steps)):
        if steps[k] == steps[k - 1]:
            detail = (
                f"step {steps[k]} belongs to {checkpoints[k - 1].path} already; give one run and one file of each "
                "step, by a glob such as 'run1/step*/model.pt', or step_from="
            )
            found.append(Finding("duplicate step", checkpoints[k].path, "", detail))
    return found


def _shared_buffers(
    checkpoints: Sequence[Checkpoint],
) -> tuple[dict[str, tuple[tuple[int, ...], str]], dict[str, str]]:
    """Find the buffers that every checkpoint holds with one shape and type, and why the others are left out."""
    counts: Counter[tuple[str, tuple[int, ...], str]] = Counter()
    for checkpoint in checkpoints:
        counts.update((name, tensor.shape, tensor.dtype) for name, tensor in checkpoint.buffers.items())
    shared = {n: (shape, kind) for (n, shape, kind), k in counts.items() if k == len(checkpoints) and 0 not in shape}
    lost = {
        name: "an empty buffer" if 0 in shape else "a buffer that not every checkpoint holds with one shape and type"
        for name, shape, _ in counts
    }
    ordered = {name: shared[name] for name in sorted(shared, key=natural_key)}
    return ordered, {name: why for name, why in lost.items() if name not in shared}


def _compare(
    checkpoint: Checkpoint,
    layers: Mapping[str, tuple[int, ...]],
    kinds: dict[str, str],
    first: Checkpoint,
    before: Checkpoint,
) -> list[Finding]:
    found = []
    missing = [name for name in layers if name not in checkpoint.tensors]
    extra = [name for name in checkpoint.tensors if name not in layers]
    proposed = {}
    if missing and extra and all(name in before.tensors for name in missing):
        proposed = find_renames(
            [name for name in missing if name not in checkpoint.passed_over], extra, before, checkpoint
        )
    for name in missing:
        if name in proposed:
            new, prefix = proposed[name]
            whole = (
                f"; all names: rename=lambda name: name.removeprefix({prefix!r}), --strip {prefix}" if prefix else ""
            )
            detail = f"seems to be called {new!r:.120}; use rename={{{new!r:.120}: {name!r:.120}}}{whole}"
            found.append(Finding("renamed", checkpoint.path, name, detail))
            extra.remove(new)
        else:
            reason = checkpoint.passed_over.get(name)
            detail = f"is in {first.path} with shape {layers[name]} and not here" + (f" ({reason})" if reason else "")
            found.append(Finding("missing", checkpoint.path, name, detail))
    for name in extra:
        detail = f"of shape {checkpoint.tensors[name].shape} is not in {first.path}; leave it out with include="
        found.append(Finding("extra", checkpoint.path, name, detail))
    for name in layers:
        tensor = checkpoint.tensors.get(name)
        if tensor is None:
            continue
        if tensor.shape != layers[name]:
            detail = f"has shape {tensor.shape}; {first.path} has {layers[name]}"
            found.append(Finding("reshaped", checkpoint.path, name, detail))
        if tensor.dtype != kinds[name]:
            detail = f"is {tensor.dtype} from here on; it was {kinds[name]} before. All values are kept exactly"
            found.append(Finding("dtype", checkpoint.path, name, detail))
            kinds[name] = tensor.dtype
    return found


def _chosen(
    checkpoint: Checkpoint,
    include: str | Callable[[str], bool] | Iterable[str] | None,
    rename: Mapping[str, str] | Callable[[str], str] | None,
) -> Checkpoint:
    give = rename if callable(rename) else (lambda name: rename.get(name, name)) if rename else (lambda name: name)
    if include is None:
        keep: Callable[[str], bool] = lambda _: True  # noqa: E731
    elif isinstance(include, str):
        pattern = re.compile(include)
        keep = lambda name: pattern.search(name) is not None  # noqa: E731
    elif callable(include):
        keep = include
    else:
        names = set(include)
        keep = lambda name: name in names  # noqa: E731
    chosen = Checkpoint(checkpoint.path, {}, {give(n): why for n, why in checkpoint.passed_over.items()})
    for name, tensor in [*checkpoint.tensors.items(), *checkpoint.buffers.items()]:
        new = give(name)
        if not keep(new):
            continue
        if new in chosen.tensors or new in chosen.buffers:
            msg = f"{checkpoint.path}: two tensors would be called {new!r:.120}; change rename"
            raise ArgumentError(msg)
        (chosen.tensors if name in checkpoint.tensors else chosen.buffers)[new] = tensor
    chosen.twins = {give(name): give(kept) for name, kept in checkpoint.twins.items()}
    return chosen


def _common(kinds: set[str]) -> str:
    # float16 and bfloat16 both fit into float32; nothing smaller holds both.
    if "float64" in kinds:
        return "float64"
    return "float16" if kinds == {"float16"} else "float32"


def coarsest(kinds: set[str]) -> str:
    """Give the type with the fewest digits."""
    return next(kind for kind in ("bfloat16", "float16", "float32", "float64") if kind in kinds)
