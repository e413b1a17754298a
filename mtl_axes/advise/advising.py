"""``advise``: what a few batches say about the weighting of tasks, before training."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from mtl_axes._text import did_you_mean
from mtl_axes.advise.facts import Advice, Candidate, Cost
from mtl_axes.advise.measuring import Observation, observe
from mtl_axes.advise.rules import findings, gaba_end, unknowns
from mtl_axes.advise.settling import study_code
from mtl_axes.advise.timing import PLAIN, methods, timed
from mtl_axes.advise.trial import Step, Trial, untouched
from mtl_axes.advise.weighing import weigh
from mtl_axes.criterion import MultiTaskCriterion
from mtl_axes.errors import MtlAxesError, OptionError, UnknownNameError
from mtl_axes.options import check_number
from mtl_axes.outer import GABA
from mtl_axes.registry import resolve

__all__ = ["CANDIDATES", "advise"]

CANDIDATES = ("fixed", "uncertainty", "dwa", "gradnorm", "inverse_norm", "gaba", "pcgrad", "upgrad")
"""Weightings that are looked at by default: of every sort one or two that are much used."""

# Shares of the seconds by which the batches, and then the weightings, have to be done.
_MEASURED, _WEIGHED = 0.4, 0.6


def advise(
    criterion: MultiTaskCriterion,
    model_or_step: nn.Module | Step,
    batches: Iterable[Any],
    /,
    *,
    candidates: Sequence[str | Mapping[str, Any]] = CANDIDATES,
    steps: int = 16,
    seconds: float = 10.0,
    primary: str | None = None,
) -> Advice:
    """Return what a few batches say about weighting the tasks: losses, gradients, what weightings would do and cost.

    Nothing of yours is changed. A model is copied together with the criterion. A function runs your own model: parameters,
    buffers and gradients of every module that it calls are put back at the end, also after an error, and so are the states
    of torch's, Python's and NumPy's random numbers, and the generator of a DataLoader. Only an iterator that is used up by
    reading it stays where it is, and lazy modules that a function runs stay as they have become.

    Args:
        criterion: as for training. Its shapes are used, its ``shared=``, and its weighting beside the candidates; its state
            stays what it is.
        model_or_step: a model, called as ``model(inputs)`` on batches ``(inputs, targets)``; or a function from a batch to
            ``(outputs, targets)``, to ``(outputs, targets, options)`` with ``mask``, ``sample_weight`` or ``extra`` of the
            criterion's call, or to a mapping from tasks to losses, as for ``criterion.combine``. It should only run the
            forward pass.
        batches: a DataLoader, a list, or anything to iterate over.
        candidates: weightings by name, or ``{"name": ..., **options}``.
        steps: batches to look at, at most, >= 1.
        seconds: for the whole call, > 0. At least one batch is looked at, whatever it takes; what there is no time for is
            None in the result.
        primary: the task that matters. Cosines are then judged for its pairs alone.

    Returns:
        :class:`Advice`.

    Raises:
        DataError: criterion, model, batches, outputs or targets are not what they should be.
        OptionError: an option is outside its range.
        UnknownNameError: ``primary`` is none of the tasks.

    >>> import torch
    >>> from mtl_axes import compose
    >>> model = torch.nn.Linear(3, 2)
    >>> x = torch.randn(32, 3)
    >>> step = lambda batch: dict(zip("ab", (model(batch) - batch.sum(1, keepdim=True)).square().mean(0)))
    >>> advise(compose(tasks=["a", "b"]), step, [x, -x, 2 * x], candidates=["fixed"], seconds=1).recommendation.rule
    'equal'
    """
    begin = time.perf_counter()
    check_number("seconds", seconds, low=0.0, low_open=True)
    check_number("steps", steps, low=1, integer=True)
    chosen = _candidates(candidates)
    trial = Trial(criterion, model_or_step)
    with untouched(batches) as guard:
        found = observe(trial, guard, batches, steps, begin + _MEASURED * seconds)
        if primary is not None and primary not in found.tasks:
            hint = did_you_mean(primary, found.tasks)
            raise UnknownNameError(f"`primary` should be one of the tasks {list(found.tasks)}. Found {primary!r}.{hint}")
        chosen = _with_own(criterion, chosen)
        weighed = _weighed(trial, found, chosen, begin + _WEIGHED * seconds)
        costs: tuple[Cost, ...] = ()
        if not found.hooks:
            costs = timed(trial, guard, found, methods(trial, found, chosen), begin + seconds)
    norms, cosines = found.norms(), found.cosines()
    spec, gaba = _gaba(chosen, len(found.tasks))
    ratio = found.ratio(gaba.floor)
    end = gaba_end(spec, gaba, ratio, norms) if ratio is not None else None
    losses = found.task_losses(trial.criterion._tasks)
    by_label = {cost.label: cost for cost in costs}
    plain = by_label.pop(PLAIN, None)
    if plain is not None:
        by_label["fixed"] = plain
    weighed = tuple(dataclasses.replace(one, cost=by_label.get(one.label)) for one in weighed)
    said = list(trial.notes)
    if found.hooks:
        said.append("What a step costs: a parameter has a hook that fires in the backward, as one that steps an optimizer.")
    if unseen := [loss.task for loss in losses if loss.unlabelled]:
        said.append(f"Anything of {', '.join(unseen)}: no batch had a label of it, and the steps were timed without it.")
    advised = findings(losses, norms, cosines, ratio, end, primary=primary, obstacle=found.obstacle)
    return Advice(
        tasks=found.tasks,
        primary=primary,
        batches=len(found.losses),
        shared=None if found.shared is None or not norms else found.shared.size,
        seconds=time.perf_counter() - begin,
        losses=losses,
        norms=norms,
        cosines=cosines,
        ratio=ratio,
        obstacle=found.obstacle,
        candidates=weighed,
        costs=tuple(cost for cost in costs if cost.label != PLAIN),
        plain=None if plain is None else plain.seconds,
        findings=advised,
        unknown=(*said, *unknowns(timed=plain is not None, batches=len(found.losses), ratio=ratio)),
        code=study_code(criterion, found.tasks, advised, end),
    )


def _candidates(candidates: Sequence[str | Mapping[str, Any]]) -> list[str | Mapping[str, Any]]:
    if isinstance(candidates, (str, Mapping)) or not isinstance(candidates, Sequence):
        raise OptionError(f"Option `candidates` should be a list of weightings. Found candidates={candidates!r}.")
    for outer in candidates:
        if not isinstance(outer, (str, Mapping)):
            raise OptionError(
                'Option `candidates` should hold names, or mappings as {"name": "gaba", "beta": 0.9}. '
                f"Found {outer!r}, which has a state of its own."
            )
        resolve("outer", outer)  # a name that is not known is an error now and not after ten seconds
    return list(candidates)


def _with_own(criterion: MultiTaskCriterion, chosen: list[str | Mapping[str, Any]]) -> list[str | Mapping[str, Any]]:
    """Add the criterion's own weighting, anew, where it is not a candidate already and a name stands for it."""
    try:
        own = criterion.config()["outer"]
    except MtlAxesError:
        return chosen
    known = {repr(resolve("outer", outer)) for outer in chosen}
    return chosen if repr(resolve("outer", own)) in known else [_shortest(own), *chosen]


