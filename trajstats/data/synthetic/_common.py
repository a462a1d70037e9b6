"""What all synthetic processes share: steps, layers, clocks and the trajectory made of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from trajstats.data.schema import trajectory_dataset

Steps = Sequence[int] | np.ndarray
Layers = Mapping[str, Sequence[int]] | None
Rng = int | np.random.Generator


def as_steps(step: Steps) -> np.ndarray:
    """Read recorded steps."""
    return np.asarray(step, dtype=np.int64)


def n_and_layers(n_parameters: int, layers: Layers) -> tuple[int, Layers]:
    """Let layers fix the number of parameters."""
    return (n_parameters if layers is None else sum(int(np.prod(s)) for s in layers.values())), layers


def _age(t: np.ndarray, exponent: float) -> np.ndarray:
    return np.log(np.maximum(t, 1)) if exponent == 0 else np.asarray(t, dtype=np.float64) ** exponent


def _clock(t: np.ndarray, mu: float) -> np.ndarray:
    return np.log(np.maximum(t, 1)) if mu == 1 else np.asarray(t, dtype=np.float64) ** (1 - mu) / (1 - mu)


def _relax(clock: np.ndarray, rng: Rng, variance: float, n: int, replicas: int) -> np.ndarray:
    rng = np.random.default_rng(rng)
    kept = np.exp(-np.diff(clock))
    new = np.sqrt(-np.expm1(-2 * np.diff(clock)))
    path = np.empty((replicas, clock.size, n))
    path[:, 0] = rng.standard_normal((replicas, n))
    for k in range(clock.size - 1):
        path[:, k + 1] = kept[k] * path[:, k] + new[k] * rng.standard_normal((replicas, n))
    return np.sqrt(variance) * path


def as_trajectory(
    path: np.ndarray,
    step: Steps,
    layers: Layers,
    dtype: str,
    process: str,
    *,
    clocks: Mapping[str, Any] | None = None,
    **arguments: Any,
) -> xr.Dataset:
    """Label a path as a trajectory that remembers its process."""
    about = {"process": process, "process_arguments": json.dumps(arguments)}
    return trajectory_dataset(path.astype(dtype), step=step, layers=layers, clocks=clocks, attrs=about)
