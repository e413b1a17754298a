"""TorchJD: its Gramian weightings as outer weightings, with your own ``loss.backward()``."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from mtl_axes import Signals, TaskInfo
from mtl_axes.errors import OptionError, PluginError, StateError
from mtl_axes.options import check_number, constructor_repr
from mtl_axes.outer import OuterWeighting
from mtl_axes.outer.draws import Draws
from mtl_axes.outer.gramian import GramianWeighting, Problem

try:
    from torchjd import Stateful
    from torchjd.aggregation import Aggregator, GramianWeightedAggregator, Weighting
    from torchjd.linalg import Matrix
except ImportError as error:
    raise ImportError('mtl_axes.adapters.torchjd needs torchjd 0.18: pip install "mtl_axes[torchjd]".') from error

__all__ = ["StatefulTorchJDWeighting", "TorchJDWeighting", "from_torchjd"]


def from_torchjd(weighting: Weighting[Any], *, seed: int = 0) -> OuterWeighting:
    """Return an outer weighting whose weights are a TorchJD Gramian weighting's.

    The TorchJD weighting gets the Gramian of the active tasks, in float64 on the CPU, and its weights multiply the *losses*:
    heads are weighted too, whereas TorchJD's ``mtl_backward`` leaves their gradients unweighted. Its random numbers come
    from a separate generator, so that all ranks draw the same and the global random state does not change.

    A task that is absent or has no gradient leaves the problem, and a ``pref_vector`` loses its entry. A ``Stateful``
    weighting remembers tasks by position, and forgets or fails when their number changes: a window with an absent task then
    updates neither its state nor the weights.

    The weights are used unmodified, even if all are zero; if one is not finite, the previous weights are kept.

    Args:
        weighting: of the Gramian, such as ``torchjd.aggregation.UPGradWeighting()``. It is not copied: options that you
            change on it take effect. Use it in one criterion only.
        seed: of its random numbers, >= 0.

    Raises:
        OptionError: it is an aggregator, a class, or a weighting that needs the Jacobian; on binding, it cannot weight that
            many tasks.

    >>> import torch
    >>> from mtl_axes import Signals
    >>> from torchjd.aggregation import IMTLGWeighting
    >>> from_torchjd(IMTLGWeighting())(Signals(torch.ones(2), gramian=torch.tensor([[18.0, -22.0], [-22.0, 38.0]])))
    tensor([0.5923, 0.4077])

    References:
        P. Quinton, V. Rey, "Jacobian Descent for Multi-Objective Optimization", 2024, and the TorchJD library, 0.18.
    """
    refused = _refuse(weighting)
    if refused is not None:
        raise OptionError(f"from_torchjd() takes a weighting of the Gramian, such as UPGradWeighting(). Found {refused}.")
    cls = StatefulTorchJDWeighting if isinstance(weighting, Stateful) else TorchJDWeighting
    return cls(weighting, seed=seed)


class TorchJDWeighting(GramianWeighting):
    """A TorchJD weighting of the Gramian of the active tasks. Made by :func:`from_torchjd`.

    Attributes:
        weighting: the TorchJD weighting. It is no submodule, so that casts and moves of the criterion leave it unchanged.
    """

    sign: ClassVar[Literal["positive", "nonnegative", "any"]] = "any"
    symmetric: ClassVar[bool] = False

    weighting: Weighting[Any]

    def __init__(self, weighting: Weighting[Any], *, seed: int = 0) -> None:
        super().__init__()
        self.seed = int(check_number("seed", seed, low=0, integer=True))
        self.draws = Draws(self.seed)
        self.__dict__["weighting"] = weighting

    def bind(self, tasks: tuple[TaskInfo, ...]) -> None:
        """Fix the tasks, and check that the weighting can weight that many."""
        try:
            with torch.random.fork_rng(devices=[]):
                weights = copy.deepcopy(self.weighting)(torch.eye(len(tasks), dtype=torch.float64))
        except Exception as error:
            raise OptionError(
                f"{self!r} cannot weight {len(tasks)} tasks: {error}. Give it options for that many, or take another."
            ) from error
        if weights.shape != (len(tasks),):
            raise OptionError(f"{self!r} should return {len(tasks)} weights. Found the shape {tuple(weights.shape)}.")
        super().bind(tasks)

    def solve(self, problem: Problem, /) -> Tensor:
        """Return the TorchJD weighting's weights of the active tasks."""
        weighting = self.weighting
        preferred = getattr(weighting, "pref_vector", None)
        if isinstance(preferred, Tensor) and len(problem.index) < problem.count:
            weighting = copy.deepcopy(weighting)
            weighting.pref_vector = preferred[problem.index.to(preferred.device)]
        generator = self.draws.generator
        try:
            with torch.random.fork_rng(devices=[]):
                torch.set_rng_state(generator.get_state())
                weights = weighting(problem.gramian)
                generator.set_state(torch.get_rng_state())
        except Exception as error:
            raise PluginError(
                f"{self!r} cannot weight the {len(problem.index)} of {problem.count} tasks that are active: "
                f"{type(error).__name__}: {error}"
            ) from error
        weights = weights.detach().to("cpu", torch.float64)
        return weights if bool(torch.isfinite(weights).all()) else self.current.cpu().double()[problem.index]

    def get_extra_state(self) -> dict[str, Any]:
        """Return the name of the TorchJD class, and its state."""
        return {"class": type(self.weighting).__name__, "memory": _memory(self.weighting)}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Load the state of a TorchJD weighting of the same class."""
        if state["class"] != type(self.weighting).__name__:
            raise StateError(
                f"The state of a {state['class']} does not fit a {type(self.weighting).__name__}. Load it into "
                f"from_torchjd({state['class']}(...))."
            )
        _remember(self.weighting, state["memory"])

    def __repr__(self) -> str:
        inside = " ".join(_call(self.weighting).split())
        return f"from_torchjd({inside}{f', seed={self.seed}' if self.seed else ''})"


class StatefulTorchJDWeighting(TorchJDWeighting):
    """A TorchJD weighting with a state, which is updated only in windows with all tasks."""

    memoryless: ClassVar[bool] = False

    def forward(self, signals: Signals, /) -> Tensor:
        """Update the state and return the weights; if a task is absent, return the current weights."""
        return super().forward(signals) if bool(signals.active.all()) else self.current.clone()

    def reset(self) -> None:
        """Reset the TorchJD weighting and its random numbers."""
        assert isinstance(self.weighting, Stateful)
        self.weighting.reset()
        self.draws = Draws(self.seed)


def _refuse(weighting: object) -> str | None:
    """Return what was passed in place of a weighting of the Gramian, with advice; None if it is one."""
    if isinstance(weighting, type) and issubclass(weighting, (Weighting, Aggregator)):
        return f"the class {weighting.__name__}; call it"
    name = type(weighting).__name__
    if isinstance(weighting, GramianWeightedAggregator):
        return f"the aggregator {name}; pass its .gramian_weighting"
    if isinstance(weighting, Aggregator):
        return f"the aggregator {name}, which needs the whole Jacobian; use another, or TorchJD's own backward"
    if not isinstance(weighting, Weighting):
        return f"{weighting!r}, which is no weighting of torchjd.aggregation"
    # The input of a composition may be anything, except what this function of TorchJD takes: a Jacobian.
    if any(getattr(getattr(part, "fn", None), "__name__", "") == "compute_gramian" for part in weighting.modules()):
        return "a weighting that computes the Gramian of a Jacobian; pass the aggregator's .gramian_weighting"
    part: object = weighting
    while isinstance(part, Weighting):
        reads = {arg for cls in type(part).__mro__ for base in vars(cls).get("__orig_bases__", ()) for arg in get_args(base)}
        if Matrix in reads:
            return (
                f"{type(part).__name__}, which takes the Jacobian or another matrix; constant weights are "
                'compose("fixed"), random ones compose("rlw")'
            )
        # A wrapper that declares no statistic reads what the wrapped weighting reads.
        part = None if any(inspect.isclass(arg) for arg in reads) else getattr(part, "weighting", None)
    return None


def _call(weighting: Weighting[Any]) -> str:
    """Return the constructor call of a TorchJD weighting, which the repr of most of them does not show."""
    if type(weighting).__repr__ is not nn.Module.__repr__:
        return repr(weighting)
    text = constructor_repr(weighting)
    wrapped = getattr(weighting, "weighting", None)
    return text.replace(repr(wrapped), _call(wrapped)) if isinstance(wrapped, Weighting) else text


_PLAIN = (bool, int, float, str, Tensor, torch.dtype, torch.device, type(None))
_OF_MODULES = frozenset(vars(nn.Module()))


def _values(module: nn.Module) -> dict[str, Any]:
    """Return the attributes and buffers of a module that ``torch.load(weights_only=True)`` reads."""

    def plain(value: object) -> bool:
        return isinstance(value, _PLAIN) or (isinstance(value, tuple) and all(plain(entry) for entry in value))

    own = {name: value for name, value in vars(module).items() if name not in _OF_MODULES}
    return {name: value for name, value in {**own, **module._buffers}.items() if plain(value)}


def _memory(weighting: Weighting[Any]) -> dict[str, dict[str, Any]]:
    """Return the values, by module, in which a stateful weighting differs from one that was reset.

    Not its state_dict: TorchJD registers the buffers as None until there are tasks, so that a fresh object cannot load them,
    and some of its state is no buffer.
    """
    if not isinstance(weighting, Stateful):
        return {}
    fresh = copy.deepcopy(weighting)
    fresh.reset()
    before = {path: _values(module) for path, module in fresh.named_modules()}
    return {
        path: {name: value for name, value in _values(module).items() if not _same(value, before[path].get(name))}
        for path, module in weighting.named_modules()
    }


def _same(left: object, right: object) -> bool:
    if isinstance(left, Tensor) or isinstance(right, Tensor):
        return isinstance(left, Tensor) and isinstance(right, Tensor) and torch.equal(left, right)
    return left == right


def _remember(weighting: Weighting[Any], memory: Mapping[str, Mapping[str, Any]]) -> None:
    if not isinstance(weighting, Stateful):
        return
    weighting.reset()
    modules = dict(weighting.named_modules())
    for path, values in memory.items():
        for name, value in values.items():
            # On the CPU, where the weighting runs; a copy, because a checkpoint may be loaded into several.
            setattr(modules[path], name, value.detach().cpu().clone() if isinstance(value, Tensor) else value)
