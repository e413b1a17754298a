"""What a report tells of the strategies of a cell, from the configuration of its criterion."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from mtl_axes.describe import describe
from mtl_axes.errors import MtlAxesError

__all__ = ["told"]

_TITLES = {"outer": "Outer weighting", "inner": "Inner shape", "weight": "Target weight"}


def told(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return one entry per strategy of a criterion: ``axis``, ``title``, ``tasks``, ``name``, ``summary``, ``formula`` and
    ``options``. A strategy around another one is followed by it; tasks with the same shape share an entry.

    Args:
        config: of the criterion, as its ``config()`` returns it; {} where a run has kept none.
    """
    entries = list(_nested("outer", "outer", config.get("outer")))
    inner = config.get("inner")
    by_task = inner if isinstance(inner, Mapping) and "name" not in inner else {"": inner}
    order = list(config.get("tasks") or by_task)
    shapes: list[tuple[Any, list[str]]] = []
    for task, shape in sorted(by_task.items(), key=lambda item: order.index(item[0]) if item[0] in order else len(order)):
        known = next((tasks for other, tasks in shapes if other == shape), None)
        if known is None:
            shapes.append((shape, known := []))
        known += [str(task)] if task else []
    for shape, tasks in shapes:
        entries += ({**entry, "tasks": tasks} for entry in _nested("inner", "inner", shape))
    return entries


def _nested(
    axis: Literal["outer", "inner"], kind: Literal["outer", "inner", "weight"], strategy: object, role: str = ""
) -> Iterator[dict[str, Any]]:
    """Yield a strategy of a kind and those within it; all are shown on the axis of the outermost."""
    if isinstance(strategy, str):
        strategy = {"name": strategy}
    if not isinstance(strategy, Mapping):
        return
    name = str(strategy.get("name", ""))
    options = {key: value for key, value in strategy.items() if key != "name"}
    try:
        about = describe(kind, name)
        summary, formula = about.summary, about.formula if about.formula != about.summary else ""
    except MtlAxesError:
        # Of a plugin that is not installed where the report is made.
        summary, formula = "Not registered where this report was made.", ""
    within = {key: value for key, value in options.items() if isinstance(value, Mapping) and "name" in value}
    yield {
        "axis": axis,
        "title": _TITLES[kind] + role,
        "tasks": [],
        "name": name,
        "summary": summary,
        "formula": formula,
        "options": {key: str(value) for key, value in options.items() if key not in within},
    }
    for key, value in within.items():
        yield from _nested(axis, "weight" if key == "weight" else kind, value, f", the {key} of {name}")
