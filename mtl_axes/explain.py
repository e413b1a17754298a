"""The text of ``criterion.explain()``."""

from __future__ import annotations

from torch import Tensor, nn

from mtl_axes._text import first_of
from mtl_axes.errors import DataError
from mtl_axes.outer import OuterWeighting
from mtl_axes.probes import Probe, Shared, SharedPart
from mtl_axes.signals import StepReport
from mtl_axes.tasks import TaskSet
from mtl_axes.window import Window

__all__ = ["explain", "mean_cost", "often", "warning_of_cost"]

# Calls after which weights that hardly moved count as constant.
_STEADY = 500
_NAMES = 6
# Times a plain step, above which a cheaper probe is worth a warning.
_DEAR = 4.0


def mean_cost(probe: Probe, tasks: int, every: int) -> float:
    """Return the expected time of a step over that of a plain one, averaged over a period of ``every`` windows."""
    return 1 + (probe.cost(tasks) - 1) / every


def often(every: int) -> str:
    """Return how often gradients are measured, in words."""
    return "in every window" if every == 1 else f"once in {every} windows"


def warning_of_cost(outer: OuterWeighting, probe: Probe, tasks: int, every: int) -> str | None:
    """Return a warning if measuring costs several times a plain step, with what a cheaper probe would cost; else None."""
    cost = mean_cost(probe, tasks, every)
    if cost <= _DEAR:
        return None
    spared = f"every=10 about {mean_cost(probe, tasks, 10 * every):.1f}"
    if outer.needs == "norms":
        spared = f'probe={{"name": "exact", "rotate": True}} costs about 1.7, {spared}, probe="representation" about 1.1'
    else:
        spared = f"With {spared}"
    return (
        f"{probe!r} measures {tasks} tasks {often(every)}, which costs about {cost:.1f} times a plain step where "
        f"the shared part takes most of it. {spared}; see docs/cost.md."
    )


def explain(
    tasks: TaskSet,
    outer: OuterWeighting,
    probe: Probe,
    window: Window,
    shared: Shared,
    report: StepReport | None,
    steady: int,
    model: nn.Module | None,
) -> str:
    """Return what a criterion does, as far as it is known yet."""
    if model is not None and not isinstance(model, nn.Module):
        raise DataError(f"explain(model) should be given the model itself, a module, or nothing. Found {model!r}.")
    lines = [f"outer   {outer!r}: needs {outer.needs}"]
    if not tasks.names:
        lines.append("tasks   taken from the targets of the first call")
    for name in tasks.names:
        shape = tasks.shapes.get(name)
        lines.append(f"task    {name}: {tasks.kinds.get(name, 'kind not known yet')}, {shape if shape else 'no shape yet'}")
    lines += _measurement(outer, probe, window, len(tasks.names))
    if outer.wants_after_step:
        lines.append(_after_step(window))
    if outer.needs != "losses":
        lines += _shared(shared, model)
    lines.append(f"weights {_timing(outer, probe, window)}")
    if report is not None:
        lines += _now(report)
        lines += _constancy(outer, report, steady)
    return "\n".join(lines)


def _measurement(outer: OuterWeighting, probe: Probe, window: Window, count: int) -> list[str]:
    if outer.needs == "losses":
        return [
            "probe   none: the weighting reads losses alone, no gradient is measured",
            "cost    about that of a plain step" + (", and of one more forward" if outer.wants_after_step else ""),
        ]
    later = "" if outer.measures(window.step) else f", but not in window {window.step}: the weighting ignores them still"
    lines = [f"probe   {probe.describe()}; measured {often(window.every)}{later}"]
    if count:
        cost, mean = probe.cost(count), mean_cost(probe, count, window.every)
        spread = "" if window.every == 1 else f", {mean:.2f} on average over {window.every} windows"
        lines.append(
            f"cost    a measured step is about {cost:.2f} plain ones{spread}, where the shared part takes most of it"
        )
    return lines


