"""The text of ``criterion.explain()``."""

from __future__ import annotations

from mtl_axes.outer import OuterWeighting
from mtl_axes.probes import Probe, Shared
from mtl_axes.signals import StepReport
from mtl_axes.tasks import TaskSet
from mtl_axes.window import Window

__all__ = ["explain"]


def explain(
    tasks: TaskSet, outer: OuterWeighting, probe: Probe, window: Window, shared: Shared, report: StepReport | None
) -> str:
    """Return what a criterion does, as far as it is known yet."""
    lines = [f"outer   {outer!r}: needs {outer.needs}"]
    if not tasks.names:
        lines.append("tasks   taken from the targets of the first call")
    for name in tasks.names:
        shape = tasks.shapes.get(name)
        lines.append(f"task    {name}: {tasks.kinds.get(name, 'kind not known yet')}, {shape if shape else 'no shape yet'}")
    lines += _measurement(outer, probe, window, shared)
    lines.append(f"weights {_timing(outer, probe, window)}")
    if report is not None:
        lines += _now(report)
    return "\n".join(lines)


def _measurement(outer: OuterWeighting, probe: Probe, window: Window, shared: Shared) -> list[str]:
    if outer.needs == "losses":
        return ["probe   none: the weighting reads losses alone, no gradient is measured"]
    often = "every window" if window.every == 1 else f"every {window.every} windows"
    later = "" if outer.measures(window.step) else f", but not in window {window.step}: the weighting ignores them still"
    lines = [f"probe   {probe.describe()}; measured in {often}{later}"]
    part = shared.last
    if part is None:
        lines.append("shared  not looked up yet")
    else:
        source = "given by you" if part.source == "given" else "found on the graph"
        lines.append(f"shared  {len(part.parameters)} parameters, {part.size} entries, {source}")
        lines += [f"private {name}: {count} parameters" for name, count in part.private.items()]
    return lines


def _timing(outer: OuterWeighting, probe: Probe, window: Window) -> str:
    if outer.learnable:
        return "learned by your optimizer: add criterion.param_groups() to it"
    if window.immediate(probe, outer.needs):
        return "of a step use that step's own statistics"
    return f"of a window come from the windows before it (accumulate={window.accumulate!r})"


def _now(report: StepReport) -> list[str]:
    lines = [f"step    {report.step} windows committed"]
    norms = report.norms.tolist() if report.norms is not None else [None] * len(report.tasks)
    floor = report.extra.get("floor_active")
    floors = floor.tolist() if floor is not None else [False] * len(report.tasks)
    rows = zip(
        report.tasks, report.losses.tolist(), report.weights.tolist(), norms, report.active.tolist(), floors, strict=True
    )
    for name, loss, weight, norm, active, floored in rows:
        measured = "" if norm is None else f", gradient norm {norm:.4g}"
        notes = ("" if active else ", inactive") + (", at the floor" if floored else "")
        lines.append(f"now     {name}: loss {loss:.4g}, weight {weight:.4g}{measured}{notes}")
    return lines
