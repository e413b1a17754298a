"""Reuse: the user's backward takes the gradients that were measured, unless somebody would notice."""

from __future__ import annotations

import copy
import gc
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from probing import PROBES, REUSES, GramianRecorder, Net, Spread, f32, f64, names, reused, same_gradients, weighted
from torch import Tensor, nn

from mtl_axes import compose
from mtl_axes.errors import GraphError, MtlAxesError
from mtl_axes.probes import Exact, Probe, Representation, Shared, Tape

pytestmark = pytest.mark.skipif(not REUSES, reason="this torch does not say whether a backward is the last one")
TASKS = names(3)
costly = pytest.mark.filterwarnings("ignore:.*plain step")


class Passing(torch.autograd.Function):
    """The identity, counting its backwards."""

    count = 0

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        return z.view_as(z)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        Passing.count += 1
        return gradient


class Pair:
    """A model with a criterion, and a twin for the plain weighted sum of the same call."""

    def __init__(self, outer: Any = None, *, model: Net | None = None, **options: Any) -> None:
        self.model = Net(3) if model is None else model
        self.twin = copy.deepcopy(self.model)
        self.criterion = compose(Spread() if outer is None else outer, tasks=TASKS, **options)
        self.seed = 0

    def total(self, calls: int = 1) -> Tensor:
        """The total of the last of some calls; of the others only the graph is built."""
        for _ in range(calls):
            self.seed += 1
            total = self.criterion.combine(self.model(self.seed))
        return total

    def plain(self) -> Tensor:
        """The weighted sum on the twin, with the weights and the batch of the last call."""
        return weighted(self.twin(self.seed), self.criterion.report.weights, TASKS)

    def warm(self) -> Pair:
        """Train for two steps, after which gradients are reused."""
        for _ in range(2):
            self.total().backward()
        self.model.zero_grad()
        return self

    def same(self) -> None:
        same_gradients(self.model, self.twin, 1e-12)

    def clear(self) -> None:
        self.model.zero_grad(), self.twin.zero_grad()


def says_no(pair: Pair) -> str:
    """What explain() says about reuse, after the last call did without."""
    text = pair.criterion.explain()
    assert "reuse" in text, text
    return text


def test_reuse_saves_one_backward_through_the_trunk() -> None:
    """From the second call on a step costs K backwards through the trunk; without reuse K + 1."""
    counts = {}
    for reuse in (True, False):
        pair = Pair(probe=Exact(reuse=reuse))
        pair.model.trunk.insert(2, nn.Identity())
        pair.model.trunk[2].forward = Passing.apply
        counts[reuse] = []
        for _ in range(4):
            Passing.count = 0
            pair.total().backward()
            counts[reuse].append(Passing.count)
    assert counts[True][1:] == [3, 3, 3]
    assert counts[False] == [4, 4, 4, 4]


def test_reuse_is_on_from_the_second_call_and_explained() -> None:
    """explain() says whether gradients are reused, and that hooks fire once more per measurement."""
    pair = Pair().warm()
    assert reused(pair.total())
    without = Pair(probe=Exact(reuse=False))
    assert not any(reused(without.total()) for _ in range(3))
    texts = [each.criterion.explain() for each in (pair, without)]
    assert "reuse" in texts[0]
    assert texts[0] != texts[1]
    for text in texts:
        assert "hooks on activations fire once more" in text


def test_windows_without_a_measurement_have_the_ordinary_backward() -> None:
    """With every=3 only the windows that measure reuse."""
    pair = Pair(every=3)
    assert [reused(pair.total()) for _ in range(8)][1:] == [False, False, True, False, False, True, False]


def test_a_call_that_is_held_or_evaluated_is_not_reused() -> None:
    """hold() and eval() return totals with the graph of the losses."""
    pair = Pair().warm()
    with pair.criterion.hold():
        assert not reused(pair.total())
    pair.criterion.eval()
    assert not reused(pair.total())
    pair.criterion.train()
    assert reused(pair.total())


