"""What the example says when it cannot go on."""

from __future__ import annotations


class InputError(ValueError):
    """Files or options that the example cannot use: what is required, what was found, what to do."""


class RunError(RuntimeError):
    """One run of a study could not be finished; the other runs go on."""
