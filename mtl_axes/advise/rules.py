"""What follows from the numbers: rules, each with its reason, where it comes from and how much is behind it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from mtl_axes._text import join
from mtl_axes.advise.facts import Cosine, Finding, Norm, Ratio, Rule, TaskLoss, signed, sized
from mtl_axes.outer import GABA
from mtl_axes.signals import Signals

__all__ = ["ALIGNED", "FAR", "End", "findings", "gaba_end", "inverse", "unknowns"]

FAR = 10.0
"""Ratio of the norms from which adaptive weighting has work to do, says the book."""
ALIGNED = 0.05
"""Cosine from which another task helps, says the book."""

_BOOK = '"Gradient-Aware Multi-Task Learning for Predictive Maintenance"'
_WEAK = "weak: a threshold read off one family of data sets (C-MAPSS) and 5 seeds; nobody has tested it elsewhere"
_ARITHMETIC = "strong for the weights, which is arithmetic; what they do to a metric is another question"
_FEWEST = 3


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
    """Return the rules that hold, the first of which is the recommendation.

    Args:
        losses, norms, cosines, ratio: what was measured.
        end: of :func:`gaba_end`; None exactly where the ratio is.
        primary: the task that matters.
        obstacle: why no gradient could be measured.
    """
    found = _broken(losses, norms)
    if len(losses) == 1:
        found.append(_one_task(losses[0]))
    elif obstacle is not None or not norms:
        found.append(_not_measured(obstacle))
    elif ratio is not None and end is not None:
        found += _weighing(ratio, _relevant(cosines, primary), end, losses, primary)
    order: tuple[Rule, ...] = ("more batches", "inner axis")
    return tuple(sorted([*found, *_inner(losses)], key=lambda finding: finding.rule in order))


def _relevant(cosines: Sequence[Cosine], primary: str | None) -> list[Cosine]:
    known = [cosine for cosine in cosines if cosine.mean is not None]
    return [cosine for cosine in known if primary is None or primary in (cosine.first, cosine.second)]


def _broken(losses: Sequence[TaskLoss], norms: Sequence[Norm]) -> list[Finding]:
    found = []
    broken = [loss for loss in losses if loss.not_finite]
    if broken:
        found.append(
            Finding(
                "loss not finite",
                f"Mend the loss of {join([loss.task for loss in broken])} first: a weight cannot.",
                "; ".join(
                    f"loss or gradient of {loss.task} NaN or infinite in {loss.not_finite} of {len(loss.values)} batches"
                    for loss in broken
                ),
                "this library: such a batch moves no weight, and the sum of that step is not finite",
                "strong",
            )
        )
    # Every value known is 0: the others have not been measured.
    still = [norm.task for norm in norms if norm.zeros and norm.zeros == sum(value is not None for value in norm.values)]
    if still and len(losses) > 1:
        found.append(
            Finding(
                "no gradient",
                f"Look at the model: {join(still)} cannot train what the tasks share, whatever the weight.",
                f"its gradient on the shared parameters was 0 in every batch: {join(still)}. A dead ReLU, a detached "
                "input, a loss beyond its clip, or nothing in common with the others",
                "arithmetic: a weight times 0",
                "strong for these batches",
            )
        )
    return found


def _one_task(loss: TaskLoss) -> Finding:
    return Finding(
        "one task",
        'There is nothing to weigh: keep outer="fixed" and choose on the inner axis.',
        f"{loss.task} is the only task",
        "arithmetic: one weight is a learning rate",
        "strong",
    )


def _not_measured(obstacle: str | None) -> Finding:
    return Finding(
        "not measured",
        'No advice on gradients can be given. Weightings that read losses, and outer="fixed", work without them.',
        obstacle or "no batch had two tasks with a gradient on what they share",
        "this library: the exact norms and cosines are measured in an eager graph without reentrant checkpointing",
        "strong",
    )


def _weighing(
    ratio: Ratio, cosines: list[Cosine], end: End, losses: Sequence[TaskLoss], primary: str | None
) -> list[Finding]:
    found = []
    opposed = [cosine for cosine in cosines if cosine.side_of(0.0) == "below"]
    if opposed:
        found.append(_conflict(opposed, primary))
    least = min(cosines, key=lambda cosine: cosine.mean or 0.0, default=None)
    aligned = least is not None and (least.mean or 0.0) >= ALIGNED
    if ratio.median > ratio.limit and end.floored:
        found.append(_beyond(ratio, end, losses))
    elif ratio.median >= FAR:
        found.append(_adaptive(ratio, least, end) if aligned else _unrelated(ratio, least))
    elif not opposed:
        found.append(_equal(ratio, least))
    return [*found, *_more_batches(ratio, cosines)]


def _conflict(opposed: list[Cosine], primary: str | None) -> Finding:
    worst = min(opposed, key=lambda cosine: cosine.mean or 0.0)
    apart = f"{worst.first} and {worst.second} apart" if primary is None else f"{primary} alone"
    return Finding(
        "conflict",
        f"Train {apart} first, to compare with: learning together may itself hurt here, and no weight mends that. Where "
        "tasks must share, pcgrad and upgrad bend the gradients; compare them with constants.",
        "; ".join(f"{_cosine(cosine)}, in conflict in {cosine.conflicts or 0:.0%} of the batches" for cosine in opposed),
        f"{_BOOK}, chapter 23, section 4: a negative cosine switches multi-task learning off",
        _WEAK + "; a cosine at the start can turn within a hundred steps",
    )


class End(NamedTuple):
    """Where GABA's weights go while the norms stay.

    Attributes:
        outer: what it was built from, as ``compose`` takes it.
        weights: by task.
        floored: True where the floor holds up the weight of the task with the largest norm.
        left: the ratio of ``lambda_i n_i`` that is left, of the task with the largest norm over that with the smallest.
        capped: True where a weight is capped at 1 / (K - 1), so that it does not even pulls out: the complement, K > 2.
    """

    outer: str | Mapping[str, Any]
    weights: Mapping[str, float]
    floored: bool
    left: float
    capped: bool


def gaba_end(outer: str | Mapping[str, Any], gaba: GABA, ratio: Ratio, norms: Sequence[Norm]) -> End:
    """Return where GABA ends on mean norms, of which the two furthest apart have the median ratio."""
    means = {norm.task: norm.mean for norm in norms}
    means[ratio.largest] = ratio.median * (means[ratio.smallest] or 0.0)
    active = torch.tensor([mean is not None for mean in means.values()])
    values = torch.tensor([mean or 0.0 for mean in means.values()], dtype=torch.float64)
    still = GABA(beta=0.0, floor=gaba.floor, warmup=0, form=gaba.form)
    still.dtype = values.dtype
    weights = dict(zip(means, still(Signals(torch.ones_like(values), norms=values, active=active)).tolist(), strict=True))
    floored = dict(zip(means, still.diagnostics()["floor_active"].tolist(), strict=True))
    return End(
        outer,
        weights,
        bool(floored[ratio.largest]),
        ratio.median * weights[ratio.largest] / weights[ratio.smallest],
        gaba.form == "complement" and len(means) > 2,
    )


def _beyond(ratio: Ratio, end: End, losses: Sequence[TaskLoss]) -> Finding:
    told = ", ".join(f'"{task}": {weight:.3g}' for task, weight in end.weights.items())
    return Finding(
        "beyond the floor",
        "Use constants: GABA would end at its floor, and a constant does the same and measures nothing: "
        f'outer={{"name": "fixed", "weights": {{{told}}}}}.'
        f" Where the pulls are to be equal, rescale: {_rescaled(ratio, losses)}.",
        f"{_ratio(ratio)}. A floor of {ratio.floor:g} makes up for {sized(ratio.limit)}, {sized(ratio.over)} times too "
        f"little: {ratio.largest} goes on to pull {sized(end.left)} times as hard",
        "arithmetic on GABA's last step, max(ema, floor) / sum; and this project's C-MAPSS runs (docs/cmapss.md), where "
        "the constant and GABA could not be told apart",
        _ARITHMETIC + ", measured on the four subsets of C-MAPSS with 5 seeds",
    )


def _rescaled(ratio: Ratio, losses: Sequence[TaskLoss]) -> str:
    loss = next(loss for loss in losses if loss.task == ratio.largest)
    said = f"the loss of {ratio.largest} by 1 / {sized(ratio.median)}"
    # Near 0 a loss hardly knows its units, and no change of them would do.
    if loss.exponent is None or loss.exponent < 0.5:
        return said
    return f"{said}, or its target to units about {sized(ratio.median ** (1 / loss.exponent))} times as large"


def _adaptive(ratio: Ratio, least: Cosine | None, end: End) -> Finding:
    outer = inverse(end.outer) if end.capped else end.outer
    within = f" and within what the floor makes up for ({sized(ratio.limit)})" if ratio.limit >= ratio.median else ""
    return Finding(
        "adaptive",
        f"Adaptive weighting has work to do: outer={_quoted(outer)}, with every=10 for its cost; settle it against "
        "constants.",
        f"{_ratio(ratio)}, which is {FAR:g} or more"
        + (within if ratio.floor > 0 and not end.capped else "")
        + (
            f". As published GABA's weights are at most 1 / (K - 1): {ratio.largest} would go on to pull {sized(end.left)} "
            'times as hard, which form="inverse" evens out as far as its floor lets it'
            if end.capped
            else ""
        )
        + (f"; {_cosine(least)}, which is {ALIGNED:g} or more" if least is not None else ""),
        f"{_BOOK}, chapter 23, section 4",
        _WEAK + ". In this project's runs (docs/cmapss.md) GABA did what a constant does",
    )


def inverse(outer: str | Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the same GABA in its inverse form."""
    return {**({"name": outer} if isinstance(outer, str) else outer), "form": "inverse"}


