"""Fixed points of deep nets: how many random nets have, Q(N, L), and those of a map trained on real digits.

After Berlyand and Slavin 2025 (arXiv:2501.04182): Gaussian weights give one fixed point; heavy-tailed (Cauchy) weights
give several, stable, with basins. Then an autoencoder on 20 digits: does it store them as fixed points?

    python examples/fixed_points.py [--quick] [--out FOLDER]

The full setting (widths 50, 100 and 200) takes about half an hour on one core, --quick 16 seconds. A finished scan and
a finished training are used again.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from _common import conclude, parse
from trajstats_trainers.jax.autoencoder import train_autoencoder

import trajstats as ts


def scan_depths(out: Path, *, quick: bool) -> xr.Dataset:
    """Q(N, L) for Gaussian and Cauchy weights at several scales, logistic activation."""
    kept = out / "scan.zarr"
    if kept.exists():
        return xr.open_zarr(kept, consolidated=False).load()
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
    scan.assign_coords(law=scan["law"].astype(object)).to_zarr(kept, consolidated=False)
    return scan


def scan_rows(scan: xr.Dataset) -> list[dict]:
    """Lay out the mean number of fixed points by law, scale, width and depth."""
    rows = []
    for law in scan["law"].values:
        for scale in scan["scale"].values:
            for width in scan["width"].values:
                one = scan.sel(law=law, scale=scale, width=width)
                row = {"weights": str(law), "g": float(scale), "N": int(width)}
                rows.append(
                    row | {f"Q(L = {depth})": float(one["Q"].sel(depth=depth)) for depth in one["depth"].values}
                )
                rows[-1]["unconverged starts"] = float(one["unconverged_share"].mean())
    return rows


def autoencoder(out: Path, *, quick: bool) -> tuple[list[dict], float]:
    """Train an autoencoder on real digits and ask whether it stores them as fixed points."""
    steps = 300 if quick else 20_000
    store = out / "autoencoder.zarr"
    network, run, digits = train_autoencoder(store, steps=steps, hidden=(64,) if quick else (128, 128))
    weights = run.isel(replica=0, step=-1)
    dim = digits.shape[1]
    noisy = np.repeat(digits, 10, axis=0) + 0.3 * np.random.default_rng(0).standard_normal((10 * len(digits), dim))
    censuses = {
        "iteration from noisy digits": ts.fixed_point_census(network, dim, weights=weights, starts=noisy, rng=0),
        "root search from the digits": ts.fixed_point_census(
            network, dim, weights=weights, starts=digits, method="newton", rng=0, max_iterations=200
        ),
    }
    figure, ax = plt.subplots(figsize=(5.5, 3.6), layout="constrained")
    ts.plot_basins(censuses["iteration from noisy digits"], ax=ax)
    figure.savefig(out / "autoencoder_basins.png", dpi=100)
    rows = []
    for name, census in censuses.items():
        distance = np.sqrt(((census.point.values[:, None] - digits[None]) ** 2).mean(-1))
        rows.append(
            {
                "census": name,
                "fixed points": int(census.n_fixed_points),
                "stable": int(census.n_stable_fixed_points),
                "cycles": int(census.n_cycles),
                "unconverged": float(census.unconverged_share),
                "digits within 0.1 rms of one": int((distance < 0.1).any(axis=0).sum()) if distance.size else 0,
            }
        )
    return rows, float(run.loss[0, -1])


def main() -> None:
    """Run both parts."""
    given = parse(__doc__, __file__)
    scan = scan_depths(given.out, quick=given.quick)
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.6), layout="constrained")
    for ax, scale in zip(axes, scan.scale.values, strict=True):
        ts.plot_fixed_point_count(scan, law="cauchy", scale=float(scale), ax=ax)
    figure.savefig(given.out / "fixed_point_count.png", dpi=80)
    stored, error = autoencoder(given.out, quick=given.quick)
    conclude(
        given,
        {"Mean number of fixed points": scan_rows(scan), "Autoencoder on 20 digits": stored},
        [scan_words(scan), f"The autoencoder's mean squared error is {error:.1e}; {stored_words(stored)}"],
    )


def scan_words(scan: xr.Dataset) -> str:
    """Say what agrees with the paper about random nets."""
    parts = []
    for law, claim in (
        ("gaussian", "one fixed point"),
        ("cauchy", "several, stable, and a count not monotone in depth"),
    ):
        one = scan.sel(law=law)
        count, stable = (one[name].values for name in ("n_fixed_points", "n_stable_fixed_points"))
        parts.append(
            f"{law.capitalize()} weights (the paper: {claim}): {int((count == 1).sum())} of {count.size} nets have one "
            f"fixed point, {int((count > 1).sum())} more, {int((count == 0).sum())} none that was found; "
            f"{int(stable.sum())} of {int(count.sum())} found are stable."
        )
    return " ".join(parts)


def stored_words(stored: list[dict]) -> str:
    """Say whether the autoencoder stores its digits."""
    attract, exist = (row["digits within 0.1 rms of one"] for row in stored)
    return f"{exist} of 20 digits lie at a fixed point, {attract} at one that attracts noisy digits."


if __name__ == "__main__":
    main()
