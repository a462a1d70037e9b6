"""Curves as plain functions of NumPy arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from keyword import iskeyword
from typing import Any

import numpy as np

from trajstats.errors import ArgumentError

FORMS = ("clock", "simple")
# coefficients that every parametric curve has
_TAKEN = frozenset({"mu", "level", "offset", "N_eff", "mu_pooled"})


def scaled_time(
    waiting_time: np.ndarray, lag: np.ndarray, mu: np.ndarray | float, *, form: str = "clock"
) -> np.ndarray:
    r"""Logarithm of the scaling variable of a two-time observable.

    ``"clock"``: :math:`x=\ln\int_{t_w}^{t_w+t}s^{-\mu}ds`, written
    :math:`(1-\mu)\ln t_w+\ln[\mathrm{expm1}((1-\mu)L)/(1-\mu)]` with :math:`L=\ln(1+t/t_w)`, which is continuous
    through :math:`\mu=1`. ``"simple"``: :math:`x=\ln(t/t_w^\mu)`, which agrees only for :math:`t\ll t_w`.
    A function of :math:`h(t_w+t)/h(t_w)` with :math:`h=\exp[t^{1-\mu}/(1-\mu)]` is a function of the clock form.

    Source: subaging (arXiv:2209.02517).
    """  # noqa: DOC201
    mu = np.asarray(mu, dtype=float)[..., None]
    if form == "simple":
        return np.log(lag) - mu * np.log(waiting_time)
    slope = 1.0 - mu
    ratio = np.log1p(lag / waiting_time)
    small = np.abs(slope) < 1e-9
    safe = np.where(small, 1.0, slope)
    grown = np.where(small, ratio, np.expm1(safe * ratio) / safe)
    return slope * np.log(waiting_time) + np.log(grown)


def clock(time: np.ndarray, mu: float) -> np.ndarray:
    r"""Subaging clock :math:`h(t)=(t^{1-\mu}-1)/(1-\mu)`, :math:`\ln t` at :math:`\mu=1`."""
    logs = np.log(time)
    return logs if abs(1 - mu) < 1e-9 else np.expm1((1 - mu) * logs) / (1 - mu)


def mittag_leffler(x: np.ndarray, beta: float) -> np.ndarray:
    r"""One-parameter Mittag-Leffler relaxation :math:`E_\beta(-x^\beta)` for :math:`0<\beta\le1`.

    :math:`\int_0^1\exp\{-x[\sin(\pi\beta p)/\sin(\pi\beta(1-p))]^{1/\beta}\}dp`, by the trapezium rule in the logit of
    p.
    """  # noqa: DOC201
    if beta >= 1:
        return np.exp(-x)
    z = np.linspace(-36.0, 36.0, 289)
    p, q = 1 / (1 + np.exp(-z)), 1 / (1 + np.exp(z))
    log_rate = (np.log(np.sin(np.pi * beta * p)) - np.log(np.sin(np.pi * beta * q))) / beta
    rate = np.exp(np.clip(log_rate, -600, 600))
    weight = p * q * (z[1] - z[0])
    return np.exp(-np.asarray(x, dtype=float)[..., None] * rate) @ weight


@dataclass(frozen=True)
class MasterCurve:
    """A parametric master curve ln f(u), for ``fit_subaging(estimator=...)``.

    Attributes
    ----------
    name : str
        How results call it.
    log_curve : callable (log_u, coefficients) -> log_f
        `log_u` has shape (n,); `coefficients` is a dict of floats. The amplitude is added by the fit.
    start : dict name -> (start, lower, upper)
        Start value and bounds of each coefficient. A coefficient called ``log_scale`` is started at the middle of the
        data.

    Raises
    ------
    ArgumentError
        If a start is not three finite numbers, the start between its bounds, or a name is none or one of the fit's own.
    """

    name: str
    log_curve: Callable[[np.ndarray, dict[str, float]], np.ndarray]
    start: dict[str, tuple[float, float, float]]

    def __post_init__(self) -> None:
        given: Any = self
        if not isinstance(given.name, str) or not callable(given.log_curve) or not isinstance(given.start, Mapping):
            msg = (
                f"MasterCurve({self.name!r:.60}, {type(self.log_curve).__name__}, {type(self.start).__name__}): give a "
                "name, a function (log_u, coefficients) -> log_f, and a mapping name -> (start, lower, upper)"
            )
            raise ArgumentError(msg)
        for name, edges in given.start.items():
            if not isinstance(name, str) or not name.isidentifier() or iskeyword(name) or name in _TAKEN:
                msg = (
                    f"start {name!r}: a coefficient is called by a word of letters, digits and _, none of Python's own "
                    f"and none of {sorted(_TAKEN)}, which the fit has"
                )
                raise ArgumentError(msg)
            try:
                at, low, high = (float(edge) for edge in edges)
            except (TypeError, ValueError):
                at = low = high = np.nan
            if isinstance(edges, str) or not np.isfinite([at, low, high]).all() or not low <= at <= high or low == high:
                msg = (
                    f"start {name}={edges!r}: give three finite numbers (start, lower, upper), the start between its "
                    "bounds"
                )
                raise ArgumentError(msg)


def _power(x: np.ndarray, c: dict[str, float]) -> np.ndarray:
    return c["beta"] * x


def _stretched(x: np.ndarray, c: dict[str, float]) -> np.ndarray:
    return np.log(-np.expm1(-np.exp(np.clip(c["beta"] * (x - c["log_scale"]), -700, 700))))


def _mittag_leffler(x: np.ndarray, c: dict[str, float]) -> np.ndarray:
    scaled = np.exp(np.clip(x - c["log_scale"], -700, 700))
    return np.log(np.maximum(1 - mittag_leffler(scaled, c["beta"]), 1e-14))


def _logarithmic(x: np.ndarray, c: dict[str, float]) -> np.ndarray:
    return np.log(np.log1p(np.exp(np.clip(x - c["log_scale"], -700, 700))))


MASTER_CURVES = {
    curve.name: curve
    for curve in (
        MasterCurve("power_law", _power, {"beta": (0.7, 0.01, 3.0)}),
        MasterCurve("stretched_exponential", _stretched, {"beta": (0.8, 0.05, 2.5), "log_scale": (0.0, -40.0, 40.0)}),
        MasterCurve("mittag_leffler", _mittag_leffler, {"beta": (0.8, 0.05, 1.0), "log_scale": (0.0, -40.0, 40.0)}),
        MasterCurve("logarithmic", _logarithmic, {"log_scale": (0.0, -40.0, 40.0)}),
    )
}
