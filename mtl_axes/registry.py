"""The registries of both axes, and of the target weights of the inner one; the one door to them: pluggy hooks.

Built-ins and third parties use the same hooks. A distribution adds strategies through an entry point of the group
``mtl_axes`` whose value is a module or object with one or more of them::

    from mtl_axes import hookimpl

    @hookimpl
    def mtl_axes_outer_weightings():
        return {"my_weighting": MyWeighting}

This module imports neither axis: the built-in strategies are found by module name, as an entry point's are.
"""

from __future__ import annotations

import importlib
import inspect
import warnings
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast, overload

import pluggy
from torch import nn

from mtl_axes._text import did_you_mean
from mtl_axes.errors import MtlAxesError, OptionError, PluginError, UnknownNameError
from mtl_axes.options import constructor_options

if TYPE_CHECKING:
    from mtl_axes.inner.base import InnerShape, TargetWeight
    from mtl_axes.outer.base import OuterWeighting

__all__ = [
    "Axis",
    "Registry",
    "available",
    "create",
    "failures",
    "hookimpl",
    "lookup",
    "name_of",
    "register_inner",
    "register_outer",
    "register_weight",
    "resolve",
]

Axis = Literal["outer", "inner", "weight"]
Strategy = TypeVar("Strategy", bound=type)

hookspec = pluggy.HookspecMarker("mtl_axes")
hookimpl = pluggy.HookimplMarker("mtl_axes")

_HOOKS: dict[str, str] = {
    "outer": "mtl_axes_outer_weightings",
    "inner": "mtl_axes_inner_shapes",
    "weight": "mtl_axes_target_weights",
}
# Module and name of the base class that strategies of an axis share.
_BASES: dict[str, tuple[str, str]] = {
    "outer": ("mtl_axes.outer.base", "OuterWeighting"),
    "inner": ("mtl_axes.inner.base", "InnerShape"),
    "weight": ("mtl_axes.inner.base", "TargetWeight"),
}


class _Specification:
    @hookspec
    def mtl_axes_outer_weightings(self) -> Mapping[str, type]:
        """Return a mapping name -> subclass of OuterWeighting."""
        raise NotImplementedError

    @hookspec
    def mtl_axes_inner_shapes(self) -> Mapping[str, type]:
        """Return a mapping name -> subclass of InnerShape."""
        raise NotImplementedError

    @hookspec
    def mtl_axes_target_weights(self) -> Mapping[str, type]:
        """Return a mapping name -> subclass of TargetWeight."""
        raise NotImplementedError


