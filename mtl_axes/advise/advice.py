"""``advise``: what a few batches say about the weighting of tasks, before training."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from mtl_axes._text import did_you_mean
from mtl_axes.advise import clock, picture, text
from mtl_axes.advise.candidates import weigh
from mtl_axes.advise.costs import PLAIN, measure_costs
from mtl_axes.advise.facts import Candidate, Cosine, Cost, Finding, Norm, Ratio, TaskLoss
from mtl_axes.advise.measuring import Observation, observe
from mtl_axes.advise.rules import findings, gaba_end, study_code, unknowns
from mtl_axes.advise.trial import Step, Trial, untouched
from mtl_axes.criterion import MultiTaskCriterion
from mtl_axes.errors import MtlAxesError, OptionError, UnknownNameError
from mtl_axes.options import check_number
from mtl_axes.outer import GABA
from mtl_axes.registry import resolve

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["CANDIDATES", "Advice", "advise"]

CANDIDATES = ("fixed", "uncertainty", "dwa", "gradnorm", "inverse_norm", "gaba", "pcgrad", "upgrad")
"""Weightings that are tried by default: of each kind one or two that are widely used."""

# Shares of the seconds after which the batches, and then the weightings, have to be done.
_MEASURED, _WEIGHED = 0.4, 0.6

_Outer = str | Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Advice:
    """The result of :func:`mtl_axes.advise.advise`. ``print`` shows it as a text of at most 100 columns.

    Attributes:
        tasks: their names, in order.
        primary: the task that matters most; None if all do.
        batches: number of batches that were used.
        shared: number of entries of the shared parameters; None if they are unknown.
        seconds: duration of the call.
        losses: by task, in order.
        norms: by task, in order; empty if no gradient could be measured.
        cosines: of each pair.
        ratio: of the norms; None with one task, or without two norms.
        obstacle: why no gradient could be measured, else None.
        candidates: what weightings would do.
        costs: of a step: for each candidate, and for the cheaper ways to measure norms.
        plain: seconds of a step with the plain weighted sum; None if it was not measured.
        findings: the rules that hold; the first is the recommendation.
        unknown: what the advice cannot know.
        code: Python that answers it: a study.
    """

    tasks: tuple[str, ...]
    primary: str | None
    batches: int
    shared: int | None
    seconds: float
    losses: tuple[TaskLoss, ...]
    norms: tuple[Norm, ...]
    cosines: tuple[Cosine, ...]
    ratio: Ratio | None
    obstacle: str | None
    candidates: tuple[Candidate, ...]
    costs: tuple[Cost, ...]
    plain: float | None
    findings: tuple[Finding, ...]
    unknown: tuple[str, ...]
    code: str

    @property
    def recommendation(self) -> Finding:
        """The first of the findings."""
        return self.findings[0]

    def __str__(self) -> str:
        return text.as_text(self)

    def plot(self, path: str | Path | None = None) -> Figure:
        """Return a picture: norms with their noise, cosines, shares by weighting, cost by weighting.

        Args:
            path: also save it there, in the format of its ending.

        Raises:
            MtlAxesError: matplotlib is not installed.
        """
        figure = picture.draw(self)
        if path is not None:
            figure.savefig(path, dpi=150)
        return figure


def advise(
    criterion: MultiTaskCriterion,
    model_or_step: nn.Module | Step,
    batches: Iterable[Any],
    /,
    *,
    candidates: Sequence[_Outer] = CANDIDATES,
    steps: int = 16,
    seconds: float = 10.0,
    primary: str | None = None,
) -> Advice:
    """Return what a few batches say about weighting the tasks: losses, gradients, what weightings would do and cost.

    Your objects are not changed. A model is copied together with the criterion. A function runs your own model: parameters,
    buffers and gradients of every module that it calls are restored at the end, even after an error, as are the states of
    torch's, Python's and NumPy's random numbers and the generator of a DataLoader. Two things are not restored: an iterator
    is used up by reading it, and lazy modules that a function runs stay initialised.

    Args:
        criterion: as for training. Its shapes and its ``shared=`` are used, and its weighting beside the candidates; its
            state is unchanged.
        model_or_step: a model, called as ``model(inputs)`` on batches ``(inputs, targets)``; or a function from a batch to
            ``(outputs, targets)``, to ``(outputs, targets, options)`` with ``mask``, ``sample_weight`` or ``extra`` of the
            criterion's call, or to a mapping from tasks to losses, as for ``criterion.combine``. It should only run the
            forward pass.
        batches: a DataLoader, a list, or any other iterable.
        candidates: weightings by name, or ``{"name": ..., **options}``.
        steps: maximum number of batches, >= 1.
        seconds: time limit for the whole call, > 0. At least one batch is used, whatever it takes; what there is no time for
            is None in the result.
        primary: the task that matters most. Only cosines of its pairs are then judged.

    Returns:
        :class:`Advice`.

    Raises:
        DataError: criterion, model, batches, outputs or targets are not as documented.
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
    begin = clock.now()
    check_number("seconds", seconds, low=0.0, low_open=True)
    check_number("steps", steps, low=1, integer=True)
    _check_candidates(candidates)
    trial = Trial(criterion, model_or_step)
    with untouched(batches) as guard:
        observation = observe(trial, guard, batches, steps, begin + _MEASURED * seconds)
        tasks = observation.tasks
        if primary is not None and primary not in tasks:
            hint = did_you_mean(primary, tasks)
            raise UnknownNameError(f"`primary` should be one of the tasks {list(tasks)}. Found {primary!r}.{hint}")
        outers = _with_own(criterion, candidates)
        weighed = _weighed(trial, observation, outers, begin + _WEIGHED * seconds)
        costs: tuple[Cost, ...] = ()
        if not observation.hooks:
            costs = measure_costs(trial, guard, observation, outers, begin + seconds)
    losses = observation.task_losses(trial.criterion._tasks)
    norms, cosines = observation.norms(), observation.cosines()
    spec, gaba = _gaba(outers, len(tasks))
    ratio = observation.ratio(gaba.floor)
    end = gaba_end(spec, gaba, ratio, norms) if ratio is not None else None
    plain = next((cost for cost in costs if cost.label == PLAIN), None)
    by_label = {"fixed": plain, **{cost.label: cost for cost in costs}}
    limits = list(trial.notes)
    if observation.hooks:
        limits.append("The cost of a step: a parameter has a hook that runs in the backward, such as one with an optimizer.")
    if unlabelled := [loss.task for loss in losses if loss.unlabelled]:
        limits.append(f"Anything about {', '.join(unlabelled)}: no batch had a label, and steps were timed without.")
    rules = findings(losses, norms, cosines, ratio, end, primary=primary, obstacle=observation.obstacle)
    return Advice(
        tasks=tasks,
        primary=primary,
        batches=len(observation.losses),
        shared=observation.shared.size if observation.shared is not None and norms else None,
        seconds=clock.now() - begin,
        losses=losses,
        norms=norms,
        cosines=cosines,
        ratio=ratio,
        obstacle=observation.obstacle,
        candidates=tuple(dataclasses.replace(one, cost=by_label.get(one.label)) for one in weighed),
        costs=tuple(cost for cost in costs if cost is not plain),
        plain=plain.seconds if plain is not None else None,
        findings=rules,
        unknown=(*limits, *unknowns(timed=plain is not None, batches=len(observation.losses), ratio=ratio)),
        code=study_code(criterion.config(strict=False)["inner"] or "mse", tasks, rules, end),
    )