def _after_step(window: Window) -> str:
    without = int(window.unanswered())
    lately = f"; it has not come for the last {without} windows" if without > 1 else ""
    return (
        "after   needs the loss on the same batch after the optimizer step: one more forward, about 0.4 of a plain step; "
        f"from an adapter, or `with torch.no_grad(), criterion.after_step(): criterion(model(x), y)`{lately}"
    )


def _shared(shared: Shared, model: nn.Module | None) -> list[str]:
    part = shared.last
    if part is None:
        return ["shared  not looked up yet"]
    names: dict[Tensor, str] = {} if model is None else {parameter: name for name, parameter in model.named_parameters()}
    source = "given by you" if part.source == "given" else "found on the graph"
    lines = [f"shared  {len(part.parameters)} parameters, {part.size} entries, {source}{_listed(part.parameters, names)}"]
    if part.partial:
        lines.append(f"shared  {part.partial} of them by some of the tasks only")
    if part.unreached:
        lines.append(f"shared  {part.unreached} of them are reached by no task")
    if part.tied:
        lines.append(f"tied    {', '.join(part.tied)} also used directly by the private part, as tied weights are")
    for bit, (name, count) in enumerate(part.private.items()):
        alone = [leaf for leaf, mask in part.reached.items() if mask == 1 << bit and leaf not in set(part.parameters)]
        lines.append(f"private {name}: {count} parameters{_listed(alone, names)}")
    lines += [f"nothing {name} has no gradient on the shared part, and is inactive" for name in part.without]
    if model is not None and part.reached:
        lines += _unreached(part, model)
    return lines


def _unreached(part: SharedPart, model: nn.Module) -> list[str]:
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    missed = [
        name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter not in part.reached
    ]
    lines = (
        [f"no task {len(missed)} trainable parameters are reached by no task: {first_of(missed, _NAMES)}"] if missed else []
    )
    return lines + ([f"frozen  {len(frozen)} parameters: {first_of(frozen, _NAMES)}"] if frozen else [])


def _listed(parameters: list[Tensor] | tuple[Tensor, ...], names: dict[Tensor, str]) -> str:
    known = [names[parameter] for parameter in parameters if parameter in names]
    return f": {first_of(known, _NAMES)}" if known else ""


def _constancy(outer: OuterWeighting, report: StepReport, steady: int) -> list[str]:
    if not (outer.reads_signals or outer.learnable) or steady < _STEADY:
        return []
    weights = {name: float(f"{weight:.4g}") for name, weight in zip(report.tasks, report.weights.tolist(), strict=True)}
    return [
        f"steady  the weights have moved by less than 1 % in the last {steady} calls: "
        f'compose({{"name": "fixed", "weights": {weights}}}) would do the same and measure nothing'
    ]


def _timing(outer: OuterWeighting, probe: Probe, window: Window) -> str:
    if outer.learnable:
        return "learned by your optimizer: add criterion.param_groups() to it"
    if window.immediate(outer, probe):
        return "of a step use that step's own statistics"
    return f"of a window come from the windows before it (accumulate={window.accumulate!r})"


def _now(report: StepReport) -> list[str]:
    lines = [f"step    {report.step} windows committed"]
    norms = report.norms.tolist() if report.norms is not None else [None] * len(report.tasks)
    floor = report.extra.get("floor_active")
    floors = floor.tolist() if floor is not None else [False] * len(report.tasks)
    rows = zip(
        report.tasks, report.losses.tolist(), report.weights.tolist(), norms, report.active.tolist(), floors, strict=True
    )
    for name, loss, weight, norm, active, floored in rows:
        measured = "" if norm is None else f", gradient norm {norm:.4g}"
        notes = ("" if active else ", inactive") + (", at the floor" if floored else "")
        lines.append(f"now     {name}: loss {loss:.4g}, weight {weight:.4g}{measured}{notes}")
    return lines
