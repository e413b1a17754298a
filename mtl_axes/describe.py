"""The parts of a strategy's docstring, its options, and the claims of its class.

Lists, reports and the reference pages print them; :mod:`mtl_axes.testing` checks the claims.
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

REQUIRED = inspect.Parameter.empty
"""Stands for the default of an option that has none."""

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
"""Claims of a weighting that are true or false."""
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
# A line is a formula if it has an operation between two terms, a power, an index, an absolute value or a function call.
_FORMULA = re.compile(r"[\w)\]|] ?[=+*/^<>] ?[\w(\[|-]|\w_\w|\|\w+\||\b(?:log|exp|max|min|sum|softmax|softplus)\b ?\(?")


@dataclass(frozen=True)
class Description:
    """What is known about a strategy without running it.

    Attributes:
        axis: ``"outer"``, ``"inner"`` or ``"weight"``.
        name: the registered name.
        cls: its class.
        summary: the first line of its docstring.
        formula: its literal blocks; without any, the summary if that holds a formula, else "".
        prose: the paragraphs between the summary and the sections, without the literal blocks.
        arguments, returns, raises, references: its sections; arguments and errors by name.
        example: its doctest, with prompts and output.
        options: the constructor's arguments, name -> default, or :data:`REQUIRED`.
        claims: what the class promises, name -> value; ``mtl_axes.testing`` checks it.
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
    """Return the description of a registered strategy.

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
    """Return the description of a strategy's class, registered or not."""
    parts = parse(vars(cls).get("__doc__") or "")
    plain = {part: _plain(text) for part, text in parts.items()}
    return Description(
        axis,
        name,
        cls,
        summary=plain["summary"],
        formula=plain["formula"] or (plain["summary"] if _FORMULA.search(plain["summary"]) else ""),
        prose=plain["prose"],
        arguments=_items(plain["Args"]),
        returns=_joined(plain["Returns"]),
        raises=_items(plain["Raises"]),
        example=parts["example"],
        references=plain["References"],
        options=constructor_options(cls),
        claims=_claims(axis, cls),
    )


def parse(docstring: str) -> dict[str, str]:
    """Return the parts of a docstring: summary, formula, prose, the sections by their heads, and example.

    Blank lines inside a part are kept. A missing part is "".
    """
    text = inspect.cleandoc(docstring) + "\n"
    # An example ends at a blank line, a section where the indent ends.
    example = "\n".join(re.findall(r"^>>>(?:.+\n)+", text, re.MULTILINE))
    text = re.sub(r"^>>>(?:.+\n)+", "", text, flags=re.MULTILINE)
    section = re.compile(rf"^({'|'.join(_SECTIONS)}):\n((?:(?: .*)?\n)+)", re.MULTILINE)
    sections = dict.fromkeys(_SECTIONS, "") | {head: inspect.cleandoc("\n" + body) for head, body in section.findall(text)}
    summary, _, text = section.sub("", text).partition("\n\n")
    literal = re.compile(r"::\n((?:(?: .*)?\n)+)")
    formula = "\n\n".join(inspect.cleandoc("\n" + block) for block in literal.findall(text))
    prose = re.sub(r"\n{3,}", "\n\n", re.sub(r"^:$", "", literal.sub(":\n\n", text), flags=re.MULTILINE))
    texts = {"summary": _joined(summary), "formula": formula, "prose": prose, **sections, "example": example}
    return {name: part.strip("\n") for name, part in texts.items()}


def _plain(text: str) -> str:
    """Return the text with every kind of mark-up of a name replaced by `name`."""
    return re.sub(r":(?:class|meth|func|mod|data|attr):`~?(?:[\w.]+\.)?(\w+)`", r"`\1`", text).replace("``", "`")


def _joined(text: str) -> str:
    return " ".join(text.split())


def _items(text: str) -> dict[str, str]:
    """Return the items ``name: text`` of a section; a line that is indented further continues the item above it."""
    lines = re.sub(r"\n\s+", " ", text).splitlines()
    return {item["name"]: item["text"] for line in lines if (item := _ITEM.match(line))}


def _claims(axis: Axis, cls: Any) -> dict[str, Any]:
    claims = {name: getattr(cls, name, None) for name in _CLAIMS[axis]}
    # A claim that depends on the options is read with the options of the class's example.
    if dependent := [name for name, value in claims.items() if isinstance(value, property)]:
        try:
            instance: object = cls(**getattr(cls, "example", {}))
        except (MtlAxesError, TypeError):
            instance = None
        claims |= {name: getattr(instance, name, None) for name in dependent}
    return claims
