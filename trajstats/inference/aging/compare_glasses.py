"""Put a training run and a reference glass side by side in the same variables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from scipy.stats import t as student

from trajstats.data._clocks import PROPER_TIME, clock_of
from trajstats.data._inputs import GLASS, accepts
from trajstats.data.schedules import time_pairs
from trajstats.data.schema import LAG, PAIR, PARAMETER, REPLICA, STEP, WAITING_TIME, WEIGHTS, annotate, clock_values
from trajstats.errors import ArgumentError, FitError
from trajstats.estimators.two_time.measures import msd
from trajstats.inference.aging.fit import fit_subaging

VARIABLES = ("raw", "per_noise", "noise_clock", "scaled")
_WAITING_TIMES = 8
_HALF_WINDOW = 0.35  # half width in log10 of the lag over which a local exponent is fitted
_FLAT, _RISE = 0.3, 0.1  # a plateau is flatter than the first, and left again by the second


@accepts(GLASS)
def glass_msd(solution: xr.Dataset, /, *, waiting_times: int = _WAITING_TIMES) -> xr.DataArray:
    r"""Mean squared displacement of a solved glass, :math:`\Delta=2(1-C)`, in the form `msd` gives.

    Parameters
    ----------
    solution : xarray.Dataset
        What `cugliandolo_kurchan` returned.
    waiting_times : int
        Waiting times kept, evenly in the logarithm, from 1 to a tenth of the last time.

    Returns
    -------
    xarray.DataArray, (replica, pair)
        With coordinates ``waiting_time`` and ``lag`` in units of inverse friction: input for fits and plots.

    Raises
    ------
    ArgumentError
        If it is not a solution, or too short for two waiting times.

    Examples
    --------
    >>> from trajstats.theory.glasses import cugliandolo_kurchan
    >>> glass_msd(cugliandolo_kurchan(p=3, T=1.0, t_max=20, error_control=False)).dims
    ('replica', 'pair')
    """
    if "C_aging" not in solution:
        msg = "this is not a solved glass: give what theory.glasses.cugliandolo_kurchan returned"
        raise ArgumentError(msg)
    known = solution[WAITING_TIME].values
    last = 0.1 * float(solution["time"].values[-1])
    usable = known[(known >= 1) & (known <= max(last, 1.5))]
    if usable.size < 2:
        msg = f"t_max={solution['time'].values[-1]:g} leaves no two waiting times up to a tenth of it; give t_max >= 20"
        raise ArgumentError(msg)
    chosen = _log_spread(usable, waiting_times)
    delta = 2 * (1 - solution["C_aging"].sel({WAITING_TIME: chosen}))
    flat = delta.where(delta[LAG] > 0).stack({PAIR: (WAITING_TIME, LAG)}).dropna(PAIR).reset_index(PAIR)
    flat = flat.where(flat > 1e-7, drop=True)  # nearer to C = 1 the error of C decides
    return annotate(
        flat.expand_dims(REPLICA).transpose(REPLICA, PAIR),
        name="msd",
        long_name="mean squared displacement",
        units="spin^2",
        estimator="glass_msd",
        arguments={"p": solution.attrs["p"], "T": solution.attrs["T"]},
        source="theory",
        clock="time",
    )


def compare_aging(
    run: Any,
    glass: Any,
    /,
    *,
    rng: int | np.random.Generator | None = 0,
    noise: Mapping[str, xr.DataArray] | None = None,
    level: float = 0.95,
) -> xr.Dataset:
    r"""Compare how training runs and glasses age, in the same variables.

    For every system: the aging exponent mu of :math:`t^*\propto t_w^\mu` (`fit_subaging`); whether it has a plateau
    in the lag; its local exponent at the latest waiting times and longest lags (1 is diffusion), with the diffusion
    constant :math:`\Delta/2t` there; and how well the curves of different waiting times collapse in four variables:
    ``raw`` (:math:`\Delta` against t), ``per_noise`` (:math:`\Delta/D(t_w)`), ``noise_clock`` (against
    :math:`\int_{t_w}^{t_w+t}D`) and ``scaled`` (against :math:`t/t_w^\mu`).

    Parameters
    ----------
    run, glass : trajectory, MSD, solution, or mapping name -> any of these
        A trajectory (`open_trajectory`, `pspin_langevin`), a two-time MSD (`msd`), or a solved glass
        (`cugliandolo_kurchan`).
    rng : int or numpy.random.Generator
        Seed of the fits.
    noise : mapping name of a system -> DataArray, optional
        Strength of the gradient noise D along ``step``, such as ``D2`` of `gradient_noise`, averaged over replicas;
        it is integrated over the clock of the system's lags. Without it the two noise variables are NaN for that
        system.
    level : float
        Probability of the intervals.

    Returns
    -------
    xarray.Dataset
        Dims system, variable, bound. ``exponent``, ``exponent_interval`` (of the motion beyond the plateau where there
        is one); ``plateau`` (bool), ``plateau_level`` (MSD there) and ``plateau_exponent`` (smallest local exponent);
        ``late_exponent``, ``late_exponent_stderr``, ``diffusion`` (NaN, with the reason in ``note``, where too few lags
        tell them); ``collapse`` (system, variable) with
        ``collapse_stderr``: root mean square spread of :math:`\ln\Delta` between waiting times at equal abscissa; 0 is
        perfect; ``finite_size_time`` :math:`N^{2/3}`, ``last_time`` and ``finite_size_flag``; ``clock``
        of the times; ``note`` (text) says what to beware of. The curves drawn by `plot_glass_comparison` are
        ``curve_waiting_time``, ``curve_lag``, ``curve_msd`` (system, point).

    Raises
    ------
    ArgumentError
        If a system is none of these, or a name occurs twice.

    Notes
    -----
    A local exponent is a straight line over 0.7 decades of lag. A plateau: it falls below 0.3 between two lags where it
    is larger by 0.1, at the latest waiting time. Errors of the collapse and of the late exponent: jackknife over
    waiting times (a stand-in: curves of one run share frames). Finite size: N degrees of freedom leave the aging of an
    infinite glass once :math:`t\gtrsim N^{2/3}` (inverse friction; known exactly for the 2-spin), after which mu fitted
    to all times is below 1: it can pass for subaging. The flag compares last time and :math:`N^{2/3}`; for a net,
    whose unit of time is not known, it is a reminder and not a test.

    References
    ----------
    glassy: arXiv:1803.06969. Finite size: `spherical_two_spin`.

    Examples
    --------
    >>> from trajstats.theory.glasses import cugliandolo_kurchan
    >>> from trajstats import brownian
    >>> cold = cugliandolo_kurchan(p=3, T=0.3, t_max=400, error_control=False)
    >>> steps = np.unique(np.r_[np.geomspace(1, 50, 8), np.geomspace(1, 500, 40)].astype(int))
    >>> table = compare_aging({"walk": brownian(steps, rng=0)}, {"3-spin": cold})
    >>> table.plateau.values.tolist()
    [False, True]
    """
    systems = {**_named(run, "run"), **_named(glass, "glass")}
    if len(systems) != len(_named(run, "run")) + len(_named(glass, "glass")):
        msg = f"a name occurs among runs and glasses alike: {sorted(systems)}; rename one"
        raise ArgumentError(msg)
    generator = np.random.default_rng(rng)
    rows = [_measure(name, one, (noise or {}).get(name), generator, level) for name, one in systems.items()]
    longest = max(len(row["curve_lag"]) for row in rows)
    dims: dict[str, tuple[str, ...]] = {
        "exponent_interval": ("bound",),
        "collapse": ("variable",),
        "collapse_stderr": ("variable",),
        **{f"curve_{n}": ("point",) for n in ("waiting_time", "lag", "msd")},
    }
    result = xr.Dataset(coords={"system": list(systems), "variable": list(VARIABLES), "bound": ["lower", "upper"]})
    for key in rows[0]:
        values = [row[key] for row in rows]
        if key.startswith("curve_"):
            values = [np.pad(v, (0, longest - len(v)), constant_values=np.nan) for v in values]
        kind = object if key in ("note", "clock") else None
        result[key] = (("system", *dims.get(key, ())), np.array(values, dtype=kind))
    return annotate(
        result,
        name="compare_aging",
        long_name="aging of runs and glasses",
        units="1",
        estimator="compare_aging",
        arguments={"systems": list(systems), "level": level},
        source="several",
    )


def _named(given: Any, name: str) -> dict[str, Any]:
    return dict(given) if isinstance(given, Mapping) and not isinstance(given, xr.Dataset) else {name: given}


def _as_msd(name: str, one: Any) -> tuple[xr.DataArray, float]:
    # The two-time MSD and the number of degrees of freedom (NaN for an infinite system or where it is not known).
    if isinstance(one, xr.DataArray) and PAIR in one.dims:
        return one, float(one["n_parameters"].sum()) if "n_parameters" in one.coords else np.nan
    if isinstance(one, xr.Dataset) and "C_aging" in one:
        return glass_msd(one), np.nan
    if isinstance(one, xr.Dataset) and WEIGHTS in one:
        clock = PROPER_TIME if PROPER_TIME in one.variables else STEP
        steps = one[STEP].values[:-1]
        positive = steps[(steps > 0) & (clock_values(one, clock)[:-1] > 0)]
        early = positive[positive <= max(positive[-1] / 10, positive[min(2, positive.size - 1)])]
        times = clock_values(one, clock)[np.searchsorted(one[STEP].values, _log_spread(early, _WAITING_TIMES))]
        pairs = time_pairs(one, waiting_time=times, lags_per_decade=8, clock=clock)
        return msd(one, pairs, per="all"), float(one.sizes[PARAMETER])
    msg = f"{name}: give a trajectory, a two-time MSD or a solved glass; got {type(one).__name__}"
    raise ArgumentError(msg)


def _log_spread(values: np.ndarray, n: int) -> np.ndarray:
    wanted = np.geomspace(values[0], values[-1], n)
    return np.unique(values[np.abs(np.log(values)[:, None] - np.log(wanted)).argmin(axis=0)])


def _measure(name: str, one: Any, noise: xr.DataArray | None, rng: np.random.Generator, level: float) -> dict[str, Any]:
    delta, freedom = _as_msd(name, one)
    if "layer" in delta.dims:
        share = delta["n_parameters"] / delta["n_parameters"].sum() if "n_parameters" in delta.coords else 1.0
        delta = (delta * share).sum("layer")
    values = delta.transpose(..., PAIR).values.reshape(-1, delta.sizes[PAIR]).mean(axis=0)
    waiting, lag = (delta[c].values.astype(np.float64) for c in (WAITING_TIME, LAG))
    keep = (waiting > 0) & (lag > 0) & (values > 0)
    waiting, lag, values = waiting[keep], lag[keep], values[keep]
    notes = []
    flat, level_at, smallest = _plateau(waiting, lag, values)
    # Motion within the plateau does not age; what ages is the departure from it.
    beyond_plateau = values > 1.2 * level_at if flat else np.ones(values.size, dtype=bool)
    if flat:
        notes.append("mu and the scaled collapse are those of the motion beyond the plateau")
    aging = delta.isel({PAIR: np.flatnonzero(keep)[beyond_plateau]})
    try:
        fit = fit_subaging(aging, rng=rng)
        summary = fit.summary(levels=[level]).sel(coefficient="mu")
        mu, interval = summary["value"].item(), summary["interval"].values.ravel()
        notes += list(fit.flags)
    except FitError as error:
        mu, interval = np.nan, np.full(2, np.nan)
        notes.append(f"no exponent: {error}")
    late, late_error, diffusion, missing = _late(waiting, lag, values)
    notes += missing
    rows = None if noise is None else (_noise_times(name, noise, delta), noise)
    collapse, collapse_error = _collapses(waiting, lag, values, mu, rows, beyond_plateau)
    last, size_time = float((waiting + lag).max()), freedom ** (2 / 3)
    beyond = bool(last > size_time)
    if beyond:
        notes.append(
            f"last time {last:.3g} > N^(2/3) = {size_time:.3g}: there a finite system stops aging, "
            "which passes for mu < 1"
        )
    return {
        "clock": clock_of(delta),
        "exponent": mu,
        "exponent_interval": interval,
        "plateau": flat,
        "plateau_level": level_at,
        "plateau_exponent": smallest,
        "late_exponent": late,
        "late_exponent_stderr": late_error,
        "diffusion": diffusion,
        "collapse": collapse,
        "collapse_stderr": collapse_error,
        "finite_size_time": size_time,
        "last_time": last,
        "finite_size_flag": beyond,
        "note": "; ".join(notes),
        "curve_waiting_time": waiting,
        "curve_lag": lag,
        "curve_msd": values,
    }


def _local_exponents(lag: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.log10(lag), np.log10(values)
    order = np.argsort(x)
    x, y = x[order], y[order]
    centres = np.arange(x[0] + _HALF_WINDOW, x[-1] - _HALF_WINDOW + 1e-9, 0.1)
    slopes = []
    for centre in centres:
        near = np.abs(x - centre) <= _HALF_WINDOW + 1e-9
        slopes.append(np.polyfit(x[near], y[near], 1)[0] if near.sum() >= 3 else np.nan)
    return 10**centres, np.array(slopes)


def _plateau(waiting: np.ndarray, lag: np.ndarray, values: np.ndarray) -> tuple[bool, float, float]:
    # The latest waiting time with at least two decades of lags, so that a plateau has room to be left.
    for level in np.unique(waiting)[::-1]:
        mine = waiting == level
        if lag[mine].max() >= 100 * lag[mine].min():
            break
    at, slopes = _local_exponents(lag[mine], values[mine])
    if not np.isfinite(slopes).any():
        return False, np.nan, np.nan
    k = int(np.nanargmin(slopes))
    inside = np.nanmax(slopes[: k + 1]) > slopes[k] + _RISE and np.nanmax(slopes[k:]) > slopes[k] + _RISE
    flat = bool(slopes[k] < _FLAT and inside)
    order = np.argsort(lag[mine])
    height = float(np.interp(np.log(at[k]), np.log(lag[mine][order]), values[mine][order]))
    return flat, height if flat else np.nan, float(slopes[k])


def _late(waiting: np.ndarray, lag: np.ndarray, values: np.ndarray) -> tuple[float, float, float, list[str]]:
    # Last half decade of lags of the latest waiting times; and what is lacking, in words.
    slopes, constants = [], []
    for level in np.unique(waiting)[-4:]:
        mine = waiting == level
        late = mine & (lag >= lag[mine].max() / 10**0.5)
        if late.sum() >= 3:
            slopes.append(np.polyfit(np.log(lag[late]), np.log(values[late]), 1)[0])
            constants.append(float(np.mean(values[late] / (2 * lag[late]))))
    if not slopes:
        why = "no late exponent: none of the four latest waiting times has 3 lags in its last half decade"
        return np.nan, np.nan, np.nan, [why]
    n = len(slopes)
    error = float(np.std(slopes, ddof=1) / np.sqrt(n) * student.ppf(0.84, n - 1)) if n > 1 else np.nan
    alone = ["one waiting time tells the late exponent: its error is not known"] if n == 1 else []
    return float(np.mean(slopes)), error, constants[-1], alone


def _noise_times(name: str, noise: xr.DataArray, delta: xr.DataArray) -> np.ndarray:
    # When the noise was measured, on the clock of the lags: its own coordinate, or read off the pairs.
    clock = clock_of(delta)
    if clock == STEP or clock in noise.coords:
        return noise[clock].values.astype(np.float64)
    if not {"first", "second"} <= set(delta.coords):
        if clock == "time":  # a theory has no steps: its noise is given along its own time
            return noise[STEP].values.astype(np.float64)
        msg = f"{name}: its lags are in {clock!r} and its noise is not; give noise the coordinate {clock!r} along step"
        raise ArgumentError(msg)
    steps = np.concatenate([delta[end].values for end in ("first", "second")]).astype(np.float64)
    wait = delta[WAITING_TIME].values.astype(np.float64)
    steps, rows = np.unique(steps, return_index=True)
    times = np.concatenate([wait, wait + delta[LAG].values])[rows]
    return np.interp(noise[STEP].values.astype(np.float64), steps, times)


def _collapses(
    waiting: np.ndarray,
    lag: np.ndarray,
    values: np.ndarray,
    mu: float,
    noise: tuple[np.ndarray, xr.DataArray] | None,
    aging: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    scales = {"raw": (lag, values)}
    if noise is not None:
        at, noise_along = noise
        strength = noise_along.mean([d for d in noise_along.dims if d != STEP]).values.astype(np.float64)
        integral = np.concatenate([[0.0], np.cumsum(0.5 * (strength[1:] + strength[:-1]) * np.diff(at))])
        clock = np.interp(waiting + lag, at, integral) - np.interp(waiting, at, integral)
        scales["per_noise"] = (lag, values / np.interp(waiting, at, strength))
        scales["noise_clock"] = (clock, values)
    if np.isfinite(mu):
        scales["scaled"] = (lag / waiting**mu, values)
    score, error = np.full(len(VARIABLES), np.nan), np.full(len(VARIABLES), np.nan)
    for k, name in enumerate(VARIABLES):
        if name in scales:
            x, y = scales[name]
            use = aging if name == "scaled" else np.ones(x.size, dtype=bool)
            score[k], error[k] = _spread(waiting[use], x[use], y[use])
    return score, error


def _spread(waiting: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    levels = np.unique(waiting)

    def one(kept: np.ndarray) -> float:
        lines = []
        low, high = np.inf, -np.inf
        for level in kept:
            mine = np.flatnonzero((waiting == level) & (x > 0))
            mine = mine[np.argsort(x[mine])]
            lines.append((np.log(x[mine]), np.log(y[mine])))
            low, high = min(low, lines[-1][0][0]), max(high, lines[-1][0][-1])
        grid = np.linspace(low, high, 60)
        table = np.array([np.interp(grid, a, b, left=np.nan, right=np.nan) for a, b in lines])
        shared = np.isfinite(table).sum(axis=0) >= 2
        if not shared.any():
            return np.nan
        return float(np.sqrt(np.mean(np.nanvar(table[:, shared], axis=0, ddof=1))))

    if levels.size < 2:
        return np.nan, np.nan
    whole = one(levels)
    if levels.size < 4:
        return whole, np.nan
    left = np.array([one(np.delete(levels, k)) for k in range(levels.size)])
    n = levels.size
    return whole, float(np.sqrt((n - 1) / n * np.nansum((left - np.nanmean(left)) ** 2)))
