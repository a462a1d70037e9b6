"""What an ingest will do or has done, and how it prints."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trajstats.data.ingest._series import Finding


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
        lines += [
            f"  step {step:>10}  {name}" for step, name in _shortened(list(zip(self.steps, self.files, strict=True)))
        ]
        lines += [f"  layer {name!r:.120} {shape}" for name, shape in _shortened(list(self.layers.items()))]
        if self.buffers:
            lines.append(f"{len(self.buffers)} buffers, which are kept apart from the layers")
            lines += [f"  buffer {name!r:.120} {shape}" for name, shape in _shortened(list(self.buffers.items()))]
        beside = [*self.left_out.items(), *self.passed_over.items()]
        lines += [f"  left out {name!r:.120}: {why}" for name, why in _shortened(beside)]
        lines += [
            f"  ! {finding}"
            for finding in _shortened([(f, None) for f in self.findings], 50)
            for finding in finding[:1]
        ]
        return "\n".join(lines)


def _shortened(items: list[tuple[Any, Any]], most: int = 12) -> list[tuple[Any, Any]]:
    return items if len(items) <= most else [*items[: most // 2], *items[-most // 2 :]]
