"""Settings of every test: one thread, fixed seeds, Hypothesis without a deadline."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import settings

# No doctests there: collected as modules, two conftest would share a name.
collect_ignore_glob = ["*conftest.py"]

settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
