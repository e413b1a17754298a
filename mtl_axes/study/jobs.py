"""A run of a study: how it is built, trained and checked, and the file that holds it."""

from __future__ import annotations

import copy
import json
import os
import random
import secrets
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mtl_axes.composition import compose
from mtl_axes.criterion import MultiTaskCriterion
from mtl_axes.errors import StudyError
from mtl_axes.history import History
from mtl_axes.options import steady_repr
from mtl_axes.study.runs import Run

__all__ = ["End", "Job", "Outcome", "Train", "as_read", "composed", "write_whole"]

_ROWS = 512  # of the history that a study records by default
_FRAMES = 4
_MESSAGE = 2_000  # letters


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a training function may return instead of its metrics alone.

    Attributes:
        metrics: a number for each name.
        history: a :class:`mtl_axes.History`, or its columns by name. None: the history of the criterion, which the study
            records in 512 rows, unless the function makes a History of the criterion.
        predictions: by task ``(predicted, true)``, two sequences or 1-d tensors of one length, for the report.
    """

    metrics: Mapping[str, float]
    history: History | Mapping[str, Any] | None = None
    predictions: Mapping[str, tuple[Any, Any]] | None = None


class _OwnHistory(History):
    """The study's history of a run, which a History that the training function makes replaces."""

    gives_way = True


Train = Callable[[MultiTaskCriterion, int], Mapping[str, float] | Outcome]


class _MisuseError(StudyError):
    """A training function returned something that a study cannot use."""


class End(NamedTuple):
    """How a run ended."""

    error: str | None  # None if it finished
    misused: bool = False  # the training function returned something that a study cannot use
    unsaved: bool = False  # the error is not on disk


@dataclass(frozen=True, eq=False)
class Job:
    """A run to be trained; ``outer`` and ``inner`` are labels."""

    outer: str
    inner: str
    seed: int
    levels: tuple[Any, Any]  # what `compose` is given for the two axes
    options: Mapping[str, Any]  # further options of `compose`
    metrics: tuple[str, ...]  # names that the training function must return
    config: Mapping[str, Any]  # everything that the result depends on, as JSON gives it back
    path: Path

    @property
    def title(self) -> str:
        """What messages call it."""
        return f"{self.outer} x {self.inner}, seed {self.seed}"

    def load(self) -> Run | None:
        """Return the run in the file; None if there is none, or if it is incomplete, has another configuration, or lacks a
        metric of the study."""
        try:
            run = Run.from_json(self.path.read_text(encoding="utf-8"))
            same = (run.outer, run.inner, run.seed) == (self.outer, self.inner, self.seed) and run.config == self.config
        except (OSError, ValueError, TypeError, AttributeError):
            return None
        return run if same and (run.error is not None or set(self.metrics) <= set(run.metrics)) else None

    def save(self, run: Run) -> None:
        """Write a run; a failure does not replace a finished run, which another process may have written meanwhile."""
        earlier = None if run.error is None else self.load()
        if earlier is None or earlier.error is not None:
            write_whole(self.path, run.to_json())

    def failed(self, error: str) -> Run:
        """Return the record of a failed run."""
        return Run(self.outer, self.inner, self.seed, config=self.config, error=error)

    def run(self, train: Train) -> End:
        """Train and save the run, unless another process has finished it meanwhile. An error of the training is saved; a
        return value that a study cannot use is only reported."""
        earlier = self.load()
        if earlier is not None and earlier.error is None:
            return End(None)
        begin = time.perf_counter()
        try:
            run = self._trained(train)
        except _MisuseError as error:
            return End(str(error), misused=True, unsaved=True)
        except (Exception, SystemExit) as error:  # a function that calls sys.exit() ends its run, not the study
            run = self.failed(_described(error))
        self.save(replace(run, seconds=time.perf_counter() - begin))
        return End(run.error)

    def _trained(self, train: Train) -> Run:
        _seed(self.seed)
        criterion = composed(*self.levels, self.options)
        _OwnHistory(criterion, capacity=_ROWS)
        # Again: what a strategy draws while it is built should not decide how the model begins.
        _seed(self.seed)
        returned = train(criterion, self.seed)
        outcome = returned if isinstance(returned, Outcome) else Outcome(returned)
        return Run(
            self.outer,
            self.inner,
            self.seed,
            metrics=_numbers(outcome.metrics, self.metrics),
            history=_columns(criterion.history if outcome.history is None else outcome.history),
            predictions={task: _pair(task, given) for task, given in (outcome.predictions or {}).items()},
            config=self.config,
        )


