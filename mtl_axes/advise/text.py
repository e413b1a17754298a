"""Advice as a text of at most 100 columns."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from mtl_axes._text import fill, plural, shorten, table
from mtl_axes.advise.facts import Candidate, Finding, Ratio, signed, sized

if TYPE_CHECKING:
    from mtl_axes.advise.advice import Advice

__all__ = ["as_text"]

# The weights and shares of more tasks would not fit beside each other.
_BESIDE = 3
_PAIRS = 6


def as_text(advice: Advice) -> str:
    """Return the advice as a text: what to do and why, what was measured, and what is not known."""
    sections = {
        "Losses": _losses(advice),
        "Gradients on the shared part": _gradients(advice),
        "If losses and gradients stayed as they are": _candidates(advice),
        "Time of a step (forward, criterion, backward) relative to the plain weighted sum": _costs(advice),
        "What these batches cannot show": "\n".join(fill(text, "- ", "  ") for text in advice.unknown),
        "A study that can": textwrap.indent(advice.code, "  "),
    }
    blocks = [
        _head(advice),
        *(_finding("Also" if number else "Recommendation", finding) for number, finding in enumerate(advice.findings)),
        *(f"{head}\n{body}" for head, body in sections.items() if body),
    ]
    return "\n\n".join(blocks)


def _head(advice: Advice) -> str:
    shared = "" if advice.shared is None else f", {advice.shared:,} shared parameter entries"
    primary = "" if advice.primary is None else f"; primary: {advice.primary}"
    count, batches = plural(len(advice.tasks), "task"), plural(advice.batches, "batch", "es")
    names = ", ".join(advice.tasks) + primary
    return fill(f"Advice on {count} ({names}) from {batches}{shared}, in {advice.seconds:.1f} s", later="  ")


def _finding(head: str, finding: Finding) -> str:
    reasons = {"because": finding.because, "source": finding.source, "evidence": finding.evidence}
    says = fill(f"{head} [{finding.rule}]: {finding.says}", later="  ")
    return "\n".join([says, *(fill(f"{name:<10}{reason}", "  ", " " * 12) for name, reason in reasons.items())])


def _losses(advice: Advice) -> str:
    rows = [["task", "kind", "shape", "loss", "sd", "targets", "targets x c", "absent", "not finite"]]
    rows += (
        [
            shorten(loss.task, 20),
            loss.kind or ("no label seen" if loss.unlabelled else "computed elsewhere"),
            shorten(loss.shape or "", 28),
            sized(loss.mean),
            sized(loss.sd),
            "" if loss.target_range is None else f"{loss.target_range[0]:.4g} to {loss.target_range[1]:.4g}",
            "" if loss.exponent is None else f"loss x c^{loss.exponent:.2f}",
            str(loss.absent or ""),
            str(loss.not_finite or ""),
        ]
        for loss in advice.losses
    )
    return table(rows, left=(0, 1, 2, 5), indent="  ")


def _gradients(advice: Advice) -> str:
    if not advice.norms:
        return ""
    rows = [["task", "norm", "sd over batches", "signal/noise", "batches"]]
    for norm in advice.norms:
        noise = "" if norm.signal_to_noise is None else f"{norm.signal_to_noise:.1f}"
        batches = str(len(norm.known)) + (f", {norm.zeros} of them 0" if norm.zeros else "")
        rows.append([shorten(norm.task, 30), sized(norm.mean), sized(norm.sd), noise, batches])
    lines = [table(rows, left=(0,), indent="  ")]
    if advice.ratio is not None:
        lines.append(fill(f"ratio  {_ratio(advice.ratio)}", "  ", " " * 9))
    pairs = [cosine for cosine in advice.cosines if cosine.mean is not None]
    # Of many pairs, those that conflict most.
    pairs.sort(key=lambda cosine: cosine.mean or 0.0)
    for cosine in pairs[:_PAIRS]:
        sd = "" if cosine.sd is None else f" (sd {cosine.sd:.2f})"
        negative = f"negative in {cosine.conflicts or 0:.0%} of the batches"
        line = f"cosine {cosine.first}, {cosine.second}: {signed(cosine.mean or 0.0)}{sd}, {negative}"
        lines.append(fill(line, "  ", " " * 9))
    if len(pairs) > _PAIRS:
        lines.append(f"  and {len(pairs) - _PAIRS} pairs with larger cosines")
    return "\n".join(lines)


def _ratio(ratio: Ratio) -> str:
    spread = f" ({sized(ratio.low)} to {sized(ratio.high)} over the batches)" if len(ratio.values) > 1 else ""
    line = f"{ratio.largest} / {ratio.smallest}: {sized(ratio.median)}{spread}"
    if ratio.floor == 0:
        return line
    floor = f"GABA's floor of {ratio.floor:g} can compensate"
    # Below 1 a factor would read like a deficit.
    if ratio.over <= 1:
        return f"{line}, within the {sized(ratio.limit)} that {floor}"
    return f"{line}, which is {sized(ratio.over)} times what {floor} ({sized(ratio.limit)})"


def _shown(advice: Advice) -> list[str]:
    """Return the tasks whose weights are shown: all, or those with the largest and the smallest norm and the primary one."""
    if len(advice.tasks) <= _BESIDE:
        return list(advice.tasks)
    if advice.ratio is None:
        return list(advice.tasks[:_BESIDE])
    return [task for task in advice.tasks if task in (advice.ratio.largest, advice.ratio.smallest, advice.primary)]


def _candidates(advice: Advice) -> str:
    if not advice.candidates:
        return ""
    shown = _shown(advice)
    rows = [["weighting", "reads", "weights", "shares of the pull", "settles in"]]
    notes: dict[str, list[str]] = {}
    for one in advice.candidates:
        weights = " / ".join(_weight(one.weights[task]) for task in shown) if one.weights else "-"
        shares = " / ".join(f"{one.shares[task]:.1%}" for task in shown) if set(shown) <= set(one.shares) else "-"
        rows.append([shorten(one.label, 20), one.reads or "-", weights, shares, _settles(one)])
        if note := f"at the floor: {', '.join(one.at_floor)}" if one.at_floor else one.note:
            notes.setdefault(note, []).append(one.label)
    tasks = fill(f"of {' / '.join(shown)}", "  ", "    ")
    return "\n".join([tasks, table(rows, left=(0, 1, 2, 3), indent="  "), *_noted(notes)])


def _settles(one: Candidate) -> str:
    if not one.weights or one.note.startswith("learned"):
        return "-"
    return "not yet" if one.windows is None else "at once" if one.windows == 0 else f"{one.windows} steps"


def _costs(advice: Advice) -> str:
    rows = [["", "ratio", "ms", "rounds"], ["plain weighted sum", "1.00", f"{1e3 * (advice.plain or 0):.3g}", ""]]
    problems: dict[str, list[str]] = {}
    for cost in advice.costs:
        if cost.problem is not None:
            problems.setdefault(f"not possible. {cost.problem}", []).append(cost.label)
        elif cost.ratio is None or cost.seconds is None:
            rows.append([shorten(cost.label, 44), "no time", "", ""])
        else:
            rows.append([shorten(cost.label, 44), f"{cost.ratio:.2f}", f"{1e3 * cost.seconds:.3g}", str(cost.rounds)])
    if advice.plain is None:
        return "\n".join(_noted(problems)) or "  nothing was timed"
    return "\n".join([table(rows, left=(0,), indent="  "), *_noted(problems)])


def _noted(notes: dict[str, list[str]]) -> list[str]:
    return [fill(f"{', '.join(labels)}: {note}", "  ", "    ") for note, labels in notes.items()]


def _weight(value: float) -> str:
    return f"{value:.4f}" if 1e-3 <= abs(value) < 10 else f"{value:.3g}"
