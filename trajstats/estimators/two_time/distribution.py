"""Van Hove functions: histograms of the displacements of single weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr
from scipy import stats

from trajstats.data._clocks import pair_clock, pair_coords
from trajstats.data._inputs import PAIRS, TRAJECTORY, accepts
from trajstats.data.schema import PAIR, REPLICA, annotate, check_trajectory
from trajstats.errors import ArgumentError, unknown_name_message
from trajstats.estimators._checkpoints import saved_rows
from trajstats.estimators.two_time._dask_blocks import as_array, block_sums, delay, stack
from trajstats.estimators.two_time._groups import Per
from trajstats.estimators.two_time._measurement import prepare
from trajstats.estimators.two_time._sums import UNIT, Sums, merge

BIN = "bin"
SCALES = ("linear", "log")


@accepts(TRAJECTORY, PAIRS)
def van_hove(
    trajectory: xr.Dataset,
    pairs: xr.Dataset,
    /,
    *,
    bins: int = 80,
    reach: float = 6.0,
    scale: str = "linear",
    per: Per = "all",
    clock: str | None = None,
    on_nan: str = "raise",
) -> xr.Dataset:
    r"""Self part of the van Hove function: the law of the displacements of single weights, for chosen pairs.

    .. math:: G(x)=\frac1M\sum_i\delta\big(x-\delta_i/\sqrt\Delta\big)

    in units of the root mean square displacement :math:`\sqrt\Delta` of its pair and group, so that a Gaussian law is
    the same curve for all pairs: ``null``, the standard normal density.

    Parameters
    ----------
    trajectory, pairs, per, clock, on_nan
        As for `trajstats.msd`; a few pairs, each costs a histogram.
    bins : int
        Number of bins.
    reach : float
        Linear bins span -reach to reach; log bins span :math:`10^{-3}` to reach in :math:`|x|`.
    scale : {"linear", "log"}
        Bins of x, or of :math:`|x|` evenly spaced in the logarithm (the tails).

    Returns
    -------
    xarray.Dataset
        ``density`` (replica, pair[, layer], bin) per unit of x (of :math:`|x|` on the log scale), ``count``, ``null``
        (bin), ``outside`` (share of weights beyond the bins), the moments ``msd``, ``non_gaussian_parameter``; coords
        ``bin`` (centre), ``bin_width``. Lazy, float64.

    Raises
    ------
    ArgumentError
        If `bins`, `reach` or `scale` is out of range.

    Notes
    -----
    The weights are read twice: for :math:`\Delta`, and for the histogram. The scatter of a bin is binomial only if
    weights move independently; compare replicas.

    References
    ----------
    Paper key *glass_net*: Kerr Winter and Janssen 2025, arXiv:2405.13098.

    Examples
    --------
    >>> from trajstats.data.schedules import time_pairs
    >>> from trajstats.data.synthetic.processes import brownian
    >>> run = brownian([0, 10], rng=0, n_parameters=5000)
    >>> hist = van_hove(run, time_pairs(run), bins=8).compute()
    >>> bool(abs(hist.density - hist["null"]).max() < 0.05)
    True
    """
    if scale not in SCALES:
        raise ArgumentError(unknown_name_message("scale", scale, SCALES))
    if bins < 2 or not reach > 1e-3:
        msg = f"bins={bins}, reach={reach}: give at least 2 bins and a reach above 0.001"
        raise ArgumentError(msg)
    trajectory = check_trajectory(trajectory)
    about = pair_clock(trajectory, pairs, clock)
    first, second = (saved_rows(trajectory, pairs[end].values) for end in ("first", "second"))
    job = prepare(trajectory, first, second, observables="non_gaussian_parameter", per=per, on_nan=on_nan)
    low, high = (-reach, reach) if scale == "linear" else (-3.0, float(np.log10(reach)))
    wanted = _Histograms(
        job.request.first,
        job.request.second,
        low,
        high,
        bins,
        scale == "log",
        job.request.layer_stop,
        job.groups.of_layer,
    )
    moments = job.listed(trajectory, pair_coords(trajectory, first, second, about), about)
    group = [] if job.groups.dim is None else [job.groups.dim]
    rms = np.sqrt(moments["msd"].transpose(REPLICA, PAIR, *group).data.reshape(-1, first.size, len(job.groups)))
    scales = [delay(np.asarray, rms[r]) for r in range(rms.shape[0])]
    totals = block_sums(trajectory, job.rows, wanted, job.plan, scales, function=_count)
    shape = (first.size, len(job.groups), bins + 2)
    counts = stack([as_array(delay(_dense, t, shape), shape) for t in totals])
    if not group:
        counts = counts[:, :, 0]
    edges = np.linspace(low, high, bins + 1)
    edges = 10.0**edges if scale == "log" else edges
    centre = np.sqrt(edges[1:] * edges[:-1]) if scale == "log" else (edges[1:] + edges[:-1]) / 2
    null = np.diff(stats.norm.cdf(edges)) * (2 if scale == "log" else 1) / np.diff(edges)
    out = moments.assign_coords({BIN: centre, "bin_width": (BIN, np.diff(edges))})
    dims = (REPLICA, PAIR, *group)
    sizes = np.maximum(job.groups.sizes, 1)  # an empty layer has no counts
    share = counts / sizes[:, None] if group else counts / float(sizes[0])
    out["count"] = ((*dims, BIN), counts[..., 1:-1])
    out["density"] = ((*dims, BIN), share[..., 1:-1] / np.diff(edges))
    out["outside"] = (dims, share[..., 0] + share[..., -1])
    out["null"] = (BIN, null)
    out["density"].attrs = {"long_name": r"density of $\delta/\sqrt{\Delta}$", "units": "1"}
    out[BIN].attrs = {"long_name": r"$\delta/\sqrt{\Delta}$" if scale == "linear" else r"$|\delta|/\sqrt{\Delta}$"}
    arguments = {"bins": bins, "reach": reach, "scale": scale, "per": job.groups.argument, "clock": about["clock"]}
    return annotate(
        out,
        name="",
        long_name="van Hove function",
        units="1",
        estimator="van_hove",
        arguments=arguments,
        source=str(trajectory.attrs["uid"]),
        **about,
    )


@dataclass(frozen=True)
class _Histograms:
    first: np.ndarray
    second: np.ndarray
    low: float
    high: float
    bins: int
    log: bool
    layer_stop: np.ndarray
    group_of_layer: np.ndarray


def _count(wanted: _Histograms, block: np.ndarray, start: int, rms: np.ndarray) -> Sums:
    # Whole numbers: their sums are the same in any order.
    block = np.asarray(block)
    out: Sums = {}
    for low in range(0, block.shape[1], UNIT):
        high = min(low + UNIT, block.shape[1])
        edges = np.clip([0, *(wanted.layer_stop - start)], low, high)
        for layer, (a, b) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
            group = int(wanted.group_of_layer[layer])
            if a == b or group < 0:
                continue
            counts = np.zeros((wanted.first.size, wanted.bins + 2))
            for p, (i, j) in enumerate(zip(wanted.first, wanted.second, strict=True)):
                with np.errstate(divide="ignore", invalid="ignore"):
                    x = (block[j, a:b].astype(np.float64) - block[i, a:b]) / rms[p, group]
                    x = np.log10(np.abs(x)) if wanted.log else x
                    place = np.floor((x - wanted.low) * (wanted.bins / (wanted.high - wanted.low))) + 1
                place = place[~np.isnan(place)].clip(0, wanted.bins + 1).astype(np.int64)
                counts[p] = np.bincount(place, minlength=wanted.bins + 2)
            out = merge(out, {group: {"counts": counts}})
    return out


def _dense(sums: Sums, shape: tuple[int, int, int]) -> np.ndarray:
    out = np.zeros(shape)
    for group, terms in sums.items():
        out[:, group] = terms["counts"]
    return out
