"""TorchJD: its Gramian weightings as outer weightings, behind your own ``loss.backward()``."""

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
    raise ImportError('This adapter needs torchjd 0.18. Install it with: pip install "mtl_axes[torchjd]"') from error

__all__ = ["StatefulTorchJDWeighting", "TorchJDWeighting", "from_torchjd"]


def from_torchjd(weighting: Weighting[Any], *, seed: int = 0) -> OuterWeighting:
    """Return an outer weighting that asks a TorchJD Gramian weighting for its weights.

    It is given the Gramian of the tasks that take part, in float64 on the CPU, and its weights multiply the *losses*: heads
    are weighted too, where TorchJD's own ``mtl_backward`` leaves their gradients alone. Random numbers that it draws come
    from a generator of its own, so that all ranks draw the same and your own numbers do not change.

    A task that is absent or has no gradient leaves the problem, and a ``pref_vector`` its entry. One that is ``Stateful``
    remembers tasks by their position, and forgets or refuses when their number changes: a window in which a task is absent
    then moves neither its state nor the weights.

    What it returns is what you get, all zeros included, unless it is not finite: then the weights stay as they are.

    Args:
        weighting: of the Gramian, such as ``torchjd.aggregation.UPGradWeighting()``. It is not copied: options that you
            change on it take effect. It should serve one criterion.
        seed: of its random numbers, >= 0.

    Raises:
        OptionError: it is an aggregator, a class, or a weighting that needs the Jacobian; on binding, it cannot weigh that
            many tasks.

    >>> import torch
    >>> from mtl_axes import Signals
    >>> from torchjd.aggregation import IMTLGWeighting
    >>> from_torchjd(IMTLGWeighting())(Signals(torch.ones(2), gramian=torch.tensor([[18.0, -22.0], [-22.0, 38.0]])))
    tensor([0.5923, 0.4077])

    References:
        P. Quinton, V. Rey, "Jacobian Descent for Multi-Objective Optimization", 2024, and the TorchJD library, 0.18.
    """
    _check(weighting)
    cls = StatefulTorchJDWeighting if isinstance(weighting, Stateful) else TorchJDWeighting
    return cls(weighting, seed=seed)


