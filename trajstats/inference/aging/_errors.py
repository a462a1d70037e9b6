"""What the error of mu rests on: Wick's covariance, seeds, replicas, or blocks where motion is local."""

from __future__ import annotations

import numpy as np
import xarray as xr

from trajstats.errors import FitError
from trajstats.inference._priors import Priors
from trajstats.inference._uncertainty import linear_error, student_t_draws
from trajstats.inference.aging._pilot import Pilot
from trajstats.inference.aging._points import Points, layer_blocks
from trajstats.inference.aging._posteriors import Sampled
from trajstats.inference.aging._replicas import seed_table
from trajstats.inference.aging._residuals import LOCALITY_LIMIT, smoother

MIN_BLOCKS, ASKED_REPLICAS = 8, 5
# from this error of one seed on, the bias that seeds share is not small beside the error of their mean
NOISY_SEED = 0.1
UNLIKE = 0.01


def with_errors(
    sampled: Sampled,
    delta: xr.DataArray,
    points: Points,
    pilot: Pilot,
    bounds: Priors,
    likelihood: str,
    rng: np.random.Generator,
    tables: dict[str, xr.Dataset],
    flags: list[str],
    name: str,
) -> Sampled:
    """Give mu the error the likelihood asks for, and say what it rests on."""
    n_replicas = points.msd.shape[0]
    shape = sampled.posterior["mu"].shape
    if likelihood == "iid":
        flags.append("points taken as independent (iid): the interval is several times too narrow")
        return sampled
    centre = float(sampled.posterior["mu"].median())
    blocks = layer_blocks(delta, points)
    if blocks is not None and blocks.shape[0] >= MIN_BLOCKS:
        _, influence = smoother(pilot.curve, *pilot.grid.mode)
        spread = linear_error(influence, blocks, blocks.mean(axis=0))
        locality = pilot.grid.spread[0] / max(spread, 1e-300)
        tables["locality"] = xr.Dataset({"ratio": locality, "stderr_blocks": spread, "n_blocks": blocks.shape[0]})
    if likelihood == "blocks":
        if "locality" not in tables or float(tables["locality"]["ratio"]) > LOCALITY_LIMIT:
            found = float(tables["locality"]["ratio"]) if "locality" in tables else None
            msg = (
                f"the scatter over blocks is not an error bar here: locality ratio {found} (at most {LOCALITY_LIMIT}, "
                f"with at least {MIN_BLOCKS} layers, is asked for). Blocks of one run share its "
                "motion; use likelihood='wick'."
            )
            raise FitError(msg)
        flags.append("error from the scatter over layers: valid only while their motion is independent")
        n_blocks = int(tables["locality"]["n_blocks"])
        return sampled.with_mu(student_t_draws(centre, spread, n_blocks - 1, shape, rng))
    if n_replicas == 1:
        flags.append("one run: Wick covariance, conditional on the clock of this run")
        return sampled
    if name not in ("free", "free_simple"):
        flags.append(f"Wick covariance of the mean over {n_replicas} replicas, which are taken to share one mu")
        return sampled
    seeds = tables["seeds"] = seed_table(points, pilot, bounds)
    if n_replicas < ASKED_REPLICAS:
        flags.append(f"{n_replicas} replicas: {ASKED_REPLICAS} are asked for, 8 are comfortable")
    if likelihood == "seeds":
        flags.append(f"population mean over {n_replicas} seeds, each with its own Wick covariance")
        own = float(seeds["stderr"].median())
        if own > NOISY_SEED:
            flags.append(
                f"a single seed determines mu only to ±{own:.2f}: noisy curves are smoothed towards a power law, which "
                "biases mu upwards in all seeds alike. likelihood='wick' fits their mean MSD with little of that bias"
            )
        centre, scale = float(seeds["population_mean"]), float(seeds["population_scale"])
        return sampled.with_mu(student_t_draws(centre, scale, n_replicas - 1, shape, rng))
    flags.append(f"mean MSD of {n_replicas} seeds, error from leaving out one at a time (Student t)")
    if float(seeds["p_alike"]) < UNLIKE:
        flags.append(
            f"seeds differ in mu by {float(seeds['seed_spread']):.2g} (standard deviation; p = "
            f"{float(seeds['p_alike']):.2g} for one mu): the mean MSD mixes them; likelihood='seeds' gives their mean"
        )
    error = float(seeds["pooled_stderr"])
    return sampled.with_mu(student_t_draws(centre, error, n_replicas - 1, shape, rng))
