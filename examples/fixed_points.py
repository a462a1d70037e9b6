"""Fixed points of deep nets: how many random nets have, Q(N, L), and those of a map trained on real digits.

Run ``python examples/fixed_points.py --quick`` for a short version; without it the widths are 50, 100 and 200 and the
scan takes about half an hour on one core. Figures go to ``--out``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

import trajstats as ts
from trainers.autoencoder import train_autoencoder


def scan_depths(out: Path, *, quick: bool) -> None:
    """Q(N, L) for Gaussian and Cauchy weights at several scales, logistic activation."""
    widths, depths = ([20], [1, 3, 8]) if quick else ([50, 100, 200], [1, 2, 3, 4, 6, 8, 12, 16, 24])
    scan = ts.census_scan(
        widths,
        depths,
        laws=["gaussian", "cauchy"],
        scales=[0.3, 1.0, 3.0],
        seeds=4 if quick else 12,
        activation="sigmoid",
        starts=40 if quick else 100,
        max_iterations=100 if quick else 250,
        rng=7,
    ).compute()
    print("Gaussian weights, Q over all cells:", np.unique(scan.Q.sel(law="gaussian")))
    for scale in scan.scale.values:
        one = scan.sel(law="cauchy", scale=scale)
        print(f"Cauchy, g = {scale:g}: Q(width, depth) =", one.Q.values.round(2).tolist())
        print("   share of starts unconverged:", one.unconverged_share.mean("seed").values.round(2).tolist())
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.6), layout="constrained")
    for ax, scale in zip(axes, scan.scale.values, strict=True):
        ts.plot_fixed_point_count(scan, law="cauchy", scale=float(scale), ax=ax)
    figure.savefig(out / "fixed_point_count.png", dpi=110)


def autoencoder(out: Path, *, quick: bool) -> None:
    """Train an autoencoder on real digits and ask whether it stores them as fixed points."""
    steps = 300 if quick else 20_000
    store = out / "autoencoder.zarr"
    network, run, digits = train_autoencoder(store, steps=steps, hidden=(64,) if quick else (128, 128), progress=None)
    weights = run.weights.isel(replica=0, step=-1).values
    dim = digits.shape[1]
    print(f"autoencoder: mean squared error {float(run.loss[0, -1]):.2e} after {steps} steps")
    noisy = np.repeat(digits, 10, axis=0) + 0.3 * np.random.default_rng(0).standard_normal((10 * len(digits), dim))
    censuses = {
        "from noisy digits": ts.fixed_point_census(network, dim, weights=weights, starts=noisy, rng=0),
        "by root search from the digits": ts.fixed_point_census(
            network, dim, weights=weights, starts=digits, method="newton", rng=0, max_iterations=200
        ),
    }
    for name, census in censuses.items():
        distance = np.sqrt(((census.point.values[:, None] - digits[None]) ** 2).mean(-1))
        stored = int((distance < 0.1).any(axis=0).sum()) if distance.size else 0
        print(
            f"{name}: {int(census.n_fixed_points)} fixed points ({int(census.n_stable_fixed_points)} stable), "
            f"{int(census.n_cycles)} cycles, unconverged {float(census.unconverged_share):.2f}; "
            f"{stored} of {len(digits)} digits within 0.1 rms of one"
        )
    figure, ax = plt.subplots(figsize=(5.5, 3.6), layout="constrained")
    ts.plot_basins(censuses["from noisy digits"], ax=ax)
    figure.savefig(out / "autoencoder_basins.png", dpi=110)


def main() -> None:
    """Run both parts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, about a minute")
    parser.add_argument("--out", type=Path, default=Path("fixed_points_out"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    scan_depths(arguments.out, quick=arguments.quick)
    autoencoder(arguments.out, quick=arguments.quick)


if __name__ == "__main__":
    main()
