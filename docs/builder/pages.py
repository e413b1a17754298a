"""The text of the reference: a page for each strategy, and one with tables of all."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from curves import Picture

from mtl_axes import create
from mtl_axes.describe import REQUIRED, Description
from mtl_axes.outer.stages import Stage

AXES = {"outer": "Outer weightings", "inner": "Inner shapes", "weight": "Target weights"}


def page(about: Description, picture: Picture) -> str:
    """Return the page of a strategy."""
    parts = [f"# `{about.name}`", about.summary]
    if about.formula and about.formula != about.summary:
        parts.append(f"```\n{about.formula}\n```")
    if about.prose:
        parts.append(about.prose)
    parts.append(f"![{about.name}](../images/{about.axis}_{about.name}.png)\n\n*{picture.caption}*")
    if about.options:
        rows = [[f"`{name}`", default(value), about.arguments.get(name, "")] for name, value in about.options.items()]
        parts.append("## Options\n\n" + table(["option", "default", ""], rows))
    given = {name: text for name, text in about.arguments.items() if name not in about.options}
    if given:
        parts.append("## Inputs\n\n" + table(["input", ""], [[f"`{name}`", text] for name, text in given.items()]))
    if about.returns:
        parts.append(f"Returns {about.returns}")
    parts.append("## Properties\n\n" + table(["", ""], [list(row) for row in properties(about)]))
    if about.raises:
        parts.append(
            "## Errors\n\n" + table(["error", "when"], [[f"`{name}`", text] for name, text in about.raises.items()])
        )
    if about.example:
        parts.append(f"## Example\n\n```pycon\n{about.example}\n```")
    if about.references:
        parts.append("## References\n\n" + about.references)
    parts.append(f"Also printed by `mtl-axes show {about.name}`. [All strategies](../README.md)")
    return "\n\n".join(parts) + "\n"


def cell(text: str) -> str:
    """Return text for a cell of a table."""
    return " ".join(text.split()).replace("|", r"\|")


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(cell(text) for text in row) + " |" for row in rows)])


def default(value: object) -> str:
    """Return the default of an option."""
    return "required" if value is REQUIRED else f"`{value!r}`"


def properties(about: Description) -> Iterator[tuple[str, str]]:
    """Return what a strategy promises, in words; ``mtl_axes.testing`` holds it to that."""
    claims = about.claims
    if about.axis == "weight":
        yield "kinds of task", ", ".join(sorted(claims["kinds"]))
        return
    if about.axis == "inner":
        bound = claims["lower_bound"]
        yield "kinds of task", told(about, "kinds", ", ".join(sorted(claims["kinds"])))
        yield "couples", told(about, "coupling", coupling(claims))
        least = "none: it can be negative without bound" if bound is None else f"{bound:g}"
        yield "smallest loss", told(about, "lower_bound", least)
        if claims["trailing"]:
            yield "prediction", "several numbers in an extra last dimension"
        for what in ("target", "prediction"):
            low, high = claims[f"{what}_range"]
            if low > -math.inf or high < math.inf:
                yield f"range of the {what}", f"[{low:g}, {high:g}]"
        return
    yield "reads", told(about, "needs", NEEDS[claims["needs"]] if claims["reads_signals"] else "nothing")
    yield "cost", told(about, "needs", cost(claims))
    yield "state", state_of(about)
    whole = total(claims) + (" while all tasks are active" if claims["total"] else "")
    yield "sum of the weights", told(about, "total", whole)
    if claims["learnable"]:
        yield "learned", "by your optimizer, which gets `criterion.param_groups()`"
    yield "sign", told(about, "sign", SIGNS[claims["sign"]])
    yield "absent task", told(about, "memoryless", absent(claims))
    if claims["scaling"]:
        stays = "weights stay" if claims["scaling"] == "invariant" else "weights divided by c"
        yield "all losses times c", stays + (", where those of its base do" if "base" in about.options else "")
    if claims["balances"]:
        yield "one loss times c", "its weight is divided by c, up to a common factor"
    order = "carries no meaning" if claims["symmetric"] else "matters, or the weights are random"
    yield "order of the tasks", told(about, "symmetric", order)
    if claims["nonnegative"]:
        yield "refuses", "shapes that can be negative: it takes ratios or logarithms of losses"
    if claims["wants_after_step"]:
        yield "also needs", "the loss after the optimizer step, see [the guide](../../guide.md#the-loss-after-the-step)"


def told(about: Description, claim: str, text: str) -> str:
    """Return what is said of a claim. What follows from a base is not told for the one of the example alone."""
    given = inspect.getattr_static(about.cls, claim)
    if "base" not in about.options or not isinstance(given, property):
        return text
    if about.axis == "inner":
        return "those of its base that its weight serves" if claim == "kinds" else "as its base"
    example: Any = getattr(about.cls, "example", {})
    return "as its base" if given is vars(Stage)[claim] else f"{text}, around `{example['base']}`"


NEEDS = {"losses": "the losses", "norms": "the gradient norms", "gramian": "the Gramian of the gradients"}
COST = {
    "losses": "Nothing beside the losses.",
    "norms": "A backward per task through what is shared in measured steps, less with other probes: [Cost](../../cost.md).",
    "gramian": "A backward per task through what is shared in measured steps: [Cost](../../cost.md).",
}
ON_HOST = " Its small problem is solved on the CPU: a measured step waits for the device."
AFTER_STEP = " One more forward after the optimizer step."
SIGNS = {"positive": "positive", "nonnegative": "0 or positive", "any": "any"}


def cost(claims: Any) -> str:
    """Return what a weighting costs beside the losses and their sum."""
    further = (ON_HOST if claims["on_host"] else "") + (AFTER_STEP if claims["wants_after_step"] else "")
    return COST[claims["needs"]] + further


def total(claims: Any) -> str:
    """Return the sum of the weights in a word."""
    return {"1": "1", "K": "K"}.get(claims["total"], "free")


def absent(claims: Any) -> str:
    """Return what becomes of an absent task."""
    return "weight 0, the others as if it were not there" if claims["memoryless"] else "keeps its weight and state"


def coupling(claims: Any) -> str:
    """Return what a shape couples."""
    if claims["coupling"] == "batch":
        return "the samples of a batch"
    return "the entries of a sample" if claims["pooled"] else "nothing"


def state_of(about: Description) -> str:
    """Return what a weighting saves, with shapes: the weights themselves only where they go on from the last ones."""
    weighting = create("outer", about.name, **getattr(about.cls, "example", {}))
    weighting.bind_unnamed(7, torch.float64)  # a number that no other dimension has
    any_base = "base" in about.options
    shapes = []
    for key, value in weighting.state_dict().items():
        module, _, name = key.rpartition(".")
        owner: Any = weighting.get_submodule(module)
        if any_base and module:
            continue
        if name == "_extra_state":
            shapes.append("random generator")
        elif name == "current":
            # Those of a stage around something that remembers are made anew from it.
            if not owner.memoryless and all(getattr(child, "memoryless", True) for child in owner.children()):
                shapes.append("weights (K)" if not module else "average inside (K)")
        else:
            sizes = ", ".join("K" if size == 7 else str(size) for size in value.shape)
            shapes.append(f"{name.replace('_', ' ')} ({sizes})" if sizes else name)
    own = [shape for shape in shapes if shape != "weights (K)"]
    return ", ".join([*(own or shapes), *(["that of its base"] if any_base else [])]) or "none"


def paper(about: Description) -> str:
    """Return the paper that the references begin with, as far as its year; "" where they begin with something else."""
    first = re.split(r"(?<=\w\w)[.;] |(?<=\w\w)\.$", " ".join(about.references.split()))[0]
    found = re.match(r".+?\b(?:19|20)\d\d\b", first)
    return (found[0] if found else first) if '"' in first else ""


INTRODUCTION = """\
# Reference

