"""Langevin dynamics of a finite spherical p-spin glass, written as a trajectory like any training run."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from trajstats.data.schema import trajectory_dataset
from trajstats.data.store.open import open_trajectory
from trajstats.data.store.writer import TrajectoryWriter
from trajstats.errors import ArgumentError

_BUDGET = 2**31  # bytes for the couplings of one system


def pspin_langevin(
    p: int = 3,
    N: int = 128,
    T: float = 0.0,
    *,
    steps: Sequence[int] | np.ndarray,
    rng: int | np.random.Generator,
    dt: float = 0.05,
    replicas: int = 1,
    path: str | Path | None = None,
    dtype: str = "float64",
) -> xr.Dataset:
    r"""Sample the Langevin dynamics of N spins on a sphere, quenched from infinite temperature.

    :math:`\dot s_i=-\partial H/\partial s_i-\mu s_i+\xi_i`, :math:`\langle\xi\xi\rangle=2T\delta`, :math:`|s|^2=N`,
    :math:`H=-\sum_{i<j(<k)}J_{ij(k)}s_is_j(s_k)` with Gaussian couplings of variance :math:`p!/2N^{p-1}`. Each replica
    has its own couplings, start and noise. As N grows, :math:`\frac1N s(t)\cdot s(t')` tends to the C of
    `cugliandolo_kurchan` with the same p and T, as long as :math:`t\ll N^{2/3}`.

    Parameters
    ----------
    p : int
        2 or 3.
    N : int
        Spins.
    T : float
        Temperature, >= 0.
    steps : sequence of int
        Steps at which to record, >= 0 and increasing, such as `aging_schedule` gives.
    rng : int or numpy.random.Generator
        Seed; replica r depends on (seed, r) alone.
    dt : float
        Length of a step; ``proper_time`` = step x dt.
    replicas : int
        Independent systems.
    path : path, optional
        Folder to write one trajectory store per replica into, ``replica_000.zarr``, ...; in memory if not given. A
        replica already complete there is not sampled again.
    dtype : str
        Stored type.

    Returns
    -------
    xarray.Dataset
        A trajectory: ``weights`` are the spins (layer ``"spins"``), ``loss`` and ``energy`` both the energy per spin,
        clock ``proper_time``. `msd` gives :math:`\Delta=2(1-C)`.

    Raises
    ------
    ArgumentError
        If p is not 2 or 3, T < 0, `steps` are not increasing, the couplings exceed 2 GiB, or `dt` is too large for
        stability: dt (2 sqrt(p (p-1) / 2) + T) must stay below 0.5, and the energy of a T = 0 run may not rise.

    Notes
    -----
    Heun's rule with the noise added once, then projection on the sphere: weak error O(dt) with the constraint at T > 0,
    :math:`O(dt^2)` at T = 0. A force costs :math:`N^p/2` operations; N = 128, p = 3, 1,000 steps take about a second.

    References
    ----------
    glassy: arXiv:1803.06969. Finite size: `spherical_two_spin`.

    Examples
    --------
    >>> run = pspin_langevin(p=2, N=50, T=0.0, steps=[0, 10, 100], rng=0)
    >>> bool((run.weights**2).sum("parameter").round(9).isin([50.0]).all())
    True
    """
    steps = _checked(p, N, T, steps, dt, replicas)
    seeds = _seeds(rng, replicas)
    attrs = {
        "process": "pspin_langevin",
        "exact": {"p": p, "N": N, "T": T, "dt": dt},
        "finite_size_time": N ** (2 / 3),
    }
    spins, energies, paths = [], [], []
    for r, seed in enumerate(seeds):
        force = _force(p, N, np.random.default_rng(seed.spawn(1)[0]))
        if path is not None:
            paths.append(Path(path) / f"replica_{r:03d}.zarr")
            _write(paths[-1], r, attrs, force, p, N, T, dt, steps, seed, dtype)
        else:
            rows = list(_sample(force, p, N, T, dt, steps, np.random.default_rng(seed)))
            spins.append(np.array([s for _, s, _ in rows], dtype=dtype))
            energies.append([e for _, _, e in rows])
    if path is not None:
        return open_trajectory([str(one) for one in paths])
    series = {"loss": energies, "energy": energies}
    clocks = {"proper_time": steps * dt}
    return trajectory_dataset(
        np.array(spins), step=steps, layers={"spins": (N,)}, series=series, clocks=clocks, attrs=attrs
    )


def _checked(p: int, N: int, T: float, steps: Any, dt: float, replicas: int) -> np.ndarray:
    if p not in (2, 3):
        msg = f"p={p}: the sampler knows p = 2 and p = 3; cugliandolo_kurchan solves any p >= 2"
        raise ArgumentError(msg)
    if not (np.isfinite(T) and T >= 0):
        msg = f"T={T}: a temperature must be finite and >= 0"
        raise ArgumentError(msg)
    size = 8 * N * (N if p == 2 else N * (N - 1) // 2)
    if N < 4 or size > _BUDGET:
        msg = f"N={N}: give at least 4 spins, and couplings within 2 GiB (these take {size / 2**30:.2g} GiB)"
        raise ArgumentError(msg)
    if replicas < 1:
        msg = f"replicas={replicas}: give at least one"
        raise ArgumentError(msg)
    rate = 2 * np.sqrt(p * (p - 1) / 2) + T
    if not 0 < dt * rate <= 0.5:
        msg = f"dt={dt:g} is too large for stability at p={p}, T={T:g}; give 0 < dt <= {0.5 / rate:.3g}"
        raise ArgumentError(msg)
    found = np.asarray(steps, dtype=np.int64)
    if found.ndim != 1 or found.size == 0 or found[0] < 0 or not (np.diff(found) > 0).all():
        msg = "steps must be increasing whole numbers >= 0, at least one"
        raise ArgumentError(msg)
    return found


def _seeds(rng: int | np.random.Generator, replicas: int) -> list[np.random.SeedSequence]:
    if isinstance(rng, np.random.Generator):
        rng = int(rng.integers(2**63))
    return [np.random.SeedSequence([int(rng), r]) for r in range(replicas)]


def _force(p: int, N: int, rng: np.random.Generator) -> Any:
    # A function of the spins that gives -dH/ds; H = -s . force / p.
    if p == 2:
        matrix = np.triu(rng.standard_normal((N, N)), 1) / np.sqrt(N)
        matrix += matrix.T
        return lambda s: matrix @ s
    first, second = np.triu_indices(N, 1)
    place = np.zeros((N, N), dtype=np.int64)
    place[first, second] = np.arange(first.size)
    triples = np.fromiter((i for triple in combinations(range(N), 3) for i in triple), dtype=np.int64).reshape(-1, 3)
    couplings = rng.standard_normal(len(triples)) * np.sqrt(3.0) / N
    table = np.zeros((N, first.size))
    i, j, k = triples.T
    table[i, place[j, k]] = couplings
    table[j, place[i, k]] = couplings
    table[k, place[i, j]] = couplings
    return lambda s: table @ (s[first] * s[second])


def _sample(force: Any, p: int, N: int, T: float, dt: float, steps: np.ndarray, rng: np.random.Generator) -> Any:
    # (step, spins, energy per spin) at each recorded step.
    s = _on_sphere(rng.standard_normal(N))
    wanted = set(steps.tolist())
    f = force(s)
    noise_scale = np.sqrt(2 * T * dt)
    before = np.inf
    for step in range(int(steps[-1]) + 1):
        energy = -float(s @ f) / (p * N)
        if T == 0 and energy > before + 1e-9 * (1 + abs(before)):
            msg = f"dt={dt:g} is unstable: the energy of a T = 0 run rises at step {step}; halve dt"
            raise ArgumentError(msg)
        before = energy
        if step in wanted:
            yield step, s.copy(), energy
        noise = noise_scale * rng.standard_normal(N) if T > 0 else 0.0
        drift = f - (f @ s / N) * s
        trial = _on_sphere(s + dt * drift + noise)
        later = force(trial)
        s = _on_sphere(s + 0.5 * dt * (drift + later - (later @ trial / N) * trial) + noise)
        f = force(s)


def _on_sphere(s: np.ndarray) -> np.ndarray:
    return s * np.sqrt(len(s) / (s @ s))


def _write(
    path: Path,
    replica: int,
    attrs: dict[str, Any],
    force: Any,
    p: int,
    N: int,
    T: float,
    dt: float,
    steps: np.ndarray,
    seed: np.random.SeedSequence,
    dtype: str,
) -> None:
    with TrajectoryWriter(path, {"spins": (N,)}, replica=replica, attrs=attrs, dtype=dtype) as writer:
        done = set(writer.committed)
        if done >= set(steps.tolist()):
            return
        for step, spins, energy in _sample(force, p, N, T, dt, steps, np.random.default_rng(seed)):
            if step not in done:
                writer.append(step, {"spins": spins}, loss=energy, energy=energy, proper_time=step * dt)