def write_whole(path: Path, text: str) -> None:
    """Write a file so that a reader sees all of it or none, even if the process or the machine stops or another process
    writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name[:80]}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        with part.open("w", encoding="utf-8", newline="\n") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    if hasattr(os, "O_DIRECTORY"):
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _seed(seed: int) -> None:
    random.seed(seed)
    torch.manual_seed(seed)
    try:
        import numpy
    except ModuleNotFoundError:
        return
    numpy.random.seed(seed)


def _described(error: BaseException) -> str:
    """Type, message and the innermost frames of an error, without the frames of this module."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
    lines = [f"  {Path(frame.filename).name}:{frame.lineno} in {frame.name}: {frame.line}" for frame in frames[-_FRAMES:]]
    return "\n".join([f"{type(error).__name__}: {error}"[:_MESSAGE], *lines])


def _numbers(metrics: Any, required: tuple[str, ...]) -> dict[str, float]:
    if not isinstance(metrics, Mapping):
        raise _MisuseError(
            f"The training function should return a mapping from metrics to numbers, or an Outcome. Found {metrics!r}."
        )
    missing = [name for name in required if name not in metrics]
    if missing:
        returned = ", ".join(map(str, metrics)) or "none"
        raise _MisuseError(
            f"The training function returned no {', '.join(missing)} (its metrics: {returned}). Return every metric that "
            "the study names."
        )
    return {str(name): _number(name, value) for name, value in metrics.items()}


def _number(name: object, value: Any) -> float:
    try:
        if not isinstance(value, (str, bytes)):
            return float(value.detach() if isinstance(value, Tensor) else value)
    except (TypeError, ValueError, RuntimeError):  # a RuntimeError from a tensor of several elements
        pass
    raise _MisuseError(f"The metric `{name}` should be a number. Found {steady_repr(value)[:200]}.")


def _columns(history: Any) -> dict[str, list[float | None]]:
    if isinstance(history, History):
        return history.columns()
    try:
        columns = {
            str(name): [None if value is None else float(value) for value in values] for name, values in history.items()
        }
    except (AttributeError, TypeError, ValueError) as error:
        raise _MisuseError(
            "The history of an Outcome should be a History, or lists of numbers by name. Found "
            f"{steady_repr(history)[:200]}."
        ) from error
    if len({len(values) for values in columns.values()}) > 1:
        lengths = ", ".join(f"{name} {len(values)}" for name, values in columns.items())
        raise _MisuseError(f"The columns of a history should have one length. Found {lengths}.")
    return columns


def _pair(task: str, given: Any) -> dict[str, list[float]]:
    try:
        predicted, true = (
            [float(value) for value in (values.tolist() if hasattr(values, "tolist") else values)] for values in given
        )
    except (TypeError, ValueError) as error:
        raise _MisuseError(
            f"The predictions of `{task}` should be (predicted, true), each a sequence of numbers or a 1-d tensor. Found "
            f"{steady_repr(given)[:200]}."
        ) from error
    if len(predicted) != len(true):
        raise _MisuseError(f"The task `{task}` has {len(predicted)} predictions but {len(true)} true values.")
    return {"predicted": predicted, "true": true}


def composed(outer: Any, inner: Any, options: Mapping[str, Any]) -> MultiTaskCriterion:
    """Return a fresh criterion; strategies that were given as objects are copied."""
    return compose(*copy.deepcopy((outer, inner)), **copy.deepcopy(dict(options)))


def as_read(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration as JSON gives it back: a tuple as a list, an object as its repr."""
    read: dict[str, Any] = json.loads(json.dumps(config, default=steady_repr))
    return read