def _quoted(outer: str | Mapping[str, Any]) -> str:
    return json.dumps(outer if isinstance(outer, str) else dict(outer))


def _unrelated(ratio: Ratio, least: Cosine | None) -> Finding:
    return Finding(
        "unrelated",
        'Begin with equal constants, outer="fixed": the norms are far apart, but the gradients have little in common. '
        f"With them {ratio.largest} pulls {sized(ratio.median)} times as hard as {ratio.smallest}: where that is not meant, "
        "weight the one loss down.",
        _ratio(ratio) + (f"; {_cosine(least)}, below {ALIGNED:g}" if least is not None else ""),
        f"{_BOOK}, chapter 23, section 4, asks for both a ratio of {FAR:g} and a cosine of {ALIGNED:g}",
        _WEAK,
    )


def _equal(ratio: Ratio, least: Cosine | None) -> Finding:
    return Finding(
        "equal",
        'Equal constants are enough to begin with: outer="fixed". An adaptive weighting has little to make up for.',
        f"{_ratio(ratio)}, below {FAR:g}" + (f"; {_cosine(least)}" if least is not None else ""),
        f"{_BOOK}, chapter 20, section 4 (a small ratio disqualifies GABA) and chapter 23, section 4",
        _WEAK,
    )


def _more_batches(ratio: Ratio, cosines: list[Cosine]) -> list[Finding]:
    open_ones = []
    bounds = _open(ratio, (FAR, ratio.limit) if ratio.floor > 0 else (FAR,))
    if bounds:
        open_ones.append(f"the ratio is not clearly on one side of {bounds}")
    for cosine in cosines:
        bounds = _open(cosine, (0.0, ALIGNED))
        if bounds:
            open_ones.append(f"the cosine of {cosine.first} and {cosine.second} is not clearly on one side of {bounds}")
    if not open_ones:
        return []
    return [
        Finding(
            "more batches",
            "Take more batches before you believe this: steps=, and seconds= where they ran out.",
            "; ".join(open_ones[:3]) + (f"; and {len(open_ones) - 3} more" if len(open_ones) > 3 else ""),
            f"two standard errors over the batches, at least {_FEWEST} of them",
            "strong for the noise between batches of this model as it is now",
        )
    ]


