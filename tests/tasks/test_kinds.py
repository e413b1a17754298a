"""Which kind a task is of, which shape it therefore gets, and when the library asks instead of guessing."""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor

from mtl_axes import MultiTaskCriterion, compose, create
from mtl_axes.errors import DataError

FLOATS = torch.tensor([3.0, 0.5, 7.0, 1.0])
ZERO_ONE = torch.tensor([1.0, 0.0, 0.0, 1.0])
BOOLS = torch.tensor([True, False, False, True])
CLASSES = torch.tensor([2, 0, 1, 1])


def values(size: int = 4) -> Tensor:
    return torch.linspace(-1, 2, size).requires_grad_()


def logits(size: int = 4, classes: int = 3) -> Tensor:
    return torch.linspace(-1, 2, size * classes).reshape(size, classes).requires_grad_()


def kinds(criterion: MultiTaskCriterion) -> dict[str, str]:
    return {name: str(kind) for name, kind in criterion._tasks.kinds.items()}


@pytest.mark.parametrize(
    ("prediction", "target", "kind", "shape"),
    [
        (values(), FLOATS, "regression", "mse"),
        (values(), BOOLS, "binary", "bce"),
        (logits(), CLASSES, "multiclass", "cross_entropy"),
        (logits(4, 2), CLASSES.clamp_max(1), "multiclass", "cross_entropy"),
        (logits(), CLASSES.to(torch.uint8), "multiclass", "cross_entropy"),
        (values(12).reshape(4, 3), FLOATS[:, None] * torch.ones(3), "regression", "mse"),
        (values(12).reshape(4, 3), BOOLS[:, None].expand(4, 3), "binary", "bce"),
        (values(24).reshape(2, 3, 4), CLASSES.expand(2, 4), "multiclass", "cross_entropy"),
    ],
)
def test_kind_and_standard_shape_follow_from_the_target(prediction: Tensor, target: Tensor, kind: str, shape: str) -> None:
    """Float targets make a regression, bools a binary task, integers below logits of one dimension more a multiclass one."""
    criterion = compose()
    total = criterion({"task": prediction}, {"task": target})
    assert kinds(criterion) == {"task": kind}
    assert repr(criterion.shapes["task"]) == repr(create("inner", shape))
    torch.testing.assert_close(total, create("inner", shape)(prediction, target).mean())


@pytest.mark.parametrize("target", [ZERO_ONE, ZERO_ONE.double(), torch.zeros(4), ZERO_ONE.long(), CLASSES])
def test_ambiguous_targets_ask_for_the_shape(target: Tensor) -> None:
    """Floats that hold only 0 and 1, and integers beside a prediction of their own shape, are not guessed."""
    criterion = compose()
    with pytest.raises(DataError, match=r"kind of task 'risk' should be clear.*regression or binary.*inner=\{'risk': 'bce'"):
        criterion({"risk": values()}, {"risk": target})


@pytest.mark.parametrize(
    ("shape", "target", "kind"),
    [
        ("bce", ZERO_ONE, "binary"),
        ("mse", ZERO_ONE, "regression"),
        ("focal", ZERO_ONE, "binary"),
        ("mse", CLASSES, "regression"),
        ("bce", ZERO_ONE.long(), "binary"),
        ("focal", ZERO_ONE.long(), "binary"),
        ("failure_biased", CLASSES, "regression"),
    ],
)
def test_an_explicit_shape_resolves_the_ambiguity(shape: str, target: Tensor, kind: str) -> None:
    """A shape that is named for the task narrows its kind, and is used as it is."""
    options = {"r_max": 50.0} if shape == "failure_biased" else {}
    criterion = compose(inner={"task": {"name": shape, **options}})
    prediction = values().double()
    total = criterion({"task": prediction}, {"task": target})
    assert kinds(criterion) == {"task": kind}
    torch.testing.assert_close(total, create("inner", shape, **options)(prediction, target.double()).mean())


def test_soft_labels_are_binary_when_bce_is_named() -> None:
    """Float targets between 0 and 1 are soft labels under an explicit bce, and a regression otherwise."""
    soft = torch.tensor([0.2, 0.9, 0.5, 0.0])
    named, inferred = compose(inner={"task": "bce"}), compose()
    named({"task": values()}, {"task": soft})
    inferred({"task": values()}, {"task": soft})
    assert kinds(named) == {"task": "binary"}
    assert kinds(inferred) == {"task": "regression"}


