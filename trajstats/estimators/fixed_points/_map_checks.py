"""Check what a census starts from: the map, its starting points, its precision and the tolerance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from trajstats.errors import ArgumentError, NonFiniteError
from trajstats.estimators._checkpoints import one_checkpoint

# Tolerances below this many units of the map's rounding cannot be met for sure.
_FINEST = 32.0


def check_map(
    given: Any, dim: int, weights: Any, jacobian: Callable[[np.ndarray], np.ndarray] | None
) -> tuple[Callable[[np.ndarray], np.ndarray], Callable[[np.ndarray], np.ndarray] | None]:
    """Return the map as a function of batches and its Jacobian, or None where it has none."""
    if int(dim) != dim or dim < 1:
        msg = f"dim={dim}: give the dimension of the space, at least 1"
        raise ArgumentError(msg)
    if not hasattr(given, "input_jacobian"):
        if weights is not None or not callable(given):
            msg = "give a callable on batches, or a Network together with weights"
            raise ArgumentError(msg)
        return given, jacobian or getattr(given, "jacobian", None)
    if weights is None:
        msg = "a Network is a map only at given weights: pass weights=run.sel(replica=..., step=...)"
        raise ArgumentError(msg)
    if not given.n_inputs == given.n_outputs == dim:
        msg = f"the network maps {given.n_inputs} to {given.n_outputs}; fixed points need {dim} of both (dim={dim})"
        raise ArgumentError(msg)
    net, w = one_checkpoint(given, weights)
    own = jacobian or (lambda x: np.asarray(net.input_jacobian(w, x), dtype=np.float64))
    return lambda x: net.outputs(w, x), own


def check_starts(starts: int | np.ndarray, dim: int, scale: float, entropy: int) -> np.ndarray:
    """Return the starting points: those given, or Gaussian ones."""
    if np.ndim(starts) == 0:
        count = int(starts)
        if count < 1 or not scale > 0:
            msg = f"starts={starts} must be at least 1 and start_scale={scale} positive"
            raise ArgumentError(msg)
        return scale * np.random.default_rng(entropy).standard_normal((count, dim))
    points = np.array(starts, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] != dim or not len(points):
        msg = f"starts have shape {points.shape}; give (start, {dim})"
        raise ArgumentError(msg)
    if not np.isfinite(points).all():
        msg = "starts hold NaN or infinity"
        raise NonFiniteError(msg)
    return points


def value_precision(function: Callable[[np.ndarray], np.ndarray], points: np.ndarray) -> float:
    """Return the machine epsilon of the map's values."""
    kind = np.asarray(function(points[:1])).dtype
    return float(np.finfo(kind).eps) if np.issubdtype(kind, np.floating) else float(np.finfo(np.float64).eps)


def check_tolerance(tolerance: float | None, eps: float) -> float:
    """Return the tolerance of convergence, which the precision of the map must allow."""
    if tolerance is None:
        return 1e-10 if eps < 1e-10 else max(1e-5, _FINEST * eps)
    if not tolerance >= _FINEST * eps:
        msg = (
            f"tolerance={tolerance} is below the map's precision: its values have eps={eps:.3g}, "
            f"so at least {_FINEST * eps:.3g} is needed. Evaluate the map in float64, or raise the tolerance."
        )
        raise ArgumentError(msg)
    return float(tolerance)
