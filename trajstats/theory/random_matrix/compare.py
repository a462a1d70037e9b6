"""Measured Jacobian spectra against their random-matrix law, with the scatter that a finite net has by itself."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import xarray as xr

from trajstats.data._inputs import ESD, accepts
from trajstats.data.schema import annotate
from trajstats.errors import ArgumentError, SchemaError, UnsupportedError
from trajstats.theory.random_matrix._law import SpectralLaw
from trajstats.theory.random_matrix.closed_forms import FussCatalan, MarchenkoPastur
from trajstats.theory.random_matrix.jacobian_law import JacobianLaw
from trajstats.theory.random_matrix.random_nets import RandomNet

# The laws need a finite fourth moment of the weights, that is a tail index above four.
_NEEDED = 4.0


def ks_distance(x: np.ndarray, law: SpectralLaw) -> float:
    """Largest distance between the distribution of a sample and a law, atoms included.

    Parameters
    ----------
    x : ndarray, (n,)
        Squared singular values.
    law : SpectralLaw
        The law.

    Returns
    -------
    float
    """
    x = np.sort(x)
    if law.spike:
        x = np.where(np.abs(x / law.spike[0] - 1) < 1e-8, law.spike[0], x)
    if law.atom:
        # zeros up to rounding are the atom's
        x = np.where(x <= 1e-20 * x[-1], 0.0, x)
    value, first, count = np.unique(x, return_index=True, return_counts=True)
    at, before = law.cdf(value), law.cdf(value * (1 - 1e-9))
    before = np.where(value == 0, 0.0, before)
    return float(max(((first + count) / x.size - at).max(), (before - first / x.size).max()))


@accepts(ESD)
def compare_to_theory(
    esd: xr.Dataset,
    law: SpectralLaw,
    /,
    *,
    simulations: int = 20,
    orders: int = 3,
    level: float = 0.9,
    force: bool = False,
    rng: int | np.random.Generator,
) -> xr.Dataset:
    r"""Compare measured Jacobian spectra with a law.

    Parameters
    ----------
    esd : xarray.Dataset
        What `jacobian_esd` gave (singular values, not Lanczos nodes).
    law : SpectralLaw
        `JacobianLaw`, `FussCatalan` or `MarchenkoPastur`.
    simulations : int
        Random nets of the measured widths drawn from the law's own ensemble: they give the band and the null law of the
        distance. 0 for none.
    orders : int
        Moments compared.
    level : float
        Share of simulations inside the band.
    force : bool
        Give the curve although the weights have no finite fourth moment.
    rng : int or numpy.random.Generator
        Seed of the simulations.

    Returns
    -------
    xarray.Dataset
        ``ks`` (replica, step, input), the Kolmogorov-Smirnov distance; ``ks_p_value``, share of simulated nets at
        least as far (their own count included); ``moment_ratio`` (replica, step, input, order), measured over theory;
        ``theory``,
        ``band_low``, ``band_high`` (squared_singular_value), the law's mean density in each bin and the simulated nets'
        band; ``simulated_ks`` (simulation). Attribute ``applies`` (0 or 1) and ``reason``.

    Raises
    ------
    ArgumentError
        If the law's depth is not that of the measured Jacobian.
    SchemaError
        If `esd` holds no singular values.
    UnsupportedError
        If the weights' tail index is below four by two standard errors, unless `force`.

    Notes
    -----
    The distance is between spectrum and law; eigenvalues repel, so the usual Kolmogorov table does not apply, and the
    simulated one does. Bias of the distance at size n is about 1/n.

    References
    ----------
    fixedpoints (arXiv:2501.04182).
    """
    if "log_singular_values" not in esd:
        msg = "the spectrum holds no singular values; call jacobian_esd with method='product', 'graded' or 'autodiff'"
        raise SchemaError(msg)
    widths = [int(n) for n in json.loads(esd.attrs["widths"])]
    depth = _depth(law)
    if len(widths) > 2 and len(widths) - 1 != depth:
        msg = f"the law has depth {depth}, the measured Jacobian {len(widths) - 1} factors; give a law of that depth"
        raise ArgumentError(msg)
    reason = _objection(esd)
    if reason and not force:
        msg = f"the theory does not apply: {reason}. Pass force=True to see the curve all the same."
        raise UnsupportedError(msg)
    logs = esd["log_singular_values"]
    # unresolved values are only known to be small: they count as zero
    squares = np.where(esd["resolved"].values, np.exp(2 * logs.values), 0.0)
    flat = squares.reshape(-1, squares.shape[-1])
    distance = np.array([ks_distance(x, law) for x in flat]).reshape(squares.shape[:-1])
    theory = law.moments(orders)
    ratio = np.stack([(squares**k).mean(axis=-1) / theory[k - 1] for k in range(1, orders + 1)], axis=-1)
    low, high = esd["bin_low"].values, esd["bin_high"].values
    curve = (law.cdf(high) - law.cdf(low)) / (high - low)
    entropy = int(rng.integers(2**63)) if isinstance(rng, np.random.Generator) else int(rng)
    full = widths if len(widths) == depth + 1 else [widths[0]] * depth + [widths[-1]]
    drawn = [_simulated(law, full, key) for key in np.random.SeedSequence(entropy).spawn(simulations)]
    null = np.array([ks_distance(x, law) for x in drawn])
    edges = np.append(low, high[-1])
    counts = np.array([np.histogram(x, edges)[0] / x.size / (high - low) for x in drawn]).reshape(len(drawn), low.size)
    data: dict[str, Any] = {
        "ks": (logs.dims[:-1], distance),
        "moment_ratio": ((*logs.dims[:-1], "order"), ratio),
        "theory": ("squared_singular_value", curve),
    }
    if simulations:
        tail = (1 - level) / 2
        beyond = (null >= distance[..., None]).sum(axis=-1)
        data["ks_p_value"] = (logs.dims[:-1], (1 + beyond) / (1 + simulations))
        data["band_low"] = ("squared_singular_value", np.quantile(counts, tail, axis=0))
        data["band_high"] = ("squared_singular_value", np.quantile(counts, 1 - tail, axis=0))
        data["simulated_ks"] = ("simulation", null)
    coords = {name: esd[name] for name in ("replica", "step", "squared_singular_value", "bin_low", "bin_high")}
    return annotate(
        xr.Dataset(data, coords={**coords, "order": np.arange(1, orders + 1)}),
        name="compare_to_theory",
        long_name="Jacobian spectrum against its random-matrix law",
        units="1",
        estimator="compare_to_theory",
        arguments={"simulations": simulations, "orders": orders, "level": level, "force": force, "rng": entropy},
        source=esd.attrs.get("source", ""),
        applies=int(not reason),
        reason=reason,
    )


def _depth(law: SpectralLaw) -> int:
    if isinstance(law, JacobianLaw):
        return law.depth
    return law.order if isinstance(law, FussCatalan) else 1


def _objection(esd: xr.Dataset) -> str:
    # Hill's index of the heaviest layer at any step, judged by its own standard error.
    if "weight_tail_index" not in esd:
        return ""
    index, error = esd["weight_tail_index"].values, esd["weight_tail_stderr"].values
    upper = index + 2 * error
    if not np.isfinite(upper).any() or np.nanmin(upper) >= _NEEDED:
        return ""
    place = np.unravel_index(np.nanargmin(upper), upper.shape)
    name = str(esd["layer"].values[place[-1]])
    step = int(esd["step"].values[place[1]])
    return (
        f"the weights of {name!r} at step {step} have tail index {index[place]:.2f} +- {error[place]:.2f}; "
        f"a finite fourth moment needs more than {_NEEDED:.0f}"
    )


def _simulated(law: SpectralLaw, widths: list[int], key: np.random.SeedSequence) -> np.ndarray:
    # Squared singular values of one net of the law's own ensemble, at a random input of the law's second moment.
    seed = int(key.generate_state(1)[0])
    rng = np.random.default_rng(key)
    x = rng.standard_normal(widths[0])
    if isinstance(law, JacobianLaw):
        x *= math.sqrt(law.input_second_moment * x.size) / np.linalg.norm(x)
        net = RandomNet(
            widths,
            law=law.weights,
            scale=np.sqrt(law.sigma_w2),
            bias_scale=np.sqrt(law.sigma_b2),
            activation=law.activation,
            seed=seed,
        )
    else:
        scale = math.sqrt(law.variance) if isinstance(law, MarchenkoPastur) else 1.0
        net = RandomNet(widths, activation="linear", scale=scale, seed=seed)
    return np.linalg.svd(net.jacobian(x[None])[0], compute_uv=False) ** 2
