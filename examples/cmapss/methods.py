"""Which methods a study compares: the 2x2 grid, its control, and pairs of registered names given on the command line."""

from __future__ import annotations

import ast
from dataclasses import dataclass

import torch

from mtl_axes import MultiTaskCriterion, compose
from mtl_axes.errors import MtlAxesError

from .errors import InputError
from .model import TwoHeads

TASKS = ("rul", "health")
FLOOR = 0.05
"""GABA's floor before the weights are rescaled to sum to 1."""
FLOOR_WEIGHTS = {"rul": FLOOR / (1 + FLOOR), "health": 1 / (1 + FLOOR)}
"""Where GABA ends when the RUL gradient stays more than about twenty times as large: 0.0476 and 0.9524."""


@dataclass(frozen=True)
class Cell:
    """One method of a study: an outer weighting and an inner shape, each ``name`` or ``name(option=value, ...)``."""

    name: str
    outer: str
    inner: str

    @property
    def title(self) -> str:
        """What tables and pictures call it."""
        return TITLES.get(self.name, self.name)

    @property
    def labels(self) -> tuple[str, str]:
        """Its labels in a study."""
        return (CONTROL_LABEL if self.outer == CONTROL.outer else self.outer), self.inner

    def criterion(self) -> MultiTaskCriterion:
        """A fresh criterion for the two tasks."""
        return compose(parse_strategy(self.outer), parse_strategy(self.inner), tasks=TASKS)


GRID = (
    Cell("A", "fixed", "mse"),
    Cell("B", "fixed", "failure_biased"),
    Cell("C", "gaba", "mse"),
    Cell("D", "gaba", "failure_biased"),
)
CONTROL = Cell("control", f"fixed(weights={FLOOR_WEIGHTS})", "failure_biased")
CONTROL_LABEL = "constant at GABA's floor"
TITLES = {
    "A": "A fixed, mse",
    "B": "B fixed, failure-biased",
    "C": "C gaba, mse",
    "D": "D gaba, failure-biased",
    "control": "control: floor, failure-biased",
}


def parse_strategy(text: str) -> dict[str, object]:
    """``"gaba(beta=0.9, floor=0)"`` to ``{"name": "gaba", "beta": 0.9, "floor": 0}``."""
    try:
        call = ast.parse(text.strip(), mode="eval").body
        if isinstance(call, ast.Name):
            return {"name": call.id}
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and not call.args:
            options = {word.arg: ast.literal_eval(word.value) for word in call.keywords if word.arg is not None}
            if len(options) == len(call.keywords):
                return {"name": call.func.id, **options}
    except (SyntaxError, ValueError):
        pass
    raise InputError(
        f"A method's name should be written `name` or `name(option=value, ...)` with plain values. Found `{text}`. "
        "Quote it in the shell, for example 'gaba(beta=0.9):huber(delta=5)'."
    )


def parse_method(text: str) -> Cell:
    """``"outer:inner"`` to a cell; a pair of the grid keeps its letter."""
    depth, colons = 0, []
    for at, letter in enumerate(text):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == ":" and depth == 0:
            colons.append(at)
    if len(colons) != 1:
        raise InputError(
            f"A method should be written `outer:inner`, for example `gaba:huber`. Found `{text}`. "
            "Names: `python -c \"import mtl_axes; print(mtl_axes.available('outer'), mtl_axes.available('inner'))\"`."
        )
    outer, inner = text[: colons[0]].strip(), text[colons[0] + 1 :].strip()
    parse_strategy(outer), parse_strategy(inner)
    for cell in GRID:
        if (cell.outer, cell.inner) == (outer, inner):
            return cell
    return Cell(f"{outer}:{inner}", outer, inner)


def choose_cells(methods: list[str] | None) -> list[Cell]:
    """The grid and its control; or cell A, which everything is compared with, and the given methods."""
    cells = [*GRID, CONTROL] if methods is None else [GRID[0], *(parse_method(text) for text in methods)]
    unique = list(dict.fromkeys(cells))
    for cell in unique:
        _try(cell)
    return unique


def _try(cell: Cell) -> None:
    """One training step on four made-up windows: what cannot work fails before an hour of training, not after."""
    model = TwoHeads(2, mean_rul=80.0, rul_scale=1.0, dropout=0.0)
    targets = {"rul": torch.tensor([10.0, 60.0, 90.0, 125.0]), "health": torch.tensor([2, 1, 0, 0])}
    try:
        cell.criterion()(model(torch.randn(4, 30, 2)), targets).backward()
    except MtlAxesError as error:
        raise InputError(f"The method `{cell.outer}:{cell.inner}` cannot be used here. {error}") from error