Every strategy that the library brings, from the registry itself. This page and those behind it are written by `python
docs/builder`, and a test compares them with what it would write. In a shell, `mtl-axes list` and `mtl-axes show NAME`
print the names and docstrings of whatever is installed, plugins included.

Which one? Begin with `fixed` and tuned constants: they are the baseline to beat. Where losses differ by orders of
magnitude and their sizes are all that is wrong, a weighting that reads losses costs nothing (`uncertainty`,
`scale_invariant`, `gls`). Where the gradients on the shared parameters should be alike, take one that reads norms
(`inverse_norm`, `gaba`, `gradnorm`). Where tasks pull against each other, take one that reads the Gramian (`upgrad`,
`nash_mtl`, `cagrad`), and look at `criterion.report.cosines` first: without negative cosines there is no conflict to
resolve. Any of them can be smoothed, floored, clipped, and warmed up by the stages `ema`, `floor`, `clip`, `warmup`.

Not in it, because they are no weight per task from losses, a Gramian and a small state: GradDrop, TrimmedMean,
AdaTask and ExcessMTL (element by element), MoCo and DB-MTL with beta > 0 (an average of all K gradients), MoDo and
SDMGrad (gradients of two or three batches), Auto-lambda, MOML and FORUM (validation data), BayesAgg-MTL (a posterior
over gradients).
"""

NOTES = {
    "outer": """\