def doubling(fired: list[str]) -> Callable[[Tensor], Tensor]:
    def hook(gradient: Tensor) -> Tensor:
        fired.append("tensor")
        return 2 * gradient

    return hook


def on_tensor(pair: Pair, fired: list[str]) -> None:
    pair.model.tap = lambda z: z.register_hook(doubling(fired))
    pair.twin.tap = lambda z: z.register_hook(lambda gradient: 2 * gradient)


def observing(pair: Pair, fired: list[str]) -> None:
    pair.model.tap = lambda z: z.register_hook(lambda gradient: fired.append("tensor"))


def on_node(pair: Pair, fired: list[str]) -> None:
    pair.model.tap = lambda z: z.grad_fn.register_hook(lambda inputs, outputs: fired.append("node"))


def before_node(pair: Pair, fired: list[str]) -> None:
    pair.model.tap = lambda z: z.grad_fn.register_prehook(lambda gradients: fired.append("node"))


def on_module(pair: Pair, fired: list[str]) -> None:
    pair.model.trunk[1].register_full_backward_hook(lambda module, inputs, outputs: fired.append("module"))


def before_module(pair: Pair, fired: list[str]) -> None:
    pair.model.trunk[1].register_full_backward_pre_hook(lambda module, outputs: fired.append("module"))


def on_leaf(pair: Pair, fired: list[str]) -> None:
    def masked(gradient: Tensor) -> Tensor:
        fired.append("leaf")
        return gradient * torch.arange(gradient.numel(), dtype=gradient.dtype).view_as(gradient)

    pair.model.trunk[0].weight.register_hook(masked)
    pair.twin.trunk[0].weight.register_hook(lambda gradient: gradient * torch.arange(24.0, dtype=f64).view_as(gradient))


HOOKS = {
    "a tensor hook that scales": on_tensor,
    "a tensor hook that observes": observing,
    "a node hook": on_node,
    "a node pre-hook": before_node,
    "a module hook": on_module,
    "a module pre-hook": before_module,
    "a leaf hook": on_leaf,
}


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("since", [0, 3])
def test_hooks_are_detected(hook: str, since: int) -> None:
    """Hooks there from the start or later turn reuse off, fire in the user's backward, and once more per measurement."""
    pair, fired = Pair(), []
    for call in range(since + 4):
        if call == since:
            HOOKS[hook](pair, fired)
        total = pair.total()
        assert call == 0 or reused(total) == (call < since)
        assert call < since or not reused(total)
        assert len(fired) == (3 if call >= since else 0), "once per measured task"
        total.backward()
        assert len(fired) == (4 if call >= since else 0), "and once in the user's own backward"
        fired.clear()
        pair.plain().backward()
        pair.same()
        pair.clear()
    assert "hook" in says_no(pair)


