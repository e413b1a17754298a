"""Probes: how the gradients of the tasks are measured."""

from __future__ import annotations

from mtl_axes.errors import OptionError
from mtl_axes.probes.base import Measurement, Probe, Tape
from mtl_axes.probes.discovery import Shared, SharedPart
from mtl_axes.probes.exact import Exact

__all__ = ["Exact", "Measurement", "Probe", "Shared", "SharedPart", "Tape", "create_probe"]

_PROBES: dict[str, type[Probe]] = {"exact": Exact}


def create_probe(probe: str | Probe) -> Probe:
    """Return a probe from its name, or the probe itself."""
    if isinstance(probe, Probe):
        return probe
    if probe not in _PROBES:
        raise OptionError(f"Option `probe` should be one of {', '.join(map(repr, _PROBES))} or a Probe. Found {probe!r}.")
    return _PROBES[probe]()
