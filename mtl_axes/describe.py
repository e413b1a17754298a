"""What a strategy says of itself: its docstring taken apart, its options and the claims of its class.

The command line and the reference page print it; :mod:`mtl_axes.testing` holds the claims to what the strategy does.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mtl_axes.errors import MtlAxesError
from mtl_axes.options import constructor_options
from mtl_axes.registry import Axis, lookup

__all__ = ["FLAGS", "REQUIRED", "Description", "describe", "describe_class", "parse"]

# The default of an option that has none.
REQUIRED = inspect.Parameter.empty

# Claims of a weighting that are true or false.
FLAGS = (
    "memoryless",
    "symmetric",
    "balances",
    "learnable",
    "nonnegative",
    "reads_signals",
    "moves",
    "on_host",
    "traceable",
    "wants_after_step",
)
_CLAIMS: dict[str, tuple[str, ...]] = {
    "outer": ("needs", "total", "sign", "scaling", *FLAGS),
    "inner": (
        "kinds",
        "coupling",
        "pooled",
        "trailing",
        "masks",
        "detaches",
        "lower_bound",
        "target_range",
        "prediction_range",
    ),
    "weight": ("kinds",),
}
_SECTIONS = ("Args", "Returns", "Raises", "References")
_ITEM = re.compile(r"(?P<name>\*{0,2}[\w.]+)(?:\s*\([^)]*\))?:\s*(?P<text>.*)")
# What makes a line a formula: an operation between two terms, a power, an index, an absolute value, a call of a function.
_FORMULA = re.compile(r"[\w)\]|] ?[=+*/^<>] ?[\w(\[|-]|\w_\w|\|\w+\||\b(?:log|exp|max|min|sum|softmax|softplus)\b ?\(?")


@dataclass(frozen=True)
class Description:
    """What is known of a registered strategy without running it.

    Attributes:
        axis: ``"outer"``, ``"inner"`` or ``"weight"``.
        name: the registered name.
        cls: its class.
        summary: the first line of its docstring.
        formula: its literal blocks; where there is none, the summary if that holds a formula, else "".
        prose: the paragraphs between the summary and the sections, without the literal blocks.
        arguments: its arguments, name -> text.
        returns: what it returns.
        raises: what it raises, name of the error -> when.
        example: its doctest, prompts and output included.
        references: papers, and where it differs from them.
        options: the constructor's arguments, name -> default, or :data:`REQUIRED`.
        claims: name -> value of what the class promises, which ``mtl_axes.testing`` checks.
    """

    axis: Axis
    name: str
    cls: type
    summary: str
    formula: str
    prose: str
    arguments: Mapping[str, str]
    returns: str
    raises: Mapping[str, str]
    example: str
    references: str
    options: Mapping[str, Any] = field(default_factory=dict)
    claims: Mapping[str, Any] = field(default_factory=dict)


def describe(axis: Axis, name: str, /) -> Description:
    """Return what a registered strategy says of itself.

    Args:
        axis: ``"outer"``, ``"inner"`` or ``"weight"``.
        name: a registered name, see :func:`mtl_axes.available`.

    Raises:
        UnknownNameError: no strategy has this name.

    >>> about = describe("inner", "huber")
    >>> about.summary, about.options
    ("Huber's loss: e^2 / 2 where |e| <= delta, else delta (|e| - delta / 2).", {'delta': 1.0})
    """
    return describe_class(axis, name, lookup(axis, name))


def describe_class(axis: Axis, name: str, cls: type, /) -> Description:
    """Return what a class of an axis says of itself, registered or not."""
    parts = {
        name: text if name == "example" else _plain(text) for name, text in parse(vars(cls).get("__doc__") or "").items()
    }
    return Description(
        axis,
        name,
        cls,
        summary=parts["summary"],
        formula=parts["formula"] or (parts["summary"] if _FORMULA.search(parts["summary"]) else ""),
        prose=parts["prose"],
        arguments=_items(parts["Args"]),
        returns=_joined(parts["Returns"]),
        raises=_items(parts["Raises"]),
        example=parts["example"],
        references=parts["References"],
        options=constructor_options(cls),
        claims=_claims(axis, cls),
    )


def parse(docstring: str) -> dict[str, str]:
    """Return the parts of a docstring: summary, formula, prose, the sections by their heads, and example.

    Blank lines inside a part are kept. A part that is not there is "".
    """
    parts: dict[str, list[str]] = {name: [] for name in ("summary", "formula", "prose", *_SECTIONS, "example")}
    here, literal = "summary", False
    prompted = False
    for line in inspect.cleandoc(docstring).splitlines():
        head = re.fullmatch(r"(\w+):", line)
        indented = line.startswith(" ")
        if head is not None and head[1] in _SECTIONS:
            here, literal, prompted = head[1], False, False
            continue
        if here in _SECTIONS and line and not indented:
            here = "prose"
        if line.startswith(">>>"):
            prompted = True
        if prompted:
            # The output of an example ends at a blank line.
            prompted = bool(line)
            parts["example"].append(line)
            continue
        if literal and line and not indented:
            literal = False
            parts[here].append("")
        if here == "summary" and not line:
            here = "prose"
        if line.endswith("::") and not literal:
            literal = True
            line = line[:-2].rstrip() + ":" if line != "::" else ""
            if not line:
                continue
            parts[here].append(line)
            continue
        parts["formula" if literal and here == "prose" else here].append(line)
    texts = {name: inspect.cleandoc("\n" + "\n".join(lines)).strip("\n") for name, lines in parts.items()}
    texts["summary"] = _joined(texts["summary"])
    for name in ("formula", "prose"):
        texts[name] = re.sub(r"\n{3,}", "\n\n", texts[name])
    return texts


def _plain(text: str) -> str:
    """Return the text of a docstring with names as `name`, whatever their mark-up was."""
    return re.sub(r":(?:class|meth|func|mod|data|attr):`~?(?:[\w.]+\.)?(\w+)`", r"`\1`", text).replace("``", "`")


def _joined(text: str) -> str:
    return " ".join(text.split())


def _items(text: str) -> dict[str, str]:
    """Return the items ``name: text`` of a section; a line that is indented further goes on with the item before."""
    items: dict[str, str] = {}
    name = ""
    for line in text.splitlines():
        found = None if line.startswith(" ") else _ITEM.match(line)
        if found is not None:
            name = found["name"]
            items[name] = found["text"]
        elif name and line.strip():
            items[name] += " " + line.strip()
    return items


def _claims(axis: Axis, cls: type) -> dict[str, Any]:
    claims: dict[str, Any] = {}
    instance: object = None
    for name in _CLAIMS[axis]:
        value = getattr(cls, name, None)
        if isinstance(value, property):
            # It depends on the options: told for the options with which the class is shown.
            instance = _instance(cls) if instance is None else instance
            value = getattr(instance, name, None)
        claims[name] = value
    return claims


def _instance(cls: Any) -> object:
    try:
        return cls(**getattr(cls, "example", {}))
    except (MtlAxesError, TypeError):
        return object()