def test_a_list_as_observer_sees_every_gradient() -> None:
    """z.register_hook(gradients.append) keeps the K task gradients, and the weighted one of the user's backward."""
    pair = Pair().warm()
    seen: list[Tensor] = []
    pair.model.tap = lambda z: z.register_hook(seen.append)
    pair.total().backward()
    kept: list[Tensor] = []
    pair.twin.tap = kept.append
    losses = pair.twin(pair.seed)
    rows = [torch.autograd.grad(losses[name], kept[-1], retain_graph=True)[0] for name in TASKS]
    assert len(seen) == 4
    for found, row in zip(seen, rows, strict=False):
        torch.testing.assert_close(found, row, rtol=1e-12, atol=0)
    expected = sum(weight * row for weight, row in zip(pair.criterion.report.weights, rows, strict=True))
    torch.testing.assert_close(seen[-1], expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("since", [0, 3])
def test_a_retained_gradient_of_a_loss_is_detected(since: int) -> None:
    """A loss that retains its gradient, from the first call on or later, turns reuse off, and is given its weight."""
    pair = Pair()
    for call in range(since + 4):
        pair.seed += 1
        losses = pair.model(pair.seed)
        if call >= since:
            losses["b"].retain_grad()
        total = pair.criterion.combine(losses)
        assert call == 0 or reused(total) == (call < since)
        assert call < since or (not reused(total) and losses["b"].grad is None)
        total.backward()
        pair.plain().backward()
        pair.same()
        pair.clear()
        assert call < since or torch.equal(losses["b"].grad, pair.criterion.report.weights[1])
    assert "retains its gradient" in says_no(pair)


@pytest.mark.parametrize("probe", [Exact(), Exact(reuse=False), Exact(rotate=True), Representation()], ids=repr)
def test_retained_gradients_of_outputs_are_left_as_they_are(probe: Probe) -> None:
    """Measuring writes nothing into the .grad of an output on the tape, and does not reuse gradients that pass it."""
    model = Net(3)
    for call in range(3):
        inputs, _ = model.batch(call)
        z = model.represent(inputs)
        outputs = [model.predict(name, z) for name in TASKS]
        losses = tuple(output.square().mean() for output in outputs)
        if call:
            outputs[0].retain_grad()
            outputs[0].grad = marker = torch.ones_like(outputs[0])
        tape = Tape(TASKS, losses, Shared(None), outputs=tuple(outputs))
        probe.measure(tape, "norms")
        total = probe.couple(tape, torch.tensor([1.0, 2.0, 3.0], dtype=f64), losses[0] + 2 * losses[1] + 3 * losses[2])
        assert not call or not reused(total)
        assert not call or (outputs[0].grad is marker and bool((marker == 1).all()))
    if probe.options().get("reuse") and not probe.options()["rotate"]:
        assert "an output or a loss retains its gradient" in probe.describe()


@pytest.mark.parametrize("reuse", [True, False])
def test_a_retained_activation_also_collects_what_was_measured(reuse: bool) -> None:
    """As with any torch.autograd.grad; behind it comes the weighted gradient, unless that is handed over to the leaves."""
    pair, kept = Pair(probe=Exact(reuse=reuse)).warm(), []
    pair.model.tap = pair.twin.tap = kept.append
    pair.seed += 1
    losses, plain = pair.model(pair.seed), pair.twin(pair.seed)
    kept[0].retain_grad()
    total = pair.criterion.combine(losses)
    assert reused(total) == reuse
    rows = torch.stack([torch.autograd.grad(loss, kept[1], retain_graph=True)[0] for loss in plain.values()])
    torch.testing.assert_close(kept[0].grad, rows.sum(0), rtol=1e-12, atol=1e-14)
    total.backward()
    weights = 1 + (0.0 if reuse else pair.criterion.report.weights)
    torch.testing.assert_close(
        kept[0].grad, (torch.ones(3, dtype=f64) * weights) @ rows.transpose(0, 1), rtol=1e-12, atol=1e-14
    )


def test_hooks_on_the_activations_of_two_forwards_before_two_calls() -> None:
    """Two forwards with hooks on both, then two calls: neither hook is lost, though none came between the calls."""
    pair, seen, plain = Pair().warm(), [], []
    for into, each in ((seen, pair.model), (plain, pair.twin)):
        each.tap = lambda z, into=into: z.register_hook(lambda gradient, into=into: into.append(gradient) or 2 * gradient)
    losses, others = ([each(seed) for seed in (7, 8)] for each in (pair.model, pair.twin))
    totals, sums = [], []
    for one, other in zip(losses, others, strict=True):
        totals.append(pair.criterion.combine(one))
        sums.append(weighted(other, pair.criterion.report.weights, TASKS))
    seen.clear()
    for total, value in zip(totals, sums, strict=True):
        total.backward()
        value.backward()
    pair.same()
    assert len(seen) == len(plain) == 2
    for one, other in zip(seen, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


def test_a_hook_on_an_activation_that_outlives_a_call() -> None:
    """One forward and several calls on it: the hook sees the gradient of each backward, and of a second criterion's."""
    pair, kept, seen = Pair().warm(), [], []
    other = compose(Spread(), tasks=TASKS)

    def tap(z: Tensor) -> None:
        kept.append(z)
        z.register_hook(seen.append)

    pair.model.tap = tap
    losses = pair.model(7)
    for criterion in (pair.criterion, pair.criterion, other, other):
        total = criterion.combine(losses)
        (expected,) = torch.autograd.grad(weighted(losses, criterion.report.weights, TASKS), kept[0], retain_graph=True)
        seen.clear()
        total.backward(retain_graph=True)
        assert len(seen) == 1
        assert seen[0] is not None
        torch.testing.assert_close(seen[0], expected, rtol=1e-12, atol=1e-14)


def test_reuse_comes_back_when_the_hooks_are_gone() -> None:
    """A module hook that is removed leaves nothing behind: gradients are reused again, and it never fires again."""
    pair, fired = Pair().warm(), []
    handle = pair.model.trunk[1].register_full_backward_hook(lambda *args: fired.append(1))
    assert not reused(pair.total(2))
    handle.remove()
    fired.clear()
    assert [reused(pair.total()) for _ in range(3)][1:] == [True, True]
    assert fired == []


@pytest.mark.parametrize("how", ["hook", "node hook", "retain_grad"])
def test_a_hook_between_the_call_and_the_backward_is_not_lost(how: str) -> None:
    """A hook, or retain_grad on a loss, between call and backward gets the gradient, or an error says why not."""
    pair, kept, seen = Pair().warm(), [], []
    pair.model.tap = pair.twin.tap = kept.append
    pair.seed += 1
    losses = pair.model(pair.seed)
    total = pair.criterion.combine(losses)
    assert reused(total)
    if how == "hook":
        kept[0].register_hook(seen.append)
    elif how == "node hook":
        kept[0].grad_fn.register_hook(lambda inputs, outputs: seen.append(outputs[0]))
    else:
        losses["b"].retain_grad()
    plain = pair.plain()
    try:
        total.backward()
    except MtlAxesError as error:
        assert "reuse=False" in str(error)
        return
    (expected,) = torch.autograd.grad(plain, kept[1])
    if how == "retain_grad":
        seen, expected = [losses["b"].grad], pair.criterion.report.weights[1]
    assert len(seen) == 1
    assert seen[0] is not None
    torch.testing.assert_close(seen[0], expected, rtol=1e-12, atol=1e-14)


def test_a_task_of_weight_zero_whose_gradient_overflows_poisons_nothing() -> None:
    """0 times an infinite gradient is NaN, where the plain sum has 0: a task that overflows stays out of the others' way."""

    class Silent(Spread):
        def forward(self, signals: Any, /) -> Tensor:
            return torch.tensor([1.0, 0.0])

    model = nn.Linear(3, 3)
    criterion = compose(Silent(), tasks=["a", "b"], shared=model)
    for call in range(3):
        out = model(torch.full((2, 3), 1e30))
        losses = {"a": 1e-30 * out[0].sum(), "b": 1e20 * (out[1] - out[1].detach() + 1e-20).sum()}
        assert all(bool(loss.isfinite()) for loss in losses.values())
        total = criterion.combine(losses)
        model.zero_grad()
        total.backward()
        assert bool(model.weight.grad.isfinite().all()), f"call {call}"
        assert criterion.report.active.tolist() == [True, False]


@pytest.mark.parametrize("how", ["backward", "grad"])
def test_a_double_backward_raises_instead_of_returning_zeros(how: str) -> None:
    """create_graph through a reused gradient is an error that names reuse=False, which computes it."""

    def penalty(model: Net, total: Tensor) -> Tensor:
        parameters = list(model.parameters())
        if how == "grad":
            rows = torch.autograd.grad(total, parameters, create_graph=True)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                total.backward(create_graph=True)
            rows = tuple(parameter.grad for parameter in parameters)
        return sum(row.square().sum() for row in rows)

    pair = Pair().warm()
    with pytest.raises(GraphError, match=r"Exact\(reuse=False\)"):
        penalty(pair.model, pair.total())
    without = Pair(probe=Exact(reuse=False)).warm()
    total, plain = without.total(), without.plain()
    sides = ((without.model, total), (without.twin, plain))
    found, expected = (torch.autograd.grad(penalty(model, value), [model.trunk[0].weight])[0] for model, value in sides)
    assert found.any()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_backward_that_retains_adds_up_like_any_other(accumulate: int) -> None:
    """backward(retain_graph=True) twice gives twice the gradient, also into gradients that were changed in place between."""
    pair = Pair(accumulate=accumulate).warm()
    total, plain = pair.total(), pair.plain()
    assert reused(total)
    for value in (total, plain):
        value.backward(retain_graph=True)
    pair.same()
    for value in (total, plain):
        value.backward(retain_graph=True)
    pair.same()
    for model in (pair.model, pair.twin):
        model.zero_grad(set_to_none=False)
    for value in (total, plain):
        value.backward(gradient=torch.tensor(-3.0, dtype=f64))
    pair.same()


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_second_backward_raises_as_torch_does(accumulate: int) -> None:
    """Without retain_graph a second backward is the error of torch, and adds nothing."""
    pair = Pair(accumulate=accumulate).warm()
    total = pair.total()
    assert reused(total)
    total.backward()
    before = [parameter.grad.clone() for parameter in pair.model.parameters()]
    with pytest.raises(RuntimeError, match="second time"):
        total.backward()
    assert all(torch.equal(*both) for both in zip(before, (p.grad for p in pair.model.parameters()), strict=True))


def test_gradients_of_two_totals_add_up() -> None:
    """The sum of two totals, and the backward of a total after a later call, have the gradients of their own weights."""
    pair = Pair().warm()
    first, plain = pair.total(), pair.plain()
    second, other = pair.total(), pair.plain()
    assert reused(first) and reused(second)
    (first - 0.5 * second).backward()
    (plain - 0.5 * other).backward()
    pair.same()
    early, plain = pair.total(), pair.plain()
    pair.total(2)
    early.backward(), plain.backward()
    pair.same()


def test_backward_into_chosen_inputs() -> None:
    """backward(inputs=[...]) writes the gradients of these parameters and of no other."""
    pair = Pair().warm()
    total, plain = pair.total(), pair.plain()
    assert reused(total)
    for model, value in ((pair.model, total), (pair.twin, plain)):
        torch.autograd.backward(value, inputs=[model.trunk[0].weight, model.heads["b"][0].bias])
    pair.same()
    assert sum(parameter.grad is not None for parameter in pair.model.parameters()) == 2


def test_grad_of_the_total_is_that_of_the_plain_sum() -> None:
    """torch.autograd.grad of a reused total at parameters writes nothing and returns the plain sum's gradients."""
    pair = Pair().warm()
    total, plain = pair.total(), pair.plain()
    assert reused(total)
    found = torch.autograd.grad(total, list(pair.model.parameters()))
    expected = torch.autograd.grad(plain, list(pair.twin.parameters()))
    for one, other in zip(found, expected, strict=True):
        assert bool((one - other).norm() <= 1e-12 * other.norm())
    assert all(parameter.grad is None for parameter in pair.model.parameters())


@pytest.mark.parametrize("how", ["grad", "backward"])
def test_the_gradient_at_an_activation_is_not_silently_missing(how: str) -> None:
    """Asked for the gradient of a reused total at an activation, the answer is right or an error, never None."""
    pair = Pair().warm()
    kept: list[Tensor] = []
    pair.model.tap = kept.append
    total = pair.total()
    assert reused(total)
    pair.twin.tap = kept.append
    plain = pair.plain()
    (expected,) = torch.autograd.grad(plain, kept[1])
    try:
        if how == "grad":
            (found,) = torch.autograd.grad(total, kept[0])
        else:
            torch.autograd.backward(total, inputs=[kept[0]])
            found = kept[0].grad
    except RuntimeError:
        return
    assert found is not None
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("where", ["output", "activation", "loss"])
def test_a_regulariser_on_an_activation_goes_through_the_graph_too(where: str) -> None:
    """A term of the user's own on an output, an activation or a task loss adds its gradient to the reused one."""
    pair = Pair().warm()
    kept: list[Tensor] = []
    pair.model.tap = pair.twin.tap = kept.append
    pair.seed += 1
    losses, plain = pair.model(pair.seed), pair.twin(pair.seed)
    total = pair.criterion.combine(losses)
    assert reused(total)
    for value, task, z, model in (
        (total, losses, kept[0], pair.model),
        (weighted(plain, pair.criterion.report.weights, TASKS), plain, kept[1], pair.twin),
    ):
        term = {"output": model.heads["a"](z), "activation": z, "loss": task["b"]}[where]
        (value + 0.3 * term.square().sum()).backward()
    pair.same()


def test_a_regulariser_may_come_in_a_backward_of_its_own() -> None:
    """Before the total's backward, and after one that retains the graph, the graph of the losses is still there."""
    pair = Pair().warm()
    pair.seed += 1
    losses, plain = pair.model(pair.seed), pair.twin(pair.seed)
    total = pair.criterion.combine(losses)
    assert reused(total)
    sides = ((total, losses), (weighted(plain, pair.criterion.report.weights, TASKS), plain))
    for value, task in sides:
        (0.1 * task["a"]).backward(retain_graph=True)
        value.backward(retain_graph=True)
        (0.1 * task["b"]).backward()
    pair.same()


@costly
@pytest.mark.parametrize(("accumulate", "kept"), [(1, 8), (2, 1)])
def test_reuse_keeps_a_gradient_per_task_or_a_single_sum(accumulate: int, kept: int) -> None:
    """Between call and backward K gradients are kept, or one where the weights were known; after the backward only .grad."""
    weight = nn.Parameter(torch.randn(37, 41, dtype=f64))
    heads = [nn.Parameter(torch.randn(37, dtype=f64)) for _ in names(8)]
    criterion = compose(Spread(), tasks=names(8), accumulate=accumulate)

    def alive() -> int:
        return sum(issubclass(type(item), Tensor) and item.shape == weight.shape for item in gc.get_objects())

    for call in range(2 * accumulate + 1):
        z = torch.tanh(weight @ torch.full((41,), 0.1, dtype=f64))
        before = alive()
        total = criterion.combine({name: (z @ head).square() for name, head in zip(names(8), heads, strict=True)})
        if call:
            assert reused(total)
            assert alive() - before == kept
        total.backward()
        del total, z
        assert weight.grad is not None
        weight.grad = None
        assert alive() == 1


def saved(pair: Pair) -> list[weakref.ref[Tensor]]:
    """Let the model report a weak reference to its first activation, which only the graph keeps."""
    references: list[weakref.ref[Tensor]] = []
    pair.model.trunk[1].register_forward_hook(lambda module, inputs, output: references.append(weakref.ref(output)))
    return references


@pytest.mark.parametrize("probe", PROBES)
def test_the_backward_frees_the_graph(probe: str) -> None:
    """After the backward, with the total still held, no activation lives; nor after a call whose total was dropped."""
    pair = Pair(**PROBES[probe])
    references = saved(pair)
    for _ in range(4):
        total = pair.total()
        total.backward()
        assert references[-1]() is None, "the graph outlived its backward"
    total = pair.total()
    assert references[-1]() is not None
    del total
    assert references[-1]() is None, "the graph outlived its total"


def test_the_backward_frees_the_graph_that_outputs_still_name() -> None:
    """With the losses still held the saved tensors are gone after the backward: a second pass through them raises."""
    for reuse in (False, True):
        pair = Pair(probe=Exact(reuse=reuse)).warm()
        losses = pair.model(7)
        total = pair.criterion.combine(losses)
        assert reused(total) == reuse
        total.backward()
        with pytest.raises(RuntimeError, match="second time"):
            losses["a"].backward()


def test_post_accumulate_hooks_fire_once_per_backward() -> None:
    """Optimizers that step in the backward see each parameter once, with its whole gradient, and are no hindrance."""
    pair = Pair()
    fired: list[int] = []
    for index, parameter in enumerate(pair.model.parameters()):
        parameter.register_post_accumulate_grad_hook(lambda p, index=index: fired.append(index))
    assert pair.total() is not None
    assert fired == [], "measuring accumulates nothing"
    for _ in range(3):
        total = pair.total()
        assert reused(total)
        total.backward()
        assert sorted(fired) == list(range(len(list(pair.model.parameters()))))
        fired.clear()


def test_an_optimizer_in_the_backward_trains_as_with_the_plain_sum() -> None:
    """A step taken in the post-accumulate hook of each parameter, which frees its gradient, is that of the plain sum."""
    pair = Pair()
    for model in (pair.model, pair.twin):
        for parameter in model.parameters():
            optimizer = torch.optim.SGD([parameter], lr=1e-3, momentum=0.9)

            def step(p: Tensor, optimizer: torch.optim.Optimizer = optimizer) -> None:
                optimizer.step()
                optimizer.zero_grad()

            parameter.register_post_accumulate_grad_hook(step)
    for call in range(6):
        total, plain = pair.total(), pair.plain()
        assert call == 0 or reused(total)
        total.backward(), plain.backward()
        for one, other in zip(pair.model.parameters(), pair.twin.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-13)


def half_losses(model: Net, seed: int) -> dict[str, Tensor]:
    with torch.autocast("cpu", dtype=torch.float16):
        return {name: loss.float() for name, loss in model(seed).items()}


def test_float16_in_the_graph_is_refused() -> None:
    """Under float16 autocast the scale has to arrive before the gradients are formed, so nothing is reused."""
    model = Net(3, f32)
    criterion = compose(Spread(), tasks=TASKS)
    for call in range(4):
        total = criterion.combine(half_losses(model, call))
        assert not reused(total)
        total.backward()
    assert "float16" in criterion.explain()
    assert "reuse" in criterion.explain()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_leaves_are_refused(dtype: torch.dtype) -> None:
    """The sum of rounded gradients is not the rounded sum: leaves in half precision get the ordinary backward."""
    model = Net(3).to(dtype)
    twin = copy.deepcopy(model)
    criterion = compose(Spread(), tasks=TASKS)
    for call in range(4):
        total = criterion.combine(model(call))
        assert not reused(total)
        total.backward()
        weighted(twin(call), criterion.report.weights, TASKS).backward()
        same_gradients(model, twin, 0.0)
    assert "reuse" in criterion.explain()


def test_bfloat16_autocast_with_wide_leaves_is_reused_within_its_rounding() -> None:
    """Under bfloat16 autocast the gradients of float32 leaves are those of the plain sum up to bfloat16."""
    model = Net(3, f32)
    twin = copy.deepcopy(model)
    criterion = compose(Spread(), tasks=TASKS)
    for call in range(4):
        sums = []
        for each in (model, twin):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                losses = {name: loss.float() for name, loss in each(call).items()}
            sums.append(criterion.combine(losses) if each is model else weighted(losses, criterion.report.weights, TASKS))
        for value in sums:
            value.backward()
        same_gradients(model, twin, 4e-2)
        model.zero_grad(), twin.zero_grad()


def test_reentrant_checkpointing_with_a_given_trunk_is_refused_or_right() -> None:
    """A node that hides the graph behind it is an error that names the way out, never a wrong gradient."""
    model = Net(3)
    criterion = compose(Spread(), tasks=TASKS, shared=model.trunk[2:])
    z = torch.utils.checkpoint.checkpoint(model.trunk, torch.randn(8, 4, dtype=f64, requires_grad=True), use_reentrant=True)
    with pytest.raises(GraphError, match="use_reentrant=False"):
        criterion.combine({name: model.predict(name, z).sum() for name in TASKS})


@pytest.mark.parametrize("need", ["norms", "gramian"])
def test_sparse_gradients_are_not_reused(need: str) -> None:
    """An embedding with sparse gradients keeps them sparse, and explain() says why nothing is reused."""
    torch.manual_seed(0)
    embed, head = nn.Embedding(6, 3, sparse=True).double(), nn.Linear(3, 3).double()
    twin = copy.deepcopy(nn.ModuleList([embed, head]))
    criterion = compose(Spread() if need == "norms" else GramianRecorder(), tasks=TASKS)

    def losses(embed: nn.Module, head: nn.Module) -> dict[str, Tensor]:
        out = head(torch.tanh(embed(torch.tensor([0, 2, 2, 5]))))
        return {name: out[:, index].square().sum() for index, name in enumerate(TASKS)}

    for _ in range(4):
        total = criterion.combine(losses(embed, head))
        assert not reused(total)
        total.backward()
        weighted(losses(*twin), criterion.report.weights, TASKS).backward()
        assert embed.weight.grad.is_sparse
        torch.testing.assert_close(embed.weight.grad.to_dense(), twin[0].weight.grad.to_dense(), rtol=1e-12, atol=1e-14)
        embed.weight.grad = twin[0].weight.grad = None
    assert "sparse" in criterion.explain()


def test_a_compiled_model_is_not_reused() -> None:
    """Behind a compiled node nothing is reused, and the gradients are the plain sum's."""
    torch._dynamo.reset()
    model = Net(3, f32)
    twin = copy.deepcopy(model)
    with torch._functorch.config.patch(donated_buffer=False):
        compiled = torch.compile(model.represent, backend="aot_eager")
        criterion = compose(Spread(), tasks=TASKS, shared=model.trunk)
        for call in range(4):
            inputs, _ = model.batch(call)
            z, plain = compiled(inputs), twin.represent(inputs)
            total = criterion.combine({name: model.predict(name, z).square().mean() for name in TASKS})
            assert not reused(total)
            total.backward()
            losses = {name: twin.predict(name, plain).square().mean() for name in TASKS}
            weighted(losses, criterion.report.weights, TASKS).backward()
            same_gradients(model, twin, 1e-6)
            model.zero_grad(), twin.zero_grad()
    assert "compiled" in criterion.explain()


class Wrapped(torch.Tensor):
    """A tensor subclass without any behaviour of its own."""


def test_tensor_subclasses_as_leaves_are_not_reused() -> None:
    """Leaves of a tensor subclass get the ordinary backward, because its gradients have rules of their own."""
    model = Net(3)
    model.trunk[0].weight = nn.Parameter(model.trunk[0].weight.detach().as_subclass(Wrapped))
    criterion = compose(Spread(), tasks=TASKS)
    for call in range(3):
        total = criterion.combine(model(call))
        assert not reused(total)
        total.backward()
    assert "Wrapped" in criterion.explain()


@pytest.mark.parametrize("probe", PROBES)
def test_retained_gradients_of_losses_are_the_weights(probe: str) -> None:
    """What a measurement sends into a loss that retains its gradient does not stay there."""
    pair = Pair(**PROBES[probe])
    for call in range(4):
        losses = pair.model(call)
        for loss in losses.values():
            loss.retain_grad()
        pair.criterion.combine(losses).backward()
        for loss, weight in zip(losses.values(), pair.criterion.report.weights, strict=True):
            torch.testing.assert_close(loss.grad, weight, rtol=1e-12, atol=1e-15)
