"""The conformance kit: tests a strategy against every contract and against its own claims.

One line in your tests is enough::

    def test_my_weighting():
        check_outer(MyWeighting)

Pass a strategy as a class, a registered name, or a callable without arguments that returns a fresh one. A class or a name
is built with the options in its ``example``. A contract that does not hold raises a
:class:`mtl_axes.errors.ContractError` whose message is one sentence: the strategy, the claim, the result, and the input.
Seeds are fixed; neither pytest nor any other library is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TypeAlias

from mtl_axes.inner import InnerShape, TargetWeight
from mtl_axes.outer import OuterWeighting
from mtl_axes.testing import (
    inner_criterion,
    inner_losses,
    outer_claims,
    outer_criterion,
    outer_state,
    weight,
)
from mtl_axes.testing.case import run
from mtl_axes.testing.inner_case import InnerCase
from mtl_axes.testing.outer_case import OuterCase
from mtl_axes.testing.weight import WeightCase

__all__ = ["INNER_CHECKS", "OUTER_CHECKS", "WEIGHT_CHECKS", "check_inner", "check_outer", "check_weight"]

# Checks by name, in the order in which they run.
OUTER_CHECKS = {**outer_claims.CHECKS, **outer_state.CHECKS, **outer_criterion.CHECKS}
INNER_CHECKS = {**inner_losses.CHECKS, **inner_criterion.CHECKS}
WEIGHT_CHECKS = weight.CHECKS

Outer: TypeAlias = str | type[OuterWeighting] | Callable[[], OuterWeighting]
Inner: TypeAlias = str | type[InnerShape] | Callable[[], InnerShape]
Weight: TypeAlias = str | type[TargetWeight] | Callable[[], TargetWeight]


def check_outer(factory: Outer, /, *, tasks: Sequence[str] | None = None, skip: Collection[str] = ()) -> None:
    """Run every contract of an outer weighting.

    Alone: structure, finite weights on hard inputs, the claims ``sign``, ``total``, ``symmetric``, ``scaling``,
    ``balances``, ``memoryless``, ``moves``, ``reads_signals``, ``learnable``, ``on_host`` and ``traceable``, absent tasks,
    state, copies, dtypes and devices, pure reads, ``repr`` and options. In a criterion: the sum, its gradient, evaluation
    and the configuration.

    Args:
        factory: a class, a registered name, or a callable that returns a fresh weighting.
        tasks: names of the tasks, if the options of the weighting name some; None tests several numbers of unnamed tasks.
        skip: names of checks to leave out, keys of ``mtl_axes.testing.OUTER_CHECKS``.

    Raises:
        ContractError: a contract does not hold.

    >>> check_outer("gaba")
    >>> from mtl_axes.outer import Fixed
    >>> check_outer(lambda: Fixed(weights={"rul": 2.0, "health": 1.0}), tasks=["rul", "health"])
    """
    run(OuterCase(factory, tasks), OUTER_CHECKS, skip)


def check_inner(factory: Inner, /, *, skip: Collection[str] = ()) -> None:
    """Run every contract of an inner shape, for each kind of task that it serves.

    Alone: structure, one finite loss per entry (per sample if ``pooled``), ``lower_bound``, finite and exact gradients,
    float32 that agrees with float64, the order of the samples, ``coupling``, masks that equal deletion, unchanged inputs, no
    value read, no broadcasting, dtypes, copies, ``repr`` and options. In a criterion: masks, the sum and its gradient, half
    precision and the configuration. The inputs come from its ``sample``.

    Args:
        factory: a class, a registered name, or a callable that returns a fresh shape.
        skip: names of checks to leave out, keys of ``mtl_axes.testing.INNER_CHECKS``.

    Raises:
        ContractError: a contract does not hold.

    >>> check_inner("failure_biased")
    """
    run(InnerCase(factory), INNER_CHECKS, skip)


def check_weight(factory: Weight, /, *, skip: Collection[str] = ()) -> None:
    """Run every contract of a target weight, alone and with the standard loss of each of its kinds.

    Args:
        factory: a class, a registered name, or a callable that returns a fresh weight.
        skip: names of checks to leave out, keys of ``mtl_axes.testing.WEIGHT_CHECKS``.

    Raises:
        ContractError: a contract does not hold.

    >>> check_weight("failure_biased")
    """
    run(WeightCase(factory), WEIGHT_CHECKS, skip)
