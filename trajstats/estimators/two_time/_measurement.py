"""A two-time measurement from checked arguments to labelled, lazy results; shared by all that measure displacements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import xarray as xr

from trajstats.data.schema import LAYER, PAIR, REPLICA, STEP, STEP_PRIME, WEIGHTS, annotate
from trajstats.errors import ArgumentError, unknown_name_message
from trajstats.estimators.two_time._dask_blocks import Plan, as_array, block_sums, delay, plan_blocks, stack
from trajstats.estimators.two_time._groups import Groups, Per, read_groups
from trajstats.estimators.two_time._observables import (
    OBSERVABLES,
    SCATTERING,
    VELOCITY,
    distances,
    finish,
    finish_velocity,
    read_observables,
)
from trajstats.estimators.two_time._pair_kernels import BOUNDS
from trajstats.estimators.two_time._sums import Request

METHODS = ("direct", "reference")
ON_NAN = ("raise", "skip")
BLOCK = "block"
WAVENUMBER = "wavenumber"
DISTANCE = "overlap_distance"
# Written by the store: mean square rounding error of the weights of each layer at each step.
FLOOR = "rounding_floor"


@dataclass(frozen=True)
class Job:
    """A measurement that is checked and planned, and has read nothing yet."""

    names: tuple[str, ...]  # Observables, without the velocity correlation
    groups: Groups  # Over what, which sums, in which blocks
    request: Request  # Over what, which sums, in which blocks
    plan: Plan  # Over what, which sums, in which blocks
    rows: np.ndarray  # Checkpoints that are read
    sizes: np.ndarray  # Parameters of each group, or of each random block of each group
    on_nan: str  # ``"raise"`` or ``"skip"``
    epsilon: float | None  # Overlap distance
    overlap_k: float  # Overlap distance
    arguments: dict[str, Any]  # For the attributes of the result

    def listed(self, trajectory: xr.Dataset, coords: Mapping[str, Any], clock: Mapping[str, str]) -> xr.Dataset:
        """Label the observables along `pair`."""
        sums, limits = self._sums(trajectory)
        shape = (self._width, self.request.first.size, self.sizes.size)
        values = [as_array(v, shape) for v in self._values(trajectory, sums, limits)]
        out = self._labelled(trajectory, stack(values), (PAIR,), coords, self.names)
        if limits is not None:
            found = [as_array(delay(_distances, v, self.request.first, len(self.groups)), shape[1:]) for v in limits]
            out = self._with_distance(out, stack(found), PAIR)
        if FLOOR in trajectory and trajectory[FLOOR].dims == (REPLICA, STEP, LAYER):
            out = out.assign_coords({FLOOR: self._floor(trajectory, coords)})
        return self._annotated(out, trajectory, "two_time", **clock)

    def matrices(self, trajectory: xr.Dataset) -> xr.Dataset:
        """Label the observables along `step` and `step_prime`, symmetric; pairs not in the request are NaN."""
        sums, limits = self._sums(trajectory)
        n, n_keys = trajectory.sizes[STEP], self.sizes.size
        same = np.concatenate(
            [
                np.ones(len(self.request.wavenumber)) if name == SCATTERING else [OBSERVABLES[name].same]
                for name in self.names
            ]
        )
        first, second = self.rows[self.request.first], self.rows[self.request.second]
        shape = (self._width, n, n, n_keys)
        values = [
            as_array(delay(_symmetric, v, first, second, n, same), shape)
            for v in self._values(trajectory, sums, limits)
        ]
        steps = trajectory[STEP].values
        along = {str(k): c for k, c in trajectory.coords.items() if c.dims == (STEP,) and k != STEP}
        clocks = {name: (STEP, coord.values, coord.attrs) for name, coord in along.items()}
        coords = {STEP: steps, STEP_PRIME: steps, **clocks}
        out = self._labelled(trajectory, stack(values), (STEP, STEP_PRIME), coords, self.names)
        if VELOCITY in self.arguments["observables"]:
            cosines = [as_array(delay(finish_velocity, s, self.request, n_keys), shape[1:]) for s in sums]
            also = self._labelled(trajectory, stack(cosines)[:, None], (STEP, STEP_PRIME), coords, (VELOCITY,))
            out[VELOCITY] = also[VELOCITY]
        if limits is not None:
            every = np.arange(self.request.n_rows)
            found = [as_array(delay(_distances, v, every, len(self.groups)), (n, len(self.groups))) for v in limits]
            out = self._with_distance(out, stack(found), STEP)
        return self._annotated(out, trajectory, "all_pairs")

    @property
    def _width(self) -> int:
        return len(self.names) + (len(self.request.wavenumber) - 1 if SCATTERING in self.names else 0)

    def _sums(self, trajectory: xr.Dataset) -> tuple[list[Any], list[Any] | None]:
        limits: list[Any] | None = None
        if "inside" in self.request.terms and self.epsilon is not None:
            fixed = {g: np.full(self.request.n_rows, float(self.epsilon) ** 2) for g in range(len(self.groups))}
            limits = [fixed] * self.plan.n_replicas
        elif "inside" in self.request.terms:
            of, none = self.request, np.empty(0, dtype=np.int64)
            alone = Request(of.n_rows, none, none, frozenset({"rows"}), of.layer_stop, of.group_of_layer)
            moments = block_sums(trajectory, self.rows, alone, self.plan)
            limits = [delay(distances, m, self.groups.sizes, self.overlap_k, of.n_rows) for m in moments]
        return block_sums(trajectory, self.rows, self.request, self.plan, limits), limits

    def _values(self, trajectory: xr.Dataset, sums: list[Any], limits: list[Any] | None) -> list[Any]:
        steps = trajectory[STEP].values[self.rows]
        layers = [str(name) for name in trajectory[LAYER].values]
        out = []
        for r, total in enumerate(sums):
            blame = partial(_blame, layers, steps, str(trajectory[REPLICA].values[r]))
            limit = None if limits is None else limits[r]
            args = (total, self.request, self.names, self.sizes, limit, blame if self.on_nan == "raise" else None)
            out.append(delay(finish, *args))
        return out

    def _labelled(
        self,
        trajectory: xr.Dataset,
        values: Any,
        dims: tuple[str, ...],
        coords: Mapping[str, Any],
        names: Sequence[str],
    ) -> xr.Dataset:
        waves = self.request.wavenumber
        every = {REPLICA: trajectory[REPLICA].values, **coords, **self.groups.coords()}
        last, shape = self._last()
        if BLOCK in last:
            every |= {BLOCK: np.arange(shape[-1]), "n_parameters": (last, self.sizes.reshape(shape))}
        out = xr.Dataset(coords=every)
        column = 0
        for name in names:
            width = len(waves) if name == SCATTERING else 1
            part = values[:, column : column + width]
            part = part.reshape((*part.shape[:-1], *shape))
            column += width
            if name == SCATTERING:
                out = out.assign_coords({WAVENUMBER: list(waves)})
                out[name] = ((REPLICA, WAVENUMBER, *dims, *last), part)
            else:
                out[name] = ((REPLICA, *dims, *last), part[:, 0])
        return out

    def _last(self) -> tuple[tuple[str, ...], tuple[int, ...]]:
        last: tuple[str, ...] = () if self.groups.dim is None else (self.groups.dim,)
        shape: tuple[int, ...] = () if self.groups.dim is None else (len(self.groups),)
        if self.arguments["blocks"] is not None:
            return (*last, BLOCK), (*shape, self.request.n_blocks)
        return last, shape

    def _with_distance(self, out: xr.Dataset, values: Any, dim: str) -> xr.Dataset:
        name = self.groups.dim
        if name is None:
            out[DISTANCE] = ((REPLICA, dim), values[..., 0])
        else:
            out[DISTANCE] = ((REPLICA, dim, name), values)
        out[DISTANCE].attrs |= {"long_name": r"overlap distance $\epsilon$", "units": "weight"}
        return out

    def _floor(self, trajectory: xr.Dataset, coords: Mapping[str, Any]) -> xr.DataArray:
        # What rounding of the stored weights adds to each MSD; the store keeps its two halves, one for each end.
        steps, of_layer = trajectory[STEP].values, self.groups.of_layer
        sizes = np.diff(trajectory["layer_stop"].values, prepend=0)
        at = trajectory[FLOOR].values * sizes
        both = sum(at[:, np.searchsorted(steps, coords[end][1])] for end in ("first", "second"))
        values = np.zeros((*np.shape(both)[:2], len(self.groups)))
        for layer in np.flatnonzero(of_layer >= 0):
            values[..., of_layer[layer]] += np.asarray(both)[..., layer] / self.groups.sizes[of_layer[layer]]
        attrs = {"long_name": "rounding of the stored weights in the MSD", "units": "weight^2"}
        if self.groups.dim is None:
            return xr.DataArray(values[..., 0], dims=(REPLICA, PAIR), attrs=attrs)
        return xr.DataArray(values, dims=(REPLICA, PAIR, self.groups.dim), attrs=attrs)

    def _annotated(self, out: xr.Dataset, trajectory: xr.Dataset, estimator: str, **more: Any) -> xr.Dataset:
        double = self.arguments["method"] == "reference" or trajectory[WEIGHTS].dtype.itemsize > 4
        about = {"estimator": estimator, "arguments": self.arguments, "source": str(trajectory.attrs["uid"]), **more}
        for name in out.data_vars:
            if name in OBSERVABLES:
                known = OBSERVABLES[str(name)]
                bound = BOUNDS["double"] if double else known.bound
                annotate(
                    out[name],
                    name=name,
                    long_name=known.long_name,
                    units=known.units,
                    error_bound=bound,
                    error_kind=known.error_kind,
                    **about,
                )
            elif name in {SCATTERING, VELOCITY}:
                long_name = {
                    SCATTERING: r"self-intermediate scattering function $\langle\cos q\delta\rangle$",
                    VELOCITY: "cosine between successive displacements",
                }[str(name)]
                annotate(
                    out[name],
                    name=name,
                    long_name=long_name,
                    units="1",
                    error_bound=BOUNDS["product"] + (BOUNDS["square"] if name == VELOCITY else 0),
                    error_kind="absolute",
                    **about,
                )
        return annotate(out, name="", long_name="two-time statistics", units="", **about)


def prepare(
    trajectory: xr.Dataset,
    first: np.ndarray,
    second: np.ndarray,
    *,
    observables: str | Sequence[str] = "msd",
    per: Per = "all",
    blocks: int | None = None,
    wavenumber: Sequence[float] | float | None = None,
    epsilon: float | None = None,
    overlap_k: float = 10.0,
    method: str = "direct",
    on_nan: str = "raise",
    rng: int = 0,
    block_bytes: int | None = None,
    memory_limit: int | None = None,
    velocity_from: int = 0,
) -> Job:
    """Check the arguments of a measurement and plan it."""
    asked = read_observables(observables, wavenumber)
    for kind, given, allowed in (("method", method, METHODS), ("on_nan", on_nan, ON_NAN)):
        if given not in allowed:
            raise ArgumentError(unknown_name_message(kind, given, allowed))
    if blocks is not None and not 1 <= blocks <= trajectory["layer_stop"].values[-1]:
        msg = f"blocks={blocks}: give 1 or more random blocks, at most one per parameter"
        raise ArgumentError(msg)
    if (epsilon is not None and not epsilon > 0) or not overlap_k > 0:
        msg = f"epsilon={epsilon}, overlap_k={overlap_k}: the overlap distance must be above 0"
        raise ArgumentError(msg)
    if not hasattr(rng, "__index__"):
        msg = f"rng={rng!r}: the assignment to random blocks takes an integer seed, so that it can be repeated"
        raise ArgumentError(msg)
    if first.size == 0:
        msg = "no pairs were given; make some with time_pairs(run)"
        raise ArgumentError(msg)
    groups = read_groups(trajectory, per)
    rows, where = np.unique(np.concatenate([first, second]), return_inverse=True)
    terms = {"square"}.union(*(OBSERVABLES[name].terms for name in asked if name in OBSERVABLES))
    waves = tuple(np.atleast_1d(np.asarray(wavenumber, dtype=float)).tolist()) if SCATTERING in asked else ()
    stops = trajectory["layer_stop"].values
    request = Request(
        n_rows=rows.size,
        first=where[: first.size],
        second=where[first.size :],
        terms=frozenset(terms | ({"velocity"} if VELOCITY in asked else set())),
        layer_stop=stops,
        group_of_layer=groups.of_layer,
        wavenumber=waves,
        n_blocks=blocks or 1,
        seed=int(rng),
        reference=method == "reference",
        velocity_from=velocity_from,
    )
    plan = plan_blocks(
        trajectory, request, len(groups) * request.n_blocks, block_bytes=block_bytes, memory_limit=memory_limit
    )
    arguments = {
        "observables": list(asked),
        "per": groups.argument,
        "blocks": blocks,
        "wavenumber": list(waves),
        "epsilon": epsilon,
        "overlap_k": overlap_k,
        "method": method,
        "on_nan": on_nan,
        "rng": int(rng),
    }
    sizes = groups.sizes if blocks is None else groups.block_sizes(stops, blocks, int(rng))
    names = tuple(name for name in asked if name != VELOCITY)
    return Job(names, groups, request, plan, rows, sizes, on_nan, epsilon, overlap_k, arguments)


def _blame(layers: list[str], steps: np.ndarray, replica: str, layer: int, rows: np.ndarray) -> str:
    shown = ", ".join(str(s) for s in steps[rows][:10]) + (", ..." if rows.size > 10 else "")
    return (
        f"weights of layer {layers[layer]!r} hold NaN or infinity at step {shown} (replica {replica}). Leave them "
        "out with .sel(step=...) or .sel(layer=[...]), or ask for on_nan='skip': their pairs become NaN."
    )


def _distances(limits: dict[int, np.ndarray], rows: np.ndarray, n_groups: int) -> np.ndarray:
    return np.sqrt(np.stack([limits[g][rows] for g in range(n_groups)], axis=-1))


def _symmetric(values: np.ndarray, first: np.ndarray, second: np.ndarray, n: int, same: np.ndarray) -> np.ndarray:
    out = np.full((values.shape[0], n, n, values.shape[2]), np.nan)
    out[:, np.arange(n), np.arange(n)] = same[:, None, None]
    out[:, first, second] = values
    out[:, second, first] = values
    return out