class Registry:
    """Names of strategies, and where each comes from. Entry points are read at the first look-up."""

    def __init__(self) -> None:
        self._manager = pluggy.PluginManager("mtl_axes")
        self._manager.add_hookspecs(_Specification)
        self._classes: dict[str, dict[str, type]] = {axis: {} for axis in _HOOKS}
        self._sources: dict[str, dict[str, list[str]]] = {axis: {} for axis in _HOOKS}
        self._failures: dict[str, str] = {}
        self._ignored: list[str] = []
        self._loaded = False

    @property
    def failures(self) -> Mapping[str, str]:
        """Plugins that could not be used, and why."""
        self.load()
        return dict(self._failures)

    def load(self) -> None:
        """Read the built-ins and the entry points, once."""
        if self._loaded:
            return
        self._loaded = True
        for module in ("mtl_axes.outer", "mtl_axes.inner"):
            self.add_plugin(importlib.import_module(module), "built-in")
        for entry in metadata.entry_points(group="mtl_axes"):
            distribution = entry.dist.name if entry.dist is not None else "unknown distribution"
            self.add_entry_point(entry, f"{distribution} ({entry.name} = {entry.value})")
        # Last: a warning that was made an error must not keep the other plugins from being read.
        for message in self._ignored:
            warnings.warn(message, stacklevel=4)

    def add_entry_point(self, entry: metadata.EntryPoint, source: str) -> None:
        """Load one entry point. Whatever it raises is remembered and does not reach the caller."""
        try:
            plugin = entry.load()
        except Exception as error:  # any failure of foreign import code must stay its own
            self._failures[source] = f"{type(error).__name__}: {error}"
            return
        self.add_plugin(plugin, source)

    def add_plugin(self, plugin: object, source: str) -> None:
        """Register the hooks of ``plugin``. A hook that fails or returns something else is remembered under ``source``."""
        try:
            name = self._manager.register(plugin)
            callers = self._manager.get_hookcallers(plugin) or []
            if not callers:
                raise PluginError(f"it has none of {', '.join(_HOOKS.values())}, marked with mtl_axes.hookimpl")
            for caller in callers:
                if caller.name not in _HOOKS.values():
                    raise PluginError(f"its hook {caller.name!r} should be {' or '.join(_HOOKS.values())}")
            found = [
                (axis, self._checked(axis, implementation.function()))
                for caller in callers
                for implementation in caller.get_hookimpls()
                if implementation.plugin_name == name
                for axis in _HOOKS
                if _HOOKS[axis] == caller.name
            ]
        except Exception as error:  # a broken plugin must not take the others with it
            self._failures[source] = f"{type(error).__name__}: {error}"
            return
        for axis, classes in found:
            for key, cls in classes.items():
                sources = self._sources[axis].setdefault(key, [])
                if "built-in" in sources:
                    self._failures[source] = f"the name {key!r} is reserved for the built-in strategy"
                    self._ignored.append(f"mtl_axes ignores {key!r} of plugin {source}: {self._failures[source]}.")
                    continue
                sources.append(source)
                self._classes[axis][key] = cls

    def _checked(self, axis: str, classes: object) -> Mapping[str, type]:
        if not isinstance(classes, Mapping):
            raise PluginError(f"{_HOOKS[axis]}() should return a mapping name -> class, found {classes!r}")
        for name, cls in classes.items():
            self._check_class(axis, name, cls)
        return classes

    @staticmethod
    def _check_class(axis: str, name: object, cls: object) -> None:
        base = _base(axis)
        if not isinstance(name, str) or not name:
            raise PluginError(f"A strategy's name should be a non-empty string. Found {name!r}.")
        if not (isinstance(cls, type) and issubclass(cls, base)):
            raise PluginError(f"Strategy {name!r} should be a subclass of mtl_axes.{base.__name__}. Found {cls!r}.")

    def add_class(self, axis: Axis, name: str, cls: type) -> None:
        """Register one class under a name. The same class defined again, as in a notebook, replaces the earlier one."""
        self.load()
        self._check_class(axis, name, cls)
        source = f"{cls.__module__}.{cls.__qualname__}"
        sources = self._sources[axis].get(name, [])
        if sources and sources != [source]:
            raise PluginError(
                f"The {axis} name {name!r} should be free. Found it taken by {' and '.join(sources)}. Choose another name."
            )
        self._sources[axis][name] = [source]
        self._classes[axis][name] = cls

    def names(self, axis: Axis) -> tuple[str, ...]:
        """Return the registered names of an axis, sorted."""
        self._check_axis(axis)
        self.load()
        return tuple(sorted(self._classes[axis]))

    def get(self, axis: Axis, name: str) -> type:
        """Return the class of a name, or raise an error that says what exists and what failed to load."""
        self._check_axis(axis)
        self.load()
        sources = self._sources[axis].get(name, [])
        if len(sources) > 1:
            raise PluginError(
                f"The {axis} name {name!r} should come from one plugin. Found it in {' and in '.join(sources)}. "
                "Uninstall one of them."
            )
        if name in self._classes[axis]:
            return self._classes[axis][name]
        hint = did_you_mean(str(name), self._classes[axis])
        for other, classes in self._classes.items():
            if other != axis and name in classes:
                hint = f" {name!r} is a name of the {other} axis."
                if (axis, other) == ("inner", "weight"):
                    hint += f' Join it with a shape: {{"name": "reweighted", "base": "mse", "weight": "{name}"}}.'
        failed = "".join(f"\n  plugin {source} could not be used: {why}" for source, why in self._failures.items())
        raise UnknownNameError(f"No {axis} strategy is named {name!r}.{hint} Known: {', '.join(self.names(axis))}.{failed}")

    def name_of(self, axis: Axis, cls: type) -> str | None:
        """Return the name under which ``cls`` is registered, or None."""
        self.load()
        return next((name for name, known in self._classes[axis].items() if known is cls), None)

    @staticmethod
    def _check_axis(axis: object) -> None:
        if axis not in _HOOKS:
            raise OptionError(f'The axis should be "outer", "inner" or "weight". Found {axis!r}.')


def _base(axis: str) -> type:
    module, name = _BASES[axis]
    base: type = getattr(importlib.import_module(module), name)
    return base


_registry = Registry()


def available(axis: Axis) -> tuple[str, ...]:
    """Return the names that ``create`` and ``compose`` know on an axis.

    >>> "gaba" in available("outer"), "failure_biased" in available("inner")
    (True, True)
    """
    return _registry.names(axis)


def name_of(axis: Axis, cls: type) -> str | None:
    """Return the registered name of a strategy's class, or None."""
    return _registry.name_of(axis, cls)


def lookup(axis: Axis, name: str) -> type:
    """Return the class of a registered name.

    Raises:
        UnknownNameError: no strategy has this name; the message lists near matches and plugins that failed to load.
    """
    return _registry.get(axis, name)


