"""How long a test waits before it gives up: the only limits on time in the tests.

They end what hangs; no test asserts how long anything takes. ``MTL_AXES_TEST_PATIENCE`` multiplies all of them.
"""

from __future__ import annotations

import os

PATIENCE = float(os.environ.get("MTL_AXES_TEST_PATIENCE", "1"))

PROCESS = 1800.0 * PATIENCE
"""Seconds for a process that a test starts, or for something that it should do."""

PAGE = 300.0 * PATIENCE
"""Seconds for a page in a browser to do what it was asked for."""
