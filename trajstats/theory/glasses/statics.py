"""Where the spherical p-spin glass goes at long times, and what a solution says of fluctuation and dissipation."""

from __future__ import annotations

import math

import numpy as np
import xarray as xr
from scipy.optimize import brentq

from trajstats.errors import ArgumentError


def dynamic_temperature(p: int) -> float:
    r"""Temperature below which the spherical p-spin glass ages: :math:`T_d^2=\frac{p(p-2)^{p-2}}{2(p-1)^{p-1}}`.

    Parameters
    ----------
    p : int
        Spins in an interaction, >= 2.

    Returns
    -------
    float
        T_d, in units where the couplings have variance :math:`p!/2N^{p-1}`.

    Raises
    ------
    ArgumentError
        If p < 2.

    References
    ----------
    Cugliandolo & Kurchan, arXiv:cond-mat/9303036; glassy: arXiv:1803.06969.

    Examples
    --------
    >>> round(dynamic_temperature(3), 5), dynamic_temperature(2)
    (0.61237, 1.0)
    """
    if int(p) != p or p < 2:
        msg = f"p={p}: the spherical p-spin model needs a whole p >= 2"
        raise ArgumentError(msg)
    return math.sqrt(p * float(p - 2) ** (p - 2) / (2 * float(p - 1) ** (p - 1)))


def pspin_statics(p: int = 3, T: float = 0.0) -> xr.Dataset:
    r"""Long-time limits of the aging spherical p-spin glass, quenched from infinite temperature.

    Below T_d the plateau q is marginal, :math:`f''(q)(1-q)^2=T^2` (largest root), the fluctuation-dissipation ratio of
    the aging part is :math:`X=(p-2)(1-q)/q`, the energy :math:`e=-[1-q^p+Xq^p]/2T`. At T = 0:
    :math:`e=-\sqrt{2(p-1)/p}`, the threshold. Above T_d: q = 0, X = 1, :math:`e=-1/2T`.

    Parameters
    ----------
    p : int
        Spins in an interaction, >= 2.
    T : float
        Temperature, >= 0.

    Returns
    -------
    xarray.Dataset
        Scalars ``plateau`` q, ``X``, ``energy``, ``mu``, ``effective_temperature`` T/X (its limit at T = 0; infinite
        for p = 2) and ``dynamic_temperature``.

    Raises
    ------
    ArgumentError
        If p < 2 or T < 0.

    References
    ----------
    Cugliandolo & Kurchan, arXiv:cond-mat/9303036; glassy: arXiv:1803.06969.

    Examples
    --------
    >>> limit = pspin_statics(p=3, T=0.3)
    >>> [round(limit[name].item(), 5) for name in ("plateau", "X", "energy")]
    [0.80722, 0.23882, -0.99939]
    """
    T_d = dynamic_temperature(p)
    if not (np.isfinite(T) and T >= 0):
        msg = f"T={T}: a temperature must be finite and >= 0"
        raise ArgumentError(msg)
    if T_d <= T:
        q, ratio, energy, effective = 0.0, 1.0, -1 / (2 * T), T
    elif T == 0:
        q, ratio, energy = 1.0, 0.0, -math.sqrt(2 * (p - 1) / p)
        effective = math.sqrt(p * (p - 1) / 2) / (p - 2) if p > 2 else math.inf
    else:
        top = (p - 2) / p  # where q^(p-2) (1 - q)^2 is largest: the stable root lies above
        q = brentq(lambda q: p * (p - 1) / 2 * q ** (p - 2) * (1 - q) ** 2 - T**2, top, 1.0, xtol=1e-15)
        ratio = (p - 2) * (1 - q) / q
        energy = -(1 - q**p + ratio * q**p) / (2 * T)
        effective = T / ratio if ratio > 0 else math.inf
    values = {
        "plateau": q,
        "X": ratio,
        "energy": energy,
        "mu": T - p * energy,
        "effective_temperature": effective,
        "dynamic_temperature": T_d,
    }
    return xr.Dataset(
        {
            name: ((), float(value), {"long_name": name.replace("_", " "), "units": "1"})
            for name, value in values.items()
        },
        attrs={"long_name": f"long-time limits of the spherical {p}-spin glass", "p": p, "T": float(T)},
    )


def fluctuation_dissipation(solution: xr.Dataset, /) -> xr.Dataset:
    r"""Fluctuation-dissipation ratio and effective temperature of a solved glass.

    :math:`X(t,t')=T\,R(t,t')/\partial_{t'}C(t,t')`, between neighbouring output times :math:`t'_j<t'_{j+1}\le t` as
    :math:`X=-T\,[\chi(t,t'_{j+1})-\chi(t,t'_j)]/[C(t,t'_{j+1})-C(t,t'_j)]`: the slope of the parametric plot of chi
    against C at fixed t, with no error of differencing. :math:`X=1` in equilibrium; :math:`T_{eff}=T/X`.

    Parameters
    ----------
    solution : xarray.Dataset
        What `cugliandolo_kurchan` returned.

    Returns
    -------
    xarray.Dataset
        ``X`` and ``effective_temperature`` (time, time_prime), at the older end of each interval of `time_prime`; the
        mid-interval correlation as ``C``. NaN for time_prime >= time, where C does not change, and for the slopes that
        round-off would decide.

    Examples
    --------
    >>> from trajstats.theory.glasses.dynamical_equations import cugliandolo_kurchan
    >>> warm = cugliandolo_kurchan(p=3, T=1.0, t_max=30, error_control=False)
    >>> ratio = fluctuation_dissipation(warm).X.isel(time=-1)
    >>> bool(abs(ratio.isel(time_prime=-2) - 1) < 0.001)
    True
    """
    T = float(solution.attrs["T"])
    change = solution["C"].diff("time_prime", label="lower")
    response = solution["chi"].diff("time_prime", label="lower")
    later = solution["time_prime"].values[1:]
    inside = (later[None, :] <= solution["time"].values[:, None]) & (np.abs(change.values) > 1e-6)
    beta = (-response / change.where(inside)).where(inside)
    result = xr.Dataset(
        {
            "X": T * beta,
            "effective_temperature": 1 / beta.where(beta > 0),
            "C": (solution["C"].isel(time_prime=slice(None, -1)) + 0.5 * change).where(inside),
        }
    )
    names = {"X": "fluctuation-dissipation ratio", "effective_temperature": "effective temperature", "C": "correlation"}
    for name, long_name in names.items():
        result[name].attrs = {"long_name": long_name, "units": "1"}
    result.attrs = {"long_name": "fluctuation-dissipation ratio", "units": "1", "T": T, "p": solution.attrs["p"]}
    return result
