"""What follows from the numbers: rules, each with its reason, its source and the evidence for it, and a study to run."""

from __future__ import annotations

import json
import pprint
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from mtl_axes._text import join, plural
from mtl_axes.advise.facts import Cosine, Finding, Norm, Ratio, Rule, TaskLoss, signed, sized
from mtl_axes.outer import GABA
from mtl_axes.signals import Signals

__all__ = ["ALIGNED", "FAR", "End", "findings", "gaba_end", "study_code", "unknowns"]

FAR = 10.0
"""Ratio of the norms above which adaptive weighting helps, according to the book."""
ALIGNED = 0.05
"""Cosine above which another task helps, according to the book."""

_BOOK = '"Gradient-Aware Multi-Task Learning for Predictive Maintenance"'
_CHAPTER = f"{_BOOK}, chapter 23, section 4"
_WEAK = "weak: a threshold taken from one family of data sets (C-MAPSS) and 5 seeds, not tested elsewhere"
_FEWEST = 3

# By rule, the weightings that are worth a study beside the equal constants.
_WORTH: dict[Rule, tuple[str, ...]] = {
    "conflict": ("pcgrad", "upgrad"),
    "beyond the floor": ("gaba",),
    "adaptive": ("gaba",),
    "unrelated": ("gaba",),
    "equal": ("gaba",),
    "not measured": ("uncertainty",),
}


class End(NamedTuple):
    """Where GABA's weights end if the norms stay.

    Attributes:
        outer: what it was built from, as ``compose`` takes it.
        weights: by task.
        floored: True if the floor holds the weight of the task with the largest norm.
        left: the ratio of ``lambda_i n_i`` that is left between the tasks with the largest and the smallest norm.
        capped: True if weights are capped at 1 / (K - 1), so that pulls are not equalised: the complement with K > 2.
    """

    outer: str | Mapping[str, Any]
    weights: Mapping[str, float]
    floored: bool
    left: float
    capped: bool

    @property
    def inverse(self) -> Mapping[str, Any]:
        """The same GABA in its inverse form."""
        return {**({"name": self.outer} if isinstance(self.outer, str) else self.outer), "form": "inverse"}


def gaba_end(outer: str | Mapping[str, Any], gaba: GABA, ratio: Ratio, norms: Sequence[Norm]) -> End:
    """Return where GABA ends on the mean norms, with the median ratio between the largest and the smallest."""
    means = {norm.task: norm.mean for norm in norms}
    means[ratio.largest] = ratio.median * (means[ratio.smallest] or 0.0)
    active = torch.tensor([mean is not None for mean in means.values()])
    values = torch.tensor([mean or 0.0 for mean in means.values()], dtype=torch.float64)
    still = GABA(beta=0.0, floor=gaba.floor, warmup=0, form=gaba.form)
    still.dtype = values.dtype
    weights = dict(zip(means, still(Signals(torch.ones_like(values), norms=values, active=active)).tolist(), strict=True))
    floored = dict(zip(means, still.diagnostics()["floor_active"].tolist(), strict=True))
    left = ratio.median * weights[ratio.largest] / weights[ratio.smallest]
    return End(outer, weights, bool(floored[ratio.largest]), left, gaba.form == "complement" and len(means) > 2)


def findings(
    losses: Sequence[TaskLoss],
    norms: Sequence[Norm],
    cosines: Sequence[Cosine],
    ratio: Ratio | None,
    end: End | None,
    *,
    primary: str | None,
    obstacle: str | None,
) -> tuple[Finding, ...]:
    """Return the rules that hold; the first is the recommendation.

    Args:
        losses, norms, cosines, ratio: what was measured.
        end: from :func:`gaba_end`; None if there is no ratio.
        primary: the task that matters most.
        obstacle: why no gradient could be measured.
    """
    rules = _broken(losses, norms)
    if len(losses) == 1:
        rules.append(
            Finding(
                "one task",
                'There is nothing to weight: keep outer="fixed" and choose on the inner axis.',
                f"{losses[0].task} is the only task",
                "arithmetic: a single weight only scales the learning rate",
                "strong",
            )
        )
    elif obstacle is not None or not norms:
        rules.append(
            Finding(
                "not measured",
                'No gradient could be measured. Use outer="fixed" or a weighting that reads losses; both work without any.',
                obstacle or "no batch had two tasks with a gradient on shared parameters",
                "this library: exact norms and cosines need an eager graph without reentrant checkpointing",
                "strong",
            )
        )
    elif ratio is not None and end is not None:
        pairs = [cosine for cosine in cosines if cosine.mean is not None]
        if primary is not None:
            pairs = [cosine for cosine in pairs if primary in (cosine.first, cosine.second)]
        rules += [*_weighing(ratio, pairs, end, losses, primary), *_more_batches(ratio, pairs)]
    return (*rules, *_inner(losses))


