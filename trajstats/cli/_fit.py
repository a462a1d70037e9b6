"""The command ``trajstats fit``: stores in, a saved fit and its summary out."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trajstats.cli._options import EXIT_CODES, FOUND, clock_option, json_option, say, say_json, scheduler_options
from trajstats.errors import StoreError

if TYPE_CHECKING:
    from trajstats.inference.results import FitResult

WAITING_TIMES = 12
LAST_WAITING_SHARE = 0.3


def _fit(command: Callable[..., Any]) -> Callable[..., Any]:
    # What the three fits have in common.
    for option in (
        json_option,
        scheduler_options,
        click.option(
            "--max-steps",
            type=int,
            default=20_000,
            show_default=True,
            help="Length of a chain at most, if there is one.",
        ),
        click.option("--seed", type=int, default=0, show_default=True, help="Seed of the draws."),
        click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder that will hold the fit."),
        click.argument("paths", nargs=-1, required=True),
    ):
        command = option(command)
    return command


@click.group("fit")
def fit_command() -> None:
    """Fit a law to stores: save the posterior, print its summary.

    Example: trajstats fit subaging runs/a_seed*.zarr --out a.fit
    """


@fit_command.command("subaging", epilog=EXIT_CODES)
@click.option("--waiting-time", "waiting", metavar="TIME", type=float, multiple=True, help="Repeat for more.")
@click.option("--lags-per-decade", type=click.IntRange(min=1), default=8, show_default=True, help="Of each.")
@click.option("--min-lag", metavar="TIME", type=float, help="Shortest lag.")
@clock_option
@click.option("--layer", default="total", show_default=True, help="One layer, or all together.")
@click.option("--estimator", default="free", show_default=True, help="Whose posterior is kept, such as power_law.")
@_fit
def subaging_command(
    paths: tuple[str, ...],
    waiting: tuple[float, ...],
    lags_per_decade: int,
    min_lag: float | None,
    clock: str | None,
    layer: str,
    estimator: str,
    out: Path,
    seed: int,
    max_steps: int,
    as_json: bool,
) -> None:
    """Fit the exponent of aging to the displacements of one run, or of several seeds of one architecture.

    Without --waiting-time, about 12 saved times on a logarithmic grid up to 0.3 of the last.

    Example: trajstats fit subaging runs/a_seed*.zarr --waiting-time 100 --waiting-time 1000 --out a.fit
    """
    from trajstats.data._clocks import check_clock, choose_clock, default_reason, with_reason
    from trajstats.data.schedules import time_pairs
    from trajstats.data.schema import clock_values
    from trajstats.data.store.open import open_trajectory
    from trajstats.estimators.two_time.measures import msd
    from trajstats.inference.aging.fit import fit_subaging

    _check_vacant(out)
    run = open_trajectory(list(paths))
    chosen = choose_clock(run, clock, waiting_time=waiting or None, min_lag=min_lag)
    saved = clock_values(run, chosen)
    check_clock(saved, run["step"].values, chosen)
    times = list(waiting) or _waiting_times(saved)
    pairs = time_pairs(run, waiting_time=times, lags_per_decade=lags_per_decade, min_lag=min_lag, clock=chosen)
    delta = msd(run, with_reason(pairs, "" if clock else default_reason(chosen)))
    fit = fit_subaging(delta, rng=seed, estimator=estimator, over=layer, max_steps=max_steps, progress=not as_json)
    _finish(fit, out, as_json)


@fit_command.command("decay", epilog=EXIT_CODES)
@click.option("--series", default="loss", show_default=True, help="Series to fit; seeds are averaged.")
@click.option("--curve", default="power_law", show_default=True, help="Law of the decay.")
@click.option(
    "--on-nan",
    type=click.Choice(["raise", "skip"]),
    default="raise",
    show_default=True,
    help="Refuse NaN and infinity, or leave out seeds and steps that hold them.",
)
@clock_option
@_fit
def decay_command(
    paths: tuple[str, ...],
    series: str,
    curve: str,
    on_nan: str,
    clock: str | None,
    out: Path,
    seed: int,
    max_steps: int,
    as_json: bool,
) -> None:
    """Fit the decay of a training curve to its floor.

    Example: trajstats fit decay runs/a.zarr --out decay.fit
    """
    from dataclasses import replace

    from trajstats.data._clocks import choose_clock
    from trajstats.data.schema import clock_values
    from trajstats.data.store.open import open_trajectory
    from trajstats.errors import ArgumentError, FitError, unknown_name_message
    from trajstats.inference.decay.fit import fit_decay

    _check_vacant(out)
    run = open_trajectory(list(paths))
    if series not in run.data_vars or run[series].dims != ("replica", "step"):
        known = [str(name) for name, values in run.data_vars.items() if values.dims == ("replica", "step")]
        raise ArgumentError(unknown_name_message("series", series, known))
    chosen = choose_clock(run, clock)
    finite, flags = _finite_series(run[series], on_nan)
    times = clock_values(run.sel(step=finite["step"]), chosen)
    loss = finite.mean("replica", skipna=False).assign_coords({chosen: ("step", times)})
    fit = fit_decay(loss, rng=seed, curve=curve, clock=clock, max_steps=max_steps)
    if clock is None and chosen != "step":
        with suppress(FitError):  # where steps cannot be fitted there is no second reading
            on_steps = fit_decay(loss, rng=seed, curve=curve, clock="step", max_steps=max_steps)
            fit = _with_steps(fit, on_steps, chosen)
    _finish(replace(fit, flags=(*fit.flags, *flags)), out, as_json)


@fit_command.command("divergence", epilog=EXIT_CODES)
@click.option("--loss", "losses", type=float, multiple=True, required=True, help="Loss to reach; repeat for more.")
@click.option("--series", default="loss", show_default=True, help="Series that has to reach it.")
@click.option("--clock", default="proper_time", show_default=True, help="Clock of the times; step where it lacks.")
@click.option("--nu", type=float, help="Fix the exponent.")
@_fit
def divergence_command(
    paths: tuple[str, ...],
    losses: tuple[float, ...],
    series: str,
    clock: str,
    nu: float | None,
    out: Path,
    seed: int,
    max_steps: int,
    as_json: bool,
) -> None:
    """Fit the divergence of the learning time with the width, over the runs of a sweep.

    PATHS are the stores, or one folder that holds them.

    Example: trajstats fit divergence sweep/ --loss 0.1 --out transition.fit
    """
    from trajstats.data.sweep.sweep import open_sweep
    from trajstats.inference.transition.fit import fit_divergence
    from trajstats.inference.transition.learning_times import learning_times

    _check_vacant(out)
    runs = open_sweep(paths[0] if len(paths) == 1 else list(paths))
    times = learning_times(runs, loss=losses[0] if len(losses) == 1 else losses, series=series, clock=clock)
    _finish(fit_divergence(times, rng=seed, nu=nu, max_steps=max_steps), out, as_json)


def _finite_series(values: Any, on_nan: str) -> tuple[Any, list[str]]:
    # Seeds and steps that are averaged, and what was left out: the mean is over the same seeds at every step.
    import numpy as np

    from trajstats.errors import NonFiniteError
    from trajstats.inference._replica_checks import finite_part

    values = values.compute()
    bad = ~np.isfinite(values.values)
    if not bad.any():
        return values, []
    seeds = values["replica"].values
    named = ", ".join(str(seed) for seed in seeds[bad.any(axis=1)][:5])
    rows, columns = finite_part(values.values)
    found = f"{int(bad.sum())} of {bad.size} values of {values.name} are NaN or infinite (replica {named})"
    if on_nan == "raise":
        msg = f"{found}. Leave those seeds and steps out with --on-nan skip, or give only the stores that are finite."
        raise NonFiniteError(msg)
    if not rows.any() or not columns.any():
        msg = f"{found}, so that --on-nan skip leaves nothing to fit. Give stores that are finite."
        raise NonFiniteError(msg)
    flags = []
    if not rows.all():
        out = ", ".join(str(seed) for seed in seeds[~rows][:5])
        flags.append(f"replicas left out: {out}; more than half of their {values.name} is not finite")
    if not columns.all():
        flags.append(f"{int((~columns).sum())} of {columns.size} steps left out: {values.name} is not finite there")
    return values.isel(replica=rows.nonzero()[0], step=columns.nonzero()[0]), flags


def _other_clock(fit: FitResult) -> dict[str, Any] | None:
    # mu of the same displacements on steps, for a fit on another clock
    table = fit.tables.get("clocks")
    if table is None or "step" not in table["clock"].values:
        return None
    row = table.sel(clock="step")
    return {"clock": "step", **{name: float(row[name]) for name in ("mu", "lower", "upper")}}


def _with_steps(fit: FitResult, on_steps: FitResult, clock: str) -> FitResult:
    # A fit on a clock that was not given names it, with the exponent on steps.
    from dataclasses import replace

    words = []
    for one in (fit, on_steps):
        row = one.summary(levels=(0.95,)).sel(coefficient="beta")
        low, high = (float(edge) for edge in row["interval"].values.ravel())
        words.append(f"{float(row['value']):.3f} [{low:.3f}, {high:.3f}]")
    flag = f"{fit.flags[0]}; beta is {words[0]} on {clock} and {words[1]} on optimiser steps"
    return replace(fit, flags=(flag, *fit.flags[1:]))


def _check_vacant(out: Path) -> None:
    # Before any work; FitResult.save refuses again.
    if out.exists():
        msg = f"{out} exists; a fit is never overwritten. Choose another name or remove it."
        raise StoreError(msg)
    if not out.absolute().parent.is_dir():
        msg = f"{out.absolute().parent} is no folder; make it, or choose another name"
        raise StoreError(msg)


def _waiting_times(times: Any) -> list[float]:
    import numpy as np

    usable = times[(times > 0) & (times <= LAST_WAITING_SHARE * times[-1])]
    if usable.size < 2:
        usable = times[times > 0][:-1]
    if not usable.size:
        return []
    grid = np.geomspace(usable[0], usable[-1], WAITING_TIMES)
    return np.unique([usable[np.abs(np.log(usable / t)).argmin()] for t in grid]).tolist()


def _finish(fit: FitResult, out: Path, as_json: bool) -> None:
    fit.save(out)
    if as_json:
        table = fit.summary()
        rows = {
            str(name): {
                "value": float(table["value"].sel(coefficient=name)),
                "stderr": float(table["stderr"].sel(coefficient=name)),
                "interval": {
                    f"{level:g}": table["interval"].sel(coefficient=name, level=level).values.tolist()
                    for level in table["level"].values
                },
            }
            for name in table["coefficient"].values
        }
        say_json(
            {
                "out": str(out),
                "kind": fit.kind,
                "status": fit.status,
                "clock": fit.attrs.get("clock"),
                "other_clock": _other_clock(fit),
                "flags": fit.flags,
                "coefficients": rows,
            }
        )
    else:
        say(str(fit))
        say(f"saved to {out}")
    if fit.status != "ok":
        click.get_current_context().exit(FOUND)
