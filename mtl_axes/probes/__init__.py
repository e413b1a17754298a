"""Probes: how the gradients of the tasks are measured."""

from __future__ import annotations

from mtl_axes.errors import MtlAxesError, OptionError
from mtl_axes.probes.base import Measurement, Probe, Tape
from mtl_axes.probes.discovery import Shared, SharedPart
from mtl_axes.probes.exact import Exact

__all__ = ["Exact", "Measurement", "Probe", "Shared", "SharedPart", "Tape", "create_probe", "probe_name"]

_PROBES: dict[str, type[Probe]] = {"exact": Exact}


def create_probe(probe: str | Probe) -> Probe:
    """Return a probe from its name, or the probe itself."""
    if isinstance(probe, Probe):
        return probe
    if not isinstance(probe, str) or probe not in _PROBES:
        raise OptionError(f"Option `probe` should be one of {', '.join(map(repr, _PROBES))} or a Probe. Found {probe!r}.")
    return _PROBES[probe]()


def probe_name(probe: Probe) -> str:
    """Return the name that builds this probe.

    Raises:
        MtlAxesError: it has no name, or options that a name does not carry.
    """
    for name, known in _PROBES.items():
        if type(probe) is known and probe.options() == known().options():
            return name
    raise MtlAxesError(f"A probe in a config should be one of {', '.join(map(repr, _PROBES))}. Found {probe!r}.")
