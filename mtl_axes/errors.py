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
    """Root of all errors that mtl_axes raises on purpose."""


class OptionError(MtlAxesError, ValueError):
    """An option is unknown, of the wrong type or outside its range."""


class UnknownNameError(MtlAxesError, KeyError):
    """No strategy or task has this name."""

    # KeyError shows the repr of its argument: the message in quotes and with escaped line ends.
    __str__ = Exception.__str__


class DataError(MtlAxesError, ValueError):
    """Outputs, targets, masks or weights of a call do not fit together."""


class GraphError(MtlAxesError, RuntimeError):
    """A gradient cannot be measured on the autograd graph of this call."""


class StateError(MtlAxesError, ValueError):
    """A saved state belongs to another criterion."""


class StudyError(MtlAxesError, RuntimeError):
    """A study cannot be run as specified."""


class PluginError(MtlAxesError, RuntimeError):
    """A plugin broke the contract of the registry."""


class ContractError(MtlAxesError, AssertionError):
    """A strategy does not do what it declares; raised by :mod:`mtl_axes.testing`."""
