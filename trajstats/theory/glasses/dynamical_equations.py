"""The two-time equations of the spherical p-spin glass, quenched from infinite temperature."""

from __future__ import annotations

import json
import math

import numpy as np
import xarray as xr

from trajstats.errors import ArgumentError
from trajstats.theory.glasses import _history as engine

_FIRST_TIME = 0.01  # earliest output time after 0
# Largest change of a step's last iteration: late responses are of order 1/t and their cells of width t, so that what is
# left over counts t times.
_TOLERANCE = 1e-10
_COARSER = 1.15  # cells of the second solution, relative to the first
_LARGEST_ERROR = 0.02  # estimated error of C above which a solution is refused


def cugliandolo_kurchan(
    p: int = 3,
    T: float = 0.0,
    t_max: float = 1000.0,
    *,
    dt: float | None = None,
    resolution: float | None = None,
    times_per_decade: int = 10,
    error_control: bool = True,
) -> xr.Dataset:
    r"""Solve the Cugliandolo-Kurchan equations of the spherical p-spin model after a quench from infinite temperature.

    With :math:`f(q)=q^p/2` (couplings of variance :math:`p!/2N^{p-1}`), for :math:`t>t'`:

    .. math::
        \partial_tC(t,t')&=-\mu(t)C(t,t')+\int_0^tf''(C(t,s))R(t,s)C(s,t')ds+\int_0^{t'}f'(C(t,s))R(t',s)ds\\
        \partial_tR(t,t')&=-\mu(t)R(t,t')+\int_{t'}^tf''(C(t,s))R(t,s)R(s,t')ds\\
        \mu(t)&=T+p\int_0^tf'(C(t,s))R(t,s)ds,\qquad C(t,t)=R(t^+,t)=1,\qquad e(t)=-(\mu-T)/p

    Parameters
    ----------
    p : int
        Spins in an interaction, >= 2.
    T : float
        Temperature of the bath, >= 0.
    t_max : float
        Last time, >= 1, in units of the friction (:math:`\partial_ts_i=-\partial H/\partial s_i+\ldots`).
    dt : float, optional
        Largest step; rounded so that 1/dt is an even integer. By default ``0.18 / (T + 2 sqrt(p (p - 1) / 2))``, a
        fraction of the fastest relaxation.
    resolution : float, optional
        Largest cell of the history, as a share of its distance from the present and from time 0; in (0, 0.5]. By
        default 0.13, and beyond t_max = 1e4 0.13 (1e4 / t_max)^(1/4): late rows are unstable if it is too large.
    times_per_decade : int
        Density of the output grids.
    error_control : bool
        Solve a second time with steps twice as long and cells 15 % wider, to estimate the error.

    Returns
    -------
    xarray.Dataset
        ``C``, ``R`` and ``chi`` (integrated response :math:`\int_{t'}^tR(t,s)ds`) on dims (time, time_prime): C is
        symmetric, R and chi are 0 for ``time < time_prime``. The same three on (waiting_time, lag) as ``C_aging``,
        ``R_aging``, ``chi_aging``, NaN beyond `t_max`. ``energy`` and ``mu`` (time). All float64, units of the model.
        With `error_control`, ``C_error``, ``R_error`` (time, time_prime) and ``energy_error`` (time): the difference
        of the two solutions, on the safe side for the step (fourth order). Attributes say what was solved.

    Raises
    ------
    ArgumentError
        If p < 2, T < 0, or `dt` is too large: the steps do not converge, C leaves [-1, 1], or the estimated error of C
        exceeds 0.02.

    Notes
    -----
    The history is kept on nodes that thin with age and with distance from time 0; every cell keeps three Legendre
    moments of C and R, merged exactly, so that a decay which a coarse cell does not resolve keeps its weight. Steps are
    implicit and of fourth order. The step stays at `dt`, so the cost is (t_max / dt) x nodes^2, nodes of order
    log(t_max) / resolution; memory is 48 nodes^2 bytes, under 20 MiB at t_max = 1e4. Figures:
    docs/developers/performance.md. At T = 0 the plateau
    is at C = 1 and the error of C could carry it above: values are projected onto C <= 1, and a solution that would
    exceed it by 1e-3 is refused. Cells that are too wide make late rows unstable (p = 3, T = 0.3: resolution
    0.3 at t = 6e3, 0.2 at t = 9e3): the second solution has wider cells and shows it first.

    References
    ----------
    glassy: arXiv:1803.06969. Equations: Cugliandolo & Kurchan, PRL 71, 173 (1993), arXiv:cond-mat/9303036. Other
    routes to long times: Kim & Latz, Europhys. Lett. 53, 660 (2001), arXiv:cond-mat/0008131 (doubling the step).

    Examples
    --------
    >>> glass = cugliandolo_kurchan(p=2, T=0.0, t_max=10, error_control=False)
    >>> c = float(glass.C.sel(time=10, time_prime=1, method="nearest"))  # exactly 0.4547 for p = 2 at T = 0
    >>> abs(c - 0.4547) < 1e-3, float(glass.C.max())
    (True, 1.0)
    """
    if resolution is None:
        resolution = 0.13 * min(1.0, (1e4 / max(t_max, 1.0)) ** 0.25)
    per_unit = _check(p, T, t_max, dt, resolution, times_per_decade)
    times, lags = _output_times(t_max, times_per_decade, per_unit // 2)
    fine = _solve(p, T, times, lags, per_unit, resolution)
    solution = _label(fine, times, lags, p, T)
    attrs = {
        "long_name": f"spherical {p}-spin glass, T = {T:g}",
        "units": "1",
        "estimator": "cugliandolo_kurchan",
        "arguments": json.dumps({"p": p, "T": T, "t_max": t_max, "dt": 1 / per_unit, "resolution": resolution}),
        "source": "theory",
        "p": p,
        "T": float(T),
    }
    if error_control:
        coarse = _label(_solve(p, T, times, lags, per_unit // 2, _COARSER * resolution), times, lags, p, T)
        for name in ("C", "R", "energy"):
            solution[f"{name}_error"] = abs(solution[name] - coarse[name])
            solution[f"{name}_error"].attrs = {"long_name": f"estimated error of {name}", "units": "1"}
        worst = float(solution.C_error.max())
        if not worst <= _LARGEST_ERROR:
            msg = f"dt={1 / per_unit:g}: estimated error of C is {worst:.2g}, above {_LARGEST_ERROR}; halve dt"
            raise ArgumentError(msg)
        attrs["largest_C_error"] = worst
    solution.attrs = attrs
    return solution


def _check(p: int, T: float, t_max: float, dt: float | None, resolution: float, per_decade: int) -> int:
    if int(p) != p or p < 2:
        msg = f"p={p}: the spherical p-spin model needs a whole p >= 2"
        raise ArgumentError(msg)
    if not (np.isfinite(T) and T >= 0):
        msg = f"T={T}: a temperature must be finite and >= 0"
        raise ArgumentError(msg)
    if not (np.isfinite(t_max) and t_max >= 1):
        msg = f"t_max={t_max}: give a last time >= 1"
        raise ArgumentError(msg)
    if not 0 < resolution <= 0.5:
        msg = f"resolution={resolution}: the share must lie in (0, 0.5]; leave it out, or give less for finer cells"
        raise ArgumentError(msg)
    if per_decade < 2:
        msg = f"times_per_decade={per_decade}: give at least 2"
        raise ArgumentError(msg)
    rate = T + 2 * math.sqrt(p * (p - 1) / 2)
    if dt is None:
        dt = 0.18 / rate
    if not 0 < dt * rate <= 1.0:
        msg = (
            f"dt={dt:g} is unstable or meaningless here: the fastest relaxation has rate {rate:.3g}, and steps above "
            f"{1 / rate:.3g} do not resolve it; leave dt out, or give 0 < dt <= {0.36 / rate:.2g}"
        )
        raise ArgumentError(msg)
    return 2 * math.ceil(round(0.5 / dt, 6))


def _output_times(t_max: float, per_decade: int, per_unit: int) -> tuple[np.ndarray, np.ndarray]:
    # From time 1 on, every output time and lag is a whole number of steps of the coarser solution.
    early = np.geomspace(_FIRST_TIME, 1.0, 2 * per_decade + 1)[:-1]
    end = round(t_max * per_unit) / per_unit
    late = np.geomspace(1.0, end, max(2, math.ceil(math.log10(max(end, 1.0 + 1e-9)) * per_decade) + 1))
    times = np.concatenate([[0.0], early, np.unique(np.rint(late * per_unit)) / per_unit])
    n_lags = max(2, math.ceil(math.log10(end * per_unit) * per_decade) + 1)
    lags = np.unique(np.rint(np.geomspace(1.0, end * per_unit, n_lags)))
    return times, np.concatenate([[0.0], lags / per_unit])


def _steps(times: np.ndarray, per_unit: int) -> np.ndarray:
    # Short steps up to time 1, then 1/per_unit throughout.
    dt = 1 / per_unit
    parts = [np.zeros(1)]
    early = times[times <= 1.0]
    for a, b in zip(early[:-1], early[1:], strict=True):
        n = math.ceil((b - a) / min(dt, 0.2 * dt + 0.1 * a))
        parts.append(a + (b - a) * np.arange(1, n + 1) / n)
    parts.append(1.0 + np.arange(1, round((times[-1] - 1.0) * per_unit) + 1) / per_unit)
    return np.concatenate(parts)


def _solve(
    p: int, T: float, times: np.ndarray, lags: np.ndarray, per_unit: int, resolution: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    # Tables (row, quantity, column), mu (row) and the times of the rows.
    steps = _steps(times, per_unit)
    waiting = times[times >= 1.0]
    ends = (waiting[:, None] + lags).ravel()
    rows = np.unique(np.rint(ends[ends <= times[-1] + 1e-9] * per_unit)) / per_unit
    rows = np.concatenate([times[times < 1.0], rows])
    column_at = np.full(steps.size, -1)
    column_at[np.searchsorted(steps, times - 1e-9)] = np.arange(times.size)
    row_at = np.full(steps.size, -1)
    row_at[np.searchsorted(steps, rows - 1e-9)] = np.arange(rows.size)
    capacity = times.size + 96 + math.ceil(2 * math.log(times[-1] * per_unit + 1) / math.log1p(resolution / 2))
    tables = np.full((rows.size, 3, times.size), np.nan)
    mu = np.zeros(rows.size)
    state = engine.history(capacity, T)
    status, at = engine.march(state, p, T, steps, column_at, row_at, resolution, tables, mu, _TOLERANCE)
    if status != engine.CONVERGED:
        why = {
            engine.NOT_CONVERGED: "the step equations no longer converge",
            engine.ABOVE_ONE: "C leaves [-1, 1]",
            engine.NO_ROOM: "the history outgrew its arrays",
        }[status]
        msg = f"dt={1 / per_unit:g} is too large for p={p}, T={T:g}: {why} at time {steps[at]:g}; halve dt"
        raise ArgumentError(msg)
    return tables, mu, rows


def _label(
    raw: tuple[np.ndarray, np.ndarray, np.ndarray], times: np.ndarray, lags: np.ndarray, p: int, T: float
) -> xr.Dataset:
    tables, mu, rows = raw
    on_grid = np.searchsorted(rows, times - 1e-9)
    waiting = times[times >= 1.0]
    first = times.size - waiting.size
    ends = waiting[:, None] + lags
    inside = ends <= times[-1] + 1e-9
    at = np.where(inside, np.searchsorted(rows, np.minimum(ends, times[-1]) - 1e-9), 0)
    column = first + np.arange(waiting.size)[:, None]
    names = {"C": "correlation", "R": "response", "chi": "integrated response"}
    out = xr.Dataset(coords={"time": times, "time_prime": times, "waiting_time": waiting, "lag": lags})
    for q, (name, long_name) in enumerate(names.items()):
        square = np.nan_to_num(tables[on_grid, q], nan=0.0)
        if name == "C":
            square = np.tril(square) + np.tril(square, -1).T
        out[name] = (("time", "time_prime"), square, {"long_name": long_name, "units": "1"})
        aging = np.where(inside, tables[at, q, column], np.nan)
        out[f"{name}_aging"] = (
            ("waiting_time", "lag"),
            aging,
            {"long_name": f"{long_name} at waiting time and lag", "units": "1"},
        )
    out["mu"] = ("time", mu[on_grid], {"long_name": "multiplier of the spherical constraint", "units": "1"})
    out["energy"] = ("time", -(mu[on_grid] - T) / p, {"long_name": "energy per spin", "units": "1"})
    for name in ("time", "time_prime", "waiting_time", "lag"):
        out[name].attrs = {"long_name": name.replace("_", " "), "units": "inverse friction"}
    return out
