"""What the commands share: where work is done, how results are printed, what an exit code means."""

from __future__ import annotations

import functools
import json
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TextIO

import click

from trajstats.data.safety._credentials import without_credentials

OK, FAILED, MISUSED, FOUND, INTERRUPTED = 0, 1, 2, 3, 130
EXIT_CODES = """\b
Exit codes:
  0    done
  1    stopped by an error, which is named in one line
  2    usage error
  3    done, but something was found: a damaged store, or a fit whose status is not "ok"
  130  interrupted; what to do to go on is printed"""

clock_option = click.option(
    "--clock",
    help="Clock of all times, such as step or proper_time. Default: step, or proper_time where it is stored and not "
    "proportional to the step; numbers then need --clock.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="JSON, one object a line, for machines.")


def scheduler_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command ``--scheduler ADDRESS`` and ``--workers N``, and run it with dask set up accordingly."""

    @click.option("--scheduler", metavar="ADDRESS", help="Compute on the dask cluster at this address.")
    @click.option("--workers", metavar="N", type=click.IntRange(min=1), help="Compute in N threads of this machine.")
    @functools.wraps(command)
    def inner(*args: Any, scheduler: str | None, workers: int | None, **options: Any) -> Any:
        from trajstats.runtime._cluster import computing

        if scheduler is not None and workers is not None:
            msg = "give --scheduler or --workers, not both: a cluster has its own workers"
            raise click.UsageError(msg)
        with computing(scheduler, workers):
            return command(*args, **options)

    return inner


def say(text: str) -> None:
    """Print a line of a result."""
    click.echo(printable(text))


def say_json(facts: Mapping[str, Any]) -> None:
    """Print one JSON object on one line."""
    click.echo(json.dumps(_plain(facts), allow_nan=False))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if value - value == 0 else None
    return value if isinstance(value, bool | int | None) else without_credentials(value)


def show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print a warning as one line, in the signature of `warnings.showwarning`."""
    click.echo(f"Warning: {printable(str(message))}", err=True)


@contextmanager
def worded_warnings() -> Iterator[None]:
    """Print warnings as lines without their place in the code."""
    with warnings.catch_warnings():
        warnings.showwarning = show_warning
        yield


def printable(text: str) -> str:
    """Make text fit for a terminal: no control characters from names in files, no credentials from URLs."""
    shown = without_credentials(text)
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in shown)


def expression(ctx: click.Context, parameter: click.Parameter, text: str | None) -> str | None:
    """Check that an option is a regular expression."""
    try:
        re.compile(text or "")
    except re.error as error:
        msg = f"{text!r} is no regular expression: {error}"
        raise click.BadParameter(msg, ctx=ctx, param=parameter) from error
    return text
