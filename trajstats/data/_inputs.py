"""Recognise what a public function was given, and say in one sentence what it needs instead."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np
import xarray as xr

from trajstats.data.schema import LAG, PAIR, REPLICA, SKETCH, STEP, STEP_PRIME, WAITING_TIME, WEIGHTS
from trajstats.errors import ArgumentError

# What an estimator asks of a network, one or the other.
MEMBERS = ("curvature", "gradient", "example_gradients", "output_vjp", "input_jacobian", "jacobian_factors", "features")
P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Kind:
    """What an argument must be."""

    name: str  # With its article, for messages
    fits: Callable[[Any], bool]  # Whether an object is one; cheap, computes nothing
    remedy: str  # How to get one


def _has(*names: str, dims: tuple[str, ...] = ()) -> Callable[[Any], bool]:
    """Return a test for a data set with these variables and dims."""
    return lambda obj: isinstance(obj, xr.Dataset) and set(names) <= set(obj.variables) and set(dims) <= set(obj.dims)


def _along(*dims: str) -> Callable[[Any], bool]:
    """Return a test for an array with these dims."""
    return lambda obj: isinstance(obj, xr.DataArray) and set(dims) <= set(obj.dims)


def _is_delta(obj: Any) -> bool:
    """Check whether an object is an observable of listed pairs."""
    return _along(PAIR)(obj) and ({WAITING_TIME, LAG} <= set(obj.coords) or {"first", "second"} <= set(obj.coords))


def _is_network(obj: Any) -> bool:
    """Check whether an object differentiates or evaluates a network at given weights; properties are not evaluated."""
    # Estimators need some members each, and a network of one's own may have no more. Torch modules may have such names.
    kind = type(obj)
    return (
        not isinstance(obj, type) and not hasattr(kind, "named_parameters") and any(hasattr(kind, n) for n in MEMBERS)
    )


def _is_number_array(obj: Any) -> bool:
    """Check whether an object converts to an array of numbers."""
    if isinstance(obj, xr.Dataset | Mapping | str | bytes | Path) or obj is None or _library(obj):
        return False
    return hasattr(obj, "__array__") or np.asarray(obj, dtype=object).dtype == object


def _is_fit(obj: Any) -> bool:
    """Check whether an object is a FitResult, without importing it."""
    return type(obj).__name__ == "FitResult"


TRAJECTORY = Kind(
    "a trajectory",
    lambda obj: isinstance(obj, xr.Dataset) and (WEIGHTS in obj or SKETCH in obj) and "nodes" not in obj,
    "Open one with open_trajectory(path)",
)
NETWORK = Kind(
    "a network with its loss and data",
    _is_network,
    "Wrap the model: TorchNetwork(module, loss_fn, (inputs, targets)) or JaxNetwork(apply_fn, params, loss_fn, data)",
)
PAIRS = Kind("pairs of saved times", _has("first", "second", dims=(PAIR,)), "Make them with time_pairs(run)")
DELTA = Kind("an observable of listed pairs", _is_delta, "Make one with msd(run, time_pairs(run))")
MATRIX = Kind("an observable of all pairs", _along(STEP, STEP_PRIME), "Make one with all_pairs(run).msd")
OVERLAP = Kind(
    "an overlap of several replicas",
    lambda obj: _along(REPLICA)(obj) and "n_parameters" in obj.coords,
    'Make one with two_time(run, pairs, observables="overlap").overlap',
)
FIT = Kind("a fit", _is_fit, "Make one with fit_subaging(delta, rng=0), fit_decay or fit_divergence")
MATRICES = Kind("a result of all_pairs", _has(STEP, STEP_PRIME), "Make one with all_pairs(run)")
SPECTRUM = Kind("a spectrum", _has("nodes"), "Make one with hessian_spectrum(network, run, rng=0)")
DENSITY = Kind(
    "a spectral density",
    _has("density", "low", "high"),
    "Make one with spectral_density(hessian_spectrum(network, run, rng=0))",
)
NOISE = Kind("gradient noise", _has("D2"), "Make it with gradient_noise(network, run)")
ESD = Kind(
    "a Jacobian spectrum", _has("log_singular_values"), "Make one with jacobian_esd(network, run, inputs, rng=0)"
)
CENSUS = Kind("a census of fixed points", _has("share", "status"), "Make one with fixed_point_census(map, dim, rng=0)")
SCAN = Kind("a scan of random nets", _has("Q", "law"), "Make one with census_scan(widths, depths, rng=0)")
RESPONSE = Kind(
    "a training response", _has("response"), "Make one with training_response(network, run, inputs, probes)"
)
SEPARATION = Kind("a separated response", _has("decay", "stage"), "Make one with separate_response(response)")
EIGENPAIRS = Kind(
    "extreme eigenvalues", _has("eigenvalue", "residual"), "Make them with extreme_eigenpairs(network, run, rng=0)"
)
VAN_HOVE = Kind("a van Hove function", _has("count", "bin"), "Make one with van_hove(run, pairs)")
SLOPES = Kind("local exponents", _has("exponent", dims=(PAIR,)), "Make them with local_exponent(delta)")
GLASS = Kind("a solved glass", _has("C", "time"), "Make one with trajstats.theory.glasses.cugliandolo_kurchan")
OBSERVABLES = Kind(
    "several observables of listed pairs", _has(WAITING_TIME, LAG, dims=(PAIR,)), "Take one of them, e.g. result.msd"
)
TAILS = Kind("tails of layers", _has("alpha", "layer"), "Make them with weight_tails(run, rng=0)")
LOSS = Kind("a loss along training", _along(STEP), "Give one series of the run: run.loss")
FITS = Kind(
    "a mapping name -> fit",
    lambda obj: isinstance(obj, Mapping) and all(map(_is_fit, obj.values())),
    'Give {"a name": fit, "another": fit}',
)
NUMBERS = Kind(
    "a list of numbers", lambda obj: _is_number_array(obj) and np.ndim(obj) == 1, "Give one, e.g. [10, 100, 1000]"
)
VALUES = Kind("an array of numbers", _is_number_array, "Give one array, e.g. run.weights.sel(replica=0, step=100)")

# From the most telling to the least: the first that fits names an object in a message.
KNOWN = (
    *(TRAJECTORY, DELTA, MATRIX, MATRICES, FIT, SPECTRUM, NOISE, ESD, SCAN, TAILS, CENSUS, RESPONSE, SEPARATION),
    *(EIGENPAIRS, VAN_HOVE, SLOPES, GLASS, PAIRS, OBSERVABLES, NETWORK),
)


def _library(obj: Any) -> str:
    """Return what an object of a training framework is, or an empty text."""
    for cls in type(obj).__mro__:
        root, name = cls.__module__.split(".")[0], cls.__name__
        if (root, name) == ("torch", "Module"):
            return "a bare torch module"
        if (root, name) in {("torch", "DataLoader"), ("torch", "Dataset")}:
            return f"a torch {name}"
        if root in {"flax", "equinox", "keras", "haiku"} and name in {"Module", "Model"}:
            return f"a bare model of {root}"
    return ""


def describe(obj: Any) -> str:
    """Say what an object is, for an error message."""
    if isinstance(obj, str | Path):
        return f"the path {str(obj)[:80]!r}"
    if obj is None:
        return "None"
    if isinstance(obj, xr.DataTree):
        return "a sweep of runs"
    known = next((kind.name for kind in KNOWN if kind.fits(obj)), None)
    if known is not None:
        return known
    if isinstance(obj, xr.Dataset):
        return f"a Dataset with variables {', '.join(sorted(map(str, obj.data_vars))[:6]) or 'none'}"
    if isinstance(obj, xr.DataArray):
        return f"a DataArray with dims {tuple(map(str, obj.dims))}"
    if callable(obj) and hasattr(obj, "__name__"):
        return f"the function {obj.__name__}"
    return _library(obj) or f"a{'n' if type(obj).__name__[0] in 'aeiouAEIO' else ''} {type(obj).__name__}"


def accepts(*kinds: Kind | tuple[Kind, ...]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Check the leading arguments of a public function before any work."""
    wanted = [kind if isinstance(kind, tuple) else (kind,) for kind in kinds]

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        names = list(inspect.signature(function).parameters)[: len(wanted)]

        @functools.wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            given = [args[i] if i < len(args) else kwargs.get(name) for i, name in enumerate(names)]
            present = [i < len(args) or name in kwargs for i, name in enumerate(names)]
            for i, (name, allowed) in enumerate(zip(names, wanted, strict=True)):
                if present[i] and not any(kind.fits(given[i]) for kind in allowed):
                    raise ArgumentError(_sentence(function.__name__, names, name, allowed, given[i], wanted, given))
            return function(*args, **kwargs)

        checked.__accepts__ = wanted  # type: ignore[attr-defined]
        return checked

    return decorate


def _sentence(
    function: str,
    names: list[str],
    name: str,
    allowed: tuple[Kind, ...],
    given: Any,
    wanted: list[tuple[Kind, ...]],
    every: list[Any],
) -> str:
    """Say what is wrong with one argument and how to mend it."""
    call = f"{function}({', '.join(names)})"
    if len(every) == 2 and all(any(k.fits(obj) for k in kinds) for kinds, obj in zip(wanted, every[::-1], strict=True)):
        return f"{function}: the arguments are swapped; call {call}."
    if OBSERVABLES.fits(given) and DELTA in allowed:
        return f"{function}: {name} must be one observable; got {describe(given)}. {OBSERVABLES.remedy}."
    if MATRICES.fits(given) and MATRIX in allowed:
        return f"{function}: {name} must be one observable; got {describe(given)}. Take one of them, e.g. result.msd."
    needed = " or ".join(kind.name for kind in allowed)
    remedy = ", or ".join(kind.remedy for kind in allowed)
    return f"{function}: {name} must be {needed}; got {describe(given)}. {remedy}, then call {call}."
