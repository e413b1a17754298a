"""The table of methods, each of which turns the losses of a batch into gradients.

Every method is a `Run` with a copy of the model and an Adam, so that they differ only in what is compared. Methods are by
`mtl_axes`, by TorchJD, or written by hand.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from benchmarks.models import MultiTask, Workload, task_losses
from mtl_axes import MultiTaskCriterion, OuterWeighting, Signals, compose
from mtl_axes.probes import Exact, Probe
from mtl_axes.signals import Need

__all__ = ["EVERY", "PLAIN", "Method", "Run", "methods", "quiet", "row"]

EVERY = 10
PLAIN = "plain weighted sum"
# Small enough for the 64 tasks of the growth study: GABA's floor has to be below 1/K.
FLOOR = 0.01

Library = Literal["by hand", "mtl_axes", "TorchJD"]
Family = Literal["losses", "norms", "gramian"]


class Run:
    """A method with a copy of the model and its optimizer; a call is the step that is timed."""

    def __init__(self, workload: Workload, *modules: nn.Module) -> None:
        self.workload = workload
        self.model: MultiTask = copy.deepcopy(workload.model)
        self.tasks = workload.tasks
        self.shared = list(self.model.trunk.parameters())
        self.optimizer = torch.optim.Adam([*self.model.parameters(), *_learnable(modules)], lr=1e-4)

    def losses(self) -> list[Tensor]:
        return task_losses(self.workload.forward(self.model)[1], self.workload.targets)

    def backward(self) -> None:
        """Forward, criterion and backward: leave the gradients in `.grad`."""
        raise NotImplementedError

    def __call__(self) -> None:
        """A whole training step."""
        self.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


@dataclass(frozen=True)
class Method:
    """A row of the tables.

    Attributes:
        name: the printed name.
        family: what its weights are computed from.
        library: who wrote it.
        mathematics: what it computes; rows of two libraries with the same value are compared.
        build: makes the run on a workload.
        every: it measures in every n-th step; timings cover whole periods.
        extensive: True for a row of the first model only, to save time.
        batched: True if it runs the trunk's backward under `torch.vmap`.
    """

    name: str
    family: Family
    library: Library
    mathematics: str
    build: Callable[[Workload], Run]
    every: int = 1
    extensive: bool = False
    batched: bool = False


class Plain(Run):
    """The denominator of every ratio: constant weights, written by hand."""

    def backward(self) -> None:
        losses = self.losses()
        weight = 1.0 / len(losses)
        total = weight * losses[0]
        for loss in losses[1:]:
            total = total + weight * loss
        total.backward()  # type: ignore[no-untyped-call]


class Naive(Run):
    """GABA in its simplest form: K gradients at the shared parameters, then an ordinary backward through everything."""

    beta = 0.99

    def __init__(self, workload: Workload) -> None:
        super().__init__(workload)
        self.ema = torch.full((len(self.tasks),), 1.0 / len(self.tasks), device=workload.inputs.device)

    def backward(self) -> None:
        losses = self.losses()
        norms = torch.stack([get_total_norm(torch.autograd.grad(loss, self.shared, retain_graph=True)) for loss in losses])
        raw = (norms.sum() - norms) / ((len(losses) - 1) * norms.sum())
        self.ema = self.beta * self.ema + (1 - self.beta) * raw
        floored = self.ema.clamp_min(FLOOR)
        weights = floored / floored.sum()
        total = weights[0] * losses[0]
        for weight, loss in zip(weights[1:], losses[1:], strict=True):
            total = total + weight * loss
        total.backward()  # type: ignore[no-untyped-call]


class Composed(Run):
    """`mtl_axes`: the criterion in the user's own loop."""

    def __init__(self, workload: Workload, criterion: MultiTaskCriterion) -> None:
        super().__init__(workload, criterion)
        self.criterion = criterion

    def backward(self) -> None:
        loss = self.criterion(self.workload.forward(self.model)[1], self.workload.targets)
        loss.backward()


class Scalarized(Run):
    """A scalarizer of TorchJD on the stacked losses. For one that counts epochs an epoch is `EVERY` steps."""

    def __init__(self, workload: Workload, scalarizer: nn.Module, *, epochs: bool = False) -> None:
        super().__init__(workload, scalarizer)
        self.scalarizer = scalarizer
        self.epochs = epochs
        self.steps = 0

    def backward(self) -> None:
        total: Tensor = self.scalarizer(torch.stack(self.losses()))
        total.backward()  # type: ignore[no-untyped-call]
        self.steps += 1
        if self.epochs and self.steps % EVERY == 0:
            self.scalarizer.step()  # type: ignore[operator]


class JacobianDescent(Run):
    """`mtl_backward` and `jac_to_grad` of TorchJD, given the end of the trunk, so that it does not have to search.

    By default it differentiates all rows at once and concatenates the Jacobian. Tuned, it takes one row at a time and sums
    the Gramian over the parameters: the fastest of its four combinations, or nearly, on these models.
    """

    def __init__(self, workload: Workload, aggregator: nn.Module, *, tuned: bool) -> None:
        super().__init__(workload)
        self.autojac = importlib.import_module("torchjd.autojac")
        self.aggregator = aggregator
        self.tuned = tuned
        self.private = [list(head.parameters()) for head in self.model.heads.values()]

    def backward(self) -> None:
        features, outputs = self.workload.forward(self.model)
        self.autojac.mtl_backward(
            task_losses(outputs, self.workload.targets),
            features=features,
            tasks_params=self.private,
            shared_params=self.shared,
            parallel_chunk_size=1 if self.tuned else None,
        )
        self.autojac.jac_to_grad(self.shared, self.aggregator, optimize_gramian_computation=self.tuned)


