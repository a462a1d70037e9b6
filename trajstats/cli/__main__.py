"""Run the command line by ``python -m trajstats.cli``."""

from trajstats.cli import run

run()