@pytest.mark.parametrize(
    ("shape", "prediction", "target"),
    [
        ("mse", logits(), CLASSES),
        ("cross_entropy", values(), FLOATS),
        ("cross_entropy", logits(), BOOLS),
        ("bce", logits(), CLASSES),
        ("failure_biased", values(), BOOLS),
        ("focal", values(), FLOATS),
    ],
)
def test_a_shape_of_another_kind_is_refused(shape: str, prediction: Tensor, target: Tensor) -> None:
    """A shape named for a task whose targets are of another kind is an error that says what was found."""
    with pytest.raises(
        DataError, match=r"Task 'task' has the shape .* for (\w|, )+ tasks\. Found (float|bool|integer) targets"
    ):
        compose(inner={"task": shape})({"task": prediction}, {"task": target})


@pytest.mark.parametrize(
    ("inner", "expected"),
    [
        ("mse", ["MSE()", "BCE(pos_weight=1.0)", "CrossEntropy()"]),
        ("failure_biased", ["FailureBiased(r_max=125.0)", "BCE(pos_weight=1.0)", "CrossEntropy()"]),
        ("bce", ["MSE()", "BCE(pos_weight=1.0)", "CrossEntropy()"]),
        ("focal", ["MSE()", "Focal(gamma=2.0, alpha=None)", "Focal(gamma=2.0, alpha=None)"]),
        ({"name": "quantile", "q": 0.2}, ["Quantile(q=0.2)", "BCE(pos_weight=1.0)", "CrossEntropy()"]),
    ],
)
def test_one_shape_goes_to_the_tasks_of_its_kinds(inner: Any, expected: list[str]) -> None:
    """A single inner shape serves every task of its kinds; each other task takes the standard loss of its own."""
    criterion = compose(inner=inner)
    criterion((values(), values(), logits()), (100 * FLOATS, BOOLS, CLASSES))
    assert [repr(shape) for shape in criterion.shapes.values()] == expected
    assert all(shape in repr(criterion) for shape in expected)


def test_a_mapping_may_leave_tasks_to_their_standard_shape() -> None:
    """With tasks= the inner mapping names some tasks only; the rest take the standard loss of their kind."""
    criterion = compose(inner={"rul": "huber"}, tasks=["health", "rul"])
    criterion({"rul": values(), "health": logits()}, {"rul": FLOATS, "health": CLASSES})
    assert [(name, repr(shape)) for name, shape in criterion.shapes.items()] == [
        ("health", "CrossEntropy()"),
        ("rul", "Huber(delta=1.0)"),
    ]


def test_a_shape_that_serves_no_task_is_an_error() -> None:
    """An inner shape that fits none of the tasks is not silently left out."""
    criterion = compose(inner="failure_biased")
    with pytest.raises(DataError, match=r"FailureBiased\(r_max=125.0\) serves regression tasks\. Found none: \{'health': "):
        criterion({"health": logits()}, {"health": CLASSES})


def test_kind_is_decided_by_the_first_labelled_values() -> None:
    """A first batch without a label of a task decides nothing about it: 0/1 floats that come later are still ambiguous."""
    criterion = compose(missing="ignore", tasks=["rul", "risk"])
    nothing = torch.full((4,), torch.nan)
    criterion({"rul": values(), "risk": values()}, {"rul": FLOATS, "risk": nothing})
    with pytest.raises(DataError, match="kind of task 'risk' should be clear"):
        criterion({"rul": values(), "risk": values()}, {"rul": FLOATS, "risk": ZERO_ONE})
    criterion({"rul": values(), "risk": values()}, {"rul": FLOATS, "risk": FLOATS / 10})
    assert kinds(criterion) == {"rul": "regression", "risk": "regression"}


def test_only_labelled_values_decide() -> None:
    """Masked values do not make 0/1 floats a regression."""
    criterion = compose()
    target = torch.tensor([0.0, 1.0, 7.0, torch.nan])
    with pytest.raises(DataError, match="hold only 0 and 1"):
        criterion({"risk": values()}, {"risk": target}, mask={"risk": torch.tensor([True, True, False, False])})


def test_later_zero_one_batches_do_not_change_the_kind() -> None:
    """A regression stays one when a later batch happens to hold 0 and 1 alone."""
    criterion = compose()
    criterion({"rul": values()}, {"rul": FLOATS})
    criterion({"rul": values()}, {"rul": ZERO_ONE})
    assert kinds(criterion) == {"rul": "regression"}


# ---- names and order


