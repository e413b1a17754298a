"""Whether a hook may sit on an activation: numbers decide, other threads are left alone, and any doubt means no reuse."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from probing import REUSES, Net, Spread, f64, names, reused, same_gradients, weighted
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mtl_axes import compose

pytestmark = pytest.mark.skipif(not REUSES, reason="this torch does not say whether a backward is the last one")
TASKS = names(3)


def in_thread(work: Callable[[], Any]) -> Any:
    """The result of some work in a new thread."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(work()))
    thread.start()
    thread.join()
    return results[0]


@contextmanager
def beside(work: Callable[[], Any]) -> Iterator[None]:
    """Within this context another thread does the same work over and over."""
    stop = threading.Event()

    def loop() -> None:
        while not stop.is_set():
            work()

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("probe", ["exact", "representation", "lagged"])
def test_a_thread_that_makes_tuples_is_left_alone(probe: str) -> None:
    """300 training steps beside a thread that makes tuples, whose unfinished ones nobody else may look at."""
    model = Net(3)
    criterion = compose(Spread(), tasks=TASKS, probe=probe)
    with beside(lambda: tuple(index for index in range(100))):
        for call in range(300):
            criterion.combine(model(call)).backward()
    assert criterion.report is not None


def test_other_threads_may_register_hooks_at_any_time() -> None:
    """Hooks that another thread registers meanwhile cost reuse in some calls, and never a gradient."""
    model = Net(3)
    twin = copy.deepcopy(model)
    criterion = compose(Spread(), tasks=TASKS)
    other = torch.zeros(1, requires_grad=True)
    with beside(lambda: other.register_hook(lambda gradient: None).remove()):
        for call in range(50):
            criterion.combine(model(call)).backward()
            weighted(twin(call), criterion.report.weights, TASKS).backward()
            same_gradients(model, twin, 1e-12)
            model.zero_grad(), twin.zero_grad()


def test_the_criterion_may_run_in_another_thread_than_the_one_that_built_the_model() -> None:
    """Forward and criterion in a thread of their own: its first call is not reused, the others are."""
    model = Net(3)
    criterion = compose(Spread(), tasks=TASKS)

    def train() -> list[bool]:
        totals = []
        for call in range(3):
            totals.append(criterion.combine(model(call)))
            totals[-1].backward()
        return [reused(total) for total in totals]

    for _ in range(2):
        assert in_thread(train) == [False, True, True]


@pytest.mark.parametrize("since", ["built", "loaded", "switched to training"])
def test_the_first_call_of_a_thread_is_reused_if_the_criterion_was_made_ready_there(since: str) -> None:
    """A resumed run hands gradients over from its first call on, as the run that was not interrupted."""
    model = Net(3)
    criterion = compose(Spread(), tasks=TASKS)
    criterion.combine(model(0)).backward()
    state = criterion.state_dict()

    def first() -> bool:
        fresh = compose(Spread(), tasks=TASKS) if since == "built" else criterion
        if since == "loaded":
            fresh.load_state_dict(state)
        elif since == "switched to training":
            fresh.train()
        return reused(fresh.combine(model(1)))

    assert in_thread(first)


def advance(count: int) -> None:
    """Number some nodes of this thread."""
    leaf = torch.zeros((), requires_grad=True)
    for _ in range(count):
        _ = leaf * 2


@pytest.mark.parametrize("heads_too", [True, False])
@pytest.mark.parametrize("ahead", [*range(-60, 60, 4), 10_000])
def test_a_hook_in_a_graph_of_another_thread_is_not_lost(ahead: int, heads_too: bool) -> None:
    """Another thread began the graph, with a hook on it, before the last call ended: wherever its numbers happen to be."""
    model = Net(3)
    criterion = compose(Spread(), tasks=TASKS)
    for call in range(2):
        criterion.combine(model(call)).backward()
    seen: list[Tensor] = []
    number = torch._C._autograd._get_sequence_nr()

    def prefetch() -> tuple[Tensor, dict[str, Tensor]]:
        advance(max(0, number + 40 + ahead))
        z = model.represent(model.batch(7)[0])
        z.register_hook(seen.append)
        return z, losses(z) if heads_too else {}

    def losses(z: Tensor) -> dict[str, Tensor]:
        return {name: (model.predict(name, z) - 3).square().mean() for name in TASKS}

    z, found = in_thread(prefetch)
    criterion.combine(model(3)).backward()
    total = criterion.combine(found or losses(z))
    assert not reused(total)
    seen.clear()
    (expected,) = torch.autograd.grad(total, z, retain_graph=True)
    seen.clear()
    total.backward()
    assert len(seen) == 1
    torch.testing.assert_close(seen[0], expected, rtol=1e-12, atol=1e-14)


