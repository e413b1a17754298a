"""A shape under test, and its inputs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor

from mtl_axes.composition import compose
from mtl_axes.errors import DataError
from mtl_axes.inner import InnerShape
from mtl_axes.signals import Kind
from mtl_axes.testing.case import Case, named, numbers, raised

__all__ = ["KINDS", "InnerCase", "f64", "per_kind", "served", "total_of"]

KINDS: Final[tuple[Kind, ...]] = ("regression", "binary", "multiclass")
_SIZES = ((1,), (7,), (4, 3), (2, 3, 4))
_POOLED = ((1, 4), (7, 5), (4, 3, 5))

f64: Final = torch.float64


class InnerCase(Case[InnerShape]):
    """A shape under test.

    Attributes:
        kind: the kind of task that is tested now.
        kinds: all kinds that it serves.
    """

    kind: Kind

    def __init__(self, factory: Any) -> None:
        super().__init__("inner", InnerShape, factory)
        self.kinds = served(self)
        self._sizes: dict[Kind, list[tuple[int, ...]]] = {}

    def sample(
        self, size: tuple[int, ...], seed: int = 0, dtype: torch.dtype = f64, shape: InnerShape | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return a prediction and a target of the current kind, and show them in the next failure."""
        shape = self.build() if shape is None else shape
        generator = torch.Generator().manual_seed(seed)
        prediction, target = shape.sample(self.kind, size, generator, dtype)
        self.show(prediction, target)
        return prediction, target

    def show(self, prediction: Tensor, target: Tensor, more: str = "") -> None:
        """Show this input in the next failure."""
        self.given = (
            f"a {self.kind} task, prediction {tuple(prediction.shape)} = {numbers(prediction)}, "
            f"target {tuple(target.shape)} = {numbers(target)}{more}"
        )

    def sizes(self) -> list[tuple[int, ...]]:
        """Return the sizes of targets that the shape takes: vectors, matrices, images."""
        if self.kind not in self._sizes:
            shape, refused = self.build(), ""
            taken: list[tuple[int, ...]] = []
            for size in _POOLED if shape.pooled else _SIZES:
                try:
                    shape.check(*self.sample(size, shape=shape))
                except DataError as error:
                    refused = raised(error)
                else:
                    taken.append(size)
            self.require(
                bool(taken),
                f"should take {self.kind} targets of some size as its own sample() draws them, "
                "with check() or sample() overridden if it takes others",
                refused,
            )
            self._sizes[self.kind] = taken
        return self._sizes[self.kind]

    def usual(self) -> tuple[int, ...]:
        """Return the size for checks that need only one: several samples."""
        return next((size for size in self.sizes() if size[0] > 2), self.sizes()[-1])

    def several(self, seed: int = 0, dtype: torch.dtype = f64) -> tuple[Tensor, Tensor]:
        """Return several samples."""
        return self.sample(self.usual(), seed, dtype)


def served(case: Case[Any]) -> tuple[Kind, ...]:
    """Return the kinds of task that a shape or a target weight claims to serve."""
    kinds = getattr(case.build(), "kinds", None)
    holds = isinstance(kinds, frozenset) and bool(kinds) and kinds <= set(KINDS)
    case.require(holds, f"should claim kinds, a frozenset of {', '.join(KINDS)}", repr(kinds))
    return tuple(kind for kind in KINDS if kind in kinds)  # type: ignore[operator]


def per_kind(*checks: Callable[[InnerCase], None]) -> dict[str, Callable[[InnerCase], None]]:
    """Return checks by name, each run for every kind of task that a shape serves."""

    def run(check: Callable[[InnerCase], None], case: InnerCase) -> None:
        claim = case.claim
        for kind in case.kinds:
            case.kind = kind
            case.about(claim, f"a {kind} task")
            check(case)

    return {name: partial(run, check) for name, check in named(*checks).items()}


def total_of(case: InnerCase, prediction: Tensor, target: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the total of a criterion with only this task, and its gradient."""
    leaf = prediction.clone().requires_grad_()
    criterion = compose("fixed", {"task": case.build()})
    total = criterion((leaf,), (target,), mask=mask)
    (gradient,) = torch.autograd.grad(total, leaf)
    return total.detach(), gradient
