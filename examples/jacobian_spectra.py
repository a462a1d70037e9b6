"""Jacobian spectra against the law of wide nets: random tanh nets, and the demo's network before and after training.

The singular values of random tanh nets follow the law of infinite width within the scatter of finite nets; those of a
trained net do not. The trained one is the over-parametrised net of ``trajstats demo``, whose run in ``runs/`` is used,
or made there; --quick trains it for 1,000 steps in its own folder.

    python examples/jacobian_spectra.py [--quick] [--out FOLDER]

The full setting takes 7 seconds on one core beside the training (about a minute), --quick 16 seconds.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import xarray as xr
from _common import conclude, parse
from trajstats_trainers.architectures.mlp import equal_dimension_mlp, mlp_init
from trajstats_trainers.demo.nets import OVER, network_of
from trajstats_trainers.demo.training import train
from trajstats_trainers.jax.adapter import JaxNetwork, cross_entropy
from trajstats_trainers.tasks.digits import mnist_digits

import trajstats as ts


def random_nets(*, width: int = 300, depth: int = 3, gain: float = 1.2, nets: int = 4) -> tuple[xr.Dataset, xr.Dataset]:
    """Give the spectra of random tanh nets, and their comparison with the law."""
    model = equal_dimension_mlp(width, depth)
    starts = [mlp_init(model.sizes, seed, gain=gain) for seed in range(nets)]
    inputs = np.random.default_rng(nets).standard_normal((3, width))  # the seeds below nets are the weights
    network = JaxNetwork(model, starts[0], cross_entropy, (inputs, np.zeros(3, int)), dtype="float64")
    weights = np.stack([np.concatenate([w.ravel() for w in start.values()]) for start in starts])
    run = ts.trajectory_dataset(weights[:, None], step=[0], layers=network.layers)
    esd = ts.jacobian_esd(network, run, inputs, bins=40, rng=0)
    law = ts.JacobianLaw(depth, activation="tanh", sigma_w2=gain**2)
    return esd, ts.compare_to_theory(esd, law, rng=0)


def demo_net(given: argparse.Namespace) -> tuple[xr.Dataset, xr.Dataset]:
    """Give the spectra of the demo's tanh layers along training, and their comparison with the initial weights' law."""
    steps = [0, 100, 1_000] if given.quick else [0, 1_000, 100_000]
    if given.quick:
        run = ts.open_trajectory(train(OVER, given.out, schedule=steps)[0])
    else:
        Path("runs").mkdir(exist_ok=True)
        run = ts.open_trajectory(train(OVER, Path("runs"))[0])
    inputs = mnist_digits(pool=2).inputs[: 10 if given.quick else 40].astype(np.float64)
    esd = ts.jacobian_esd(network_of(run, dtype="float64"), run, inputs, steps=steps, layers=(0, 2), bins=40, rng=0)
    law = ts.JacobianLaw(
        2, activation="tanh", sigma_w2=1.0, widths=(196, 64, 64), input_second_moment=float((inputs**2).mean())
    )
    return esd, ts.compare_to_theory(esd, law, rng=0)


def rows(name: str, comparison: xr.Dataset) -> list[dict]:
    """Lay out distances from the law, the finite-N null and moment ratios at each step."""
    null = comparison["simulated_ks"].values
    found = []
    for step in comparison["step"].values:
        one = comparison.sel(step=step)
        ratio = one["moment_ratio"].mean(["replica", "input"]).values
        found.append(
            {
                "nets": name,
                "step": int(step),
                "KS distance from the law": float(one["ks"].mean()),
                "of finite nets, mean": float(null.mean()),
                "of finite nets, largest": float(null.max()),
                **{f"moment {k} over theory": float(value) for k, value in enumerate(ratio, 1)},
            }
        )
    return found


def main() -> None:
    """Measure and draw both."""
    import matplotlib.pyplot as plt

    given = parse(__doc__, __file__)
    found = {
        "random tanh nets": random_nets(width=100 if given.quick else 300),
        "tanh layers of the demo's net": demo_net(given),
    }
    figure, panels = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for panel, (name, (esd, comparison)) in zip(panels, found.items(), strict=True):
        ts.plot_jacobian_esd(esd, comparison, ax=panel)
        panel.set_title(name, fontsize=10)
    figure.savefig(given.out / "jacobian_spectra.png", dpi=80)
    table = [row for name, (_, comparison) in found.items() for row in rows(name, comparison)]
    words = [
        f"{row['nets']}, step {row['step']:,}: "
        + ("within" if row["KS distance from the law"] <= row["of finite nets, largest"] else "outside")
        + " the scatter of finite nets about the law."
        for row in table
    ]
    conclude(given, {"Distance from the law of wide nets": table}, [" ".join(words)])


if __name__ == "__main__":
    main()
