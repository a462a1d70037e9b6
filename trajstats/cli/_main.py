"""The command line: thin over the Python API."""

from __future__ import annotations

import multiprocessing
import os
import sys
from importlib import metadata
from typing import NoReturn

import click
from click.shell_completion import get_completion_class

from trajstats import __version__
from trajstats.cli._analyze import analyze_command
from trajstats.cli._fit import fit_command
from trajstats.cli._info import info_command
from trajstats.cli._ingest import ingest_command
from trajstats.cli._options import EXIT_CODES, INTERRUPTED, printable, worded_warnings
from trajstats.cli._validate import validate_command
from trajstats.errors import TrajstatsError

COMMANDS = "trajstats.commands"


class _Main(click.Group):
    """A group that also offers the commands of installed packages, and words errors without a traceback."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *metadata.entry_points(group=COMMANDS).names})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        own = super().get_command(ctx, cmd_name)
        found = metadata.entry_points(group=COMMANDS, name=cmd_name)
        if own is not None or not found:
            return own
        entry = next(iter(found))
        try:
            return entry.load()
        except ModuleNotFoundError as error:
            msg = f"'{cmd_name}' needs {error.name}, which is not installed; run: pip install 'trajstats[{cmd_name}]'"
            raise click.ClickException(msg) from error

    def invoke(self, ctx: click.Context) -> object:
        try:
            with worded_warnings():
                return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            notes = getattr(stop, "__notes__", ["Give the same command again to start anew."])
            for line in ("Interrupted.", *notes):
                click.echo(printable(line), err=True)
            raise click.exceptions.Exit(INTERRUPTED) from stop
        except (click.ClickException, click.exceptions.Exit, click.exceptions.Abort, BrokenPipeError):
            raise
        except Exception as error:
            if ctx.params.get("traceback"):
                raise
            raise click.ClickException(printable(_worded(error))) from error


def _worded(error: Exception) -> str:
    if isinstance(error, TrajstatsError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename is not None else ""
        return f"{where}{error.strerror}"
    if isinstance(error, MemoryError):
        return f"out of memory ({error}). Select fewer checkpoints or layers, or compute on a cluster with --scheduler"
    return f"{type(error).__name__}: {error}. 'trajstats --traceback ...' shows where it comes from"


@click.group(cls=_Main, context_settings={"help_option_names": ["-h", "--help"]}, epilog=EXIT_CODES)
@click.version_option(__version__, prog_name="trajstats")
@click.option("--traceback", is_flag=True, help="Show where an error comes from.")
def main(traceback: bool) -> None:
    """Statistical physics of saved neural-network training trajectories."""


@main.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion_command(shell: str) -> None:
    """Print the script that completes commands and options in SHELL.

    Example: eval "$(trajstats completion bash)"
    """
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(main, {}, "trajstats", "_TRAJSTATS_COMPLETE").source())


for command in (analyze_command, fit_command, info_command, ingest_command, validate_command):
    main.add_command(command)


def run() -> NoReturn:
    """Run the command line as a program: after Ctrl-C the process ends at once, whatever its threads are at."""
    try:
        main()
    except SystemExit as end:
        if end.code != INTERRUPTED:
            raise
        # Stores are consistent by now. A thread in a kernel, or a worker in a task, would hold the end up by seconds.
        for child in multiprocessing.active_children():
            child.terminate()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(INTERRUPTED)
    raise SystemExit


if __name__ == "__main__":
    run()
