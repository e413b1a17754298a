"""The strategies of a cell as a report shows them, from the configuration of its criterion."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from mtl_axes.describe import describe
from mtl_axes.errors import MtlAxesError

__all__ = ["strategies"]

_TITLES = {"outer": "Outer weighting", "inner": "Inner shape", "weight": "Target weight"}


def strategies(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return one entry per strategy of a criterion: ``axis``, ``title``, ``tasks``, ``name``, ``summary``, ``formula`` and
    ``options``. A strategy around another one is followed by it; tasks with the same shape share an entry.

    Args:
        config: of the criterion, as its ``config()`` returns it; {} if a run has none.
    """
    inner = config.get("inner")
    by_task = inner if isinstance(inner, Mapping) and "name" not in inner else {"": inner}
    order = [task for task in config.get("tasks") or () if task in by_task]
    shapes: list[tuple[Any, list[str]]] = []
    for task in [*order, *(task for task in by_task if task not in order)]:
        tasks = next((tasks for shape, tasks in shapes if shape == by_task[task]), None)
        if tasks is None:
            shapes.append((by_task[task], tasks := []))
        tasks += [str(task)] if task else []
    entries = list(_nested("outer", "outer", config.get("outer")))
    for shape, tasks in shapes:
        entries += ({**entry, "tasks": tasks} for entry in _nested("inner", "inner", shape))
    return entries


def _nested(
    axis: Literal["outer", "inner"], kind: Literal["outer", "inner", "weight"], strategy: object, role: str = ""
) -> Iterator[dict[str, Any]]:
    """Yield a strategy and those within it; all are shown on the axis of the outermost."""
    if isinstance(strategy, str):
        strategy = {"name": strategy}
    if not isinstance(strategy, Mapping):
        return
    name = str(strategy.get("name", ""))
    try:
        about = describe(kind, name)
        summary, formula = about.summary, about.formula if about.formula != about.summary else ""
    except MtlAxesError:
        # The strategy of a plugin that is not installed where the report is made.
        summary, formula = "Not registered where this report was made.", ""
    within = {key: value for key, value in strategy.items() if isinstance(value, Mapping) and "name" in value}
    yield {
        "axis": axis,
        "title": _TITLES[kind] + role,
        "tasks": [],
        "name": name,
        "summary": summary,
        "formula": formula,
        "options": {key: str(value) for key, value in strategy.items() if key != "name" and key not in within},
    }
    for key, value in within.items():
        yield from _nested(axis, "weight" if key == "weight" else kind, value, f", the {key} of {name}")
