"""The errors of mtl_axes: one root, and children that are also the built-in exception a caller would expect."""

from __future__ import annotations

__all__ = [
    "ContractError",
    "DataError",
    "GraphError",
    "MtlAxesError",
    "OptionError",
    "PluginError",
    "StateError",
    "StudyError",
    "UnknownNameError",
]


class MtlAxesError(Exception):
    """Root of every error that mtl_axes raises on purpose."""


class OptionError(MtlAxesError, ValueError):
    """An option is unknown, of the wrong type or outside its range."""


class UnknownNameError(MtlAxesError, KeyError):
    """A strategy, or a task, that is asked for by name does not exist."""

    # KeyError shows the repr of its argument, which would print the message with quotes and escaped line ends.
    __str__ = Exception.__str__


class DataError(MtlAxesError, ValueError):
    """Outputs, targets, masks or weights of a call do not fit together."""


class GraphError(MtlAxesError, RuntimeError):
    """A gradient cannot be measured on the autograd graph of this call."""


class StateError(MtlAxesError, ValueError):
    """A saved state belongs to another criterion."""


class StudyError(MtlAxesError, RuntimeError):
    """A study cannot be run as it was asked for."""


class PluginError(MtlAxesError, RuntimeError):
    """A plugin broke the contract of the registry."""


class ContractError(MtlAxesError, AssertionError):
    """A strategy does not do what it claims; raised by :mod:`mtl_axes.testing`."""