def _open(value: Ratio | Cosine, bounds: Sequence[float]) -> str:
    return " or of ".join(sized(bound) for bound in bounds if value.side_of(bound) == "open")


def _inner(losses: Sequence[TaskLoss]) -> list[Finding]:
    numbers = [loss.task for loss in losses if loss.kind == "regression"]
    if not numbers:
        return []
    return [
        Finding(
            "inner axis",
            f"If an error of {join(numbers)} costs more on one side, or where targets are rare, that is for the inner "
            "axis: asymmetric, quantile, failure_biased. No weight per task does it.",
            "what errors cost is not in the gradients; only you know",
            f"{_BOOK}, chapter 23, section 4",
            "weak: in this project's runs failure_biased lowered the mean NASA score of all four subsets of C-MAPSS, and "
            "beyond the noise of 5 seeds on one",
        )
    ]


def unknowns(*, timed: bool, batches: int, ratio: Ratio | None) -> tuple[str, ...]:
    """Return what the advice cannot tell."""
    said = [
        "What the gradients are after the first hundred steps: on a simulated fleet 200 of them took a ratio from 1,799 to "
        "1,087 and a cosine from +0.19 to +0.63 (docs/advise.md). Call advise() again on a model that was trained for a "
        "while.",
        "What helps on new data: gradients on training batches say nothing of generalisation.",
        "Which metric matters to you, and whether adaptive weights beat tuned constants there: a Study settles it.",
        "Norms of a mini-batch hold its noise: with other batch sizes they, and their ratio, are others.",
    ]
    if timed:
        said.append(
            "The time of your optimizer, data loading and logging, which is the same for all and brings ratios nearer 1."
        )
    if batches < _FEWEST:
        said.append(
            f"How much the batches differ: only {batches} of them {'was' if batches == 1 else 'were'} seen. Pass more, or "
            "more seconds."
        )
    if ratio is not None:
        said.append(
            "Whether the ratio is one of tasks or of units: a loss in other units changes it, by their factor squared "
            "for squared errors (column `targets x c`)."
        )
    return tuple(said)


def _ratio(ratio: Ratio) -> str:
    spread = f" ({sized(ratio.low)} to {sized(ratio.high)})" if len(ratio.values) > 1 else ""
    return f"the gradient of {ratio.largest} is {sized(ratio.median)} times{spread} that of {ratio.smallest}"


def _cosine(cosine: Cosine) -> str:
    sd = "" if cosine.sd is None else f" (sd {cosine.sd:.2f})"
    return f"cosine {cosine.first}, {cosine.second} {signed(cosine.mean or 0.0)}{sd}"