def test_an_activation_of_an_earlier_call_may_have_a_hook() -> None:
    """A state that is carried from call to call brings its hooks along, though none is registered any more."""
    model = Net(3)
    criterion = compose(Spread(), tasks=TASKS)
    criterion.combine(model(0)).backward()
    start = torch.ones(8, 4, dtype=f64, requires_grad=True)
    state = start * 2
    seen: list[Tensor] = []
    state.register_hook(seen.append)
    for _ in range(20):
        z = model.represent(state)
        losses = {name: model.predict(name, z).square().mean() for name in TASKS}
        total = criterion.combine(losses)
        assert not reused(total)
        (expected,) = torch.autograd.grad(total, start, retain_graph=True)
        seen.clear()
        total.backward(retain_graph=True)
        torch.testing.assert_close(2 * seen[-1], expected, rtol=1e-12, atol=1e-14)
    assert "cannot be ruled out" in criterion.explain()


def test_hooks_that_are_registered_once_cost_one_call() -> None:
    """Hooks of an optimizer, a module or a parameter, registered between two steps: the next call is not reused."""
    model = Net(3)
    criterion = compose(Spread(), tasks=TASKS)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    registered = {
        3: lambda: optimizer.register_step_post_hook(lambda *arguments: None),
        6: lambda: model.trunk.register_forward_hook(lambda *arguments: None),
        9: lambda: model.trunk[0].weight.register_post_accumulate_grad_hook(lambda parameter: None),
    }
    for call in range(12):
        registered.get(call, lambda: None)()
        total = criterion.combine(model(call))
        assert call == 0 or reused(total) == (call not in registered)
        assert ("reuse is off" in criterion.explain()) == (call in registered)
        total.backward()
        optimizer.step()
        optimizer.zero_grad()


def test_a_loop_that_registers_a_hook_in_every_step_is_not_reused() -> None:
    """A hook anywhere, in every step: the gradients are right, and explain() says why they are computed again."""
    model = Net(3)
    twin = copy.deepcopy(model)
    criterion = compose(Spread(), tasks=TASKS)
    other = torch.zeros(1, requires_grad=True)
    for call in range(4):
        other.register_hook(lambda gradient: None)
        total = criterion.combine(model(call))
        assert not reused(total)
        total.backward()
        weighted(twin(call), criterion.report.weights, TASKS).backward()
        same_gradients(model, twin, 1e-12)
    assert "a hook was registered since the last call" in criterion.explain()


@pytest.mark.parametrize("probe", ["exact", "representation", "lagged"])
@pytest.mark.parametrize("together", [True, False])
def test_two_criteria_take_turns(probe: str, together: bool) -> None:
    """A criterion beside another one, with both forwards first or each before its call, has the gradients of its own sum."""
    models = [Net(3), Net(3)]
    twins = copy.deepcopy(models)
    criteria = [compose(Spread(), tasks=TASKS), compose(Spread(), tasks=TASKS, probe=probe)]
    for call in range(5):
        losses = [model(call) for model in models] if together else [models[0](call)]
        totals = [criteria[0].combine(losses[0])]
        totals.append(criteria[1].combine(losses[1] if together else models[1](call)))
        if call and not (together and probe != "exact"):
            assert reused(totals[0])
        for model, twin, criterion, total in zip(models, twins, criteria, totals, strict=True):
            total.backward()
            weighted(twin(call), criterion.report.weights, TASKS).backward()
            same_gradients(model, twin, 1e-12)
            model.zero_grad(), twin.zero_grad()


class Checkpointed(Net):
    def represent(self, inputs: Tensor) -> Tensor:
        return checkpoint(super().represent, inputs, use_reentrant=False)


class OnDisk(Net):
    def represent(self, inputs: Tensor) -> Tensor:
        with torch.autograd.graph.saved_tensors_hooks(lambda saved: saved.clone(), lambda packed: packed):
            return super().represent(inputs)


class Parametrized(Net):
    def __init__(self, count: int) -> None:
        super().__init__(count)
        nn.utils.parametrizations.weight_norm(self.trunk[0])


@pytest.mark.parametrize("kind", [Checkpointed, OnDisk, Parametrized])
def test_what_is_no_hook_is_no_hindrance(kind: type[Net]) -> None:
    """Recomputed activations, hooks on saved tensors and parametrizations are reused from the second call on."""
    model = kind(3)
    twin = copy.deepcopy(model)
    criterion = compose(Spread(), tasks=TASKS)
    for call in range(4):
        total = criterion.combine(model(call))
        assert call == 0 or reused(total)
        total.backward()
        weighted(twin(call), criterion.report.weights, TASKS).backward()
        same_gradients(model, twin, 1e-12)
