"""``compose``: names, options and objects become a criterion, validated before the first step; ``config`` is its inverse."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from torch import Tensor, nn

from mtl_axes.criterion import MultiTaskCriterion
from mtl_axes.distributed import Sync, check_sync
from mtl_axes.errors import MtlAxesError, OptionError
from mtl_axes.inner import InnerShape, TargetWeight
from mtl_axes.options import check_choice, check_number, steady_repr
from mtl_axes.outer import OuterWeighting
from mtl_axes.probes import Probe, Shared, create_probe, probe_config
from mtl_axes.registry import Axis, name_of, resolve
from mtl_axes.tasks import Reduction, TaskSet
from mtl_axes.window import Window, check_accumulate

__all__ = ["compose", "config"]

Options = Mapping[str, Any]

# Which criterion a weighting belongs to, as long as both live: two that move one state would each undo the other.
_owners: weakref.WeakKeyDictionary[OuterWeighting, weakref.ref[MultiTaskCriterion]] = weakref.WeakKeyDictionary()


def compose(
    outer: str | Options | OuterWeighting = "fixed",
    inner: str | Options | InnerShape | Mapping[str, str | Options | InnerShape] = "mse",
    *,
    tasks: Sequence[str] | None = None,
    shared: nn.Module | Tensor | Iterable[Tensor] | None = None,
    probe: str | Options | Probe = "exact",
    every: int = 1,
    accumulate: int | Literal["manual"] = 1,
    reduction: Reduction = "mean",
    sync: Sync = "norms",
    missing: Literal["error", "ignore"] = "error",
) -> MultiTaskCriterion:
    """Join an outer weighting and an inner shape into one criterion.

    Args:
        outer: weight per task: a registered name, ``{"name": "gaba", "beta": 0.9}``, or an :class:`OuterWeighting`.
        inner: loss per sample: the same for an :class:`InnerShape`, or a mapping from task to any of these. A single shape
            goes to every task of its kinds; the other tasks take the standard loss of their own kind (``cross_entropy``
            for integer targets with logits of one dimension more, ``bce`` for bool targets, ``mse`` for float targets).
        tasks: names of the tasks in order. None takes the keys of the inner mapping, or else those of the first targets.
        shared: where gradients are measured: a module, parameters, or None to find what the tasks share on the graph.
        probe: how they are measured: ``"exact"``, ``"representation"``, ``"lagged"``, ``{"name": "exact", "rotate": True}``,
            or a :class:`~mtl_axes.probes.Probe`.
        every: measure in every n-th window, n >= 1; the weights hold in between. There, and with ``accumulate`` or a lagged
            probe, a task that was absent when they were found keeps the weight that it had, also of a weighting that gives
            absent tasks 0.
        accumulate: calls per optimizer step, >= 1, or ``"manual"`` with ``criterion.step()``.
        reduction: ``"mean"`` divides by the number of valid labels; ``"weighted_mean"`` by the sum of their sample weights.
        sync: agreement over the ranks of a process group. ``"norms"`` averages losses and norms; ``"gradients"`` takes those
            of the whole batch, the norms being those of the mean gradient, and scales each loss by W n_local / n_global (W
            ranks, n valid labels, or the sum of weights under ``"weighted_mean"``); None lets ranks differ. In any case a
            shape that couples the samples of a batch (``cox``, ``bmc``) sees those of its own rank and call alone.
        missing: ``"ignore"`` counts NaN and -100 labels as unlabelled; ``"error"`` refuses NaN.

    Returns:
        a criterion, called as ``criterion(outputs, targets)``.

    Raises:
        UnknownNameError: a strategy of this name does not exist.
        OptionError: an option is unknown, outside its range, or does not go with the rest.

    >>> import torch
    >>> criterion = compose("gaba", "failure_biased")
    >>> rul_hat, logits = torch.tensor([15.0, 26.0], requires_grad=True), torch.zeros(2, 3, requires_grad=True)
    >>> with torch.no_grad():  # evaluation: reference weights, no state moves
    ...     criterion((rul_hat, logits), (torch.tensor([10.0, 30.0]), torch.tensor([0, 2])))
    tensor(19.5893)
    """
    weighting = resolve("outer", outer)
    shapes = _inner(inner)
    check_number("every", every, low=1, integer=True)
    check_accumulate(accumulate)
    check_choice("reduction", reduction, ("mean", "weighted_mean"))
    check_choice("missing", missing, ("error", "ignore"))
    check_sync(sync)
    # A set has no order that all processes agree on.
    if isinstance(tasks, (str, set, frozenset)) or not (tasks is None or isinstance(tasks, Iterable)):
        raise OptionError(f"Option `tasks` should be a sequence of names. Found tasks={tasks!r}.")
    task_set = TaskSet(shapes, tasks, missing=missing, reduction=reduction, nonnegative=weighting.nonnegative)
    measuring = create_probe(probe)
    _check_together(weighting, shapes, task_set, measuring)
    criterion = MultiTaskCriterion(
        weighting,
        task_set,
        probe=measuring,
        shared=Shared(shared),
        window=Window(every=every, accumulate=accumulate, sync=sync),
        config=config,
    )
    _owners[weighting] = weakref.ref(criterion)
    return criterion


def _inner(given: object) -> InnerShape | dict[str, InnerShape]:
    # {"name": "huber", ...} is one shape, any other mapping goes from tasks to shapes. A single task that is called "name"
    # therefore needs its shape as an object or a mapping.
    if isinstance(given, Mapping) and not isinstance(given.get("name"), str):
        if not given:
            raise OptionError("The inner mapping should name at least one task. Found an empty one.")
        return {task: resolve("inner", shape) for task, shape in given.items()}
    return resolve("inner", given)


def _check_together(
    outer: OuterWeighting,
    inner: InnerShape | dict[str, InnerShape],
    tasks: TaskSet,
    probe: Probe,
) -> None:
    owner = _owners.get(outer)
    if owner is not None and owner() is not None:
        raise OptionError(
            f"A weighting has state and should belong to one criterion. Found {outer!r} in another one. Pass a name, or a "
            "weighting of its own."
        )
    if outer.learnable and not tasks.names:
        raise OptionError(
            f"{outer!r} has learnable parameters, one per task, which your optimizer needs before the first step. "
            "Pass tasks=[...], the names of the tasks."
        )
    if outer.nonnegative:
        for shape in [inner] if isinstance(inner, InnerShape) else inner.values():
            if shape.lower_bound is None or shape.lower_bound < 0:
                raise OptionError(
                    f"{type(outer).__name__} takes ratios of losses and needs shapes that are never negative. "
                    f"Found {shape!r}, which can be. Choose another shape, or a weighting that does not read losses."
                )
    if tasks.names and not outer.bound:
        # On a copy: the criterion binds its weighting once it knows the dtype of the losses.
        copy.deepcopy(outer).bind(tasks.infos())
    if outer.needs != "losses" and outer.needs not in probe.provides:
        raise OptionError(
            f"{type(outer).__name__} needs the {outer.needs}. Found the probe {probe!r}, which provides "
            f"{', '.join(sorted(probe.provides))}."
        )


def config(outer: OuterWeighting, tasks: TaskSet, probe: Probe, window: Window, *, strict: bool = True) -> dict[str, Any]:
    """Return a plain dict such that ``compose(**config)`` builds a criterion of these parts: the inverse of ``compose``.

    Args:
        outer: the weighting.
        tasks: the tasks and their shapes.
        probe: how gradients are measured.
        window: the schedule.
        strict: False to show and compare rather than build: a strategy without a name is then ``{"class": repr}``.

    Raises:
        MtlAxesError: a strategy is not registered, or was built from an object, so that no name stands for it.
    """

    def named(axis: Axis, strategy: OuterWeighting | InnerShape) -> Any:
        return _or_repr(strategy, lambda: _named(axis, strategy), strict=strict)

    inner: Any
    if tasks.default is not None:
        inner = named("inner", tasks.default)
    else:
        inner = {name: named("inner", shape) for name, shape in tasks.given.items()}
    return {
        "outer": named("outer", outer),
        "inner": inner,
        "tasks": list(tasks.names) or None,
        "probe": _or_repr(probe, lambda: probe_config(probe), strict=strict),
        "every": window.every,
        "accumulate": window.accumulate,
        "reduction": tasks.reduction,
        "sync": window.sync,
        "missing": tasks.missing,
    }


def _or_repr(value: object, config: Callable[[], Any], *, strict: bool) -> Any:
    try:
        return config()
    except MtlAxesError:
        if strict:
            raise
        return {"class": steady_repr(value)}


def _named(axis: Axis, strategy: OuterWeighting | InnerShape | TargetWeight) -> dict[str, Any]:
    name = name_of(axis, type(strategy))
    if name is None:
        objects = [option for option, value in strategy.options().items() if not _is_plain(value)]
        if objects:
            what = {"outer": "weighting", "inner": "shape", "weight": "target weight"}[axis]
            raise MtlAxesError(
                f"{strategy!r} has an object as its `{'`, `'.join(objects)}`: a {what} built from an object cannot be named "
                "in a config. Keep the call of compose() instead."
            )
        raise MtlAxesError(
            f"{strategy!r} is not registered and has no name in a config. Use register_{axis}('a_name') on its class."
        )
    return {"name": name, **{key: _plain(value) for key, value in strategy.options().items()}}


def _is_plain(value: Any) -> bool:
    """Return whether a config can hold the value of an option: plain data, or a strategy, which has its own name to give."""
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, (bool, int, float, str, OuterWeighting, InnerShape, TargetWeight))


def _plain(value: Any) -> Any:
    """Return the value of an option as plain data: a strategy within a strategy by its name."""
    if isinstance(value, OuterWeighting):
        return _named("outer", value)
    if isinstance(value, InnerShape):
        return _named("inner", value)
    if isinstance(value, TargetWeight):
        return _named("weight", value)
    return list(value) if isinstance(value, tuple) else value