The cost follows from what is read. Losses cost nothing beside themselves. Norms and the Gramian take a backward per task
through the shared part in the steps that measure; `every=` and the [probes](../cost.md) make that less. `famo` takes one
more forward.

"""
}
PROBLEM = """\
## The two-task problem

The pictures of the weightings show their weights on one and the same path, whatever they are: two quadratic losses of
two parameters, the first a hundred times larger. The path descends to where both gradients are opposed, a hundred
times apart. Losses and gradients carry noise of 5 %; an epoch is 30 steps. Learned weights are learned by Adam with a
rate of 0.05.
"""


def index(descriptions: dict[str, list[Description]]) -> str:
    """Return the page with the tables."""
    parts = [INTRODUCTION.rstrip()]
    rows: list[list[str]]
    for axis, all_of_axis in descriptions.items():
        head, row = HEADS[axis]
        rows = [
            [f"[`{about.name}`]({axis}/{about.name}.md)", about.summary.rstrip("."), *row(about)] for about in all_of_axis
        ]
        parts.append(f"## {AXES[axis]}\n\n{NOTES.get(axis, '')}" + table(["", "", *head], rows))
    return "\n\n".join([*parts, PROBLEM])


def _outer_row(about: Description) -> list[str]:
    claims = about.claims
    after = "0" if claims["memoryless"] else "kept"
    return [
        told(about, "needs", claims["needs"] if claims["reads_signals"] else "nothing"),
        state_of(about),
        told(about, "total", total(claims)),
        told(about, "sign", SIGNS[claims["sign"]]),
        told(about, "memoryless", after),
        paper(about),
    ]


def _inner_row(about: Description) -> list[str]:
    claims = about.claims
    bound = "none" if claims["lower_bound"] is None else f"{claims['lower_bound']:g}"
    return [
        told(about, "kinds", ", ".join(sorted(claims["kinds"]))),
        told(about, "coupling", coupling(claims)),
        told(about, "lower_bound", bound),
        paper(about),
    ]


def _weight_row(about: Description) -> list[str]:
    return [", ".join(sorted(about.claims["kinds"])), paper(about)]


HEADS: dict[str, tuple[list[str], Callable[[Description], list[str]]]] = {
    "outer": (["reads", "state", "sum", "sign", "weight of an absent task", "paper"], _outer_row),
    "inner": (["kinds", "couples", "smallest loss", "paper"], _inner_row),
    "weight": (["kinds", "paper"], _weight_row),
}
