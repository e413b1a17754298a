"""Bad input gets an error that says what is required, what was found and what to do; and nothing is lost by it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import pytest
import torch
from strategies import Heads, batch_for, equal, model_for
from torch import Tensor, nn

from mtl_axes import InnerShape, MultiTaskCriterion, OuterWeighting, Probe, Reweighted, Signals, compose, create
from mtl_axes.errors import DataError, GraphError, MtlAxesError, OptionError, StateError, UnknownNameError
from mtl_axes.inner import MSE, FailureBias
from mtl_axes.outer import DWA, GABA, Fixed

KINDS = {"rul": "regression", "health": "multiclass"}


class Signed(InnerShape):
    """A shape that can be negative."""

    kinds: ClassVar[Any] = frozenset({"regression"})
    lower_bound: ClassVar[float | None] = None

    def forward(self, prediction: Tensor, target: Tensor, /) -> Tensor:
        return prediction - target


class WantsGramian(OuterWeighting):
    """A weighting that needs the Gramian."""

    needs: ClassVar[Any] = "gramian"

    def forward(self, signals: Signals, /) -> Tensor:
        return torch.ones_like(signals.losses)


class NormsOnly(Probe):
    """A probe that cannot give the Gramian."""


# ---- compose


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"outer": 3}, r"Option `outer` should be a registered name, a mapping .*OuterWeighting\. Found 3\."),
        ({"outer": {}}, r"Option `outer` should be a registered name, a mapping with a \"name\".*Found \{\}\."),
        ({"outer": {"beta": 0.9}}, r"a mapping with a \"name\".*Found \{'beta': 0.9\}\."),
        ({"outer": GABA}, r"an instance of OuterWeighting\. Found <class 'mtl_axes.outer.gaba.GABA'>\."),
        ({"outer": None}, r"Option `outer` should be .*Found None\."),
        ({"outer": create("inner", "mse")}, r"an instance of OuterWeighting\. Found MSE\(\)\."),
        ({"inner": 3}, r"Option `inner` should be a registered name, .*InnerShape\. Found 3\."),
        ({"inner": {}}, r"The inner mapping should name at least one task\. Found an empty one\."),
        ({"inner": {"rul": 3}}, r"Option `inner` should be a registered name, .*InnerShape\. Found 3\."),
        ({"inner": {"rul": {}}}, r"Option `inner` should be a registered name, .*Found \{\}\."),
        ({"inner": {"rul": "mse"}, "tasks": ["a"]}, r"inner mapping should name tasks of \['a'\]\. Found \['rul'\]\."),
        ({"tasks": "rul"}, r"Option `tasks` should be a sequence of names\. Found tasks='rul'\."),
        ({"tasks": 3}, r"Option `tasks` should be a sequence of names\. Found tasks=3\."),
        ({"tasks": {"rul"}}, r"Option `tasks` should be a sequence of names\. Found tasks=\{'rul'\}\."),
        ({"tasks": []}, r"Tasks should be distinct non-empty names\. Found \[\]\."),
        ({"tasks": ["rul", "rul"]}, r"Tasks should be distinct non-empty names\. Found \['rul', 'rul'\]\."),
        ({"tasks": ["rul", 1]}, r"Tasks should be distinct non-empty names\. Found \['rul', 1\]\."),
        ({"tasks": ["rul", ""]}, r"Tasks should be distinct non-empty names\. Found \['rul', ''\]\."),
        ({"every": 0}, r"Option `every` should be an integer in \[1, inf\)\. Found every=0\."),
        ({"every": 2.0}, r"Option `every` should be an integer in \[1, inf\)\. Found every=2.0\."),
        ({"every": True}, r"Option `every` should be an integer in \[1, inf\)\. Found every=True\."),
        ({"accumulate": 0}, r"Option `accumulate` should be an integer in \[1, inf\)\. Found accumulate=0\."),
        ({"accumulate": "auto"}, r"`accumulate` should be an integer >= 1 or \"manual\"\. Found accumulate='auto'\."),
        ({"reduction": "sum"}, r"`reduction` should be one of 'mean', 'weighted_mean'\. Found reduction='sum'\."),
        ({"missing": "drop"}, r"Option `missing` should be one of 'error', 'ignore'\. Found missing='drop'\."),
        ({"sync": "all"}, r"Option `sync` should be 'norms', 'gradients' or None\. Found sync='all'\."),
        ({"shared": []}, r"Option `shared` has no parameters\. Pass parameters or a module with some"),
        ({"shared": nn.ReLU()}, r"Option `shared` has no parameters\. Pass parameters or a module with some"),
        ({"shared": torch.ones(2)}, r"Option `shared` has no parameters\. Pass parameters or a module with some"),
        ({"shared": 3}, r"Option `shared` should be a module or parameters\. Found int\."),
        ({"shared": "trunk"}, r"Option `shared` should be a module or parameters\. Found str\."),
        ({"probe": "nope"}, r"Option `probe` should be one of 'exact'.* or a Probe\. Found 'nope'\."),
        ({"probe": ["exact"]}, r"Option `probe` should be one of 'exact'.* or a Probe\. Found \['exact'\]\."),
        ({"outer": "uncertainty"}, r"Uncertainty\(variant='kendall'\) has learnable parameters.*Pass tasks=\[\.\.\.\]"),
        (
            {"outer": "dwa", "inner": Signed()},
            r"DWA takes ratios .*never negative\. Found Signed\(\), which can be\. Choose",
        ),
        ({"outer": "gradnorm", "inner": {"a": "mse", "b": Signed()}}, r"GradNorm takes ratios .*Found Signed\(\)"),
        (
            {"outer": "gradnorm", "inner": Reweighted(Signed(), FailureBias())},
            r"GradNorm takes ratios .*Found Reweighted\(base=Signed\(\), weight=FailureBias\(r_max=125.0\)\)",
        ),
        (
            {"outer": WantsGramian(), "probe": NormsOnly()},
            r"WantsGramian needs the gramian\. Found the probe NormsOnly\(\).*norms",
        ),
        (
            {"outer": {"name": "gaba", "floor": 0.4}, "tasks": ["a", "b", "c"]},
            r"`floor` of GABA should be below 1/K = 0.3333 for the 3 tasks\. Found floor=0.4\.",
        ),
        (
            {"outer": {"name": "fixed", "weights": [1.0]}, "inner": {"a": "mse", "b": "mse"}},
            r"Fixed weights should be 2 numbers, one for each of \['a', 'b'\]\. Found \[1.0\]\.",
        ),
        (
            {"outer": {"name": "fixed", "weights": {"a": 1.0, "c": 1.0}}, "tasks": ["a", "b"]},
            r"Fixed weights should name the tasks \['a', 'b'\]\. Found \['a', 'c'\]\.",
        ),
    ],
)
def test_compose_refuses(options: dict[str, Any], message: str) -> None:
    """compose() refuses what cannot work before a first step, and says why."""
    with pytest.raises(OptionError, match=message):
        compose(**options)


@pytest.mark.parametrize(
    ("axis", "name", "options", "message"),
    [
        ("outer", "gaba", {"beta": 1.0}, r"gaba: Option `beta` should be a number in \[0.0, 1.0\)\. Found beta=1.0\."),
        ("outer", "gaba", {"beta": "0.9"}, r"gaba: Option `beta` should be a number .*Found beta='0.9'\."),
        ("outer", "gaba", {"floor": -0.1}, r"gaba: Option `floor` should be a number in \[0.0, 1.0\)\. Found floor=-0.1\."),
        ("outer", "gaba", {"warmup": -1}, r"gaba: Option `warmup` should be an integer in \[0, inf\)\. Found warmup=-1\."),
        ("outer", "gaba", {"form": "both"}, r"`form` should be one of 'complement', 'inverse'\. Found form='both'\."),
        (
            "outer",
            "gradnorm",
            {"alpha": -1.0},
            r"gradnorm: Option `alpha` should be a number in \[0.0, inf\)\. Found alpha=-1",
        ),
        ("outer", "gradnorm", {"lr": 0.0}, r"gradnorm: Option `lr` should be a number in \(0.0, inf\)\. Found lr=0.0\."),
        ("outer", "dwa", {"temperature": 0.0}, r"dwa: Option `temperature` should be a number in \(0.0, inf\)"),
        ("outer", "dwa", {"window": 0}, r"dwa: Option `window` should be an integer in \[1, inf\)\. Found window=0\."),
        ("outer", "uncertainty", {"variant": "x"}, r"`variant` should be one of 'kendall', 'revised'\. Found variant='x'\."),
        (
            "outer",
            "fixed",
            {"weights": "abc"},
            r"fixed: Option `weights` should be a sequence or a mapping .*Found weights='abc'",
        ),
        ("outer", "fixed", {"weights": []}, r"fixed: Option `weights` is empty\. Give one number per task\."),
        (
            "outer",
            "fixed",
            {"weights": [1.0, float("nan")]},
            r"fixed: Option `weights` should be a number .*Found weights=nan",
        ),
        ("inner", "huber", {"delta": 0.0}, r"huber: Option `delta` should be a number in \(0.0, inf\)\. Found delta=0.0\."),
        (
            "inner",
            "asymmetric",
            {"over": -1.0},
            r"asymmetric: Option `over` should be a number in \[0.0, inf\)\. Found over=-1",
        ),
        (
            "inner",
            "asymmetric",
            {"over": 0, "under": 0},
            r"asymmetric: One of `over` and `under` should be positive\. Found",
        ),
        ("inner", "quantile", {"q": 1.0}, r"quantile: Option `q` should be a number in \(0.0, 1.0\)\. Found q=1.0\."),
        ("inner", "quantile", {"q": [0.5, 0.1]}, r"quantile: .*strictly increasing levels\. Found q=\[0.5, 0.1\]\."),
        (
            "inner",
            "quantile",
            {"q": []},
            r"quantile: Option `q` should be a level or strictly increasing levels\. Found q=\[\]",
        ),
        ("inner", "quantile", {"q": None}, r"quantile: Option `q` should be a number in .*Found q=None\."),
        ("inner", "failure_biased", {"r_max": 0.0}, r"failure_biased: Option `r_max` should be a number in \(0.0, inf\)"),
        (
            "inner",
            "failure_biased",
            {"r_max": float("inf")},
            r"failure_biased: Option `r_max` should be .*Found r_max=inf\.",
        ),
        (
            "inner",
            "focal",
            {"gamma": -1.0},
            r"focal: Option `gamma` should be a number in \[0.0, inf\)\. Found gamma=-1.0\.",
        ),
        ("inner", "focal", {"alpha": 1.5}, r"focal: Option `alpha` should be a number in \[0.0, 1.0\]\. Found alpha=1.5\."),
        (
            "inner",
            "focal",
            {"alpha": [0.5]},
            r"focal: Option `alpha` should have at least 2 entries\. Found alpha=\(0.5,\)\.",
        ),
        (
            "inner",
            "bce",
            {"pos_weight": 0.0},
            r"bce: Option `pos_weight` should be a number in \(0.0, inf\)\. Found pos_weight",
        ),
    ],
)
def test_strategies_refuse_options_out_of_range(axis: Any, name: str, options: dict[str, Any], message: str) -> None:
    """A strategy checks its options in the constructor, and the message names strategy, option, range and value."""
    with pytest.raises(OptionError, match=message):
        create(axis, name, **options)
    with pytest.raises(OptionError, match=message):
        compose(**{axis: {"name": name, **options}})


def test_reweighted_refuses_parts_that_do_not_go_together() -> None:
    """Reweighted needs a shape and a target weight that serve a common kind of task."""
    with pytest.raises(
        OptionError, match=r"CrossEntropy\(\) serves multiclass, but FailureBias\(.*\) serves regression\. Pass a base"
    ):
        Reweighted("cross_entropy", FailureBias())
    with pytest.raises(
        OptionError,
        match=r"Option `weight` should be a registered name, a mapping .* an instance of TargetWeight\. Found MSE\(\)\.",
    ):
        Reweighted(MSE(), MSE())  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError, match=r"No inner strategy is named 'msee'\. Did you mean 'mse' or 'msle'\?"):
        Reweighted("msee", FailureBias())


def test_unknown_names_in_compose() -> None:
    """An unknown name lists near matches and every name of the axis, or says that it belongs to the other axis."""
    with pytest.raises(
        UnknownNameError, match=r"No outer strategy is named 'gabba'\. Did you mean 'gaba'\? Known: .*gradnorm"
    ):
        compose("gabba")
    with pytest.raises(UnknownNameError, match=r"No inner strategy is named 'gaba'\. 'gaba' is a name of the outer axis\."):
        compose("gaba", "gaba")
    with pytest.raises(OptionError, match=r"'gaba' takes the options beta, floor, .*Found 'bta'\. Did you mean 'beta'\?"):
        compose({"name": "gaba", "bta": 0.9})


# ---- calls: every bad one against criteria that have state

Call = Callable[[MultiTaskCriterion, Heads, Tensor, dict[str, Tensor]], object]


def with_targets(**changes: Tensor | None) -> Call:
    return lambda criterion, model, inputs, targets: criterion(model(inputs), {**targets, **changes})


def with_outputs(change: Callable[[dict[str, Tensor]], Mapping[str, Any]]) -> Call:
    return lambda criterion, model, inputs, targets: criterion(change(model(inputs)), targets)


def with_options(**options: Any) -> Call:
    return lambda criterion, model, inputs, targets: criterion(model(inputs), targets, **options)


def without(name: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda outputs: {key: value for key, value in outputs.items() if key != name}


NAN = torch.tensor([1.0, torch.nan] * 4)

# name -> (the bad call, its message); each is bad in a first call and, with criterion.debug, in any other.
BAD_CALLS: dict[str, tuple[Call, str]] = {
    "missing prediction": (
        with_outputs(without("health")),
        r"Task 'health' has a target and should have an output of the same name\. Found outputs \['rul'\]\.",
    ),
    "prediction None": (
        with_outputs(lambda outputs: {**outputs, "health": None}),
        r"Task 'health' has a target and should have an output",
    ),
    "prediction (N, 1)": (
        with_outputs(lambda outputs: {**outputs, "rul": outputs["rul"][:, None]}),
        r"Task 'rul', shape MSE\(\): .*Found prediction \(8, 1\) and target \(8,\)\. Use prediction\.squeeze\(-1\)",
    ),
    "target (N, 1)": (
        with_targets(rul=torch.rand(8, 1) + 2),
        r"Task 'rul', .*Found prediction \(8,\) and target \(8, 1\)\. Use target\.squeeze\(-1\)",
    ),
    "prediction of another size": (
        with_outputs(lambda outputs: {**outputs, "rul": outputs["rul"][:4]}),
        r"Task 'rul', .*Found prediction \(4,\) and target \(8,\)\.",
    ),
    "logits (N, 1)": (
        with_outputs(lambda outputs: {**outputs, "health": outputs["health"][:, :1]}),
        r"Task 'health', .*needs at least 2 logits\. Found logits \(8, 1\)\. .*prediction\.squeeze\(1\)",
    ),
    "logits of other samples": (
        with_outputs(lambda outputs: {**outputs, "health": outputs["health"][:4]}),
        r"Task 'health', .*\(N, C, \.\.\.\) for targets \(N, \.\.\.\)\. Found logits \(4, 3\) and target \(8,\)\.",
    ),
    "integer prediction": (
        with_outputs(lambda outputs: {**outputs, "rul": outputs["rul"].long()}),
        r"The output of task 'rul' should be floating point\. Found torch\.int64\.",
    ),
    "prediction that is no tensor": (
        with_outputs(lambda outputs: {**outputs, "rul": outputs["rul"].tolist()}),
        r"The output of task 'rul' should be a tensor\. Found list\.",
    ),
    "target that is no tensor": (
        with_targets(rul=[1.0] * 8),  # type: ignore[arg-type]
        r"The target of task 'rul' should be a tensor\. Found list\.",
    ),
    "target on another device": (
        with_targets(rul=torch.empty(8, device="meta")),
        r"Output and target of task 'rul' should be on one device\. Found cpu and meta\.",
    ),
    "class index too large": (
        with_targets(health=torch.tensor([0, 1, 2, 3, 0, 0, 0, 0])),
        r"Task 'health', shape CrossEntropy\(\): class indices should lie in \[0, 2\], the 3 logits\. Found 0\.\.3\.",
    ),
    "class index negative": (
        with_targets(health=torch.tensor([0, 1, 2, -100, 0, 0, 0, 0])),
        r"should lie in \[0, 2\].*Found -100\.\.2\. With missing=\"ignore\" the index -100 counts as unlabelled",
    ),
    "NaN target": (
        with_targets(rul=NAN),
        r"Targets of task 'rul' should be finite\. Found NaN or infinite ones without a mask\. Pass .*missing=\"ignore\"",
    ),
    "infinite target": (with_targets(rul=NAN.nan_to_num(torch.inf)), r"Targets of task 'rul' should be finite"),
    "empty batch": (
        lambda criterion, model, inputs, targets: criterion(
            model(inputs[:0]), {name: target[:0] for name, target in targets.items()}
        ),
        r"Task 'rul' should have at least one sample\. Found output \(0,\) and target \(0,\)\. Pass None as its target",
    ),
    "everything masked": (
        with_options(mask=torch.zeros(8, dtype=torch.bool)),
        r"At least one of the tasks \['rul', 'health'\] should have a valid label\. Found all masked\.",
    ),
    "no target": (
        with_targets(rul=None, health=None),
        r"At least one of the tasks \['rul', 'health'\] should have a target or a loss",
    ),
    "mask of numbers": (
        with_options(mask=torch.ones(8)),
        r"The mask of task 'rul' should be bool, True where a label is valid\. Found torch\.float32\.",
    ),
    "mask of another size": (
        with_options(mask={"health": torch.ones(7, dtype=torch.bool)}),
        r"The mask of task 'health' should have the shape of its target \(8,\), or of its leading .*Found \(7,\)\.",
    ),
    "mask with a dimension too many": (
        with_options(mask=torch.ones(8, 1, dtype=torch.bool)),
        r"The mask of task 'rul' should have the shape of its target \(8,\), or of its leading .*Found \(8, 1\)\.",
    ),
    "mask that is no tensor": (
        with_options(mask=[True] * 8),
        r"The mask of task 'rul' should be a tensor, given for all tasks or in a mapping by task\. Found list\.",
    ),
    "mask of an unknown task": (
        with_options(mask={"rull": torch.ones(8, dtype=torch.bool)}),
        r"Each mask should belong to one of the tasks \['rul', 'health'\]\. Found \['rull'\]",
    ),
    "negative sample weight": (
        with_options(sample_weight=-torch.ones(8)),
        r"The sample_weight of task 'rul' should be finite and >= 0",
    ),
    "NaN sample weight": (
        with_options(sample_weight={"health": NAN}),
        r"The sample_weight of task 'health' should be finite and >= 0",
    ),
    "sample weight of another size": (
        with_options(sample_weight=torch.ones(7)),
        r"The sample_weight of task 'rul' should have the shape of its target \(8,\), .*Found \(7,\)\.",
    ),
    "scalar sample weight": (
        with_options(sample_weight=torch.tensor(2.0)),
        r"The sample_weight of task 'rul' should have the shape of its target \(8,\), .*Found \(\)\.",
    ),
    "sample weight of an unknown task": (
        with_options(sample_weight={"kl": torch.ones(8)}),
        r"Each sample_weight should belong to one of the tasks \['rul', 'health'\]\. Found \['kl'\]",
    ),
    "extra that is no mapping": (
        with_options(extra=torch.tensor(1.0)),
        r"extra should be a mapping from task names to losses\. Found Tensor\.",
    ),
    "extra beside a target": (
        with_options(extra={"rul": torch.tensor(1.0)}),
        r"A task should have a target or an extra loss\. Found both for \['rul'\]\.",
    ),
    "outputs in one tensor": (
        lambda criterion, model, inputs, targets: criterion(model(inputs)["rul"], targets),
        r"outputs should be a mapping from task names, or a tuple with one tensor per task\. Found Tensor\.",
    ),
    "targets in one tensor": (
        lambda criterion, model, inputs, targets: criterion(model(inputs), targets["rul"]),
        r"targets should be a mapping from task names, or a tuple with one tensor per task\. Found Tensor\.",
    ),
    "too few outputs in a tuple": (
        lambda criterion, model, inputs, targets: criterion((model(inputs)["rul"],), targets),
        r"outputs should have one entry for each of the tasks \['rul', 'health'\]\. Found 1\.",
    ),
    "stacked loss of a task": (
        lambda criterion, model, inputs, targets: criterion.combine({"rul": torch.ones(2), "health": torch.ones(())}),
        r"The loss of task 'rul' should be a 0-dim floating point tensor\. Found a tensor \(2,\) of torch\.float32\.",
    ),
    "loss that is a number": (
        lambda criterion, model, inputs, targets: criterion.combine({"rul": 1.0, "health": torch.ones(())}),
        r"The loss of task 'rul' should be a 0-dim floating point tensor\. Found float\.",
    ),
    "losses that are all None": (
        lambda criterion, model, inputs, targets: criterion.combine({"rul": None, "health": None}),
        r"At least one of the tasks \['rul', 'health'\] should have a target or a loss",
    ),
    "losses stacked to a matrix": (
        lambda criterion, model, inputs, targets: criterion.combine(torch.ones(2, 1)),
        r"Stacked losses should have the shape \(K,\)\. Found \(2, 1\)\.",
    ),
}

# Bad only once the tasks are known.
LATER_CALLS: dict[str, tuple[Call, str]] = {
    "extra target": (
        with_targets(wear=torch.rand(8)),
        r"Each target should belong to one of the tasks \['rul', 'health'\]\. Found \['wear'\]\. .*compose\(tasks=\[",
    ),
    "extra loss of an unknown task": (
        with_options(extra={"kl": torch.tensor(1.0)}),
        r"Each extra loss should belong to one of the tasks \['rul', 'health'\]\. Found \['kl'\]",
    ),
    "loss of an unknown task": (
        lambda criterion, model, inputs, targets: criterion.combine({"kl": torch.ones(())}),
        r"Each loss should belong to one of the tasks \['rul', 'health'\]\. Found \['kl'\]",
    ),
    "extra loss of several entries": (
        lambda criterion, model, inputs, targets: criterion(
            model(inputs), {"rul": targets["rul"]}, extra={"health": torch.ones(2)}
        ),
        r"The loss of task 'health' should be a 0-dim floating point tensor\. Found a tensor \(2,\)",
    ),
    "float classes": (
        with_targets(health=torch.zeros(8)),
        r"Task 'health', shape .*class targets should be integers\. Found torch\.float32\. Use target\.long\(\)\.",
    ),
    "bool classes": (
        with_targets(health=torch.zeros(8, dtype=torch.bool)),
        r"class targets should be integers\. Found torch\.bool\. Use target\.long\(\)\.",
    ),
}

# Bad only while the kinds are not known.
FIRST_CALLS: dict[str, tuple[Call, str]] = {
    "ambiguous floats": (
        with_targets(rul=torch.ones(8)),
        r"kind of task 'rul' should be clear .*Found float targets that hold only 0 and 1.*inner=\{'rul': 'bce'",
    ),
    "ambiguous integers": (
        with_targets(rul=torch.arange(8)),
        r"kind of task 'rul' should be clear from its targets\. Found integer targets with a prediction of the same number",
    ),
    "float classes": (
        with_targets(health=torch.rand(8) + 2),
        r"Task 'health', .*Found prediction \(8, 3\) and target \(8,\)\. If these are logits .*use target\.long\(\)\.",
    ),
    "complex target": (
        with_targets(rul=torch.zeros(8, dtype=torch.complex64)),
        r"Targets of task 'rul' should be float, integer or bool\. Found torch\.complex64\.",
    ),
    "no task at all": (
        lambda criterion, model, inputs, targets: criterion(model(inputs), {}),
        r"The first call should have a target for every task, which names the tasks\. Found none\.",
    ),
    "no loss at all": (
        lambda criterion, model, inputs, targets: criterion.combine({}),
        r"The first call should have a loss for every task, which names the tasks\. Found none\.",
    ),
    "a mapping of outputs beside a tuple of targets": (
        lambda criterion, model, inputs, targets: criterion(model(inputs), tuple(targets.values())),
        r"Task '0' has a target and should have an output of the same name\. Found outputs \['rul', 'health'\]\.",
    ),
}


def built(**options: Any) -> MultiTaskCriterion:
    """A criterion whose state moves with every call."""
    return compose({"name": "gaba", "warmup": 0, "beta": 0.5, "floor": 0.0}, **options)


def state_of(criterion: MultiTaskCriterion) -> dict[str, Any]:
    return {key: value.clone() if isinstance(value, Tensor) else value for key, value in criterion.state_dict().items()}


def good_call(criterion: MultiTaskCriterion, kinds: Mapping[str, str], seed: int) -> list[Tensor]:
    """The total and the gradients of a call on a model and a batch of their own."""
    model = model_for(kinds, seed=seed)
    inputs, targets = batch_for(kinds, seed=seed)
    total = criterion(model(inputs), targets)
    model.zero_grad()
    total.backward()
    return [total.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("case", [*BAD_CALLS, *FIRST_CALLS])
def test_a_bad_first_call_fixes_nothing(case: str, training: bool) -> None:
    """A first call that fails says why, and the criterion is then as new: other names, order and kinds still work."""
    call, message = {**BAD_CALLS, **FIRST_CALLS}[case]
    criterion, fresh = built().train(training), built().train(training)
    model = model_for(KINDS)
    before = state_of(criterion)
    with pytest.raises(DataError, match=message):
        call(criterion, model, *batch_for(KINDS))
    assert equal(state_of(criterion), before)
    assert criterion.tasks == () and criterion.shapes == {} and criterion.report is None
    other = {"health": "regression", "wear": "binary", "rul": "multiclass"}
    assert equal(good_call(criterion, other, 1), good_call(fresh, other, 1))
    assert equal(state_of(criterion), state_of(fresh))
    assert criterion.tasks == tuple(other)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("case", [*BAD_CALLS, *LATER_CALLS])
def test_a_bad_call_leaves_no_trace(case: str, accumulate: int) -> None:
    """A later call that fails says why, leaves the state as it was, and the next calls go on as if it had not happened."""
    call, message = {**BAD_CALLS, **LATER_CALLS}[case]
    criterion, twin = built(accumulate=accumulate), built(accumulate=accumulate)
    criterion.debug = twin.debug = True
    for seed in range(3):
        assert equal(good_call(criterion, KINDS, seed), good_call(twin, KINDS, seed))
    before = state_of(criterion)
    with pytest.raises(DataError, match=message):
        call(criterion, model_for(KINDS), *batch_for(KINDS))
    assert equal(state_of(criterion), before)
    assert equal(criterion.report.losses, twin.report.losses)  # type: ignore[union-attr]
    for seed in range(3, 6):
        assert equal(good_call(criterion, KINDS, seed), good_call(twin, KINDS, seed))
    assert equal(state_of(criterion), state_of(twin))
    assert equal(criterion.log_dict(), twin.log_dict())


def test_values_are_checked_in_every_call_only_with_debug() -> None:
    """Without criterion.debug a NaN target in a later call is not looked for: the loss is NaN, and no state takes it up."""
    criterion = built()
    good_call(criterion, KINDS, 0)
    ema = criterion.outer.weights().clone()
    model = model_for(KINDS)
    inputs, targets = batch_for(KINDS)
    total = criterion(model(inputs), {**targets, "rul": NAN})
    assert torch.isnan(total)
    assert torch.equal(criterion.outer.weights(), ema)


@pytest.mark.parametrize("options", [{"r_max": 1.0}, {}])
def test_a_scaled_target_under_failure_biased_is_pointed_out(options: dict[str, float]) -> None:
    """Targets below 1 % of r_max draw a warning that names the option; with a fitting r_max there is none."""
    criterion = compose(inner={"rul": {"name": "failure_biased", **options}})
    outputs, targets = {"rul": torch.rand(4)}, {"rul": torch.tensor([0.1, 0.5, 0.9, 1.0])}
    if options:
        criterion(outputs, targets)
        return
    with pytest.warns(
        UserWarning, match=r"every target is at most 1, below 1 % of r_max=125.*pass r_max in the scaled unit"
    ):
        criterion(outputs, targets)


@pytest.mark.parametrize(
    ("shape", "prediction", "target", "message"),
    [
        ("focal", torch.zeros(3), torch.tensor([0, 1, 2]), r"targets should be 0 or 1\. .*in 0\.\.2"),
        ("focal", torch.zeros(3, 2), torch.tensor([[0, 1], [1, 5], [0, 0]]), r"should be 0 or 1\. .*in 0\.\.5"),
        ("bce", torch.zeros(3), torch.tensor([0, 1, 2]), r"binary targets should lie in \[0, 1\]\. Found 0\.\.2\."),
        (
            "bce",
            torch.zeros(3),
            torch.tensor([0.0, -0.5, 1.0]),
            r"binary targets should lie in \[0, 1\]\. Found -0.5\.\.1\.",
        ),
        (
            "focal",
            torch.zeros(3, 4),
            torch.tensor([0, 1, 4]),
            r"class indices should lie in \[0, 3\], the 4 logits\. Found 0\.\.4",
        ),
        (
            {"name": "focal", "alpha": 0.3},
            torch.zeros(3, 4),
            torch.tensor([0, 1, 2]),
            r"alpha of a multiclass task .*4 weights",
        ),
        (
            {"name": "focal", "alpha": [1, 2]},
            torch.zeros(3),
            torch.tensor([True] * 3),
            r"alpha of a binary task .*one number",
        ),
        (
            {"name": "quantile", "q": [0.1, 0.9]},
            torch.zeros(3),
            torch.ones(3) * 2,
            r"extra last dimension of 2, one entry per quantile",
        ),
        (
            {"name": "quantile", "q": [0.1, 0.9]},
            torch.zeros(3, 3),
            torch.ones(3) * 2,
            r"Found prediction \(3, 3\) and target",
        ),
    ],
)
def test_shapes_refuse_values_that_they_are_not_defined_for(
    shape: Any, prediction: Tensor, target: Tensor, message: str
) -> None:
    """A label or a logit layout that a named shape has no loss for is an error that names task and shape."""
    with pytest.raises(DataError, match=rf"Task 'task', shape .*{message}"):
        compose(inner={"task": shape})({"task": prediction}, {"task": target})


@pytest.mark.parametrize("columns", [1, 2, 5])
def test_binary_labels_in_columns_are_no_class_indices(columns: int) -> None:
    """Integer 0/1 labels in several columns, one logit each, are a binary task for focal, masked or not."""
    target = torch.arange(3 * columns).reshape(3, columns) % 2
    criterion = compose(inner={"labels": "focal"})
    total = criterion({"labels": torch.zeros(3, columns)}, {"labels": target}, mask=torch.tensor([True, False, True]))
    assert total.item() == pytest.approx(0.25 * 0.6931471805599453, rel=1e-6)


# ---- the graph


def test_tasks_that_share_nothing() -> None:
    """Under a gradient weighting, tasks without a common parameter are an error that asks for shared=."""
    models = {name: model_for({name: kind}) for name, kind in KINDS.items()}
    inputs, targets = batch_for(KINDS)
    criterion = built()
    before = state_of(criterion)
    with pytest.raises(
        GraphError, match=r"No parameter on the graph is reached by two of the tasks \['rul', 'health'\].*shared="
    ):
        criterion({name: model(inputs)[name] for name, model in models.items()}, targets)
    assert equal(state_of(criterion), before)
    assert criterion.tasks == ()


@pytest.mark.parametrize("accumulate", [1, 2])
def test_an_output_without_a_graph(accumulate: int) -> None:
    """Under a gradient weighting, an active task whose output is detached is an error that names it; nothing is lost."""
    criterion, twin = built(accumulate=accumulate), built(accumulate=accumulate)
    model = model_for(KINDS)
    inputs, targets = batch_for(KINDS)
    message = r"The loss of task 'health' does not require a gradient.*target as None"
    for seed in range(4):
        before = state_of(criterion)
        outputs = model(inputs)
        with pytest.raises(GraphError, match=message):
            criterion({**outputs, "health": outputs["health"].detach()}, targets)
        if accumulate == 1 or seed % accumulate:
            assert equal(state_of(criterion), before)
        assert equal(good_call(criterion, KINDS, seed), good_call(twin, KINDS, seed))
    assert equal(state_of(criterion), state_of(twin))


def test_a_detached_output_is_no_error_where_nothing_is_measured() -> None:
    """A weighting that reads losses alone takes a detached output, and so does GABA in evaluation."""
    model = model_for(KINDS)
    inputs, targets = batch_for(KINDS)
    for criterion in (compose(), built().eval()):
        outputs = model(inputs)
        assert torch.isfinite(criterion({**outputs, "health": outputs["health"].detach()}, targets))


@pytest.mark.parametrize("outer", ["gaba", "gradnorm"])
def test_a_graph_that_cannot_be_measured_shows_in_the_first_call(outer: str) -> None:
    """The default warm-up does not postpone the errors of the graph: detached outputs, and models that share nothing."""
    inputs, targets = batch_for(KINDS)
    one, other = model_for(KINDS)(inputs), model_for(KINDS)(inputs)
    with pytest.raises(GraphError, match="'health' does not require a gradient"):
        compose(outer)({**one, "health": one["health"].detach()}, targets)
    with pytest.raises(GraphError, match="No parameter on the graph is reached by two"):
        compose(outer)({**one, "health": other["health"]}, targets)
    late = compose(outer)
    late(one, {"rul": targets["rul"], "health": None})  # one task alone does not tell what is shared
    with pytest.raises(GraphError, match="No parameter on the graph is reached by two"):
        late({**one, "health": other["health"]}, targets)


@pytest.mark.parametrize("outer", ["gradnorm", {"name": "dwa", "window": 1}])
def test_a_negative_loss_from_elsewhere_under_ratios(outer: object) -> None:
    """A weighting that takes ratios of losses refuses a negative loss given to combine() or extra, and names it."""
    shared = torch.ones((), requires_grad=True)
    with pytest.raises(DataError, match=r"The loss of task 'kl' should not be negative.*Found -6\."):
        compose(outer).combine({"a": shared * 1.0, "kl": shared * -6.0})
    assert compose("fixed").combine({"a": shared * 1.0, "kl": shared * -6.0}).item() == -2.5


def test_a_graph_that_was_freed() -> None:
    """A call on outputs whose graph an earlier backward has freed says so, and what order is right."""
    criterion = built()
    model = model_for(KINDS)
    inputs, targets = batch_for(KINDS)
    outputs = model(inputs)
    criterion(outputs, targets).backward()
    before = state_of(criterion)
    with pytest.raises(GraphError, match=r"graph of task 'rul' was freed by an earlier backward.*Call the criterion"):
        criterion(outputs, targets)
    assert equal(state_of(criterion), before)


# ---- weightings, signals, states


def test_options_that_depend_on_the_number_of_tasks() -> None:
    """Where the tasks come with the first call, so does the error about them, and a call with fitting tasks still works."""
    criterion = compose({"name": "fixed", "weights": {"rul": 1.0, "health": 2.0}})
    with pytest.raises(
        OptionError, match=r"Fixed weights should name the tasks \['rul', 'heath'\]\. Found \['rul', 'health'\]\."
    ):
        criterion((), (), extra={"rul": torch.ones(()), "heath": torch.ones(())})
    assert criterion.tasks == ()
    assert criterion((), (), extra={"rul": torch.ones(()), "health": torch.ones(())}).item() == 3.0
    with pytest.raises(OptionError, match=r"`floor` of GABA should be below 1/K = 0.25 for the 4 tasks\. Found floor=0.3\."):
        shared = torch.ones((), requires_grad=True)
        compose({"name": "gaba", "floor": 0.3}).combine([shared * 1.0 for _ in range(4)])


def test_a_weighting_that_is_bound_to_other_tasks() -> None:
    """A weighting instance that another criterion has bound to its tasks is refused, with both lists of names."""
    weighting = DWA()
    compose(weighting)((torch.ones(2),), (torch.ones(2) * 3,))
    criterion = compose(weighting)
    with pytest.raises(StateError, match=r"is bound to the tasks \['0'\], this criterion has \['rul'\]\. Give each"):
        criterion({"rul": torch.ones(2)}, {"rul": torch.ones(2) * 3})
    assert criterion.tasks == ()


def test_signals_of_wrong_shape() -> None:
    """Signals whose parts do not agree on K are refused, and so are signals of another K than the weighting's."""
    with pytest.raises(
        DataError,
        match=r"Signals need `losses` of shape \(K,\) and a matching `norms`\. Found losses \(2,\) and norms \(3,\)",
    ):
        Signals(torch.ones(2), norms=torch.ones(3))
    with pytest.raises(DataError, match=r"matching `gramian`\. Found losses \(2,\) and gramian \(2, 3\)"):
        Signals(torch.ones(2), gramian=torch.ones(2, 3))
    with pytest.raises(DataError, match=r"Signals need `losses` of shape \(K,\).*Found losses \(\)"):
        Signals(torch.ones(()))
    weighting = Fixed()
    weighting(Signals(torch.ones(2)))
    with pytest.raises(StateError, match=r"Fixed\(weights=None\) is bound to 2 tasks and was called with signals of 3\."):
        weighting(Signals(torch.ones(3)))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            lambda: called(built(), ["a", "b"]),
            r"The state is of the tasks \['a', 'b'\], this criterion has \['rul', 'health'\]\. Compose it",
        ),
        (
            lambda: called(built(), ["a"]),
            r"The state is of the tasks \['a'\], this criterion has \['rul', 'health'\]\. Compose it",
        ),
        (
            lambda: called(compose("dwa"), list(KINDS)),
            r"The state is of the weighting DWA, this criterion has GABA\. Compose it",
        ),
        (lambda: built(), r"The state was saved before the criterion's first call.*Load it into a fresh one\."),
    ],
)
def test_a_state_of_another_criterion(other: Callable[[], MultiTaskCriterion], message: str) -> None:
    """A state of other tasks, of another weighting or of a criterion that never ran is refused and changes nothing."""
    criterion, twin = built(), built()
    for each in (criterion, twin):
        good_call(each, KINDS, 0)
    before = state_of(criterion)
    with pytest.raises(StateError, match=message):
        criterion.load_state_dict(other().state_dict())
    assert equal(state_of(criterion), before)
    assert equal(good_call(criterion, KINDS, 1), good_call(twin, KINDS, 1))


def called(criterion: MultiTaskCriterion, names: list[str]) -> MultiTaskCriterion:
    parameter = torch.ones(3, requires_grad=True)
    criterion(dict.fromkeys(names, parameter), {name: parameter.detach() + 2 for name in names})
    return criterion


def test_every_error_has_the_root_and_a_built_in_parent() -> None:
    """One except clause catches every error on purpose, and each is also the built-in exception that a caller expects."""
    for error, parent in (
        (OptionError, ValueError),
        (UnknownNameError, KeyError),
        (DataError, ValueError),
        (GraphError, RuntimeError),
        (StateError, ValueError),
    ):
        assert issubclass(error, MtlAxesError) and issubclass(error, parent)
    assert str(UnknownNameError("line one\nline 'two'")) == "line one\nline 'two'"


def test_a_weighting_in_two_criteria() -> None:
    """A weighting object belongs to one criterion; when that one is gone it is free again."""
    weighting = GABA()
    first = compose(weighting)
    with pytest.raises(OptionError, match=r"A weighting has state and should belong to one criterion\. Found GABA"):
        compose(weighting)
    del first
    compose(weighting)
