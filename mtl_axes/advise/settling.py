"""The Python that settles what advice cannot: a study of adaptive weights against constants."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mtl_axes.advise.facts import Finding
from mtl_axes.criterion import MultiTaskCriterion
from mtl_axes.errors import MtlAxesError

__all__ = ["study_code"]

# By rule, the weightings that are worth a study beside the equal constants.
_WORTH = {"conflict": ["pcgrad", "upgrad"], "beyond the floor": ["gaba"], "adaptive": ["gaba"], "unrelated": ["gaba"]}


def study_code(criterion: MultiTaskCriterion, tasks: tuple[str, ...], recommendation: Finding) -> str:
    """Return a program text: a Study of the weightings that the recommendation names, on the user's own shapes."""
    outer = ["fixed", *_WORTH.get(recommendation.rule, ["gaba"])]
    if len(tasks) == 1 or recommendation.rule == "not measured":
        outer = ["fixed"]
    try:
        inner: Any = criterion.config()["inner"]
    except MtlAxesError:  # a shape that no name stands for
        inner = "mse"
    if isinstance(inner, Mapping) and not inner:
        inner = "mse"
    return "\n".join(
        [
            "from mtl_axes.study import Study",
            "",
            "# train(criterion, seed) is your own training; it returns what counts, as {'rmse': 12.3}",
            "Study(",
            f"    outer={outer!r},",
            f"    inner={{'mine': {inner!r}}},",
            "    seeds=5,",
            '    out="runs/advice",',
            '    metrics={"rmse": "min"},',
            '    baselines=("ended", "tuned"),',
            f"    compose={{'tasks': {list(tasks)!r}}},",
            ").run(train)",
        ]
    )
