"""Jacobian spectra against the law of wide nets: random tanh nets, and the demo's network before and after training.

The second needs a run of the demo (``trajstats demo``). Takes under a minute; the figure goes to ``--out``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

import trajstats as ts
from trainers.architectures import JaxMLP, mlp_init
from trainers.demo import network_of
from trainers.jax_adapter import JaxNetwork, cross_entropy
from trainers.tasks import mnist_digits


def random_nets(ax: plt.Axes, *, width: int = 300, depth: int = 3, gain: float = 1.2, nets: int = 4) -> None:
    """Draw the spectra of random tanh nets, the law, and the band of finite nets."""
    sizes = (width,) * (depth + 1)
    model, starts = JaxMLP(sizes, activate_output=True), [mlp_init(sizes, seed, gain=gain) for seed in range(nets)]
    inputs = np.random.default_rng(nets).standard_normal((3, width))  # the seeds below nets are the weights
    network = JaxNetwork(model, starts[0], cross_entropy, (inputs, np.zeros(3, int)), dtype="float64")
    weights = np.stack([np.concatenate([w.ravel() for w in start.values()]) for start in starts])
    run = ts.trajectory_dataset(weights[:, None], step=[0], layers=network.layers)
    esd = ts.jacobian_esd(network, run, inputs, bins=40, rng=0)
    law = ts.JacobianLaw(depth, activation="tanh", sigma_w2=gain**2)
    report("random tanh nets", comparison := ts.compare_to_theory(esd, law, rng=0))
    ts.plot_jacobian_esd(esd, comparison, ax=ax)
    ax.set_title(f"{nets} random tanh nets, N = {width}, L = {depth}", fontsize=10)


def demo_net(ax: plt.Axes, runs: Path, *, images: int = 40) -> None:
    """Draw the spectra of the demo's tanh layers along training, with the law of their initial weights."""
    run = ts.open_trajectory(runs / "digits_w64.zarr")
    network = network_of(run, dtype="float64")
    inputs = mnist_digits(pool=2).inputs[:images].astype(np.float64)
    steps = [0, 1_000, 100_000]
    esd = ts.jacobian_esd(network, run, inputs, steps=steps, layers=(0, 2), bins=40, rng=0)
    law = ts.JacobianLaw(
        2, activation="tanh", sigma_w2=1.0, widths=(196, 64, 64), input_second_moment=float((inputs**2).mean())
    )
    report("the demo's net", comparison := ts.compare_to_theory(esd, law, rng=0))
    ts.plot_jacobian_esd(esd, comparison, ax=ax)
    ax.set_title("tanh layers 196-64-64 of the demo's net", fontsize=10)


def report(name: str, comparison: object) -> None:
    """Print distances, the finite-N null and moment ratios at each step."""
    null = comparison.simulated_ks.values
    print(f"{name}: KS distance of finite nets {null.mean():.4f} (largest of {null.size}: {null.max():.4f})")
    for step in comparison.step.values:
        one = comparison.sel(step=step)
        ratio = one.moment_ratio.mean(["replica", "input"]).values.round(3).tolist()
        print(f"   step {int(step)}: KS {float(one.ks.mean()):.4f}, moments over theory {ratio}")


def main() -> None:
    """Draw both panels."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--out", type=Path, default=Path("jacobian_spectra.png"))
    arguments = parser.parse_args()
    figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    random_nets(axes[0])
    demo_net(axes[1], arguments.runs)
    figure.savefig(arguments.out, dpi=110)


if __name__ == "__main__":
    main()
