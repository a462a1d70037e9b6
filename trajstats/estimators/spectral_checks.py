"""Checks shared by the curvature estimators, made before any work starts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from trajstats.data.schema import layer_slices
from trajstats.errors import ArgumentError, unknown
from trajstats.estimators.checkpoints import chosen_rows, match_network
from trajstats.network import CURVATURE_KINDS, CurvatureKind, Network

MEMORY = 2**30
UNITS = "loss / weight^2"


def checked(
    network: Network,
    trajectory: xr.Dataset,
    steps: Sequence[int] | None,
    kind: CurvatureKind,
    layers: Sequence[str] | None,
    rng: int | np.random.Generator,
) -> tuple[Network, xr.Dataset, list[int], np.ndarray | None, int]:
    """Standardise what every curvature estimator is given.

    Parameters
    ----------
    network, trajectory, steps, kind, layers, rng
        As in `hessian_spectrum`.

    Returns
    -------
    network : Network
        As a function of the run's flat vector.
    trajectory : xarray.Dataset
        Checked.
    rows : list of int
        Rows of `steps`.
    selection : ndarray of int or None
        Parameters of `layers`.
    entropy : int
        Seed.

    Raises
    ------
    ArgumentError
        If an argument is not allowed.
    SchemaError
        If the layers of network and trajectory differ.
    """  # noqa: DOC502 (some raised by the checks it calls)
    network, trajectory = match_network(network, trajectory)
    if kind not in CURVATURE_KINDS:
        raise ArgumentError(unknown("kind", kind, CURVATURE_KINDS))
    if isinstance(layers, str):
        layers = [layers]
    selection = None
    if layers is not None:
        slices = list(layer_slices(trajectory, layers).values())
        if not slices:
            msg = "layers=[] restricts to nothing; name at least one layer, or None for all"
            raise ArgumentError(msg)
        selection = np.concatenate([np.arange(part.start, part.stop) for part in slices])
    if isinstance(rng, np.random.Generator):
        return network, trajectory, chosen_rows(trajectory, steps), selection, int(rng.integers(2**63))
    if isinstance(rng, bool) or not isinstance(rng, int | np.integer) or rng < 0:
        msg = f"rng={rng!r}: give a seed (an integer of at least 0) or a numpy.random.Generator"
        raise ArgumentError(msg)
    return network, trajectory, chosen_rows(trajectory, steps), selection, int(rng)


def at_least_one(**counts: int) -> None:
    """Check counts.

    Parameters
    ----------
    **counts : int
        Argument name -> value.

    Raises
    ------
    ArgumentError
        If a value is not an integer of at least 1.
    """
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
            msg = f"{name}={value!r}: give an integer of at least 1"
            raise ArgumentError(msg)
