"""Names and units of everything in a fit: each variable and coordinate has a `long_name` and `units` of its own."""

from __future__ import annotations

import xarray as xr

from trajstats.data._clocks import unit_of
from trajstats.inference._uncertainty import STATED

WEIGHT_2, WIDTH, LOSS = "weight^2", "units of width", "loss"
_TIME = "time"

# name -> (long name, unit); _TIME is the unit of the clock
_NAMES: dict[str, tuple[str, str]] = {
    "mu": ("exponent of aging", "1"),
    "mu_pooled": ("exponent of aging of the draws of the curve", "1"),
    "N_eff": ("effective number of samples", "1"),
    "log_smoothing": ("ln of the penalty over the noise variance", "1"),
    "curve": ("spline coefficients of ln MSD", f"ln {WEIGHT_2}"),
    "level": ("level of ln MSD", f"ln {WEIGHT_2}"),
    "offset": ("ln of the part that does not age", f"ln {WEIGHT_2}"),
    "msd": ("mean squared displacement", WEIGHT_2),
    "waiting_time": ("waiting time", _TIME),
    "lag": ("lag", _TIME),
    "threshold": ("threshold of the MSD", WEIGHT_2),
    "L_inf": ("floor of the loss", LOSS),
    "beta": ("exponent of the curve", "1"),
    "tau": ("time scale of the decay", _TIME),
    "noise": ("relative noise of the loss", "1"),
    "drift_share": ("share of the noise that drifts", "1"),
    "drift_range": ("range of the drift in ln t", "1"),
    "noise_power": ("power of the curve in the noise", "1"),
    "loss": ("loss", LOSS),
    "w_c": ("width of the transition", WIDTH),
    "nu": ("exponent of the divergence", "1"),
    "nu_depth": ("exponent of the divergence at each depth", "1"),
    "nu_spread": ("spread of the exponents over depths", "1"),
    "A": ("amplitude", "see the formula of the fit"),
    "sigma": ("scatter of ln T", "1"),
    "delta": ("scatter of w_c over seeds", WIDTH),
    "slope": ("slope of w_c in the loss", f"{WIDTH} / {LOSS}"),
    "stuck_fraction": ("share of runs that never learn", "1"),
    "width": ("width", WIDTH),
    "depth": ("depth", "layers"),
    "learning_time": ("learning time", _TIME),
    "learned": ("whether the run learned", "1"),
    "budget": ("time that the run was watched", _TIME),
    "count": ("saved points in the bin", "1"),
    "residual": ("ln of data over prediction", "1"),
    "r_hat": ("split R-hat over independent ensembles", "1"),
    "ess": ("effective draws", "1"),
    "tau_steps": ("autocorrelation time", "steps of the sampler"),
    "stderr": (STATED, "that of the value"),
    "value": ("posterior median", "that of the coefficient"),
    "interval": ("central interval of the posterior", "that of the coefficient"),
    "level_of_interval": ("probability of the interval", "1"),
    "n_given": ("data given", "1"),
    "n_used": ("data used", "1"),
    "coefficient": ("coefficient", "1"),
    "bound": ("end of the interval", "1"),
    "converged": ("whether the fit converged", "1"),
    "status": ("status of the fit", "1"),
    "reason": ("reason of the status", "1"),
    "case": ("case", "1"),
    "run": ("run", "1"),
    "name": ("name of the run", "1"),
    "model": ("model", "1"),
    "score": ("expected log density of left-out groups", "1"),
    "score_difference": ("score less that of the best model", "1"),
    "difference_stderr": ("standard error of the difference in score", "1"),
    "effective_coefficients": ("effective number of coefficients", "1"),
    "pareto_k": ("largest Pareto k of the groups", "1"),
    "reliable": ("whether Pareto k is small enough to trust the score", "1"),
    "chain": ("independent ensemble", "1"),
    "draw": ("draw of the posterior", "1"),
}
# the same word in another place
_ELSEWHERE = {
    ("diagnostics", "tau"): "tau_steps",
    ("summary", "level"): "level_of_interval",
    ("bounds", "level"): "level_of_interval",
}
_ERRORS = {f"{name}_stderr": name for name in ("w_c", "nu", "w_c_alone", "nu_alone")}


def labelled(data: xr.Dataset, place: str, *, clock: str = "step") -> xr.Dataset:
    """Return a dataset of a fit in which every variable and coordinate has a name and units of its own."""
    out = data.copy(deep=False)
    for name, variable in out.variables.items():
        attrs = dict(variable.attrs)
        if not (attrs.get("long_name") and attrs.get("units")):
            about = dict(zip(("long_name", "units"), _about(str(name), place, data, clock), strict=True))
            out[name].attrs = {**attrs, **about}
    return out


def labelled_array(values: xr.DataArray, *, clock: str = "step") -> xr.DataArray:
    """Return an array, such as a prediction, with names and units."""
    name = str(values.name)
    found = labelled(values.to_dataset(name=name), "predicted", clock=clock)[name]
    return found.rename(values.name)


def _about(name: str, place: str, data: xr.Dataset, clock: str) -> tuple[str, str]:
    time = unit_of(clock)
    if name in (clock, "step", "epoch", "proper_time"):
        return f"time on the clock {name}", unit_of(name)
    if name == "predicted":
        return "prediction of the fit", WEIGHT_2 if "msd" in data else LOSS
    if name in _ERRORS:
        return f"{STATED} of {_ERRORS[name]}", WIDTH if name.startswith("w_c") else "1"
    if place == "log_likelihood" and name in data.data_vars:
        return "log density of the group", "1"
    key = _ELSEWHERE.get((place, name), name)
    long_name, units = _NAMES.get(key, (name.replace("_", " "), "1"))
    if place in ("estimators", "window_scan", "threshold_scan", "seeds") and name == "stderr":
        units = "1"
    if name == "stderr" and place == "losses":
        units = WIDTH
    if place == "bounds" and name in ("upper", "lower"):
        return f"one-sided {name} bound of w_c", WIDTH
    if name.startswith(("w_c_", "nu_")) and key not in _NAMES:
        units = WIDTH if name.startswith("w_c") else "1"
    return long_name, time if units == _TIME else units
