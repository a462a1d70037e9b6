"""What a fit is asked with: every option and every array is checked here, before any work."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import xarray as xr

from trajstats.errors import ArgumentError, unknown_name_message

SAMPLERS = ("batched", "emcee")


def generator(rng: int | np.random.Generator | None) -> np.random.Generator:
    """Make the random stream of a fit."""
    try:
        return np.random.default_rng(rng)
    except (TypeError, ValueError) as error:
        msg = f"rng={rng!r}: give a whole number that is not negative, or a numpy.random.Generator"
        raise ArgumentError(msg) from error


def check_sampling(sampler: str, max_steps: int, allowed: Iterable[str] = SAMPLERS) -> None:
    """Check how the posterior is to be sampled."""
    if sampler not in list(allowed):
        raise ArgumentError(unknown_name_message("sampler", sampler, allowed))
    check_count("max_steps", max_steps)


def check_count(name: str, value: Any) -> None:
    """Check a whole number above 0."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        msg = f"{name}={value!r}: give a whole number, at least 1"
        raise ArgumentError(msg)


def check_switches(**given: Any) -> None:
    """Check options that are on or off: text such as ``"no"`` would count as on."""
    for name, value in given.items():
        if not isinstance(value, bool | np.bool_):
            msg = f"{name}={value!r}: give True or False"
            raise ArgumentError(msg)


def positive_number(name: str, value: Any, what: str) -> float:
    """Check a number above 0, infinity included."""
    number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    if not number or not value > 0:
        msg = f"{name}={value!r}: {what}"
        raise ArgumentError(msg)
    return float(value)


def real_values(array: xr.DataArray, name: str) -> np.ndarray:
    """Take the values of an array as float64; lazy ones are computed."""
    if array.dtype.kind not in "bcmMSUT":
        values = np.asarray(array.values)  # lazy ones may fail with a reason of their own
        try:
            if values.dtype.kind != "O" or not any(isinstance(v, str) for v in values.flat):
                return values.astype(np.float64)
        except (TypeError, ValueError):
            pass
    msg = f"{name} has dtype {array.dtype}: real numbers are needed; convert it with .astype(float)"
    raise ArgumentError(msg)
