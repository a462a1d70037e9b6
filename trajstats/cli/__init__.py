"""The command line: one module for each command, thin over the API."""

from trajstats.cli._main import main, run

__all__ = ["main", "run"]
