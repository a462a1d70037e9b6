"""Does the number of flat directions grow as training slows? Hessian spectra of the demo's digit nets.

Baity-Jesi et al. (arXiv:1803.06969) infer from slow dynamics that the loss becomes flatter; here the curvature itself
is measured at eight log-spaced checkpoints. Needs the stores of ``trajstats demo``; finished tasks are kept beside
them.

    python examples/flat_directions.py [runs [folder for figures]]
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import xarray as xr

import trajstats as ts
from trainers.demo import OVER, UNDER, network_of

EPS = (1e-2, 1e-3)


def spectrum(runs: Path, net: object, kind: str = "hessian", steps: int = 8) -> xr.Dataset:
    """Give the curvature spectrum of a net's first run at its last few of eight checkpoints."""
    run = ts.open_trajectory(str(net.paths(runs)[0]))
    saved = run.step.values
    wanted = [int(saved[np.abs(saved - t).argmin()]) for t in np.geomspace(max(saved[1], 10), saved[-1], 8)][-steps:]
    method = "exact" if run.sizes["parameter"] < 2_000 else "lanczos"
    kept = runs / "spectra" / f"{net.store}-{kind}.zarr"
    kept.parent.mkdir(exist_ok=True)
    return ts.hessian_spectrum(network_of(run), run, steps=wanted, kind=kind, method=method, store=kept, rng=0)


def main(runs: Path, figures: Path) -> None:
    """Draw both figures and print the table of the documentation."""
    mpl.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(11, 8), layout="constrained")
    for net, column in ((UNDER, 0), (OVER, 1)):
        found = spectrum(runs, net)
        ts.plot_spectrum(found, ax=axes[0, column])
        axes[0, column].set_title(f"{net.label}, {found.attrs['n_parameters']:,} weights")
        ts.plot_flat_directions(found, eps=EPS, ax=axes[1, column])
        for eps in EPS:
            summary = ts.spectral_summary(found, eps=eps, relative=False).isel(replica=0)
            print(f"{net.label}, |eigenvalue| < {eps}:")
            for k, step in enumerate(summary.step.values):
                at = summary.isel(step=k)
                print(
                    f"  step {step:>7,}  flat {at.flat_fraction:.4f} [{at.flat_fraction_low:.4f}, "
                    f"{at.flat_fraction_high:.4f}]  negative {at.negative_fraction:.4f}  "
                    f"largest {at.largest:.3f}  trace {at.trace:.3f}  loss {found.loss.values[0, k]:.4f}"
                )
    figure.savefig(figures / "flat_directions.png", dpi=110)
    figure, ax = plt.subplots(figsize=(6.4, 4.4), layout="constrained")
    ts.plot_curvatures([spectrum(runs, UNDER, kind, steps=1) for kind in ("hessian", "gauss_newton")], ax=ax)
    figure.savefig(figures / "hessian_and_gauss_newton.png", dpi=110)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs"), Path(sys.argv[2] if len(sys.argv) > 2 else "."))
