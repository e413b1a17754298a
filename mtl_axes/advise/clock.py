"""The clocks of advice, in one place: a test replaces ``now``, and with it every time limit."""

from __future__ import annotations

import time

__all__ = ["busy", "now"]


def now() -> float:
    """Return the seconds on the wall clock, which time limits count."""
    return time.perf_counter()


def busy() -> float:
    """Return the seconds that this thread has been running, so that other programs do not count."""
    return time.thread_time()
