"""The Python that settles what advice cannot: a study of adaptive weights against constants."""

from __future__ import annotations

import pprint
from collections.abc import Sequence
from typing import Any

from mtl_axes.advise.facts import Finding, Rule
from mtl_axes.advise.rules import End, inverse
from mtl_axes.criterion import MultiTaskCriterion

__all__ = ["study_code"]

# By rule, the weightings that are worth a study beside the equal constants.
_WORTH: dict[Rule, tuple[str, ...]] = {
    "conflict": ("pcgrad", "upgrad"),
    "beyond the floor": ("gaba",),
    "adaptive": ("gaba",),
    "unrelated": ("gaba",),
    "equal": ("gaba",),
    "not measured": ("uncertainty",),
}


def study_code(criterion: MultiTaskCriterion, tasks: tuple[str, ...], found: Sequence[Finding], end: End | None) -> str:
    """Return a program text: a Study of the weightings that the findings name, on the user's own shapes.

    Args:
        criterion: the user's.
        tasks: their names.
        found: the rules that hold.
        end: where GABA's weights go, and which GABA; None where no norms tell.
    """
    rules = [finding.rule for finding in found]
    outer: list[Any] = ["fixed"]
    if end is not None and "beyond the floor" in rules:
        outer.append({"name": "fixed", "weights": {task: float(f"{weight:.4g}") for task, weight in end.weights.items()}})
    outer += [end.outer if name == "gaba" and end is not None else name for rule in rules for name in _WORTH.get(rule, ())]
    if end is not None and end.capped and "adaptive" in rules:
        outer.append(inverse(end.outer))
    inner: Any = criterion.config(strict=False)["inner"] or "mse"
    nameless = _nameless(inner) or any(map(_nameless, inner.values() if isinstance(inner, dict) else ()))
    options = {"tasks": list(tasks)}
    return "\n".join(
        [
            "from mtl_axes import Study",
            "",
            "# train(criterion, seed) is your own training; it returns what counts, as {'rmse': 12.3}",
            "Study(",
            *_argument("outer", outer),
            *(["    # your own shapes: no name stands for them, and mse is in their place"] if nameless else []),
            *_argument("inner", ["mse" if nameless else inner]),
            "    seeds=5,",
            "    out='runs/advice',",
            "    metrics={'rmse': 'min'},",
            # One task has no weights to tune.
            *(["    baselines=('ended', 'tuned'),"] if len(tasks) > 1 else []),
            *_argument("compose", options),
            ").run(train)",
        ]
    )


def _nameless(shape: Any) -> bool:
    return isinstance(shape, dict) and isinstance(shape.get("class"), str)


def _argument(name: str, value: object) -> list[str]:
    text = f"{name}={pprint.pformat(value, width=84 - len(name), sort_dicts=False)},"
    first, *rest = text.splitlines()
    return [f"    {first}", *(f"    {' ' * (len(name) + 1)}{line}" for line in rest)]