def _broken(losses: Sequence[TaskLoss], norms: Sequence[Norm]) -> list[Finding]:
    rules = []
    if broken := [loss for loss in losses if loss.not_finite]:
        rules.append(
            Finding(
                "loss not finite",
                f"Fix the loss of {join([loss.task for loss in broken])} first: no weight can.",
                "; ".join(
                    f"the loss or gradient of {loss.task} was NaN or infinite in {loss.not_finite} of {len(loss.values)} "
                    "batches"
                    for loss in broken
                ),
                "this library: such a batch updates no weight, and the total loss of that step is not finite",
                "strong",
            )
        )
    # Every known value is 0; the others were not measured.
    if len(losses) > 1 and (zero := [norm.task for norm in norms if norm.zeros and norm.zeros == len(norm.known)]):
        rules.append(
            Finding(
                "no gradient",
                f"Check the model: {join(zero)} cannot train the shared parameters, whatever the weight.",
                f"the gradient of {join(zero)} on the shared parameters was 0 in every batch: a dead ReLU, a detached "
                "input, a loss beyond its clip, or nothing in common with the other tasks",
                "arithmetic: a weight times 0",
                "strong for these batches",
            )
        )
    return rules


def _weighing(
    ratio: Ratio, cosines: list[Cosine], end: End, losses: Sequence[TaskLoss], primary: str | None
) -> list[Finding]:
    opposed = [cosine for cosine in cosines if cosine.side_of(0.0) == "below"]
    rules = [_conflict(opposed, primary)] if opposed else []
    least = min(cosines, key=lambda cosine: cosine.mean or 0.0, default=None)
    if ratio.median > ratio.limit and end.floored:
        rules.append(_beyond(ratio, end, losses))
    elif ratio.median >= FAR:
        aligned = least is not None and (least.mean or 0.0) >= ALIGNED
        rules.append(_adaptive(ratio, least, end) if aligned else _unrelated(ratio, least))
    elif not opposed:
        rules.append(_equal(ratio, least))
    return rules


def _conflict(opposed: list[Cosine], primary: str | None) -> Finding:
    worst = min(opposed, key=lambda cosine: cosine.mean or 0.0)
    apart = f"{worst.first} and {worst.second} apart" if primary is None else f"{primary} alone"
    return Finding(
        "conflict",
        f"Train {apart} first, as a comparison: joint training itself may hurt here, and no weight fixes that. If the tasks "
        "must share parameters, compare pcgrad and upgrad, which change the direction of the gradients, with constants.",
        "; ".join(f"{_cosine(cosine)}, negative in {cosine.conflicts or 0:.0%} of the batches" for cosine in opposed),
        f"{_CHAPTER}: a negative cosine rules multi-task learning out",
        f"{_WEAK}; a cosine at the start can change its sign within a hundred steps",
    )


def _beyond(ratio: Ratio, end: End, losses: Sequence[TaskLoss]) -> Finding:
    weights = ", ".join(f'"{task}": {weight:.3g}' for task, weight in end.weights.items())
    return Finding(
        "beyond the floor",
        "Use constants: GABA would end at its floor, and a constant does the same without measuring anything: "
        f'outer={{"name": "fixed", "weights": {{{weights}}}}}. To equalise the pulls, rescale {_rescaled(ratio, losses)}.',
        f"{_ratio(ratio)}. A floor of {ratio.floor:g} can compensate a ratio of {sized(ratio.limit)}, which is "
        f"{sized(ratio.over)} times too little: {ratio.largest} would still pull {sized(end.left)} times as hard",
        "arithmetic on GABA's last step, max(ema, floor) / sum; and this project's C-MAPSS runs (docs/cmapss.md), in which "
        "the constant and GABA were not distinguishable",
        "strong for the weights, which are arithmetic; their effect on a metric was measured on the four subsets of C-MAPSS "
        "with 5 seeds",
    )


