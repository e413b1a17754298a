"""Settings of every test: one thread, fixed seeds, Hypothesis without a deadline, and which tests run by default."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# No doctests there: collected as modules, two conftest would share a name.
collect_ignore_glob = ["*conftest.py"]

settings.register_profile("local", deadline=None, max_examples=40)
settings.register_profile("ci", deadline=None, max_examples=40, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")

torch.set_num_threads(1)


def pytest_configure(config: pytest.Config) -> None:
    """Select slow tests too if the command names a file and chooses no markers itself."""
    given = config.invocation_params.args
    chooses = any(str(argument).startswith("-m") for argument in given)
    named = [argument for argument in config.args if Path(argument.partition("::")[0]).suffix == ".py"]
    if named and not chooses:
        config.option.markexpr = ""


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