def failures() -> Mapping[str, str]:
    """Return the plugins that could not be used, and why."""
    return _registry.failures


@overload
def create(axis: Literal["outer"], name: str, /, **options: Any) -> OuterWeighting: ...


@overload
def create(axis: Literal["inner"], name: str, /, **options: Any) -> InnerShape: ...


@overload
def create(axis: Literal["weight"], name: str, /, **options: Any) -> TargetWeight: ...


def create(axis: Axis, name: str, /, **options: Any) -> OuterWeighting | InnerShape | TargetWeight:
    """Return a bare strategy by name, usable on its own.

    Args:
        axis: ``"outer"``, ``"inner"``, or ``"weight"`` for a target weight of the inner axis.
        name: a registered name, see :func:`available`.
        **options: the strategy's own options.

    Raises:
        UnknownNameError: no strategy has this name; the message lists near matches and plugins that failed to load.
        OptionError: an option is unknown or outside its range.

    >>> create("inner", "asymmetric", over=2.0)
    Asymmetric(over=2.0, under=1.0)
    """
    cls = _registry.get(axis, name)
    known = constructor_options(cls)
    kinds = {parameter.kind for parameter in inspect.signature(cls).parameters.values()}
    takes_any = cls.__init__ is not nn.Module.__init__ and inspect.Parameter.VAR_KEYWORD in kinds  # type: ignore[misc]
    for option in options:
        if option not in known and not takes_any:
            hint = did_you_mean(option, known, most=1)
            raise OptionError(f"{name!r} takes the options {', '.join(known) or '(none)'}. Found {option!r}.{hint}")
    lost = [option for option, value in known.items() if value is inspect.Parameter.empty and option not in options]
    if lost:
        shown = ", ".join(f'"{option}": ...' for option in lost)
        raise OptionError(
            f"{name!r} needs the option {' and '.join(lost)}. Found {', '.join(options) or 'none'}. "
            f'Pass {{"name": "{name}", {shown}}}; `mtl-axes show {name}` says what goes there.'
        )
    try:
        return cast("OuterWeighting | InnerShape | TargetWeight", cls(**options))
    except MtlAxesError as error:
        raise type(error)(f"{name}: {error}") from error
    except TypeError as error:
        raise OptionError(f"{name}: {error}") from error


@overload
def resolve(axis: Literal["outer"], given: object, /, *, option: str = ...) -> OuterWeighting: ...


@overload
def resolve(axis: Literal["inner"], given: object, /, *, option: str = ...) -> InnerShape: ...


@overload
def resolve(axis: Literal["weight"], given: object, /, *, option: str = ...) -> TargetWeight: ...


def resolve(axis: Axis, given: object, /, *, option: str | None = None) -> OuterWeighting | InnerShape | TargetWeight:
    """Return what an option stands for: a registered name, ``{"name": ..., **options}``, or the strategy itself.

    Args:
        axis: ``"outer"``, ``"inner"`` or ``"weight"``.
        given: the value of the option.
        option: name of the option, for the message.

    Raises:
        OptionError: it is none of the three, or an option in it is wrong.
        UnknownNameError: no strategy has this name.
    """
    base = _base(axis)
    if isinstance(given, base):
        return cast("OuterWeighting | InnerShape | TargetWeight", given)
    if isinstance(given, str):
        return create(axis, given)
    if isinstance(given, Mapping) and isinstance(given.get("name"), str):
        options = dict(given)
        return create(axis, options.pop("name"), **options)
    raise OptionError(
        f'Option `{option or axis}` should be a registered name, a mapping with a "name", or an instance of '
        f"{base.__name__}. Found {given!r}."
    )


def register_outer(name: str) -> Callable[[Strategy], Strategy]:
    """Class decorator: make an :class:`OuterWeighting` available under ``name`` in this process.

    Raises:
        PluginError: the name is taken by another class, or the class is not an OuterWeighting.
    """
    return _decorator("outer", name)


def register_inner(name: str) -> Callable[[Strategy], Strategy]:
    """Class decorator: make an :class:`InnerShape` available under ``name`` in this process.

    Raises:
        PluginError: the name is taken by another class, or the class is not an InnerShape.
    """
    return _decorator("inner", name)


def register_weight(name: str) -> Callable[[Strategy], Strategy]:
    """Class decorator: make a :class:`TargetWeight` available under ``name`` in this process.

    Raises:
        PluginError: the name is taken by another class, or the class is not a TargetWeight.
    """
    return _decorator("weight", name)


def _decorator(axis: Axis, name: str) -> Callable[[Strategy], Strategy]:
    def add(cls: Strategy) -> Strategy:
        _registry.add_class(axis, name, cls)
        return cls

    return add
