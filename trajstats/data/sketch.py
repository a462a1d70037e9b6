r"""Random projections for networks too large to save: enough to estimate displacements, with error bars.

The weight of index :math:`i` in layer :math:`l` is hashed to a bucket :math:`b(i)` of that layer and a sign
:math:`s(i)=\pm1` by a fixed 64-bit mix of (seed, hash replica, layer name, index within the layer), so that a
sketch does not depend on the platform or on the order of layers. With :math:`\delta=w(t)-w(t_w)`,
:math:`S_b=\sum_{i:b(i)=b}s(i)\delta_i` gives :math:`\mathrm E\sum_bS_b^2=|\delta|_2^2` with variance
:math:`\frac2k(|\delta|_2^4-|\delta|_4^4)` for `k` buckets.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import xarray as xr

from trajstats.data._inputs import PAIRS, TRAJECTORY, accepts
from trajstats.data.schema import LAYER, SKETCH, check_trajectory
from trajstats.errors import ArgumentError, SchemaError, TooFewReplicasError, unknown_name_message

KINDS = ("countsketch", "sparse")
MIX_VERSION = 1


@numba.njit(cache=True, nogil=True, inline="always")
def _mix(x: Any) -> Any:
    # The finaliser of splitmix64 (Stafford's variant 13).
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@numba.njit(cache=True, nogil=True)
def _keys(key: Any, start: int, n: int) -> Any:
    out = np.empty(n, np.uint64)
    for i in range(n):
        out[i] = _mix(key + np.uint64(0x9E3779B97F4A7C15) * np.uint64(start + i + 1))
    return out


@numba.njit(cache=True, nogil=True)
def _project(now: Any, then: Any, start: int, key: Any, out: Any, per_weight: int) -> None:
    # The top bits give the bucket (a multiply-shift, without bias for a power of two), the lowest bit the sign.
    buckets = np.uint64(out.size)
    step = np.uint64(0x9E3779B97F4A7C15)
    counter = key + step * np.uint64(start)
    if per_weight == 1:
        for i in range(now.size):
            counter += step
            h = _mix(counter)
            value = np.float64(now[i]) - np.float64(then[i])
            sign = 1.0 - 2.0 * np.float64(np.int64(h & np.uint64(1)))
            out[((h >> np.uint64(32)) * buckets) >> np.uint64(32)] += sign * value
        return
    scale = 1.0 / np.sqrt(per_weight)
    for i in range(now.size):
        counter += step
        value = (np.float64(now[i]) - np.float64(then[i])) * scale
        h = _mix(counter)
        for _ in range(per_weight):
            sign = 1.0 - 2.0 * np.float64(np.int64(h & np.uint64(1)))
            out[((h >> np.uint64(32)) * buckets) >> np.uint64(32)] += sign * value
            h = _mix(h + step)


@dataclass(frozen=True)
class Sketch:
    """How to project weights at random.

    Parameters
    ----------
    buckets : int
        Numbers stored per layer and hash replica; the relative error of one hash replica is about
        ``sqrt(2 / buckets)``. A layer smaller than this is given as many buckets as it has weights.
    hashes : int
        Independent hash replicas, from whose scatter error bars come; at least 2.
    seed : int
        Seed of the hash.
    kind : str
        ``"countsketch"`` (each weight in one bucket), or ``"sparse"`` (each in four buckets, with weight 1/2): denser,
        slower, and with a smaller chance that two large weights share their bucket.

    Raises
    ------
    ArgumentError
        If a number is out of range or `kind` is not known.

    References
    ----------
    Charikar, Chen, Farach-Colton, Finding frequent items in data streams (2004); Kane and Nelson, Sparser
    Johnson-Lindenstrauss transforms, arXiv:1012.1577.

    Examples
    --------
    >>> Sketch(buckets=4096, hashes=8).shape({"w": (1000, 1000), "b": (10,)})
    (8, 4106)
    """

    buckets: int = 4096
    hashes: int = 8
    seed: int = 0
    kind: str = "countsketch"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ArgumentError(unknown_name_message("kind of sketch", self.kind, KINDS))
        if not 1 <= self.buckets < 2**31 or self.hashes < 2 or not 0 <= self.seed < 2**63:
            msg = (
                f"buckets={self.buckets}, hashes={self.hashes}, seed={self.seed}: need >= 1, >= 2 and 0 <= seed < 2**63"
            )
            raise ArgumentError(msg)

    def sizes(self, layers: Mapping[str, Sequence[int]]) -> np.ndarray:
        """Give the number of buckets of each layer.

        Parameters
        ----------
        layers : mapping name -> shape
            The layers.

        Returns
        -------
        ndarray of int64, (layer,)
            At least 1, at most `buckets`.
        """
        weights = np.array([int(np.prod(shape, dtype=np.int64)) for shape in layers.values()], dtype=np.int64)
        return np.clip(weights, 1, self.buckets)

    def shape(self, layers: Mapping[str, Sequence[int]]) -> tuple[int, int]:
        """Give the shape of one sketched row.

        Parameters
        ----------
        layers : mapping name -> shape
            The layers.

        Returns
        -------
        tuple of int
            (hash, bucket).
        """
        return self.hashes, int(self.sizes(layers).sum())

    def coordinates(self, layers: Mapping[str, Sequence[int]]) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
        """Give the coordinates a sketched store has besides those of every store.

        Parameters
        ----------
        layers : mapping name -> shape
            The layers.

        Returns
        -------
        dict name -> (dims, values)
            ``hash`` and ``bucket_layer_stop``, the end of each layer along `bucket`.
        """
        return {
            "hash": (("hash",), np.arange(self.hashes)),
            "bucket_layer_stop": ((LAYER,), np.cumsum(self.sizes(layers))),
        }

    def attrs(self) -> dict[str, Any]:
        """Give the attributes of a sketched store.

        Returns
        -------
        dict
            ``sketch_kind``, ``sketch_buckets``, ``sketch_hashes``, ``sketch_seed`` and ``sketch_mix``.
        """
        return {
            "sketch_kind": self.kind,
            "sketch_buckets": self.buckets,
            "sketch_hashes": self.hashes,
            "sketch_seed": self.seed,
            "sketch_mix": MIX_VERSION,
        }

    def check_same(self, attrs: Mapping[str, Any]) -> None:
        """Check that a store was made by this very sketch.

        Parameters
        ----------
        attrs : mapping
            Attributes of the store.

        Raises
        ------
        ArgumentError
            If one of them differs.
        """
        for name, value in self.attrs().items():
            if attrs.get(name) != value:
                msg = f"the store was made with {name}={attrs.get(name)!r}, this sketch has {value!r}; use the same"
                raise ArgumentError(msg)

    def key(self, layer: str, replica: int) -> np.uint64:
        """Give the hash key of a layer and hash replica.

        Parameters
        ----------
        layer : str
            Name of the layer.
        replica : int
            Hash replica.

        Returns
        -------
        numpy.uint64
            The key; sums with the index in the layer are mixed to a bucket and a sign.
        """
        text = f"{self.seed}/{replica}/{layer}".encode("utf-8", "surrogatepass")
        return np.uint64(int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little"))

    def project(
        self,
        weights: np.ndarray,
        layers: Mapping[str, Sequence[int]],
        *,
        reference: np.ndarray | None = None,
    ) -> np.ndarray:
        """Project one flat weight vector, or its distance from another.

        Parameters
        ----------
        weights : ndarray, (parameter,)
            Flat weights.
        layers : mapping name -> shape
            The layers.
        reference : ndarray, (parameter,), optional
            What is subtracted first, in float64: w(0).

        Returns
        -------
        ndarray of float64, (hash, bucket)
            The sketch.

        Raises
        ------
        ArgumentError
            If the length does not fit the layers.
        """
        sizes = self.sizes(layers)
        shapes = [int(np.prod(shape, dtype=np.int64)) for shape in layers.values()]
        if weights.shape != (sum(shapes),):
            msg = f"weights have shape {weights.shape}; these layers make ({sum(shapes)},)"
            raise ArgumentError(msg)
        then = np.zeros(1, weights.dtype) if reference is None else reference
        out = np.zeros((self.hashes, int(sizes.sum())))
        begin = at = 0
        for name, n, k in zip(layers, shapes, sizes.tolist(), strict=True):
            now = _floats(weights[begin : begin + n])
            old = (
                np.broadcast_to(np.zeros(1, now.dtype), now.shape)
                if reference is None
                else _floats(then[begin : begin + n])
            )
            for replica in range(self.hashes):
                _project(
                    now, old, 0, self.key(name, replica), out[replica, at : at + k], 1 if self.kind == KINDS[0] else 4
                )
            begin, at = begin + n, at + k
        return out


def _floats(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values.astype(np.float32) if values.dtype.name in {"float16", "bfloat16"} else values)


def check_sketch(trajectory: xr.Dataset) -> xr.Dataset:
    """Check that a dataset is a sketched trajectory."""
    trajectory = check_trajectory(trajectory, sketched=True)
    if SKETCH not in trajectory:
        msg = "this trajectory holds weights, not sketches; use msd(trajectory, pairs)"
        raise SchemaError(msg)
    return trajectory


@accepts(TRAJECTORY, PAIRS)
def sketch_msd(
    trajectory: xr.Dataset, pairs: xr.Dataset, /, *, per: str = "layer"
) -> tuple[xr.DataArray, xr.DataArray]:
    r"""Estimate mean squared displacements from a sketched trajectory.

    :math:`\hat\Delta_h=\frac1N\sum_b[S_{hb}(t_w+t)-S_{hb}(t_w)]^2` for each hash replica `h`; the estimate is the mean
    over `h`, its standard error the scatter over `h`.

    Parameters
    ----------
    trajectory : xarray.Dataset
        A sketched trajectory.
    pairs : xarray.Dataset
        From :func:`trajstats.time_pairs`: ``first`` and ``second`` along `pair`, steps that were saved.
    per : str
        ``"layer"``, or ``"all"``: all weights together.

    Returns
    -------
    estimate : xarray.DataArray, (replica, pair, layer) or (replica, pair)
        Mean squared displacement per weight, float64, lazy if the trajectory is.
    stderr : xarray.DataArray, same dims
        Standard error from the hash replicas. It is the error of the projection alone.

    Raises
    ------
    SchemaError
        If the trajectory holds no sketch.
    TooFewReplicasError
        If there are fewer than 2 hash replicas.
    ArgumentError
        If `per` is not known.

    Notes
    -----
    Unbiased. The relative error of the mean over `H` hash replicas of `k` buckets is at most :math:`\sqrt{2/(kH)}`, and
    smaller where few weights carry the displacement. Pairs that share a time share their error.

    Examples
    --------
    >>> import tempfile
    >>> from trajstats.data.store.open import TrajectoryWriter, open_trajectory
    >>> from trajstats.data.schedules import time_pairs
    >>> path = tempfile.mkdtemp() + "/run.zarr"
    >>> with TrajectoryWriter(path, {"w": (4000,)}, sketch=Sketch(buckets=1024)) as run:
    ...     run.append(0, np.zeros(4000))
    ...     run.append(1, np.full(4000, 2.0))
    >>> run = open_trajectory(path)
    >>> estimate, stderr = sketch_msd(run, time_pairs(run))
    >>> bool(abs(estimate.values.item() - 4.0) < 5 * stderr.values.item())
    True
    """
    trajectory = check_sketch(trajectory)
    if per not in {"layer", "all"}:
        raise ArgumentError(unknown_name_message("choice of per", per, ["layer", "all"]))
    if trajectory.sizes["hash"] < 2:
        msg = f"{trajectory.sizes['hash']} hash replica: an error bar needs at least 2"
        raise TooFewReplicasError(msg)
    sketch = trajectory[SKETCH]
    data = sketch.data
    steps = trajectory["step"].values.tolist()
    first = [steps.index(s) for s in pairs["first"].values.tolist()]
    second = [steps.index(s) for s in pairs["second"].values.tolist()]
    ends = trajectory["bucket_layer_stop"].values.tolist()
    weights = np.diff(trajectory["layer_stop"].values, prepend=0).astype(np.float64)
    moved = []
    for begin, end in zip([0, *ends[:-1]], ends, strict=True):
        part = data[:, :, :, begin:end]
        moved.append(((part[:, second] - part[:, first]) ** 2).sum(axis=-1))
    if per == "all":
        values = sum(moved) / max(1.0, weights.sum())
        dims: tuple[str, ...] = ("replica", "pair", "hash")
    else:
        stack = np.stack(moved, axis=-1)  # dask arrays answer NumPy's functions lazily
        values = stack / np.maximum(weights, 1.0)
        dims = ("replica", "pair", "hash", LAYER)
    squares = xr.DataArray(values, dims=dims, coords={"replica": trajectory["replica"].values})
    if per == "layer":
        squares = squares.assign_coords({LAYER: trajectory[LAYER].values})
    squares = squares.assign_coords({name: pairs[name] for name in ("waiting_time", "lag") if name in pairs.coords})
    n = trajectory.sizes["hash"]
    return squares.mean("hash"), squares.std("hash", ddof=1) / np.sqrt(n)