class TorchJDWeighting(GramianWeighting):
    """The weights of a TorchJD weighting for the Gramian of the active tasks. Made by :func:`from_torchjd`.

    Attributes:
        weighting: as it was given. It is no submodule: neither a cast nor a move of the criterion reaches it.
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
        """Fix the tasks, and check that the weighting can weigh that many."""
        try:
            with torch.random.fork_rng(devices=[]):
                found = copy.deepcopy(self.weighting)(torch.eye(len(tasks), dtype=torch.float64))
        except Exception as error:
            raise OptionError(f"{self!r} should weigh {len(tasks)} tasks. Found that it cannot: {error}") from error
        if found.shape != (len(tasks),):
            raise OptionError(f"{self!r} should return {len(tasks)} weights. Found the shape {tuple(found.shape)}.")
        super().bind(tasks)

    def solve(self, problem: Problem, /) -> Tensor:
        """Return the TorchJD weighting's weights of the active tasks."""
        weighting = self.weighting
        preferred = getattr(weighting, "pref_vector", None)
        if isinstance(preferred, Tensor) and len(problem.index) < problem.count:
            weighting = copy.deepcopy(weighting)
            weighting.pref_vector = preferred[problem.index.to(preferred.device)]
        try:
            weights = self._drawing(weighting, problem.gramian)
        except Exception as error:
            raise PluginError(
                f"{self!r} should weigh the {len(problem.index)} of {problem.count} tasks that take part. Found that it "
                f"cannot: {type(error).__name__}: {error}"
            ) from error
        weights = weights.detach().to("cpu", torch.float64)
        return weights if bool(torch.isfinite(weights).all()) else self.current.cpu().double()[problem.index]

    def _drawing(self, weighting: Weighting[Any], gramian: Tensor) -> Tensor:
        """Call it with this weighting's own random numbers in place of torch's."""
        generator = self.draws.generator
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(generator.get_state())
            weights = weighting(gramian)
            generator.set_state(torch.get_rng_state())
        return weights

    def get_extra_state(self) -> dict[str, Any]:
        """Return the name of the TorchJD class, and what it remembers."""
        return {"class": type(self.weighting).__name__, "memory": _memory(self.weighting)}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Let the TorchJD weighting remember what a saved one did."""
        if state["class"] != type(self.weighting).__name__:
            raise StateError(f"The state should be of {type(self.weighting).__name__}. Found one of {state['class']}.")
        _remember(self.weighting, state["memory"])

    def __repr__(self) -> str:
        inside = " ".join(_call(self.weighting).split())
        return f"from_torchjd({inside}{f', seed={self.seed}' if self.seed else ''})"


class StatefulTorchJDWeighting(TorchJDWeighting):
    """The weights of a TorchJD weighting with a state, which moves in windows with all tasks only."""

    memoryless: ClassVar[bool] = False

    def forward(self, signals: Signals, /) -> Tensor:
        """Move the state and return the weights, or leave both as they are where a task is absent."""
        return super().forward(signals) if bool(signals.active.all()) else self.current.clone()

    def reset(self) -> None:
        """Let the TorchJD weighting forget what it saw, and draw its random numbers anew."""
        assert isinstance(self.weighting, Stateful)
        self.weighting.reset()
        self.draws = Draws(self.seed)


def _check(weighting: object) -> None:
    name = type(weighting).__name__
    if isinstance(weighting, type) and issubclass(weighting, (Weighting, Aggregator)):
        raise OptionError(f"from_torchjd() needs a weighting, not its class. Found {weighting.__name__}; call it.")
    if isinstance(weighting, GramianWeightedAggregator):
        raise OptionError(
            f"from_torchjd() needs a weighting of the Gramian. Found the aggregator {name}; pass its .gramian_weighting."
        )
    if isinstance(weighting, Aggregator):
        raise OptionError(
            f"from_torchjd() needs a weighting of the Gramian, such as an aggregator's .gramian_weighting. Found {name}, an "
            "aggregator that has none: it needs the whole Jacobian. Use another, or TorchJD's own backward."
        )
    if not isinstance(weighting, Weighting):
        raise OptionError(f"from_torchjd() needs a weighting of torchjd.aggregation. Found {weighting!r}.")
    for inner in weighting.modules():
        # What a composition makes of its input is for the weighting within to read: there this library's own function
        # takes a Jacobian, and would take a Gramian for one.
        if getattr(getattr(inner, "fn", None), "__name__", "") == "compute_gramian":
            raise OptionError(
                "from_torchjd() needs a weighting of the Gramian. Found one that computes the Gramian of a Jacobian, as an "
                "aggregator's .weighting does; pass its .gramian_weighting."
            )
    _check_statistic(weighting)


def _check_statistic(weighting: Weighting[Any]) -> None:
    """Raise unless a weighting, and the one that it may wrap, declares to read a Gramian or nothing in particular."""
    read = {arg for cls in type(weighting).__mro__ for base in vars(cls).get("__orig_bases__", ()) for arg in get_args(base)}
    if Matrix in read:
        raise OptionError(
            f"from_torchjd() needs a weighting of the Gramian. Found {type(weighting).__name__}, which takes the Jacobian "
            'or another matrix. Constant weights are compose("fixed"), random ones compose("rlw").'
        )
    wrapped = getattr(weighting, "weighting", None)
    if isinstance(wrapped, Weighting) and not any(inspect.isclass(arg) for arg in read):
        _check_statistic(wrapped)


def _call(weighting: Weighting[Any]) -> str:
    """Return the constructor call of a TorchJD weighting; few of them print it."""
    if type(weighting).__repr__ is not nn.Module.__repr__:
        return repr(weighting)
    text = constructor_repr(weighting)
    wrapped = getattr(weighting, "weighting", None)
    return text.replace(repr(wrapped), _call(wrapped)) if isinstance(wrapped, Weighting) else text


_PLAIN = (bool, int, float, str, Tensor, torch.dtype, torch.device, type(None))
_OF_MODULES = frozenset(vars(nn.Module()))


def _values(module: nn.Module) -> dict[str, Any]:
    """Return what a module holds itself, buffers included, as far as a checkpoint takes it."""

    def plain(value: object) -> bool:
        return isinstance(value, _PLAIN) or (isinstance(value, tuple) and all(plain(entry) for entry in value))

    own = {name: value for name, value in vars(module).items() if name not in _OF_MODULES}
    return {name: value for name, value in {**own, **module._buffers}.items() if plain(value)}


def _memory(weighting: Weighting[Any]) -> dict[str, dict[str, Any]]:
    """Return what a stateful weighting holds that one which was reset does not, by module.

    TorchJD registers these buffers as None until there are tasks, so that a fresh object does not take its own state_dict;
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
            # On the CPU, where it is asked; and its own, where a checkpoint is loaded into several.
            setattr(modules[path], name, value.detach().cpu().clone() if isinstance(value, Tensor) else value)
