"""What all benchmarks share."""

import faulthandler

import pytest


@pytest.fixture(autouse=True)
def no_time_limit():
    """Let a benchmark take longer than what ends a test that hangs."""
    faulthandler.cancel_dump_traceback_later()
