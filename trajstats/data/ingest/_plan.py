"""What an ingest will do or has done, and how it prints."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from trajstats.data.ingest._series import Finding

MAX_LINES = 12
MAX_FINDINGS = 50


@dataclass
class IngestPlan:
    """What an ingest will do or has done."""

    out: str  # The store
    steps: list[int]  # Optimiser steps
    files: list[str]  # Checkpoints, in the order of the steps
    layers: dict[str, tuple[int, ...]]  # Layers, in the order of `parameter`
    dtype: str  # Stored type
    rule: str  # How steps were found
    # What is wrong or noteworthy; see :class:`trajstats.data.ingest._series.Finding`
    findings: list[Finding] = field(default_factory=list)
    passed_over: dict[str, str] = field(default_factory=dict)  # Tensors of the first checkpoint that are left out
    # State that is not trained: saved apart from the layers, never part of a displacement
    buffers: dict[str, tuple[int, ...]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)  # Files that are not part of the series
    added: list[int] = field(default_factory=list)  # Steps that the store did not hold before
    series: list[str] = field(default_factory=list)  # Clocks and scalars that are kept: epoch, loss, ...
    seconds: float = 0.0  # Time taken, or expected in a dry run

    @property
    def n_parameters(self) -> int:
        """Number of weights of one checkpoint."""
        return sum(math.prod(shape) for shape in self.layers.values())

    @property
    def n_bytes(self) -> int:
        """Bytes of all weights as stored, before compression."""
        return self.n_parameters * len(self.steps) * np.dtype(self.dtype).itemsize

    def __str__(self) -> str:
        lines = [
            f"{len(self.files)} checkpoints -> {self.out}",
            f"steps {self.steps[0]} to {self.steps[-1]} (by {self.rule}), {len(self.layers)} layers, "
            f"{self.n_parameters:,} weights, {self.n_bytes / 1e9:.3g} GB as {self.dtype}, about {self.seconds:.0f} s",
        ]
        if len(self.added) < len(self.steps):
            last = f", steps {self.added[0]} to {self.added[-1]}" if self.added else ""
            stored = len(self.steps) - len(self.added)
            lines.append(f"{stored} of them were in the store, {len(self.added)} are new{last}")
        lines += _shortened(f"  step {step:>10}  {file}" for step, file in zip(self.steps, self.files, strict=True))
        lines += _shortened(f"  layer {name!r:.120} {shape}" for name, shape in self.layers.items())
        if self.series:
            lines.append(f"with {', '.join(self.series)} of each checkpoint")
        if self.buffers:
            lines.append(f"{len(self.buffers)} buffers, which are kept apart from the layers")
            lines += _shortened(f"  buffer {name!r:.120} {shape}" for name, shape in self.buffers.items())
        beside = {**self.left_out, **self.passed_over}
        lines += _shortened(f"  left out {name!r:.120}: {why}" for name, why in beside.items())
        return "\n".join([*lines, *_shortened((f"  ! {finding}" for finding in self.findings), MAX_FINDINGS)])

    def to_json(self) -> dict[str, Any]:
        """Give everything in the plan as values that JSON knows."""
        return {**asdict(self), "n_parameters": self.n_parameters, "n_bytes": self.n_bytes}


def _shortened(lines: Iterable[str], most: int = MAX_LINES) -> list[str]:
    """Keep the first lines of a long list, and say how many there are besides."""
    kept = list(lines)
    return kept if len(kept) <= most else [*kept[: most - 1], f"  ... {len(kept) - most + 1} more"]
