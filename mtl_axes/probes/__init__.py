"""Probes: how the gradients of the tasks are measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mtl_axes.errors import MtlAxesError, OptionError
from mtl_axes.probes.base import Measurement, Probe, Tape
from mtl_axes.probes.exact import Exact
from mtl_axes.probes.lagged import Lagged
from mtl_axes.probes.representation import Representation
from mtl_axes.probes.shared import Shared, SharedPart

__all__ = [
    "Exact",
    "Lagged",
    "Measurement",
    "Probe",
    "Representation",
    "Shared",
    "SharedPart",
    "Tape",
    "create_probe",
    "probe_config",
]

_PROBES: dict[str, type[Probe]] = {"exact": Exact, "lagged": Lagged, "representation": Representation}


def create_probe(probe: str | Mapping[str, Any] | Probe) -> Probe:
    """Return a probe from its name, from a mapping with its name and options, or the probe itself."""
    if isinstance(probe, Probe):
        return probe
    options = dict(probe) if isinstance(probe, Mapping) else {}
    name = options.pop("name", None) if isinstance(probe, Mapping) else probe
    if not isinstance(name, str) or name not in _PROBES:
        raise OptionError(
            f"Option `probe` should be one of {', '.join(map(repr, _PROBES))}, a mapping with such a name, or a Probe. "
            f"Found {probe!r}."
        )
    try:
        return _PROBES[name](**options)
    except TypeError as error:
        known = ", ".join(_PROBES[name]().options()) or "none"
        raise OptionError(f"The options of the probe {name!r} are {known}. Found {options}.") from error


def probe_config(probe: Probe) -> str | dict[str, Any]:
    """Return what builds this probe: its name, or a mapping with its name and the options that differ from the defaults.

    Raises:
        MtlAxesError: no name stands for it.
    """
    for name, known in _PROBES.items():
        if type(probe) is known:
            defaults = known().options()
            options = {key: value for key, value in probe.options().items() if value != defaults[key]}
            return {"name": name, **options} if options else name
    raise MtlAxesError(f"A probe in a config should be one of {', '.join(map(repr, _PROBES))}. Found {probe!r}.")
