"""The ten lines: from a stored run to the exponent of aging.

Reads the run that ``trajstats demo`` (or ``make demo``) leaves in ``runs/``; without it a short one is trained first.

    python examples/quickstart.py [--quick] [--out FOLDER]

Takes 16 seconds, training included; --quick changes nothing.
"""

from __future__ import annotations

from pathlib import Path

from _common import conclude, parse

import trajstats as ts


def stored_run(out: Path) -> str:
    """Give the demo's run, or train a short one (20,000 steps)."""
    if Path("runs/digits_w5.zarr").exists():
        return "runs/digits_w5.zarr"
    from trajstats_trainers.demo.nets import LAGS, UNDER
    from trajstats_trainers.demo.training import train

    steps = ts.aging_schedule([100, 316, 1_000, 3_162, 10_000], LAGS[LAGS <= 10_000])
    return str(train(UNDER, out, schedule=steps)[0])


def main() -> None:
    """Fit the exponent of one run and draw the collapse."""
    given = parse(__doc__, __file__)
    run = ts.open_trajectory(stored_run(given.out))
    pairs = ts.time_pairs(run, waiting_time=[100, 1_000, 10_000], lags_per_decade=8)
    delta = ts.msd(run, pairs)  # lazy: (replica, pair, layer)
    fit = ts.fit_subaging(delta, rng=0)  # computes here, once
    print(fit.summary().sel(coefficient="mu"))
    ax = ts.plot_collapse(delta, fit)
    ax.figure.savefig(given.out / "collapse.png", dpi=100)
    one = fit.summary(levels=[0.95]).sel(coefficient="mu")
    mu = (float(one["value"]), *(float(edge) for edge in one["interval"].values.ravel()))
    conclude(given, {"Exponent of aging, 95 % interval": [{"mu": mu, "fit": fit.status}]}, fit.flags)


if __name__ == "__main__":
    main()
