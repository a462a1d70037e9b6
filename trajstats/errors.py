"""The errors trajstats raises: what was given, what is allowed, what to do."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any


class TrajstatsError(Exception):
    """Base of every error raised on purpose by trajstats."""


class ArgumentError(TrajstatsError, ValueError):
    """An argument of a public function is not among what it allows."""


class SchemaError(TrajstatsError, ValueError):
    """A dataset is not a trajectory: a name, dimension, type or schema version is wrong."""


class NonFiniteError(TrajstatsError, ValueError):
    """Weights, losses or results hold NaN or infinity where a finite number is needed."""


class StoreError(TrajstatsError, OSError):
    """A store on disk cannot be read or written as asked."""


class StoreNotFoundError(StoreError, FileNotFoundError):
    """A path holds no store."""


class ClusterError(TrajstatsError, ConnectionError):
    """No dask scheduler answers, it was lost, or its workers died; what is finished is kept where there is a store."""


class UnsafeInputError(TrajstatsError, ValueError):
    """A file from elsewhere could execute code, escape its folder or exhaust memory; it was not read."""


class UnsupportedError(TrajstatsError, NotImplementedError):
    """A network or store cannot give what was asked; the message names what can be used instead."""


class FitError(TrajstatsError, ValueError):
    """The data given cannot support the fit that was asked for."""


class TooFewReplicasError(FitError):
    """An estimate over replicas was asked of fewer replicas than it needs."""


def unknown_name_message(kind: str, given: object, allowed: Iterable[object], *, do: str = "") -> str:
    """Format the error message for an unknown name.

    Parameters
    ----------
    kind : str
        What the name stands for, such as ``"layer"``.
    given : object
        The name that was given.
    allowed : iterable
        The allowed names; the closest one is suggested.
    do : str, optional
        What to do, as a sentence.

    Returns
    -------
    str
        One message: what was given, what is allowed, what to do.

    Examples
    --------
    >>> unknown_name_message("layer", "0.wieght", ["0.weight", "0.bias"])
    "unknown layer '0.wieght'; allowed: '0.weight', '0.bias'; did you mean '0.weight'?"
    """
    names = [str(name) for name in allowed]
    shown = ", ".join(repr(name) for name in names[:20]) + (", ..." if len(names) > 20 else "")
    near = difflib.get_close_matches(str(given), names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    tail = f"{'' if near else '.'} {do}" if do else ""
    return f"unknown {kind} {given!r}; allowed: {shown}{hint}{tail}"


def optional_package(module: str, what: str, pip: str) -> Any:
    """Import a package that only one thing needs.

    Parameters
    ----------
    module : str
        What to import.
    what : str
        Who needs it.
    pip : str
        What to install, such as ``"trajstats[evidence]"``.

    Returns
    -------
    module

    Raises
    ------
    UnsupportedError
        If it is not installed; the message holds the pip line.

    Examples
    --------
    >>> optional_package("json", "this line", "trajstats[all]").dumps([1])
    '[1]'
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        msg = f"{what} needs {module.split('.')[0]}, which is not installed: pip install '{pip}'"
        raise UnsupportedError(msg) from error


@contextmanager
def resumable(how: str) -> Iterator[None]:
    """Let Ctrl-C say how to go on: a note on the KeyboardInterrupt, shown with it and by the command line.

    Parameters
    ----------
    how : str
        What is kept, and what to do to go on, as a sentence.

    Yields
    ------
    None
        While it holds.

    Raises
    ------
    KeyboardInterrupt
        The one that came, with the note.

    Examples
    --------
    >>> try:
    ...     with resumable("Call again to go on."):
    ...         raise KeyboardInterrupt
    ... except KeyboardInterrupt as stop:
    ...     print(stop.__notes__)
    ['Call again to go on.']
    """
    try:
        yield
    except KeyboardInterrupt as stop:
        stop.add_note(how)
        raise
