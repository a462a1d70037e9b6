"""Does the number of flat directions grow as training slows? Hessian spectra of the demo's digit nets.

Baity-Jesi et al. (arXiv:1803.06969) infer from slow dynamics that the loss becomes flatter; here the curvature itself
is measured at eight log-spaced checkpoints of the nets of ``trajstats demo``, whose runs in ``runs/`` are used, or made
there; --quick trains the smaller one for 1,000 steps in its own folder.

    python examples/flat_directions.py [--quick] [--out FOLDER]

The full setting takes two minutes on one core beside the training, --quick 17 seconds. Finished
spectra are used again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import xarray as xr
from _common import conclude, parse
from trajstats_trainers.demo.nets import OVER, UNDER, Net, network_of
from trajstats_trainers.demo.training import train

import trajstats as ts

EPS = (1e-2, 1e-3)


def open_run(net: Net, given: argparse.Namespace) -> xr.Dataset:
    """Open the first run of a net of the demo; train it if it is not there."""
    if given.quick:
        return ts.open_trajectory(train(net, given.out, schedule=ts.log_schedule(1, 1_000, 30))[0])
    Path("runs").mkdir(exist_ok=True)
    return ts.open_trajectory(train(net, Path("runs"))[0])


def spectrum(net: Net, given: argparse.Namespace, kind: str = "hessian", last: int = 8) -> xr.Dataset:
    """Give the curvature spectrum of a net's first run at the last few of eight checkpoints (three with --quick)."""
    run = open_run(net, given)
    saved = run["step"].values
    wanted = np.geomspace(max(saved[1], 10), saved[-1], 3 if given.quick else 8)
    steps = [int(saved[np.abs(saved - t).argmin()]) for t in wanted][-last:]
    method = "exact" if run.sizes["parameter"] < 2_000 and not given.quick else "lanczos"
    effort = {"probes": 3, "order": 30} if given.quick else {}
    kept = given.out / f"{net.store}-{kind}.zarr"
    network = network_of(run)
    return ts.hessian_spectrum(network, run, steps=steps, kind=kind, method=method, store=kept, rng=0, **effort)


def rows(net: Net, found: xr.Dataset) -> list[dict]:
    """Lay out flat and negative shares at every checkpoint."""
    table = []
    for eps in EPS:
        summary = ts.spectral_summary(found, eps=eps, relative=False).isel(replica=0)
        for k, step in enumerate(summary["step"].values):
            at = summary.isel(step=k)
            table.append(
                {
                    "net": net.label,
                    "flat below": f"{eps:g}",
                    "step": int(step),
                    "flat share": tuple(
                        float(at[key]) for key in ("flat_fraction", "flat_fraction_low", "flat_fraction_high")
                    ),
                    "negative share": float(at["negative_fraction"]),
                    "largest": float(at["largest"]),
                    "trace": float(at["trace"]),
                    "loss (nats)": float(found["loss"].values[0, k]),
                }
            )
    return table


def main() -> None:
    """Measure, draw both figures and conclude."""
    import matplotlib.pyplot as plt

    given = parse(__doc__, __file__)
    nets = (UNDER,) if given.quick else (UNDER, OVER)
    found = {net: spectrum(net, given) for net in nets}
    figure, panels = plt.subplots(2, len(nets), figsize=(5.5 * len(nets), 8), layout="constrained", squeeze=False)
    for column, (net, one) in enumerate(found.items()):
        ts.plot_spectrum(one, ax=panels[0, column])
        panels[0, column].set_title(f"{net.label}, {one.attrs['n_parameters']:,} weights")
        ts.plot_flat_directions(one, eps=EPS, ax=panels[1, column])
    figure.savefig(given.out / "flat_directions.png", dpi=80)
    figure, ax = plt.subplots(figsize=(6.4, 4.4), layout="constrained")
    ts.plot_curvatures([spectrum(UNDER, given, kind, last=1) for kind in ("hessian", "gauss_newton")], ax=ax)
    figure.savefig(given.out / "hessian_and_gauss_newton.png", dpi=80)

    table = [row for net, one in found.items() for row in rows(net, one)]
    words = []
    for net in nets:
        for eps in EPS:
            mine = [row for row in table if row["net"] == net.label and row["flat below"] == f"{eps:g}"]
            first, last = mine[0]["flat share"], mine[-1]["flat share"]
            apart = last[1] > first[2] or last[2] < first[1]
            words.append(
                f"{net.label}, |eigenvalue| < {eps:g}: the flat share goes from {first[0]:.3f} to {last[0]:.3f}"
                f"{'' if apart else ' (intervals overlap)'}."
            )
    conclude(given, {"Flat directions": table}, [" ".join(words)])


if __name__ == "__main__":
    main()
