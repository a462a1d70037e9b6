"""Put the two networks of the demo beside a glass, in the same variables.

Puts the under- and the over-parametrised digit classifier of `make demo` beside the spherical 3-spin glass at T = 0.3,
below its dynamic transition at 0.612, in the same variables: MSD against lag, over the gradient noise D(t_w), against
the integral of D, against t / t_w^mu. Prints tables with intervals and writes ``glass_comparison.png``. The networks
are looked at after the initial descent: at all lags, and at lags of at least one epoch, where the displacement is no
longer the batch noise of the moment.

    python examples/glass_comparison.py [--quick] [--runs runs]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib as mpl
import numpy as np

import trajstats as ts
from trainers.demo import FIT_FROM, LAGS, OVER, UNDER, WAITING_TIMES, network_of

mpl.use("agg")


def displacement(net, runs):
    """Give the trajectory of a net of the demo, all seeds, and its two-time MSD over all weights."""
    missing = [str(path) for path in net.paths(runs) if not path.exists()]
    if missing:
        msg = f"{', '.join(missing)} not found: run `make demo` first, or say --runs FOLDER"
        raise SystemExit(msg)
    run = ts.open_trajectory([str(path) for path in net.paths(runs)])
    pairs = ts.time_pairs(run, waiting_time=WAITING_TIMES, lag=LAGS)
    return run, ts.msd(run, pairs, per="layer").compute()


def after_descent(delta, shortest_lag=1):
    """Keep the waiting times to which the demo fits its exponent, and lags from the shortest."""
    inside = (delta["waiting_time"] >= FIT_FROM["waiting_time"]) & (delta["lag"] >= shortest_lag)
    return delta.isel(pair=np.flatnonzero(inside.values))


def noise(run, *, quick):
    """Measure the minibatch noise D2 along the fitted part of a run."""
    saved = run["step"].values
    wanted = np.geomspace(FIT_FROM["waiting_time"], saved[-1], 5 if quick else 25)
    steps = np.unique(saved[np.abs(saved[:, None] - wanted).argmin(axis=0)])
    found = ts.gradient_noise(
        network_of(run), run, steps=steps, batch_size=UNDER.batch_size, examples=200 if quick else 2_000, per="all"
    )
    return found["D2"].compute()


def show(title, table, strength):
    """Print the table as Markdown, and the notes below it."""
    print(f"\n{title}\n\n| system | mu, 95 % interval | plateau | smallest local exponent | late exponent ", end="")
    print("| D(end)/D(start) | spread: raw | per noise | noise clock | t/t_w^mu |\n" + "|---" * 10 + "|")
    for name in table["system"].values:
        one = table.sel(system=name)
        low, high = one["exponent_interval"].values
        cells = [
            name,
            f"{one['exponent'].item():.2f} [{low:.2f}, {high:.2f}]",
            f"at {one['plateau_level'].item():.2g}" if one["plateau"].item() else "no",
            f"{one['plateau_exponent'].item():.2f}",
            f"{one['late_exponent'].item():.2f} ± {one['late_exponent_stderr'].item():.2f}",
            f"{strength[name][-1] / strength[name][0]:.2g}" if name in strength else "-",
        ]
        for variable in table["variable"].values:
            score, error = (one[key].sel(variable=variable).item() for key in ("collapse", "collapse_stderr"))
            cells.append(f"{score:.2f} ± {error:.2f}" if np.isfinite(score) else "-")
        print("| " + " | ".join(cells) + " |")
    print()
    for name in table["system"].values:
        print(f"{name}: {table['note'].sel(system=name).item() or 'nothing to beware of'}")


def main(runs: Path, quick: bool) -> None:
    """Measure, compare, print the tables and draw the figure."""
    found = {net.label: displacement(net, runs) for net in (UNDER, OVER)}
    strength = {label: noise(run, quick=quick) for label, (run, _) in found.items()}
    glass = ts.theory.glasses.cugliandolo_kurchan(p=3, T=0.3, t_max=100 if quick else 3_000, error_control=not quick)
    nets = {label: after_descent(delta) for label, (_, delta) in found.items()}
    table = ts.compare_aging(nets, {"3-spin, T = 0.3": glass}, noise=strength)
    long_lags = {label: after_descent(delta, FIT_FROM["lag"]) for label, delta in nets.items()}
    means = {label: D.mean([d for d in D.dims if d != "step"]).values for label, D in strength.items()}
    show("All lags", table, means)
    show("Lags of an epoch or more", ts.compare_aging(long_lags, {}, noise=strength), means)
    ts.plot_glass_comparison(table).savefig("glass_comparison.png", dpi=110)
    print("figure: glass_comparison.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a glass too young for a plateau, noise at few steps")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the demo's stores")
    given = parser.parse_args()
    main(given.runs, given.quick)