class Borrowed(OuterWeighting):
    """TorchJD's own weighting, as an outer weighting of `mtl_axes`: the same mathematics behind `loss.backward()`."""

    needs: ClassVar[Need] = "gramian"

    def __init__(self, weighting: nn.Module) -> None:
        super().__init__()
        self.weighting = weighting

    def forward(self, signals: Signals, /) -> Tensor:
        weights: Tensor = self.weighting(signals.gramian)
        return weights


def methods(*, scalarizers: bool = True, rivals: tuple[str, ...] = ("UPGrad", "MGDA")) -> list[Method]:
    """Return every method, the denominator first.

    Args:
        scalarizers: with the scalarizers of TorchJD.
        rivals: Gramian weightings of TorchJD to compare on.
    """
    losses = [
        Method(PLAIN, "losses", "by hand", "constants", Plain),
        Method("fixed", "losses", "mtl_axes", "constants", _composed("fixed")),
        Method("uncertainty", "losses", "mtl_axes", "uncertainty", _composed("uncertainty"), extensive=True),
        Method("dwa", "losses", "mtl_axes", "dwa", _composed({"name": "dwa", "window": EVERY})),
    ]
    if scalarizers:
        losses += [
            Method("Constant", "losses", "TorchJD", "constants", _scalarizer("Constant"), extensive=True),
            Method("UW", "losses", "TorchJD", "uncertainty", _scalarizer("UW"), extensive=True),
            Method("DWA", "losses", "TorchJD", "dwa", _scalarizer("DWA"), extensive=True),
        ]
    norms = [
        _gaba("lagged", lambda: "lagged"),
        _gaba("representation", lambda: "representation"),
        _gaba(f"rotate, every {EVERY}", lambda: Exact(rotate=True), every=EVERY),
        _gaba(f"exact, every {EVERY}", Exact, every=EVERY),
        _gaba("rotate", lambda: Exact(rotate=True)),
        _gaba("exact", Exact),
        _gaba("exact, no reuse", lambda: Exact(reuse=False), extensive=True),
        Method("gaba: naive", "norms", "by hand", "gaba", Naive),
    ]
    return losses + norms + [method for name in rivals for method in _rivals(name)]


def row(name: str) -> Method:
    """Return the method of this name."""
    return next(method for method in methods() if method.name == name)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide warnings about cost, of `mtl_axes` and `torch.vmap`, within this context: the cost is being measured."""
    with warnings.catch_warnings():
        for message in (r".*\bwhich costs about\b", "There is a performance drop"):
            warnings.filterwarnings("ignore", message, UserWarning)
        yield


def _learnable(modules: tuple[nn.Module, ...]) -> list[nn.Parameter]:
    return [parameter for module in modules for parameter in module.parameters() if parameter.requires_grad]


def _composed(
    outer: Any, probe: Callable[[], Probe | str] = lambda: "exact", *, every: int = 1
) -> Callable[[Workload], Run]:
    def build(workload: Workload) -> Run:
        weighting = outer() if callable(outer) else outer
        return Composed(workload, compose(weighting, "mse", tasks=workload.tasks, probe=probe(), every=every))

    return build


def _gaba(form: str, probe: Callable[[], Probe | str], *, every: int = 1, extensive: bool = False) -> Method:
    build = _composed({"name": "gaba", "warmup": 0, "floor": FLOOR}, probe, every=every)
    return Method(f"gaba: {form}", "norms", "mtl_axes", "gaba", build, every, extensive)


def _scalarizer(name: str) -> Callable[[Workload], Run]:
    def build(workload: Workload) -> Run:
        scalarization = importlib.import_module("torchjd.scalarization")
        count, device = len(workload.tasks), workload.inputs.device
        if name == "Constant":
            return Scalarized(workload, scalarization.Constant(torch.full((count,), 1.0 / count, device=device)))
        if name == "UW":
            return Scalarized(workload, scalarization.UW(count).to(device))
        return Scalarized(workload, scalarization.DWA(), epochs=True)

    return build


def _rivals(name: str) -> list[Method]:
    """Return a Gramian weighting in `mtl_axes` and in the two forms of TorchJD."""

    def part(suffix: str) -> Any:
        return getattr(importlib.import_module("torchjd.aggregation"), name + suffix)()

    def ours(workload: Workload) -> Run:
        return _composed(lambda: Borrowed(part("Weighting")))(workload)

    def theirs(*, tuned: bool) -> Callable[[Workload], Run]:
        return lambda workload: JacobianDescent(workload, part(""), tuned=tuned)

    extensive = name != "UPGrad"
    return [
        Method(name, "gramian", "mtl_axes", name, ours, extensive=extensive),
        Method(f"{name}, default", "gramian", "TorchJD", name, theirs(tuned=False), extensive=extensive, batched=True),
        Method(f"{name}, tuned", "gramian", "TorchJD", name, theirs(tuned=True), extensive=extensive),
    ]
