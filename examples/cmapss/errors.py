"""The errors of the example."""

from __future__ import annotations


class InputError(ValueError):
    """A file or an option that the example cannot use."""


class RunError(RuntimeError):
    """One run of a study could not be finished; the other runs go on."""