def test_tuples_are_named_by_position() -> None:
    """Tuples make the tasks "0", "1", ..., or those of tasks= in order."""
    outputs, targets = (values(), logits()), (FLOATS, CLASSES)
    unnamed, named = compose(), compose(tasks=["rul", "health"])
    totals = [unnamed(outputs, targets), named(outputs, targets), named(list(outputs), list(targets))]
    assert unnamed.tasks == ("0", "1")
    assert named.tasks == ("rul", "health")
    assert len({total.item() for total in totals}) == 1


def test_a_tuple_of_outputs_goes_with_a_mapping_of_targets() -> None:
    """Outputs in a tuple follow the order of the tasks, in the first call as in every other."""
    criterion = compose()
    targets = {"rul": FLOATS, "health": CLASSES}
    first = criterion((values(), logits()), targets)
    second = criterion((values(), logits()), dict(reversed(targets.items())))
    assert criterion.tasks == ("rul", "health")
    assert torch.equal(first, second)


@pytest.mark.parametrize("calls", [0, 1])
def test_a_tuple_of_another_length_is_an_error(calls: int) -> None:
    """Outputs and targets in tuples are equally long, from the first call on."""
    criterion = compose()
    for _ in range(calls):
        criterion((values(), logits()), (FLOATS, CLASSES))
    with pytest.raises(DataError, match=r"outputs should have one entry for each of the tasks \['0', '1'\]\. Found 3\."):
        criterion((values(), logits(), values()), (FLOATS, CLASSES))


def test_order_is_that_of_tasks_then_mapping_then_first_targets() -> None:
    """The order of the tasks is that of tasks=, else of the inner mapping, else of the first targets, and then stays."""
    outputs = {"b": values(), "a": logits()}
    targets = {"b": FLOATS, "a": CLASSES}
    given = compose(inner={"b": "mse", "a": "cross_entropy"}, tasks=["a", "b"])
    mapped = compose(inner={"a": "cross_entropy", "b": "mse"})
    found = compose()
    for criterion in (given, mapped, found):
        criterion(outputs, targets)
        criterion(outputs, dict(reversed(targets.items())))
    assert given.tasks == mapped.tasks == ("a", "b")
    assert found.tasks == ("b", "a")
    assert found.report is not None and found.report.tasks == ("b", "a")
    torch.testing.assert_close(found.report.losses, given.report.losses.flip(0))  # type: ignore[union-attr]


def test_extra_outputs_are_ignored() -> None:
    """Outputs that no target belongs to change nothing, whatever they are: models return more than predictions."""
    plain, rich = compose(), compose()
    outputs = OrderedDict(rul=values(), health=logits())
    targets = {"rul": FLOATS, "health": CLASSES}
    more = OrderedDict(hidden_states=(torch.ones(2), None), **outputs, attentions=None, past="cache")
    assert torch.equal(plain(outputs, targets), rich(more, targets))
    assert plain.tasks == rich.tasks == ("rul", "health")


@pytest.mark.parametrize("absent", [{"rul": FLOATS, "health": None}, {"rul": FLOATS}])
def test_a_task_without_target_is_absent(absent: dict[str, Tensor | None]) -> None:
    """A target that is None or missing leaves its task out: no loss, no gradient, not active, its output not needed."""
    criterion = compose({"name": "fixed", "weights": [0.5, 3.0]}, tasks=["rul", "health"])
    head, body = logits(), values()
    total = criterion({"rul": body, "health": head}, absent)
    total.backward()
    assert head.grad is None
    torch.testing.assert_close(total, 0.5 * (body - FLOATS).square().mean())
    report = criterion.report
    assert report is not None
    assert report.active.tolist() == [True, False]
    assert report.losses[1].item() == 0.0
    criterion({"rul": body}, absent)


def test_names_may_hold_any_character() -> None:
    """Dots, spaces and slashes in a task's name reach the log and the state and come back."""
    names = ["engine.rul", "head 2/état", "0.weight"]
    outputs = {name: values() for name in names}
    targets = {name: FLOATS + index for index, name in enumerate(names)}
    criterion = compose({"name": "gaba", "warmup": 0}, dict.fromkeys(names, "huber"), shared=list(outputs.values()))
    criterion(outputs, targets).backward()
    assert {f"{row}/{name}" for row in ("loss", "weight", "norm") for name in names} == set(criterion.log_dict())
    fresh = compose({"name": "gaba", "warmup": 0}, dict.fromkeys(names, "huber"))
    fresh.load_state_dict(criterion.state_dict())
    assert fresh.tasks == tuple(names)
    assert torch.equal(fresh.outer.weights(), criterion.outer.weights())


