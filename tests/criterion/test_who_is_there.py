"""Windows in which tasks are absent, have no gradient or rarely meet, with numbers that can be checked by hand."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from mtl_axes import MultiTaskCriterion, OuterWeighting, Signals, compose

f64 = torch.float64
Gradient = tuple[float, float] | float | None


class Recorder(OuterWeighting):
    """Keeps what it is shown, and leaves the weights where they are."""

    needs: ClassVar[Any] = "gramian"

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[Signals] = []

    def forward(self, signals: Signals, /) -> Tensor:
        self.shown.append(signals)
        return self.current.clone()


def combine(criterion: MultiTaskCriterion, *gradients: Gradient) -> Tensor:
    """Call with losses that are linear in one shared parameter: each has the gradient given, None is an absent task."""
    shared = nn.Parameter(torch.ones(2, dtype=f64))
    losses: dict[str, Tensor | None] = {}
    for name, gradient in zip("abc", gradients, strict=True):
        row = (gradient, 0.0) if isinstance(gradient, (int, float)) else gradient
        losses[name] = None if row is None else (shared * torch.tensor(row, dtype=f64)).sum()
    return criterion.combine(losses)


def weights(criterion: MultiTaskCriterion) -> list[float]:
    assert criterion.report is not None
    return criterion.report.weights.tolist()


def test_an_absent_task_keeps_its_weight_for_the_calls_between_two_measurements() -> None:
    """Norms 4, 2, 1 give weights 1/7, 2/7, 4/7. With c absent in the next measurement a and b get 1/4 and 3/4 from norms
    3 and 1; in the call after it, c is back and weighs 4/7 as before, and not 0."""
    criterion = compose("inverse_norm", tasks=["a", "b", "c"], every=2, missing="ignore")
    for _ in range(2):
        combine(criterion, 4.0, 2.0, 1.0)
        assert weights(criterion) == pytest.approx([1 / 7, 2 / 7, 4 / 7])
    combine(criterion, 3.0, 1.0, None)
    assert weights(criterion)[:2] == pytest.approx([1 / 4, 3 / 4])
    combine(criterion, 3.0, 1.0, 1.0)
    assert weights(criterion) == pytest.approx([1 / 4, 3 / 4, 4 / 7])


def test_a_task_without_a_gradient_takes_no_part_and_is_not_dropped() -> None:
    """A norm of exactly 0 is no measurement, and nothing that is not finite: norms 1, 0, 3 give weights 3/4, 0, 1/4."""
    criterion = compose("inverse_norm", tasks=["a", "b", "c"])
    combine(criterion, 1.0, 0.0, 3.0)
    assert criterion.report is not None
    assert criterion.report.active.tolist() == [True, False, True]
    assert criterion.report.dropped.tolist() == [0, 0, 0]
    assert weights(criterion) == pytest.approx([3 / 4, 0.0, 1 / 4])


def test_pairs_that_rarely_meet_are_averaged_over_the_calls_in_which_they_do() -> None:
    """a and b meet in one call of three, a and c in two, b and c never: their inner product is 0."""
    recorder = Recorder()
    criterion = compose(recorder, tasks=["a", "b", "c"], accumulate="manual", missing="ignore")
    combine(criterion, (1.0, 0.0), (2.0, 1.0), None)
    combine(criterion, (3.0, 0.0), None, (1.0, 3.0))
    combine(criterion, (2.0, 0.0), None, (5.0, 0.0))
    criterion.step()
    (signals,) = recorder.shown
    assert signals.gramian is not None and signals.norms is not None
    torch.testing.assert_close(
        signals.gramian, torch.tensor([[14 / 3, 2.0, 6.5], [2.0, 5.0, 0.0], [6.5, 0.0, 17.5]], dtype=f64)
    )
    assert signals.norms.tolist() == pytest.approx([2.0, 5**0.5, (10**0.5 + 5) / 2])


def test_windows_elapse_for_an_absent_task_and_nothing_of_it_is_dropped() -> None:
    """b is absent in the windows 1 and 2, so that three have elapsed at 3; a loss of a is NaN in 2, which counts for a alone
    and makes two elapse."""
    recorder = Recorder()
    criterion = compose(recorder, tasks=["a", "b", "c"], missing="ignore")
    nan = float("nan")
    for gradients in ((1.0, 1.0, 1.0), (1.0, None, 1.0), (nan, None, 1.0), (1.0, 1.0, 1.0)):
        combine(criterion, *gradients)
    assert [signals.active.tolist() for signals in recorder.shown] == [
        [True, True, True],
        [True, False, True],
        [False, False, True],
        [True, True, True],
    ]
    assert recorder.shown[-1].elapsed.tolist() == [2.0, 3.0, 1.0]
    assert criterion.report is not None
    assert criterion.report.dropped.tolist() == [1, 0, 0]


def test_a_masked_task_is_not_dropped_for_what_stands_under_its_mask() -> None:
    """A NaN under the mask is no value of the task; one that counts is."""
    criterion = compose("fixed", {"a": "mse"}, tasks=["a", "b"], missing="ignore")
    target, mask = torch.zeros(2), torch.tensor([True, False])
    outputs = {"a": torch.tensor([1.0, float("nan")], requires_grad=True), "b": torch.ones(2, requires_grad=True)}
    criterion(outputs, {"a": target, "b": None}, mask={"a": mask})
    assert criterion.report is not None and criterion.report.dropped.tolist() == [0, 0]
    criterion(outputs, {"a": target, "b": None}, mask={"a": ~mask})
    assert criterion.report is not None and criterion.report.dropped.tolist() == [1, 0]
