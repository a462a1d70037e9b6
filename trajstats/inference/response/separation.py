"""Split a training response into a decay in time and a kernel over examples, and name the decay's law."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import xarray as xr

from trajstats.data._clocks import CLOCK, carried_clock, clock_of, unit_of
from trajstats.data._inputs import RESPONSE, SEPARATION, accepts
from trajstats.data.schema import REPLICA, STEP, annotate, clock_values
from trajstats.errors import ArgumentError, FitError, NonFiniteError
from trajstats.inference.model_scores import information_criteria
from trajstats.inference.sampling._maximum import Bounds, maximise
from trajstats.runtime._threads import one_thread

WHOLE = "whole"
STAGES = ("plateau", "descent", "floor")
LAWS = ("constant", "exponential", "power_law")
_FEWEST = 3  # saved steps a stage needs


@accepts(RESPONSE)
def separate_response(
    response: xr.Dataset,
    /,
    *,
    stages: xr.Dataset | None = None,
    clock: str | None = None,
    level: float = 0.95,
    n_bootstrap: int = 200,
    rng: int | np.random.Generator | None = 0,
) -> xr.Dataset:
    r"""Split a response into a decay in time and a kernel over pairs: :math:`\Theta_t(x,x')\approx A(t)\,k(x,x')`.

    The best such product in least squares: the first term of the singular value decomposition over time x pairs, with
    k of unit root mean square and mean A > 0. The unexplained share is :math:`1-\sigma_1^2/\sum_j\sigma_j^2`.

    Parameters
    ----------
    response : xarray.Dataset
        What `training_response` returned.
    stages : xarray.Dataset, optional
        What `loss_regimes` returned: the split is then repeated within each stage of training, before ``t1``
        (plateau), between (descent) and after ``t2`` (floor), as found from the loss.
    clock : str, optional
        Clock of ``t1`` and ``t2``: that of `stages` if not given.
    level : float
        Probability of the interval.
    n_bootstrap : int
        Resamples of inputs and probes, >= 20.
    rng : int or numpy.random.Generator
        Seed of the resamples.

    Returns
    -------
    xarray.Dataset
        ``decay`` (replica, stage, step), in the response's units, NaN outside a stage; ``kernel`` (replica, stage,
        input, probe), 1; ``unexplained`` (replica, stage), 1, and ``unexplained_interval`` (..., bound). A dim `layer`
        or `output` of the response stays. Stage ``"whole"`` is always there; one with fewer than 3 saved steps is NaN.

    Raises
    ------
    ArgumentError
        If there are fewer than 3 steps, or `stages` lacks ``t1`` or ``t2``.
    NonFiniteError
        If the response holds NaN or infinity.

    Notes
    -----
    Interval: percentile bootstrap over inputs and over probes, drawn independently, since pairs that share an example
    are not independent. It speaks of the choice of examples; of the run, only replicas can. Noise in the response is
    counted as unexplained: the share is biased upward by it.

    References
    ----------
    response: arXiv:2405.04074 (separation into a decay and a kernel; the operational definition is ours).

    Examples
    --------
    >>> t, k = np.array([1.0, 2.0, 4.0]), np.arange(1.0, 5.0).reshape(2, 2)
    >>> dims = ("replica", "step", "input", "probe")
    >>> exact = xr.Dataset({"response": (dims, (k / t[:, None, None])[None])}, coords={"step": [1, 2, 4]})
    >>> split = separate_response(exact)
    >>> bool(split.unexplained.sel(stage="whole").item() < 1e-12)
    True
    """
    theta = response["response"]
    steps = theta.sizes[STEP]
    if steps < _FEWEST:
        msg = f"the response has {steps} steps: a split needs at least {_FEWEST}"
        raise ArgumentError(msg)
    if n_bootstrap < 20:
        msg = f"n_bootstrap={n_bootstrap}: an interval needs at least 20"
        raise ArgumentError(msg)
    if not np.isfinite(theta.values).all():
        msg = "the response holds NaN or infinity"
        raise NonFiniteError(msg)
    generator = np.random.default_rng(rng)
    clock = _stage_clock(stages, clock)
    masks = _stage_masks(response, stages, clock)
    extra = [str(d) for d in theta.dims if d not in (REPLICA, STEP, "input", "probe")]
    theta = theta.transpose(REPLICA, *extra, STEP, "input", "probe")
    lead = theta.shape[:-3]
    n_in, n_probe = theta.shape[-2:]
    decay = np.full((*lead, len(masks), steps), np.nan)
    kernel = np.full((*lead, len(masks), n_in, n_probe), np.nan)
    share = np.full((*lead, len(masks), 3), np.nan)
    for at in np.ndindex(lead):
        for s, mask in enumerate(masks.values()):
            inside = mask[at[0]]
            block = theta.values[at][inside]
            if len(block) < _FEWEST or not block.any():
                continue
            decay[(*at, s, inside)], kernel[(*at, s)], share[(*at, s, 0)] = _rank_one(block)
            drawn = [
                _rank_one(
                    block[:, generator.integers(n_in, size=n_in)][:, :, generator.integers(n_probe, size=n_probe)]
                )[2]
                for _ in range(n_bootstrap)
            ]
            share[(*at, s, slice(1, 3))] = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    head = (REPLICA, *extra, "stage")
    coords = {n: c for n, c in response.coords.items() if set(c.dims) <= {REPLICA, STEP, *extra}}
    result = xr.Dataset(coords={**coords, "stage": list(masks), "bound": ["lower", "upper"]})
    result["decay"] = ((*head, STEP), decay, {"long_name": "decay A(t)", "units": response.attrs.get("units", "1")})
    result["kernel"] = ((*head, "input", "probe"), kernel, {"long_name": "kernel k(x, x')", "units": "1"})
    result["unexplained"] = (head, share[..., 0], {"long_name": "share not of the form A(t) k(x, x')", "units": "1"})
    result["unexplained_interval"] = ((*head, "bound"), share[..., 1:])
    return annotate(
        result,
        name="separate_response",
        long_name="response split into a decay and a kernel",
        units="1",
        estimator="separate_response",
        arguments={"clock": clock, "level": level, "n_bootstrap": n_bootstrap, "stages": list(masks)},
        source=response.attrs.get("source", ""),
    )


def _rank_one(block: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    flat = block.reshape(len(block), -1)
    # Time is the short side: eigenvectors of the small Gram matrix would lose half the digits of the share.
    left, values, right = np.linalg.svd(flat, full_matrices=False)
    total = (values**2).sum()
    scale = np.sqrt(flat.shape[1])
    sign = 1.0 if left[:, 0].sum() >= 0 else -1.0
    share = (values[1:] ** 2).sum() / total if total > 0 else np.nan
    return sign * left[:, 0] * values[0] / scale, sign * right[0].reshape(block.shape[1:]) * scale, float(share)


def _stage_clock(stages: xr.Dataset | None, clock: str | None) -> str:
    own = STEP if stages is None else clock_of(stages)
    if stages is not None and clock is not None and CLOCK in carried_clock(stages) and clock != own:
        msg = f"clock={clock!r}, but stages are on {own!r}; give stages=trajstats.loss_regimes(run, clock={clock!r})"
        raise ArgumentError(msg)
    return clock or own


def _stage_masks(response: xr.Dataset, stages: xr.Dataset | None, clock: str) -> dict[str, np.ndarray]:
    shape = (response.sizes[REPLICA], response.sizes[STEP])
    masks = {WHOLE: np.ones(shape, dtype=bool)}
    if stages is None:
        return masks
    missing = [name for name in ("t1", "t2") if name not in stages]
    if missing:
        msg = f"stages lacks {missing}; use stages=trajstats.loss_regimes(run)"
        raise ArgumentError(msg)
    times = np.broadcast_to(np.asarray(clock_values(response, clock), dtype=np.float64), shape)
    first, second = (
        np.broadcast_to(np.asarray(stages[n].values, dtype=np.float64), shape[:1])[:, None] for n in ("t1", "t2")
    )
    # A stage whose end was not found (NaN) is not told apart from the next.
    return masks | {
        "plateau": times < first,
        "descent": (times >= first) & ~(times >= second),
        "floor": times >= second,
    }


@one_thread()
@accepts(SEPARATION)
def fit_response_decay(
    separation: xr.Dataset, /, *, clock: str = STEP, stage: str = WHOLE, level: float = 0.95
) -> xr.Dataset:
    r"""Compare three laws of the decay A(t): constant, exponential and power law (aging).

    :math:`\ln A=\ln a`, :math:`\ln a-t/\tau` or :math:`\ln a-b\ln(1+t/t_0)` plus Gaussian noise of free width, by
    maximum likelihood; t counts from the start of training.

    Parameters
    ----------
    separation : xarray.Dataset
        What `separate_response` returned.
    clock : str
        Coordinate along `step` that is the time.
    stage : str
        Which stage.
    level : float
        Probability of the intervals of the coefficients.

    Returns
    -------
    xarray.Dataset
        ``aicc`` and ``weight`` (Akaike weight) (replica, law); ``rate`` 1/tau, ``exponent`` b and ``onset`` t_0
        (replica), each with ``_interval`` (..., bound) from the profile likelihood. A dim `layer` stays.

    Raises
    ------
    ArgumentError
        If the stage or clock is not there.
    FitError
        If A is not positive throughout or has fewer than 6 times.

    Notes
    -----
    The residuals of one run are correlated in time, so the weights overstate how sure one can be and the intervals are
    too narrow; what holds across replicas holds. An exponent whose interval holds 0 says constant.

    Examples
    --------
    >>> t = np.array([0, 1, 3, 10, 30, 100, 300, 1000])
    >>> split = xr.Dataset({"decay": (("replica", "stage", "step"), (1 / (1 + t))[None, None])})
    >>> split = split.assign_coords(step=t, stage=["whole"])
    >>> law = fit_response_decay(split)
    >>> str(law.law.values[law.weight.argmax("law").item()]), round(law.exponent.item(), 2)
    ('power_law', 1.0)
    """
    if stage not in separation["stage"].values:
        msg = f"stage {stage!r} is not among {separation['stage'].values.tolist()}; give stages= to separate_response"
        raise ArgumentError(msg)
    decay = separation["decay"].sel(stage=stage)
    extra = [str(d) for d in decay.dims if d != STEP]
    decay = decay.transpose(*extra, STEP)
    times = np.asarray(clock_values(separation, clock), dtype=np.float64)
    lead = decay.shape[:-1]
    scores = np.empty((*lead, len(LAWS), 2))
    found = {name: np.empty((*lead, 3)) for name in ("rate", "exponent", "onset")}
    for at in np.ndindex(lead):
        values = decay.values[at]
        keep = np.isfinite(values)
        if keep.sum() < 6 or not (values[keep] > 0).all():
            msg = (
                f"A(t) has {int(keep.sum())} times, {int((values[keep] <= 0).sum())} of them not positive: give "
                "at least 6 positive ones; choose another stage or more steps"
            )
            raise FitError(msg)
        scores[at], one = _compare(times[keep], np.log(values[keep]), level)
        for name, value in one.items():
            found[name][at] = value
    result = xr.Dataset(coords={**{d: separation[d] for d in extra if d in separation.coords}, "law": list(LAWS)})
    result["aicc"] = ((*extra, "law"), scores[..., 0], {"long_name": "AICc", "units": "1"})
    result["weight"] = ((*extra, "law"), scores[..., 1], {"long_name": "Akaike weight", "units": "1"})
    for name, value in found.items():
        unit = unit_of(clock, separation)
        units = {"rate": f"1 / {unit}", "exponent": "1", "onset": unit}[name]
        result[name] = (tuple(extra), value[..., 0], {"long_name": name, "units": units})
        result[f"{name}_interval"] = (
            (*extra, "bound"),
            value[..., 1:],
            {"long_name": f"interval of the {name}", "units": units},
        )
    return annotate(
        result.assign_coords(bound=["lower", "upper"]),
        name="fit_response_decay",
        long_name="law of the decay of the response",
        units="1",
        estimator="fit_response_decay",
        arguments={"clock": clock, "stage": stage, "level": level},
        source=separation.attrs.get("source", ""),
    )


def _compare(t: np.ndarray, y: np.ndarray, level: float) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    span = max(t.max(), 1.0)
    first = max(np.min(t[t > 0], initial=span), 1e-9)
    laws: dict[str, tuple[Callable[[np.ndarray], np.ndarray], Bounds]] = {
        "constant": (lambda v: np.zeros_like(t), {}),
        "exponential": (lambda v: -v[0] * t / span, {"rate": (0.1, -20.0, 50.0)}),
        "power_law": (
            lambda v: -v[0] * np.log1p(t / np.exp(v[1])),
            {
                "exponent": (0.5, -3.0, 6.0),
                "log_onset": (np.log(np.sqrt(first * span)), np.log(first / 10), np.log(span)),
            },
        ),
    }
    criteria, found = [], {}
    for curve, start in laws.values():

        def log_likelihood(v: np.ndarray, curve: Callable[[np.ndarray], np.ndarray] = curve) -> float:
            # The amplitude and the width of the noise are at their best for given v.
            residual = y - curve(v)
            variance = max(float(residual.var()), 1e-24)
            return -0.5 * len(y) * (np.log(2 * np.pi * variance) + 1)

        if start:
            best = maximise(log_likelihood, start, profile=tuple(start), level=level)
            top = best.log_likelihood
            for name, value in best.values.items():
                found[name] = np.array([value, *best.intervals[name]])
        else:
            top = log_likelihood(np.empty(0))
        criteria.append(information_criteria(top, 2 + len(start), len(y))["aicc"])
    aicc = np.array(criteria)
    weight = np.exp(-0.5 * (aicc - aicc.min()))
    found["rate"] = found["rate"] / span
    found["onset"] = np.exp(found.pop("log_onset"))
    return np.stack([aicc, weight / weight.sum()], axis=-1), found
