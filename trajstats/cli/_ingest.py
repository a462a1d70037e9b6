"""The command ``trajstats ingest``: a thin door to :func:`trajstats.data.ingest.into_store.ingest`."""

from __future__ import annotations

import math
import warnings

import click

from trajstats.cli._options import expression, json_option, say, say_json


@click.command("ingest")
@click.argument("paths", nargs=-1, required=True)
@click.argument("out")
@click.option(
    "--step-from",
    metavar="REGEX",
    callback=expression,
    help="Where in a path the step is: an expression with one group.",
)
@click.option("--include", metavar="REGEX", callback=expression, help="Keep only the tensors whose name matches.")
@click.option("--rename", metavar="OLD=NEW", multiple=True, help="Rename a tensor; repeat for more.")
@click.option("--strip", metavar="PREFIX", help="Take a prefix such as 'module.' off all names.")
@click.option("--step-dim", metavar="NAME", help="For zarr and netCDF: the dimension that is time.")
@click.option("--epoch-dim", metavar="NAME", help="The same where it holds epochs, which may be fractions.")
@click.option("--part", metavar="NAME", multiple=True, help="Which set of weights to take, such as model_ema.")
@click.option("--drop-identical", is_flag=True, help="Of equal checkpoints keep one.")
@click.option("--optimizer", is_flag=True, help="Keep optimizer state too.")
@click.option("--replica", type=int, default=0, show_default=True, help="Label of the run.")
@click.option("--memory", metavar="MIB", type=click.IntRange(min=1), default=1024, show_default=True, help="Budget.")
@click.option("--workers", type=click.IntRange(min=1), default=2, show_default=True, help="Files read at a time.")
@click.option("--strict", is_flag=True, help="Stop at NaN, equal checkpoints and tensors of another step.")
@click.option("--dry-run", is_flag=True, help="Show files, steps, layers, size and time, and write nothing.")
@click.option("--follow", is_flag=True, help="Wait for further checkpoints, until Ctrl-C, and add them.")
@click.option(
    "--idle", metavar="SECONDS", type=click.FloatRange(min=0, min_open=True), help="End --follow after so long a wait."
)
@json_option
def ingest_command(
    paths: tuple[str, ...],
    out: str,
    step_from: str | None,
    include: str | None,
    rename: tuple[str, ...],
    strip: str | None,
    step_dim: str | None,
    epoch_dim: str | None,
    part: tuple[str, ...],
    drop_identical: bool,
    optimizer: bool,
    replica: int,
    memory: int,
    workers: int,
    strict: bool,
    dry_run: bool,
    follow: bool,
    idle: float | None,
    as_json: bool,
) -> None:
    """Turn checkpoints (files, a folder, or a quoted glob) into the trajectory store OUT.

    Headers are compared first and everything odd is named. Nothing in a file is ever executed. Interrupted, the same
    command goes on where it was. Given again with further checkpoints, it adds them to OUT.

    Example: trajstats ingest checkpoints/ run.zarr --dry-run
    """
    from trajstats.data.ingest.into_store import ingest

    if idle is not None and not follow:
        raise click.UsageError("--idle says when --follow ends; give both")  # noqa: EM101
    pairs = [text.partition("=") for text in rename]
    if bad := [text for text, pair in zip(rename, pairs, strict=True) if not pair[1]]:
        raise click.UsageError(f"--rename {bad[0]}: write OLD=NEW")  # noqa: EM102
    names = {old: new for old, _, new in pairs}

    def renamed(name: str) -> str:
        short = name.removeprefix(strip) if strip else name
        return names.get(short, short)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # findings are part of what is printed
        plan = ingest(
            paths[0] if len(paths) == 1 else list(paths),
            out,
            step_from=step_from,
            include=include,
            rename=renamed,
            dims={"step": step_dim} if step_dim else {"epoch": epoch_dim} if epoch_dim else None,
            part=part[0] if len(part) == 1 else part or None,
            drop_identical=drop_identical,
            optimizer=optimizer,
            replica=replica,
            memory=memory * 2**20,
            workers=workers,
            on_finding="raise" if strict else "warn",
            dry_run=dry_run,
            follow=(idle or math.inf) if follow else None,
            progress=not dry_run and not as_json,
        )
    if as_json:
        say_json({**plan.to_json(), "written": not dry_run})
    else:
        say(str(plan))
