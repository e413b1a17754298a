"""One run of a study, and the names under which a study keeps its runs on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

__all__ = ["CHOSEN", "ENDED", "RUNS_FOLDER", "STUDY_FILE", "TUNED", "Axis", "Cell", "Direction", "Run"]

Axis = Literal["outer", "inner"]
Direction = Literal["min", "max"]
Cell = tuple[str, str]

STUDY_FILE = "study.json"
RUNS_FOLDER = "runs"
TUNED = "tuned constant"
ENDED = "constant where {} ended"
CHOSEN = "chosen"  # in the configuration of a run that the tuned constant copies: the level it was copied from


@dataclass(frozen=True, eq=False)
class Run:
    """One training of one cell with one seed.

    Attributes:
        outer: label of the outer weighting in its study.
        inner: label of the inner shape in its study.
        seed: what the run was seeded with. Runs with the same seed are compared with each other.
        metrics: what the training function returned, by name.
        history: columns of equal length by name: ``step``, ``loss/TASK``, ``weight/TASK``, ``norm/TASK``, ...; None where
            a value was not measured. Empty if nothing was recorded.
        predictions: by task ``{"predicted": [...], "true": [...]}``; empty if none were returned.
        config: everything that the result depends on, as plain data: the criterion's ``config()`` under ``"criterion"``,
            the study's under ``"study"``, and ``"versions"``.
        seconds: how long it took.
        error: why it failed, None if it finished. A failed run has no metrics.
    """

    outer: str
    inner: str
    seed: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    history: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    predictions: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    error: str | None = None

    @property
    def cell(self) -> Cell:
        """The labels of the two axes."""
        return self.outer, self.inner

    def to_json(self) -> str:
        """Return the run as JSON; values that are not finite are written as JavaScript's NaN and Infinity."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Run:
        """Return the run that :meth:`to_json` wrote.

        Raises:
            ValueError, TypeError: the text is incomplete, or not a run.
        """
        return cls(**json.loads(text))
