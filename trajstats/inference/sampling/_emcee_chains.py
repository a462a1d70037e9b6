"""Posteriors by ensembles of walkers (emcee), run until their autocorrelation time is resolved, and diagnostics."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from trajstats.data.store._results import load_kept, remove_kept, save_kept
from trajstats.errors import ArgumentError, FitError, StoreError, unknown_name_message

TAU_FACTOR = 50
TAU_STABLE = 0.05
R_HAT_LIMIT = 1.01
MOVES = ("de", "stretch")

LogProb = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Draws:
    """Draws of a posterior and what is known about them."""

    values: np.ndarray  # Burn-in dropped and thinned by half the autocorrelation time
    diagnostics: xr.Dataset  # As in `FitResult.diagnostics`


def sample_posterior(
    log_prob: LogProb,
    start: np.ndarray,
    covariance: np.ndarray,
    /,
    *,
    names: Sequence[str],
    rng: int | np.random.Generator | None,
    chains: int = 4,
    walkers: int | None = None,
    moves: str = "de",
    max_steps: int = 20_000,
    check_every: int = 250,
    progress: bool = False,
    store: str | os.PathLike[str] | None = None,
) -> Draws:
    """Sample a posterior with independent ensembles.

    Each chain is an ensemble of its own (walkers of one ensemble are not independent). A chain ends when it is longer
    than 50 autocorrelation times and their estimate moved by less than 5 %, or at `max_steps`.
    """
    if moves not in MOVES:
        raise ArgumentError(unknown_name_message("moves", moves, MOVES))
    if chains < 2 or max_steps < 1:
        msg = (
            f"chains={chains}, max_steps={max_steps}: R-hat compares independent ensembles, give at least 2 and 1 step"
        )
        raise ArgumentError(msg)
    n_walkers = walkers if walkers is not None else max(4 * len(names), 16)
    streams = np.random.default_rng(rng).spawn(chains)
    runs = [
        _Ensemble(
            log_prob, start, covariance, n_walkers, moves, stream, None if store is None else Path(store) / f"chain{c}"
        )
        for c, stream in enumerate(streams)
    ]
    from tqdm import tqdm

    done = min(run.length for run in runs)
    # a resumed run looks back at its last two checks, so that it stops where the uninterrupted one would
    taus = [
        autocorrelation_time(np.concatenate([r.chain[:k] for r in runs], axis=1))
        for k in (done - check_every, done)
        if k > 0
    ]
    with tqdm(total=max_steps, disable=not progress, desc="sampling", unit="step") as bar:
        # ensembles advance together, so that their common autocorrelation time is known as early as can be
        while not _resolved(runs, taus) and (done := min(run.length for run in runs)) < max_steps:
            target = min(done + check_every, max_steps)
            for run in runs:
                run.advance(target)
            taus.append(autocorrelation_time(np.concatenate([run.chain for run in runs], axis=1)))
            bar.update(target - done)
    return _collect(runs, names, taus, max_steps)


def _resolved(runs: Sequence[_Ensemble], taus: Sequence[np.ndarray]) -> bool:
    if len(taus) < 2:
        return False
    new, old = taus[-1], taus[-2]
    return bool(runs[0].length > TAU_FACTOR * new.max() and np.all(np.abs(new - old) < TAU_STABLE * new))


class _Ensemble:
    """One emcee ensemble with its own random stream and, if asked, a zarr folder to resume from."""

    def __init__(
        self,
        log_prob: LogProb,
        start: np.ndarray,
        covariance: np.ndarray,
        n_walkers: int,
        moves: str,
        stream: np.random.Generator,
        store: Path | None,
    ) -> None:
        import emcee

        chosen = [(emcee.moves.DEMove(), 0.8), (emcee.moves.DESnookerMove(), 0.2)] if moves == "de" else None
        self.store = store
        self.sampler = emcee.EnsembleSampler(n_walkers, start.size, log_prob, moves=chosen, vectorize=True)
        # emcee ignores a numpy Generator silently: hand it a legacy state made from ours
        self.random_state = np.random.RandomState(stream.integers(2**32, size=4, dtype=np.uint32)).get_state()
        self.state: Any = None
        if store is not None and not store.exists() and _former(store).exists():
            _former(store).rename(store)  # it was stopped between the two renames of `_save`
        if store is not None and (store / "zarr.json").exists():
            self._resume(store)
        else:
            self.state = emcee.State(scatter_walkers(log_prob, start, covariance, n_walkers, stream))
            self.state.random_state = self.random_state

    @property
    def length(self) -> int:
        """Steps made so far."""
        return int(self.sampler.iteration)

    @property
    def chain(self) -> np.ndarray:
        """All steps, (step, walker, coefficient)."""
        return self.sampler.get_chain()

    def advance(self, target: int) -> None:
        """Go on to a number of steps, unless it was reached before an interruption."""
        if self.length < target:
            self.state = self.sampler.run_mcmc(self.state, target - self.length, skip_initial_state_check=True)
            if self.store is not None:
                self._save(self.store)

    def _save(self, store: Path) -> None:
        _, keys, position, has_gauss, cached = self.state.random_state
        backend = self.sampler.backend
        kept = xr.Dataset(
            {
                "chain": (("step", "walker", "coefficient"), self.sampler.get_chain()),
                "log_prob": (("step", "walker"), self.sampler.get_log_prob()),
                "accepted": ("walker", backend.accepted),
                "keys": ("word", keys),
            },
            attrs={"position": int(position), "has_gauss": int(has_gauss), "cached": float(cached)},
        )
        if _former(store).exists():  # it was stopped while the one before was removed
            remove_kept(_former(store))
        save_kept(store, kept, former=_former(store))

    def _resume(self, store: Path) -> None:
        import emcee

        kept = load_kept(store)
        _check_chains(kept, store)
        backend = self.sampler.backend
        shape = (kept.sizes["walker"], kept.sizes["coefficient"])
        if shape != (self.sampler.nwalkers, self.sampler.ndim):
            msg = (
                f"{store} holds chains of {shape[0]} walkers and {shape[1]} coefficients, asked for are "
                f"{self.sampler.nwalkers} and {self.sampler.ndim}: give another path"
            )
            raise StoreError(msg)
        backend.reset(kept.sizes["walker"], kept.sizes["coefficient"])
        backend.grow(kept.sizes["step"], None)
        backend.chain[:], backend.log_prob[:] = kept["chain"].values, kept["log_prob"].values
        backend.accepted, backend.iteration = kept["accepted"].values, kept.sizes["step"]
        a = kept.attrs
        random_state = ("MT19937", kept["keys"].values, a["position"], a["has_gauss"], a["cached"])
        backend.random_state = random_state
        self.state = emcee.State(
            kept["chain"].values[-1], log_prob=kept["log_prob"].values[-1], random_state=random_state
        )


def _check_chains(kept: xr.Dataset, store: Path) -> None:
    """Check that a store holds chains, before numbers are taken from it."""
    dims = {"chain": ("step", "walker", "coefficient"), "log_prob": ("step", "walker"), "accepted": ("walker",)}
    dims["keys"] = ("word",)
    good = all(n in kept and kept[n].dims == d and kept[n].dtype.kind in "fiu" for n, d in dims.items())
    good = good and all(isinstance(kept.attrs.get(n), int | float) for n in ("position", "has_gauss", "cached"))
    if not good or kept.sizes["word"] != 624 or not kept.sizes["step"] or not 0 <= kept.attrs["position"] <= 624:
        msg = f"{store} does not hold the chains of a fit; remove it to start again, or give another path"
        raise StoreError(msg)


def _former(store: Path) -> Path:
    return store.with_name(store.name + ".old")


def scatter_walkers(
    log_prob: LogProb, start: np.ndarray, covariance: np.ndarray, n_walkers: int, stream: np.random.Generator
) -> np.ndarray:
    """Place walkers around a maximum, every one at a finite density."""
    # emcee starts at -inf silently: points outside the prior are drawn again, closer to the maximum each time
    size = np.sqrt(np.diagonal(covariance))
    size = np.where(size > 0, size, 1.0)
    factor = size[:, None] * np.linalg.cholesky(covariance / np.outer(size, size) + 1e-12 * np.eye(size.size))
    found = np.empty((0, start.size))
    for attempt in range(60):
        # a maximum in a corner of the prior leaves few of them inside: draw more than are needed
        points = start + 0.9**attempt * stream.standard_normal((4 * n_walkers, start.size)) @ factor.T
        found = np.concatenate([found, points[np.isfinite(log_prob(points))]])
        if len(found) >= n_walkers:
            return found[:n_walkers]
    msg = "no finite posterior density near the maximum; check the prior bounds against the start values"
    raise FitError(msg)


def autocorrelation_time(chain: np.ndarray) -> np.ndarray:
    """Integrated autocorrelation time in steps, averaged over walkers."""
    import emcee

    # a walker that never moved has no autocorrelation; it is counted and named among the diagnostics
    moving = (np.ptp(chain, axis=0) > 0).all(axis=-1)
    if not moving.any():
        return np.full(chain.shape[-1], np.inf)
    return emcee.autocorr.integrated_time(chain[:, moving], c=5, tol=0, quiet=True)


def _collect(runs: Sequence[_Ensemble], names: Sequence[str], taus: Sequence[np.ndarray], max_steps: int) -> Draws:
    length = min(run.length for run in runs)
    tau = taus[-1] if taus else autocorrelation_time(np.concatenate([run.chain[:length] for run in runs], axis=1))
    longest = float(np.nanmax(tau)) if np.isfinite(tau).any() else float("inf")
    burn = min(int(5 * longest), length // 2) if np.isfinite(longest) else length // 2
    thin = max(int(longest / 2), 1) if np.isfinite(longest) else 1
    kept = [run.sampler.get_chain()[burn:length] for run in runs]
    whole = np.stack([k.reshape(-1, k.shape[-1]) for k in kept])
    values = np.stack([k[::thin].reshape(-1, k.shape[-1]) for k in kept])
    n_total = whole.shape[0] * whole.shape[1]
    r_hats = r_hat(whole)
    moving = np.concatenate([(np.ptp(k, axis=0) > 0).any(axis=-1) for k in kept])
    stuck = int((~moving).sum())
    reasons = []
    if not _resolved(runs, taus):
        reasons.append(
            f"after {max_steps} steps the chain is {length / longest:.0f} autocorrelation times long; 50 asked for"
        )
    if (r_hats > R_HAT_LIMIT).any():
        worst = int(np.argmax(r_hats))
        reasons.append(
            f"R-hat of {names[worst]} over independent ensembles is {r_hats[worst]:.3f}, above {R_HAT_LIMIT}"
        )
    if stuck:
        reasons.append(f"{stuck} walkers never moved")
    diagnostics = diagnostics_dataset(
        names,
        r_hats=r_hats,
        ess=n_total / tau,
        tau=tau,
        acceptance=np.array([float(np.mean(run.sampler.acceptance_fraction)) for run in runs]),
        stuck=stuck,
        reasons=reasons,
        steps=length,
    )
    return Draws(values, diagnostics)


def draws_dataset(columns: Mapping[str, Any], **coords: Any) -> xr.Dataset:
    """Label draws."""
    named = {k: v if isinstance(v, tuple | xr.DataArray) else (("chain", "draw"), v) for k, v in columns.items()}
    labelled = xr.Dataset(named, coords=coords)
    return labelled.assign_coords(chain=np.arange(labelled.sizes["chain"]), draw=np.arange(labelled.sizes["draw"]))


def diagnostics_dataset(
    names: Sequence[str],
    *,
    r_hats: np.ndarray,
    ess: np.ndarray,
    tau: np.ndarray,
    acceptance: np.ndarray,
    stuck: int,
    reasons: Sequence[str],
    steps: int,
) -> xr.Dataset:
    """Label the diagnostics of a sampler."""
    return xr.Dataset(
        {
            "r_hat": ("coefficient", r_hats),
            "ess": ("coefficient", ess),
            "tau": ("coefficient", tau),
            "acceptance": ("chain", acceptance),
            "stuck_walkers": stuck,
            "steps": steps,
            "converged": not reasons,
            "reason": "; ".join(reasons),
        },
        coords={"coefficient": list(names), "chain": np.arange(acceptance.size)},
    )


def r_hat(draws: np.ndarray) -> np.ndarray:
    r"""Split potential scale reduction over independent chains.

    :math:`\sqrt{(\frac{n-1}nW+\frac1nB)/W}` over half chains.
    """
    half = draws.shape[1] // 2
    split = np.concatenate([draws[:, :half], draws[:, half : 2 * half]])
    within = split.var(axis=1, ddof=1).mean(axis=0)
    between = split.mean(axis=1).var(axis=0, ddof=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(within > 0, np.sqrt((half - 1) / half + between / within), np.inf)