def _rescaled(ratio: Ratio, losses: Sequence[TaskLoss]) -> str:
    loss = next(loss for loss in losses if loss.task == ratio.largest)
    rescaled = f"the loss of {ratio.largest} by 1 / {sized(ratio.median)}"
    # With an exponent near 0 the loss hardly depends on its units, and no change of them would do.
    if loss.exponent is None or loss.exponent < 0.5:
        return rescaled
    return f"{rescaled}, or its target to units about {sized(ratio.median ** (1 / loss.exponent))} times as large"


def _adaptive(ratio: Ratio, least: Cosine | None, end: End) -> Finding:
    because = f"{_ratio(ratio)}, which is {FAR:g} or more"
    if end.capped:
        because += (
            f". In its published form GABA's weights are at most 1 / (K - 1): {ratio.largest} would still pull "
            f'{sized(end.left)} times as hard, which form="inverse" equalises as far as its floor allows'
        )
    elif ratio.floor > 0 and ratio.limit >= ratio.median:
        because += f" and within the ratio of {sized(ratio.limit)} that the floor can compensate"
    return Finding(
        "adaptive",
        f"Adaptive weighting can help: outer={_quoted(end.inverse if end.capped else end.outer)}, with every=10 to save "
        "time. Compare it with constants in a study.",
        because + (f"; {_cosine(least)}, which is {ALIGNED:g} or more" if least is not None else ""),
        _CHAPTER,
        f"{_WEAK}. In this project's runs (docs/cmapss.md) GABA did no better than a constant",
    )


def _quoted(outer: str | Mapping[str, Any]) -> str:
    return json.dumps(outer if isinstance(outer, str) else dict(outer))


def _unrelated(ratio: Ratio, least: Cosine | None) -> Finding:
    return Finding(
        "unrelated",
        'Start with equal constants, outer="fixed": the norms are far apart, but the gradients have little in common. '
        f"{ratio.largest} then pulls {sized(ratio.median)} times as hard as {ratio.smallest}; lower its weight if that is "
        "not intended.",
        _ratio(ratio) + (f"; {_cosine(least)}, below {ALIGNED:g}" if least is not None else ""),
        f"{_CHAPTER}, asks for both a ratio of {FAR:g} and a cosine of {ALIGNED:g}",
        _WEAK,
    )


def _equal(ratio: Ratio, least: Cosine | None) -> Finding:
    return Finding(
        "equal",
        'Start with equal constants, outer="fixed": an adaptive weighting has little to compensate.',
        f"{_ratio(ratio)}, below {FAR:g}" + (f"; {_cosine(least)}" if least is not None else ""),
        f"{_BOOK}, chapter 20, section 4 (a small ratio rules GABA out) and chapter 23, section 4",
        _WEAK,
    )


def _more_batches(ratio: Ratio, cosines: list[Cosine]) -> list[Finding]:
    values: list[tuple[str, Ratio | Cosine, tuple[float, ...]]] = [
        ("the ratio", ratio, (FAR, ratio.limit) if ratio.floor > 0 else (FAR,)),
        *((f"the cosine of {cosine.first} and {cosine.second}", cosine, (0.0, ALIGNED)) for cosine in cosines),
    ]
    unclear = []
    for name, value, bounds in values:
        if near := [sized(bound) for bound in bounds if value.side_of(bound) == "open"]:
            unclear.append(f"{name} is not clearly on one side of {' or of '.join(near)}")
    if not unclear:
        return []
    return [
        Finding(
            "more batches",
            "Use more batches before you rely on this: raise steps=, or seconds= if they ran out.",
            "; ".join(unclear[:3]) + (f"; and {len(unclear) - 3} more" if len(unclear) > 3 else ""),
            f"two standard errors over the batches, with at least {_FEWEST} of them",
            "strong for the noise between batches of this model as it is now",
        )
    ]