def _check_candidates(candidates: object) -> None:
    if isinstance(candidates, (str, Mapping)) or not isinstance(candidates, Sequence):
        raise OptionError(f"Option `candidates` should be a list of weightings. Found candidates={candidates!r}.")
    for outer in candidates:
        if not isinstance(outer, (str, Mapping)):
            raise OptionError(
                'Option `candidates` should hold names, or mappings such as {"name": "gaba", "beta": 0.9}. Found '
                f"{outer!r}, which has a state."
            )
        resolve("outer", outer)  # an unknown name is an error now and not after ten seconds


def _with_own(criterion: MultiTaskCriterion, candidates: Sequence[_Outer]) -> list[_Outer]:
    """Add the criterion's own weighting, if it has a name and is not a candidate already."""
    try:
        own = criterion.config()["outer"]
    except MtlAxesError:
        return list(candidates)
    known = {repr(resolve("outer", outer)) for outer in candidates}
    return list(candidates) if repr(resolve("outer", own)) in known else [_shortest(own), *candidates]


def _shortest(own: dict[str, Any]) -> _Outer:
    """Return what builds the same weighting, without the options that have their defaults."""
    try:
        usual = resolve("outer", own["name"]).options()
    except MtlAxesError:  # it has required options
        return own
    short = {key: value for key, value in own.items() if key == "name" or value != usual[key]}
    return own["name"] if len(short) == 1 else short


def _weighed(trial: Trial, observation: Observation, outers: list[_Outer], deadline: float) -> list[Candidate]:
    infos, norms = trial.criterion._tasks.infos(), observation.norms()
    weighed = []
    for number, outer in enumerate(outers):
        now = clock.now()
        share = max(deadline - now, 0.0) / (len(outers) - number)
        weighed.append(weigh(outer, infos, observation, norms, now + share))
    return weighed


def _gaba(outers: list[_Outer], count: int) -> tuple[_Outer, GABA]:
    """Return the GABA that is judged: the first whose floor this number of tasks can have, else one without a floor."""
    for outer in [*outers, "gaba"]:
        if isinstance(weighting := resolve("outer", outer), GABA) and weighting.floor * count < 1:
            return outer, weighting
    return {"name": "gaba", "floor": 0.0}, GABA(floor=0.0)
