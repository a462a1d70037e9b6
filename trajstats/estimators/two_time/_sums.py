"""What one block of parameters contributes to the two-time sums, and the fixed order in which contributions are added.

The order is a binary tree over units of `UNIT` parameters, aligned to the start of the trajectory: a block of any power
of two of units is a subtree. Results are therefore the same to the bit for every block width, chunking and scheduler.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from trajstats.estimators.two_time._pair_kernels import (
    PairPlan,
    cos_sin,
    pair_sums,
    plan_pairs,
    reference_sums,
    sign_flips,
)

UNIT = 4096
Sums = dict[int, dict[str, np.ndarray]]


@dataclass(frozen=True)
class Request:
    """Which sums over parameters are wanted."""

    n_rows: int  # Checkpoints read
    first: np.ndarray  # Pairs of rows
    second: np.ndarray  # Pairs of rows
    # Out of ``square``, ``fourth``, ``inside``, ``flips``, ``rows`` (sums and sums of squares of the weights
    # themselves), ``velocity`` (products of successive displacements); none but ``rows`` needs no pair
    terms: frozenset[str]
    layer_stop: np.ndarray  # Layers, and the group each adds to (-1: none)
    group_of_layer: np.ndarray  # Layers, and the group each adds to (-1: none)
    wavenumber: tuple[float, ...] = ()  # One sum of cosines each
    n_blocks: int = 1  # Random blocks of parameters that are kept apart (1: not)
    seed: int = 0  # Of the assignment to random blocks
    reference: bool = False  # Plain float64 NumPy instead of the kernel
    velocity_from: int = 0  # First successive displacement whose products are wanted (all if 0)

    @property
    def mode(self) -> str:
        """Kernel mode that gives the pair sums."""
        if "inside" in self.terms:
            return "overlap"
        return "moments" if "fourth" in self.terms else "square"

    @cached_property
    def plan(self) -> PairPlan:
        """Tiles of the pairs, for differences."""
        return plan_pairs(self.first, self.second, self.mode)

    @cached_property
    def product_plan(self) -> PairPlan:
        """Tiles of the pairs, for products."""
        return plan_pairs(self.first, self.second, "product")

    @cached_property
    def velocity_plan(self) -> PairPlan:
        """Tiles of all pairs (the diagonal too) of successive displacements."""
        first, second = np.triu_indices(self.n_rows - 1)
        keep = (second >= self.velocity_from) | (first == second)
        return plan_pairs(first[keep], second[keep], "product")


def contribute(request: Request, block: np.ndarray, start: int, limits: dict[int, np.ndarray] | None = None) -> Sums:
    """Sum over the parameters of one block."""
    block = np.asarray(block)
    if block.dtype == np.float16:
        block = block.astype(np.float32)
    block = np.ascontiguousarray(block.astype(block.dtype.newbyteorder("="), copy=False))
    stack: list[tuple[int, Sums]] = []
    for low in range(0, block.shape[1], UNIT):
        size, found = 1, _unit(request, block, low, min(low + UNIT, block.shape[1]), start, limits or {})
        while stack and stack[-1][0] == size:
            found = merge(stack.pop()[1], found)
            size *= 2
        stack.append((size, found))
    total = stack.pop()[1]
    while stack:
        total = merge(stack.pop()[1], total)
    return total


def merge(left: Sums, right: Sums) -> Sums:
    """Add two sets of sums; an absent entry is zero."""
    out = {group: dict(terms) for group, terms in left.items()}
    for group, terms in right.items():
        mine = out.setdefault(group, {})
        for name, value in terms.items():
            mine[name] = mine[name] + value if name in mine else value
    return out


def block_of(parameters: np.ndarray, n_blocks: int, seed: int) -> np.ndarray:
    """Assign parameters to random blocks by a fixed 64-bit mix of seed and index (splitmix64)."""
    with np.errstate(over="ignore"):
        z = (
            parameters.astype(np.uint64)
            + np.uint64(seed) * np.uint64(0xD1342543DE82EF95)
            + np.uint64(0x9E3779B97F4A7C15)
        )
        z *= np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((z ^ (z >> np.uint64(31))) % np.uint64(n_blocks)).astype(np.int64)


def _unit(request: Request, block: np.ndarray, low: int, high: int, start: int, limits: dict[int, np.ndarray]) -> Sums:
    out: Sums = {}
    first_layer = int(np.searchsorted(request.layer_stop, start + low, side="right"))
    for layer in range(first_layer, request.layer_stop.size):
        begin = max(low, int(request.layer_stop[layer - 1]) - start if layer else low)
        end = min(high, int(request.layer_stop[layer]) - start)
        if begin >= high:
            break
        group = int(request.group_of_layer[layer])
        if group < 0 or begin >= end:
            continue
        if request.n_blocks == 1:
            _segment(request, block, begin, end, group, layer, out, limits)
            continue
        mine = block_of(np.arange(start + begin, start + end), request.n_blocks, request.seed)
        order = np.argsort(mine, kind="stable")
        gathered = np.ascontiguousarray(block[:, begin:end][:, order])
        edges = np.searchsorted(mine[order], np.arange(request.n_blocks + 1))
        for b in np.flatnonzero(np.diff(edges)):
            key = group * request.n_blocks + int(b)
            _segment(request, gathered, int(edges[b]), int(edges[b + 1]), key, layer, out, limits)
    return out


def _segment(
    request: Request,
    block: np.ndarray,
    begin: int,
    end: int,
    key: int,
    layer: int,
    out: Sums,
    limits: dict[int, np.ndarray],
) -> None:
    terms = out.setdefault(key, {})
    n_pairs = request.first.size

    def slot(name: str, *shape: int) -> np.ndarray:
        return terms.setdefault(name, np.zeros(shape))

    bad = np.zeros(request.n_rows, dtype=np.int64)
    kernel = reference_sums if request.reference else pair_sums
    if n_pairs:
        pairs = slot("pairs", {"square": 1, "moments": 2, "overlap": 3}[request.mode], n_pairs)
        bad = kernel(block, begin, end, request.plan, request.mode, pairs, limits.get(key // request.n_blocks))
    if "rows" in request.terms:
        x = block[:, begin:end].astype(np.float64)
        slot("rows", 2, request.n_rows)[...] += x.sum(axis=1), np.einsum("ij,ij->i", x, x)
    if "flips" in request.terms:
        sign_flips(block, begin, end, request.plan, slot("flips", n_pairs))
    if bad.any():
        slot(f"bad {layer}", request.n_rows)[:] += bad > 0
    for k, wavenumber in enumerate(request.wavenumber):
        features = np.empty((request.n_rows, 2 * (end - begin)), dtype=np.float32)
        origin = int(np.argmin(bad))
        cos_sin(block, begin, end, origin, wavenumber, features)
        kernel(features, 0, features.shape[1], request.product_plan, "product", slot(f"cosine {k}", 1, n_pairs))
    if "velocity" in request.terms and request.n_rows > 1:
        steps = np.diff(block[:, begin:end], axis=0)
        plan = request.velocity_plan
        kernel(steps, 0, steps.shape[1], plan, "product", slot("velocity", 1, plan.first.size))
