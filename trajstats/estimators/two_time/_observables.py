"""From sums over parameters to the observables of the displacement: their table, and the arithmetic of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import erf

from trajstats.errors import ArgumentError, NonFiniteError, unknown_name_message
from trajstats.estimators.two_time._pair_kernels import BOUNDS
from trajstats.estimators.two_time._sums import Request, Sums


@dataclass(frozen=True)
class Observable:
    """What an observable is and which sums it needs."""

    terms: frozenset[str]  # Sums of `Request.terms`
    long_name: str  # For axes
    units: str  # For axes
    same: float  # Its value between a time and itself (NaN where it is 0/0)
    value: Callable[[dict[str, np.ndarray]], np.ndarray]  # ``value(means)`` with a mapping of per-pair means
    bound: float = BOUNDS["square"]  # Error from float32 arithmetic, proved
    error_kind: str = "relative"  # To what the bound is relative


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(b > 0, a / np.where(b > 0, b, 1), np.nan) + 0 * a)


def _null(m: dict[str, np.ndarray]) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(erf(np.where(m["square"] == 0, np.inf, m["distance"] / np.sqrt(2 * m["square"]))))


OBSERVABLES: dict[str, Observable] = {
    "msd": Observable(frozenset({"square"}), "mean squared displacement", "weight^2", 0.0, lambda m: m["square"]),
    "fourth_moment": Observable(
        frozenset({"fourth"}),
        "fourth moment of the displacement",
        "weight^4",
        0.0,
        lambda m: m["fourth"],
        BOUNDS["fourth"],
    ),
    "kurtosis": Observable(
        frozenset({"fourth"}),
        "kurtosis of the displacement (Gaussian: 3)",
        "1",
        np.nan,
        lambda m: _ratio(m["fourth"], m["square"] ** 2),
        BOUNDS["fourth"] + 2 * BOUNDS["square"],
    ),
    "non_gaussian_parameter": Observable(
        frozenset({"fourth"}),
        r"non-Gaussian parameter $\alpha_2$",
        "1",
        np.nan,
        lambda m: _ratio(m["fourth"], 3 * m["square"] ** 2) - 1,
        BOUNDS["fourth"] + 2 * BOUNDS["square"],
        "relative to 1 + alpha_2",
    ),
    "participation_ratio": Observable(
        frozenset({"fourth"}),
        "participation ratio of the displacement (Gaussian: 1/3)",
        "1",
        np.nan,
        lambda m: _ratio(m["square"] ** 2, m["fourth"]),
        BOUNDS["fourth"] + 2 * BOUNDS["square"],
    ),
    "overlap": Observable(
        frozenset({"inside"}),
        r"overlap $Q$: share of weights within $\epsilon$",
        "1",
        1.0,
        lambda m: m["inside"],
        0.0,
        "absolute, but for weights within 2e-7 of the distance",
    ),
    "overlap_null": Observable(
        frozenset({"inside"}),
        r"overlap of Gaussian displacements, erf$(\epsilon/\sqrt{2\Delta})$",
        "1",
        1.0,
        _null,
        BOUNDS["square"],
        "absolute",
    ),
    "correlation": Observable(
        frozenset({"rows"}),
        r"correlation $\langle w\,w'\rangle$",
        "weight^2",
        np.nan,
        lambda m: 0.5 * (m["norm_first"] + m["norm_second"] - m["square"]),
        BOUNDS["square"] / 2,
        "relative to the msd",
    ),
    "centred_correlation": Observable(
        frozenset({"rows"}),
        r"correlation $\langle w\,w'\rangle-\langle w\rangle\langle w'\rangle$",
        "weight^2",
        np.nan,
        lambda m: 0.5 * (m["norm_first"] + m["norm_second"] - m["square"]) - m["mean_first"] * m["mean_second"],
        BOUNDS["square"] / 2,
        "relative to the msd",
    ),
    "sign_flips": Observable(
        frozenset({"flips"}), "share of weights whose sign differs", "1", 0.0, lambda m: m["flips"], 0.0, "absolute"
    ),
}
SCATTERING = "self_intermediate_scattering"
VELOCITY = "velocity_correlation"
NAMES = (*OBSERVABLES, SCATTERING, VELOCITY)


def read_observables(observables: str | Sequence[str], wavenumber: Any) -> tuple[str, ...]:
    """Read ``observables=``: names that are known, with what belongs to them."""
    asked = [observables] if isinstance(observables, str) else list(observables)
    for name in asked:
        if name not in NAMES:
            raise ArgumentError(unknown_name_message("observable", name, NAMES))
    if SCATTERING in asked and wavenumber is None:
        msg = f"{SCATTERING} needs wavenumber=[...] (inverse weight units), for example 1 / sqrt(msd) of a typical lag"
        raise ArgumentError(msg)
    if "overlap" in asked and "overlap_null" not in asked:
        asked.insert(asked.index("overlap") + 1, "overlap_null")
    # The MSD is free, and every other observable is read against it.
    return tuple(dict.fromkeys(["msd", *asked]))


def finish(
    sums: Sums,
    request: Request,
    names: tuple[str, ...],
    sizes: np.ndarray,
    limits: dict[int, np.ndarray] | None,
    blame: Callable[[int, np.ndarray], str] | None,
) -> np.ndarray:
    """Turn the sums of one replica into observables."""
    width = sum(len(request.wavenumber) if name == SCATTERING else 1 for name in names)
    out = np.full((width, request.first.size, sizes.size), np.nan)
    for key, terms in sums.items():
        bad = np.zeros(request.n_rows, dtype=bool)
        for name, count in terms.items():
            if name.startswith("bad "):
                if blame is not None:
                    raise NonFiniteError(blame(int(name[4:]), np.flatnonzero(count)))
                bad |= count > 0
        means = _means(terms, request, float(sizes[key]), None if limits is None else limits[key // request.n_blocks])
        row = 0
        for name in names:
            for value in means["cosines"] if name == SCATTERING else [OBSERVABLES[name].value(means)]:
                out[row, :, key] = value
                row += 1
        out[:, bad[request.first] | bad[request.second], key] = np.nan
    return out


def _means(terms: dict[str, np.ndarray], request: Request, size: float, limit: np.ndarray | None) -> dict:
    pairs = terms["pairs"] / size
    means = dict(zip(("square", "fourth", "inside"), pairs, strict=False))
    if "rows" in terms:
        mean, norm = terms["rows"] / size
        means |= {"mean_first": mean[request.first], "mean_second": mean[request.second]}
        means |= {"norm_first": norm[request.first], "norm_second": norm[request.second]}
    if "flips" in terms:
        means["flips"] = terms["flips"] / size
    if limit is not None:
        means["distance"] = np.sqrt(limit[request.first])
    means["cosines"] = [terms[f"cosine {k}"][0] / size for k in range(len(request.wavenumber))]
    return means


def finish_velocity(sums: Sums, request: Request, n_keys: int) -> np.ndarray:
    """Turn products of successive displacements into cosines."""
    n = request.n_rows
    out = np.full((n, n, n_keys), np.nan)
    plan = request.velocity_plan
    for key, terms in sums.items():
        gram = np.full((n, n), np.nan)
        gram[plan.first, plan.second] = gram[plan.second, plan.first] = terms["velocity"][0]
        length = np.sqrt(np.diag(gram))
        out[..., key] = _ratio(gram, np.outer(length, length))
    return out


def distances(sums: Sums, sizes: np.ndarray, k: float, n_rows: int) -> dict[int, np.ndarray]:
    """Give the squared overlap distance std(w)/k of each row and group."""
    out = {group: np.full(n_rows, np.nan) for group in range(sizes.size)}
    for group, terms in sums.items():
        mean, norm = terms["rows"] / float(sizes[group])
        out[group] = np.maximum(norm - mean**2, 0) / k**2
    return out