# ---- losses computed elsewhere


def test_extra_losses_join_as_tasks() -> None:
    """extra= adds losses computed elsewhere after the targets' tasks, with weight and gradient like any other."""
    criterion = compose({"name": "fixed", "weights": {"rul": 1.0, "kl": 10.0}})
    body, latent = values(), torch.tensor(3.0, requires_grad=True)
    total = criterion({"rul": body}, {"rul": FLOATS}, extra={"kl": latent.square()})
    total.backward()
    assert criterion.tasks == ("rul", "kl")
    torch.testing.assert_close(total, (body - FLOATS).square().mean() + 90)
    assert latent.grad == 60.0


def test_extra_losses_go_with_tuples() -> None:
    """Tuples hold one entry for every task that extra= does not give, in the first call and later."""
    criterion = compose()
    for _ in range(2):
        criterion((values(), logits()), (FLOATS, CLASSES), extra={"kl": torch.tensor(2.0)})
    assert criterion.tasks == ("0", "1", "kl")


def test_combine_equals_the_call() -> None:
    """combine() of the task losses gives the total, the gradients and the report of the call that computes them."""
    direct, combined = compose("uncertainty", tasks=["a", "b"]), compose("uncertainty", tasks=["a", "b"])
    left, right = (values(), values()), (values(), values())
    targets = (FLOATS, FLOATS + 2)
    total = direct(left, targets)
    total.backward()
    losses = {name: (p - y).square().mean() for name, p, y in zip("ab", right, targets, strict=True)}
    # The kinds come with targets only, and uncertainty halves the weight of a regression.
    combined.load_state_dict(direct.state_dict())
    other = combined.combine(losses)
    other.backward()
    torch.testing.assert_close(other, total)
    assert direct.report is not None and combined.report is not None
    torch.testing.assert_close(combined.report.losses, direct.report.losses)
    for one, two in zip(left, right, strict=True):
        torch.testing.assert_close(one.grad, two.grad)


def test_combine_takes_tuples_none_and_stacked_losses() -> None:
    """combine() takes a tuple by position, leaves out None, and takes a stacked tensor apart with a warning."""
    losses = torch.tensor([2.0, 6.0], requires_grad=True)
    criterion = compose()
    assert criterion.combine(tuple(losses)).item() == 4.0
    assert criterion.combine((losses[0], None)).item() == 1.0
    assert criterion.combine({"1": losses[1]}).item() == 3.0
    with pytest.warns(UserWarning, match=r"combine\(\) got stacked losses.*Pass a mapping or a tuple"):
        assert criterion.combine(losses).item() == 4.0


@pytest.mark.parametrize(
    ("shape", "size"), [("gaussian_nll", (4, 2)), ("crps_ensemble", (4, 3)), ({"name": "quantile", "q": (0.1, 0.9)}, (4, 2))]
)
def test_integer_targets_of_several_numbers_per_prediction_are_no_classes(shape: Any, size: tuple[int, ...]) -> None:
    """Counts and cycles are integers; the dimension that their predictions have more is not that of classes."""
    prediction, target = torch.linspace(0, 1, math.prod(size)).reshape(size), torch.tensor([1, 2, 3, 4])
    criterion = compose("fixed", {"a": shape})
    assert criterion({"a": prediction}, {"a": target}) == compose("fixed", {"a": shape})(
        {"a": prediction}, {"a": target.float()}
    )
    assert kinds(criterion) == {"a": "regression"}


@pytest.mark.parametrize(
    ("target", "hint"), [(torch.zeros(4), "use target.long()"), (torch.zeros(4, 3), "use target.argmax(1)")]
)
def test_classes_as_floats_are_told_what_to_do(target: Tensor, hint: str) -> None:
    """Class indices as floats, and one column per class, are refused with the way out."""
    with pytest.raises(DataError, match=re.escape(hint)):
        compose("fixed", {"a": "label_smoothing"})({"a": torch.zeros(4, 3)}, {"a": target})


def test_an_ambiguous_target_is_asked_for_the_shape_that_was_given_for_all() -> None:
    """A single shape for every task is proposed for the task, not the standard one in its place."""
    with pytest.raises(DataError, match=r"inner=\{'a': 'poisson', ...\} for regression, inner=\{'a': 'bce'"):
        compose("fixed", "poisson")({"a": torch.zeros(4)}, {"a": torch.tensor([1, 0, 3, 2])})
