"""Docstrings taken apart, and what every registered strategy has to say of itself."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch

from mtl_axes import InnerShape, available
from mtl_axes.describe import REQUIRED, Description, describe, describe_class, parse
from mtl_axes.errors import UnknownNameError
from mtl_axes.registry import Axis

AXES: tuple[Axis, ...] = ("outer", "inner", "weight")
NAMES = [(axis, name) for axis in AXES for name in available(axis)]
every_name = pytest.mark.parametrize(("axis", "name"), NAMES)


class Whole(InnerShape):
    r"""Summary in one line.

    ::

        loss = scale |e|
             = max(e, -e) scale

    First prose,
    in two lines. Here it goes on::

        more = formula

    Second prose.

    Args:
        scale: a factor, > 0; it
            goes on here: with a colon.
        *rest: others.

    Returns:
        (N, ...) losses,
        in two lines.

    Raises:
        OptionError: scale is not positive.
        DataError: never.

    >>> Whole(2.0)
    Whole(scale=2.0, shift=0.5)

    >>> 1 + 1
    2

    References:
        A. Author, "A title", 2020. Differs from the
        reference in nothing.
    """

    kinds: ClassVar[frozenset[str]] = frozenset({"regression"})
    example: ClassVar[dict[str, float]] = {"scale": 2.0}

    def __init__(self, scale: float, *, shift: float = 0.5) -> None:
        super().__init__()
        self.scale, self.shift = scale, shift

    @property
    def trailing(self) -> bool:
        return self.scale == 2.0

    def forward(self, prediction: torch.Tensor, target: torch.Tensor, /) -> torch.Tensor:
        return prediction


def test_every_part_of_a_docstring_is_found() -> None:
    """Summary, formulas, prose, sections, items that go on, example and references come out as they were written."""
    about = describe_class("inner", "whole", Whole)
    assert about.summary == "Summary in one line."
    assert about.formula.splitlines() == ["loss = scale |e|", "     = max(e, -e) scale", "", "more = formula"]
    assert about.prose.splitlines() == [
        "First prose,",
        "in two lines. Here it goes on:",
        "",
        "Second prose.",
    ]
    assert about.arguments == {"scale": "a factor, > 0; it goes on here: with a colon.", "*rest": "others."}
    assert about.returns == "(N, ...) losses, in two lines."
    assert about.raises == {"OptionError": "scale is not positive.", "DataError": "never."}
    assert about.example.splitlines() == [">>> Whole(2.0)", "Whole(scale=2.0, shift=0.5)", "", ">>> 1 + 1", "2"]
    assert about.references == 'A. Author, "A title", 2020. Differs from the\nreference in nothing.'
    assert about.options == {"scale": REQUIRED, "shift": 0.5}


def test_claims_are_those_of_the_class_and_of_its_example() -> None:
    """A claim that is a property is told for the options with which the class is shown."""
    claims = describe_class("inner", "whole", Whole).claims
    assert claims["trailing"] is True and claims["kinds"] == {"regression"} and claims["coupling"] == "sample"


@pytest.mark.parametrize("text", ["", "Only a line."])
def test_a_short_docstring_has_empty_parts(text: str) -> None:
    """What is not written is empty."""
    parts = parse(text)
    assert parts.pop("summary") == text
    assert set(parts.values()) == {""}


def test_a_docstring_is_not_inherited() -> None:
    """A class without a docstring does not show that of its base."""

    class Silent(Whole):
        kinds: ClassVar[frozenset[str]] = frozenset({"binary"})

    assert describe_class("inner", "silent", Silent).summary == ""


def test_a_formula_in_the_summary_counts() -> None:
    """Where there is no literal block, a summary with a formula is the formula; one of words alone is none."""
    assert describe("inner", "mse").formula == "Squared error e^2, without the factor 1/2."
    assert (
        describe_class("inner", "silent", type("Words", (InnerShape,), {"__doc__": "Some loss of a sample."})).formula == ""
    )


def test_an_unknown_name() -> None:
    """Names are looked up as everywhere, with near matches."""
    with pytest.raises(UnknownNameError, match="Did you mean 'huber'"):
        describe("inner", "hubr")


@every_name
def test_every_strategy_describes_itself(axis: Axis, name: str) -> None:
    """Summary, formula, what it returns and an example: no built-in leaves one out, and each option is explained."""
    about: Description = describe(axis, name)
    assert about.summary.endswith(".") and len(about.summary) <= 160
    assert about.formula, "a literal block, or a formula in the first line"
    assert about.returns
    assert about.example.startswith(">>> ") and len(about.example.splitlines()) > 1
    explained = {argument.lstrip("*") for key in about.arguments for argument in key.split(",")}
    assert set(about.options) <= explained, "every option is explained under Args"
    if about.options:
        assert "OptionError" in about.raises, "a constructor with options says which it refuses"
    assert all(text.strip() for text in (*about.arguments.values(), *about.raises.values()))


@every_name
def test_every_strategy_makes_every_claim_of_its_axis(axis: Axis, name: str) -> None:
    """A claim is never missing, and what the constructor needs is given as its example."""
    about = describe(axis, name)
    assert about.claims.get("kinds", True) is not None and about.claims.get("needs", True) is not None
    required = {option for option, default in about.options.items() if default is REQUIRED}
    assert required <= set(getattr(about.cls, "example", {}))
