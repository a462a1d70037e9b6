"""Deep recurrent nets on Bach chorales: which widths learn, how long it takes, and whether training ages.

For d = 1, 2, 3 layers and a scan of widths, several seeds each: the loss, its power law and its floor; the time to
reach a loss and where it diverges; displacements at several waiting times, below and above the transition; the same in
units of gradient noise. After Hertz and Tyrcha, PRE 111, 055307 (2025), arXiv:2412.10094.

    python examples/chorales.py [--quick] [--out FOLDER]
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import _common
import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from trajstats_trainers.architectures.deep_rnn import DeepRNN, bits_per_note
from trajstats_trainers.jax.adapter import JaxNetwork
from trajstats_trainers.jax.sgd import train_jax
from trajstats_trainers.tasks.chorales import bach_chorales
from trajstats_trainers.tasks.digits import Task

import trajstats as ts

LENGTH = 30  # sixteenths in a segment: ten segments are the paper's batch of 300 time points
BATCH = 300 // LENGTH
RATE = 2.0
PROJECT_EVERY = 10


@dataclass(frozen=True)
class Setting:
    """Sizes of one setting.

    Parameters
    ----------
    n_chorales : int
        Training chorales.
    depths, widths, seeds : tuple of int
        Every combination is a run.
    steps : int
        Steps of SGD; a fortieth of them is the warm-up.
    waiting_times : tuple of int
        In steps; the warm-up is over at the first.
    losses : tuple of float
        Bits per note to be reached.
    max_steps : int
        Longest chain of a fit.
    """

    n_chorales: int
    depths: tuple[int, ...]
    widths: tuple[int, ...]
    seeds: tuple[int, ...]
    steps: int
    waiting_times: tuple[int, ...]
    losses: tuple[float, ...]
    max_steps: int

    @property
    def schedule(self) -> np.ndarray:
        """Steps to record."""
        lags = ts.log_schedule(1, self.steps, 24)
        steps = ts.aging_schedule([self.steps // 100, self.steps // 50, *self.waiting_times], lags)
        return np.unique(np.r_[steps[steps <= self.steps], ts.log_schedule(1, self.steps, 40)])


FULL = Setting(
    n_chorales=5, depths=(1, 2, 3), widths=(5, 7, 10, 13, 17, 24, 34), seeds=(0, 1, 2, 3, 4), steps=15_000,
    waiting_times=(600, 1_200, 2_400, 4_800, 9_600), losses=(0.10, 0.08, 0.06, 0.04), max_steps=20_000,
)  # fmt: skip
QUICK = Setting(
    n_chorales=2, depths=(1, 2), widths=(4, 8, 16), seeds=(0, 1), steps=500,
    waiting_times=(40, 80, 160), losses=(0.18, 0.15), max_steps=300,
)  # fmt: skip


def stores(setting: Setting, folder: Path, depth: int, width: int) -> list[Path]:
    """List the stores of one architecture, one a seed."""
    return [folder / f"d{depth}_w{width}_s{seed}.zarr" for seed in setting.seeds]


def train(setting: Setting, task: Task, folder: Path) -> None:
    """Train every depth and width, all seeds at once; finished runs are left as they are.

    Parameters
    ----------
    setting : Setting
        Sizes.
    task : Task
        Training segments.
    folder : Path
        Of the stores.
    """
    for depth in setting.depths:
        for width in setting.widths:
            net = DeepRNN(task.inputs.shape[-1], width, depth)
            train_jax(
                net, [net.init(seed) for seed in setting.seeds], bits_per_note, (task.inputs, task.targets),
                stores(setting, folder, depth, width),
                seeds=setting.seeds, schedule=setting.schedule, learning_rate=RATE, batch_size=BATCH, order="shuffled",
                warm_up=setting.steps // 40, project=net.orthogonalise, project_every=PROJECT_EVERY,
                attrs={
                    "task": task.describe(),
                    "architecture": {"kind": "deep_rnn", "n_visible": net.n_visible},
                    "width": width,
                    "depth": depth,
                },
                progress=f"d = {depth}, w = {width}",
            )  # fmt: skip


def interval(fit: ts.FitResult, name: str) -> tuple[float, float, float]:
    """Give median and 95 % interval of a coefficient."""
    row = fit.summary().sel(coefficient=name, level=0.95)
    return (float(row["value"]), *map(float, row["interval"]))


def network(run: xr.Dataset, task: Task) -> JaxNetwork:
    """Rebuild the network of a run, on the segments of a task."""
    net = DeepRNN(task.inputs.shape[-1], int(run.attrs["width"]), int(run.attrs["depth"]))
    return JaxNetwork(net, net.init(0), bits_per_note, (task.inputs, task.targets))


def decays(setting: Setting, runs: dict, held_out: Task) -> tuple[list[dict], dict]:
    """Fit a power law to a floor to the loss after the first descent: narrowest, middle and widest of each depth."""
    rows, fits = [], {}
    for depth in setting.depths:
        for width in setting.widths[1::2] if len(setting.widths) > 4 else setting.widths[1:2]:
            run = runs[depth, width]
            times = run["proper_time"].sel(step=[setting.waiting_times[0], setting.steps]).values
            fit = ts.fit_decay(
                run["loss"].mean("replica"),
                rng=0,
                clock="proper_time",
                window=tuple(times),
                max_steps=setting.max_steps,
            )
            fits[depth, width] = fit
            judge = network(run, held_out)
            last = run["weights"].isel(step=-1).values
            rows.append(
                {
                    "d": depth,
                    "w": width,
                    "weights": run.sizes["parameter"],
                    "beta": interval(fit, "beta"),
                    "floor": interval(fit, "L_inf"),
                    "P(floor > 0)": float(fit.tables["floor"]["probability_positive"]),
                    "best law by BIC": str(fit.tables["models"]["bic"].idxmin("model").values),
                    "last loss": float(run["loss"].isel(step=-1).median()),
                    "validation loss": float(np.median([judge.loss(w) for w in last])),
                }
            )
    return rows, fits


def transitions(setting: Setting, times: xr.Dataset) -> tuple[list[dict], list[dict], dict]:
    """Fit the divergence of the learning time: all losses and depths at once, and each loss of each depth alone."""
    singles, rows = {}, []
    for depth in setting.depths:
        part = times.isel(run=np.flatnonzero(times["depth"].values == depth)).drop_vars("depth")
        for loss in setting.losses:
            one = part.sel(loss=loss)
            row = {"d": depth, "loss": loss, "learned": f"{int(one['learned'].sum())} of {one.sizes['run']}"}
            nothing = (np.nan,) * 3
            row |= {"w_c": nothing, "nu": nothing, "ln Bayes factor, nu = 1": np.nan, "status": "too few learned"}
            try:
                fit = ts.fit_divergence(one, rng=0, max_steps=setting.max_steps)
            except ts.FitError:
                rows.append(row)
                continue
            singles[depth, loss] = fit
            factor = float(fit.tables["models"]["log_bayes_factor_nu_one"])
            row |= {"w_c": interval(fit, "w_c"), "nu": interval(fit, "nu"), "ln Bayes factor, nu = 1": factor}
            rows.append({**row, "status": fit.status})
    joint = ts.fit_divergence(times, rng=0, max_steps=setting.max_steps)
    together = []
    for depth in joint.posterior["depth"].values:
        one = joint.posterior.sel(depth=depth)
        found = {name: tuple(map(float, one[name].quantile([0.5, 0.025, 0.975]))) for name in ("w_c", "nu_depth")}
        alone = str(joint.tables["depths"]["status"].sel(depth=depth).values)
        row = {"d": f"{depth:g}", "w_c at loss 0": found["w_c"], "nu": found["nu_depth"]}
        together.append({**row, "status": f"{alone} alone"})
    together.append(
        {"d": "population", "w_c at loss 0": (np.nan,) * 3, "nu": interval(joint, "nu")} | {"status": joint.status}
    )
    return together, rows, singles


def displacements(setting: Setting, run: xr.Dataset) -> xr.DataArray:
    """Measure the two-time MSD of all weights in proper time."""
    waiting = run["proper_time"].sel(step=list(setting.waiting_times)).values
    pairs = ts.time_pairs(run, waiting_time=waiting, lags_per_decade=6, clock="proper_time")
    return ts.msd(run, pairs, per="all").compute()


def spread(delta: xr.DataArray, *, scaled: bool) -> float:
    """Rms over waiting times of ln MSD: each at half of it (scaled), or all at one lag, half their geometric mean."""
    waiting = np.unique(delta["waiting_time"])
    total, middle = np.log(delta.mean("replica").values), np.exp(np.log(waiting).mean())
    at = []
    for level in waiting:
        mine = delta["waiting_time"].values == level
        lag = np.log((level if scaled else middle) / 2)
        at.append(np.interp(lag, np.log(delta["lag"].values[mine]), total[mine]))
    return float(np.std(at))


def aging(setting: Setting, runs: dict) -> tuple[list[dict], dict]:
    """Fit the exponent of aging below and above the transition: at all times, and late (t > t_w/10, last three t_w)."""
    rows, found = [], {}
    for depth in setting.depths:
        for side, width in zip(("under", "over"), sides(setting), strict=True):
            delta = displacements(setting, runs[depth, width])
            from_time = np.unique(delta["waiting_time"])[-3]
            is_late = (delta["lag"] >= 0.1 * delta["waiting_time"]) & (delta["waiting_time"] >= from_time)
            late = delta.isel(pair=np.flatnonzero(is_late.values))
            fits = {name: ts.fit_subaging(part, rng=0) for name, part in (("all", delta), ("late", late))}
            found[depth, side] = (delta, fits)
            rows.append(
                {
                    "d": depth,
                    "w": width,
                    "mu, all": interval(fits["all"], "mu"),
                    "status, all": fits["all"].status,
                    "mu, late": interval(fits["late"], "mu"),
                    "status, late": fits["late"].status,
                    "late spread at equal t": spread(late, scaled=False),
                    "late spread at equal t/t_w": spread(late, scaled=True),
                }
            )
    return rows, found


def sides(setting: Setting) -> tuple[int, int]:
    """Name a width below the transition and the widest."""
    return setting.widths[1], setting.widths[-1]


def in_noise(setting: Setting, run: xr.Dataset, task: Task, delta: xr.DataArray) -> xr.DataArray:
    """Measure the displacement in steps that the gradient noise alone would need for it."""
    saved = run["step"].values
    wanted = np.geomspace(setting.waiting_times[0], saved[-1], 12)
    steps = np.unique(saved[np.abs(saved[:, None] - wanted).argmin(axis=0)])
    noise = ts.gradient_noise(network(run, task), run, steps=steps, batch_size=BATCH, per="all")
    return ts.noise_normalised_msd(delta, noise, learning_rate=RATE)


def draw_losses(setting: Setting, runs: dict, fits: dict, path: Path) -> None:
    """Draw loss against proper time, a panel for each depth, with the fitted decays."""
    figure, panels = plt.subplots(1, len(setting.depths), figsize=(4.2 * len(setting.depths), 3.8), sharey=True)
    colours = dict(zip(setting.widths, plt.cm.viridis(np.linspace(0, 0.92, len(setting.widths))), strict=True))
    for panel, depth in zip(panels, setting.depths, strict=True):
        for width, colour in colours.items():
            loss, time = runs[depth, width]["loss"], runs[depth, width]["proper_time"].values
            low, high = loss.min("replica"), loss.max("replica")
            panel.plot(time, loss.mean("replica"), color=colour, lw=1.2, label=f"w = {width}")
            panel.fill_between(time, low, high, color=colour, alpha=0.25, lw=0)
            if (depth, width) in fits:
                fit = fits[depth, width]
                inside = np.geomspace(*fit.data["proper_time"].values[[0, -1]], 60)
                curve = fit.predict(time=inside).median(["chain", "draw"])
                panel.plot(
                    inside,
                    curve,
                    "--",
                    color="0.1",
                    lw=1,
                    zorder=4,
                    label="_fit" if width != setting.widths[1] else "fitted decay",
                )
        panel.set(
            xscale="log", yscale="log", xlabel=r"proper time $\tau=\sum\eta$", title=f"d = {depth}", xlim=(1, None)
        )
    panels[0].set_ylabel("training loss (bits per note and step)")
    panels[0].legend(fontsize=7, frameon=False, title="mean and range of seeds", title_fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=100)


def draw_transitions(setting: Setting, singles: dict, together: list[dict], path: Path) -> None:
    """Draw 1/T against width at one loss, a panel for each depth, and w_c against the loss."""
    figure, panels = plt.subplots(1, len(setting.depths) + 1, figsize=(4.2 * (len(setting.depths) + 1), 3.8))
    middle = setting.losses[len(setting.losses) // 2]
    for panel, depth in zip(panels[:-1], setting.depths, strict=True):
        if (depth, middle) in singles:
            ts.plot_divergence(singles[depth, middle], ax=panel)
        panel.set_title(f"d = {depth}, loss {middle:g} bits: {panel.get_title()}", fontsize=9)
    for k, (row, marker) in enumerate(zip(together[:-1], "osD^", strict=False)):
        depth = int(row["d"])
        points = {loss: interval(fit, "w_c") for (d, loss), fit in singles.items() if d == depth}
        points[0.0] = row["w_c at loss 0"]
        value, low, high = np.array(list(points.values())).T
        panels[-1].errorbar(
            np.array(list(points)) + 0.001 * k, value, yerr=[value - low, high - value],
            fmt=marker, ms=5, capsize=3, color=f"C{k}", label=f"d = {depth}",
        )  # fmt: skip
    panels[-1].set(
        xlabel="loss to be reached (bits)", ylabel="$w_c$ (units)", title="95 %; at 0: joint fit of all losses"
    )
    panels[-1].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=100)


def draw_aging(setting: Setting, found: dict, scaled: dict, path: Path) -> None:
    """Draw displacements under and over the transition: against lag, against t/t_w, and in units of noise."""
    depth = list(scaled)[0][0]
    figure, panels = plt.subplots(2, 3, figsize=(13, 7.6))
    for row, side, width in zip(panels, ("under", "over"), sides(setting), strict=True):
        delta, fits = found[depth, side]
        ts.plot_msd(delta, exponent=None, ax=row[0])
        row[0].set_title(f"{side}: d = {depth}, w = {width}")
        units = scaled[depth, side]
        levels = np.unique(delta["waiting_time"])
        for level, colour in zip(levels, plt.cm.viridis(np.linspace(0, 0.92, levels.size)), strict=True):
            here = delta.isel(pair=np.flatnonzero(delta["waiting_time"].values == level))
            row[1].plot(here["lag"] / level, here.median("replica"), "o-", ms=3, color=colour, label=f"{level:.3g}")
            number = units.isel(pair=np.flatnonzero(units["waiting_time"].values == level))
            steps = (number["second"] - number["first"]).values
            value, error = number.mean("replica"), number.std("replica") / np.sqrt(number.sizes["replica"])
            row[2].errorbar(steps, value, yerr=error, fmt="o-", ms=3, lw=1, color=colour)
        mu, low, high = interval(fits["late"], "mu")
        row[1].set_title(rf"$\mu$ = {mu:.2f} [{low:.2f}, {high:.2f}] late", fontsize=10)
        row[1].set(xscale="log", yscale="log", xlabel=r"$t/t_w$", ylabel=r"MSD $\Delta$ (squared weight)")
        row[2].plot([1, setting.steps], [1, setting.steps], ":", color="0.3", label="noise alone")
        row[2].set(xscale="log", yscale="log", xlabel="lag n (steps)", ylabel=r"$\Delta_n$ (steps of noise)")
        row[2].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=100)


def words(setting: Setting, loss_rows: list, together: list, aging_rows: list, noise: dict) -> list[str]:
    """Say what agrees with the paper and what does not, from the numbers."""
    narrow = [row for row in loss_rows if row["w"] == min(r["w"] for r in loss_rows)]
    floors = sum(row["P(floor > 0)"] > 0.9 for row in narrow)
    laws = sum(row["best law by BIC"].startswith("power_law") for row in loss_rows)
    ones = [row["d"] for row in together[:-1] if row["nu"][1] <= 1 <= row["nu"][2]]
    falls = all(a["w_c at loss 0"][0] > b["w_c at loss 0"][0] for a, b in itertools.pairwise(together[:-1]))
    parts = [
        "Loss. The paper finds power laws, to a floor below the transition. Here a power law is best by BIC in "
        f"{laws} of {len(loss_rows)} fits, and a floor above zero has a probability above 0.9 in {floors} of the "
        f"{len(narrow)} narrowest nets.",
        "Learning time. The paper finds 1/(w - w_c), nu = 1. Here 1 lies in the 95 % interval at "
        f"{len(ones)} of {len(together) - 1} depths; w_c at loss 0 "
        f"{'falls' if falls else 'does not always fall'} with each layer added.",
    ]
    for side, width in zip(("under", "over"), sides(setting), strict=True):
        mine = [row for row in aging_rows if row["w"] == width]
        better = sum(row["late spread at equal t/t_w"] < row["late spread at equal t"] for row in mine)
        full = sum(row["mu, late"][1] <= 1 <= row["mu, late"][2] for row in mine)
        parts.append(
            f"Aging {side} the transition (w = {width}). The paper finds displacements that depend on t/t_w alone, "
            f"mu = 1, {'at all times' if side == 'under' else 'at short times only'}. Here late curves lie closer at "
            f"equal t/t_w than at equal t at {better} of {len(mine)} depths, and the interval of mu holds 1 at {full}."
        )
    for (depth, side), units in noise.items():
        ratio = (units.mean("replica") / (units["second"] - units["first"])).values
        parts.append(
            f"Noise {side} the transition (d = {depth}). Gradient noise alone gives Delta_n = n. Here Delta_n/n lies "
            f"between {ratio.min():.2g} and {ratio.max():.2g}: below 1 the motion is held back, above 1 it is drift."
        )
    return parts


def main() -> None:
    """Train, measure, conclude."""
    given = _common.parse(__doc__, __file__)
    setting = QUICK if given.quick else FULL
    task = bach_chorales(n_chorales=setting.n_chorales, length=LENGTH)
    held_out = bach_chorales(n_chorales=setting.n_chorales, length=LENGTH, part="validation")
    folder = given.out / "stores"
    train(setting, task, folder)
    runs = {
        (depth, width): ts.open_trajectory([str(path) for path in stores(setting, folder, depth, width)])
        for depth in setting.depths
        for width in setting.widths
    }
    loss_rows, fits = decays(setting, runs, held_out)
    times = ts.learning_times(ts.open_sweep(folder), loss=setting.losses)
    together, rows, singles = transitions(setting, times)
    aging_rows, found = aging(setting, runs)
    depth = setting.depths[1]
    noise = {
        (depth, side): in_noise(setting, runs[depth, width], task, found[depth, side][0])
        for side, width in zip(("under", "over"), sides(setting), strict=True)
    }
    draw_losses(setting, runs, fits, given.out / "chorales_loss.png")
    draw_transitions(setting, singles, together, given.out / "chorales_transition.png")
    draw_aging(setting, found, noise, given.out / "chorales_aging.png")
    tables = {
        "Loss after the first descent, L = floor + A tau^-beta": loss_rows,
        "Learning time T = A/(w - w_c)^nu, all losses and depths at once": together,
        "The same, each loss and depth alone": rows,
        "Aging of the displacement": aging_rows,
    }
    _common.conclude(given, tables, words(setting, loss_rows, together, aging_rows, noise))


if __name__ == "__main__":
    main()