def _inner(losses: Sequence[TaskLoss]) -> list[Finding]:
    regressions = [loss.task for loss in losses if loss.kind == "regression"]
    if not regressions:
        return []
    return [
        Finding(
            "inner axis",
            f"If an error of {join(regressions)} costs more in one direction, or some targets are rare, use the inner axis: "
            "asymmetric, quantile, failure_biased. A weight per task cannot do this.",
            "gradients do not show what errors cost; only you know",
            _CHAPTER,
            "weak: in this project's runs failure_biased lowered the mean NASA score on all four subsets of C-MAPSS, and on "
            "one of them beyond the noise of 5 seeds",
        )
    ]


def unknowns(*, timed: bool, batches: int, ratio: Ratio | None) -> tuple[str, ...]:
    """Return what the advice cannot know."""
    limits = [
        "The gradients after the first hundred steps: on a simulated fleet 200 steps took the ratio from 1,799 to 1,087 and "
        "the cosine from +0.19 to +0.63 (docs/advise.md). Call advise() again on a model that was trained for a while.",
        "What helps on new data: gradients on training batches say nothing about generalisation.",
        "Which metric matters to you, and whether adaptive weights beat tuned constants on it: a Study answers that.",
        "The norms at other batch sizes: a mini-batch's gradient includes its noise, which changes norms and their ratio.",
    ]
    if timed:
        limits.append(
            "The time of your optimizer, data loading and logging: the same for all weightings, it brings ratios nearer 1."
        )
    if batches < _FEWEST:
        limits.append(f"How much batches differ: only {plural(batches, 'batch', 'es')} seen. Pass more, or more seconds.")
    if ratio is not None:
        limits.append(
            "Whether the ratio is due to tasks or to units: a loss in other units changes it, by their factor squared for "
            "squared errors (column `targets x c`)."
        )
    return tuple(limits)


def study_code(inner: Any, tasks: tuple[str, ...], rules: Sequence[Finding], end: End | None) -> str:
    """Return a program text: a Study of the weightings that the rules name, on the user's own shapes.

    Args:
        inner: the shapes, from the criterion's ``config``.
        tasks: their names.
        rules: those that hold.
        end: where GABA's weights end, and which GABA; None without norms.
    """
    names = [finding.rule for finding in rules]
    outer: list[Any] = ["fixed"]
    if end is not None and "beyond the floor" in names:
        outer.append({"name": "fixed", "weights": {task: float(f"{weight:.4g}") for task, weight in end.weights.items()}})
    outer += [end.outer if name == "gaba" and end is not None else name for rule in names for name in _WORTH.get(rule, ())]
    if end is not None and end.capped and "adaptive" in names:
        outer.append(end.inverse)
    shapes = [inner, *(inner.values() if isinstance(inner, dict) else ())]
    nameless = any(isinstance(shape, dict) and isinstance(shape.get("class"), str) for shape in shapes)
    return "\n".join(
        [
            "from mtl_axes import Study",
            "",
            "# train(criterion, seed) is your own training; it returns the metrics, such as {'rmse': 12.3}",
            "Study(",
            *_argument("outer", outer),
            *(["    # your shapes are not registered; mse is used in their place"] if nameless else []),
            *_argument("inner", ["mse" if nameless else inner]),
            "    seeds=5,",
            "    out='runs/advice',",
            "    metrics={'rmse': 'min'},",
            # One task has no weights to tune.
            *(["    baselines=('ended', 'tuned'),"] if len(tasks) > 1 else []),
            *_argument("compose", {"tasks": list(tasks)}),
            ").run(train)",
        ]
    )


def _argument(name: str, value: object) -> list[str]:
    text = f"{name}={pprint.pformat(value, width=84 - len(name), sort_dicts=False)},"
    first, *rest = text.splitlines()
    return [f"    {first}", *(f"    {' ' * (len(name) + 1)}{line}" for line in rest)]


def _ratio(ratio: Ratio) -> str:
    spread = f" ({sized(ratio.low)} to {sized(ratio.high)})" if len(ratio.values) > 1 else ""
    return f"the gradient norm of {ratio.largest} is {sized(ratio.median)} times{spread} the norm of {ratio.smallest}"


def _cosine(cosine: Cosine) -> str:
    sd = "" if cosine.sd is None else f" (sd {cosine.sd:.2f})"
    return f"cosine {cosine.first}, {cosine.second} {signed(cosine.mean or 0.0)}{sd}"