def _shortest(own: dict[str, Any]) -> str | dict[str, Any]:
    """Return what builds the same weighting, without the options that are as by default."""
    try:
        usual = resolve("outer", own["name"]).options()
    except MtlAxesError:  # it cannot do without options
        return own
    short = {key: value for key, value in own.items() if key == "name" or value != usual[key]}
    return own["name"] if len(short) == 1 else short


def _weighed(
    trial: Trial, found: Observation, chosen: list[str | Mapping[str, Any]], deadline: float
) -> tuple[Candidate, ...]:
    infos, norms = trial.criterion._tasks.infos(), found.norms()
    weighed = []
    for number, outer in enumerate(chosen):
        now = time.perf_counter()
        share = max(deadline - now, 0.0) / (len(chosen) - number)
        weighed.append(weigh(outer, infos, found, norms, now + share))
    return tuple(weighed)


def _gaba(chosen: list[str | Mapping[str, Any]], count: int) -> tuple[str | Mapping[str, Any], GABA]:
    """Return the GABA that is judged: the first whose floor this number of tasks can have; without a floor if none can."""
    for outer in [*chosen, "gaba"]:
        if isinstance(weighting := resolve("outer", outer), GABA) and weighting.floor * count < 1:
            return outer, weighting
    return {"name": "gaba", "floor": 0.0}, GABA(floor=0.0)
