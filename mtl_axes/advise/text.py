"""Advice as a text of at most 100 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from mtl_axes._text import fill, plural, shorten, table
from mtl_axes.advise.facts import Advice, Candidate, Cost, Finding, Ratio, TaskLoss, signed, sized

__all__ = ["told"]

# With more tasks, weights and shares of all of them would not fit beside each other.
_BESIDE = 3


def told(advice: Advice) -> str:
    """Return the advice as a text: what to do, what was measured, why, and what is not known."""
    blocks = [
        _head(advice),
        _finding("Recommendation", advice.recommendation),
        *[_finding("Also", finding) for finding in advice.findings[1:]],
        _section("Losses", _losses(advice)),
        _section("Gradients on the shared part", _gradients(advice)),
        _section("Were losses and gradients to stay as they are", _candidates(advice)),
        _section("A step here (forward, criterion, backward), over that of the plain weighted sum", _costs(advice)),
        _section("What this does not know", "\n".join(fill(text, "- ", "  ") for text in advice.unknown)),
        _section("To settle it", textwrap.indent(advice.code, "  ")),
    ]
    return "\n\n".join(block for block in blocks if block)


def _head(advice: Advice) -> str:
    shared = "" if advice.shared is None else f", {advice.shared:,} shared parameter entries"
    primary = "" if advice.primary is None else f", the one that matters is {advice.primary}"
    count, batches = plural(len(advice.tasks), "task"), plural(advice.batches, "batch", "es")
    return fill(
        f"Advice on {count} ({', '.join(advice.tasks)}{primary}) from {batches}{shared}, in {advice.seconds:.1f} s", "", "  "
    )


def _finding(head: str, finding: Finding) -> str:
    return "\n".join(
        [
            fill(f"{head} [{finding.rule}]: {finding.says}", "", "  "),
            fill(f"because   {finding.because}", "  ", " " * 12),
            fill(f"source    {finding.source}", "  ", " " * 12),
            fill(f"evidence  {finding.evidence}", "  ", " " * 12),
        ]
    )


def _losses(advice: Advice) -> str:
    rows = [["task", "kind", "shape", "loss", "sd", "targets", "targets x c", "absent", "not finite"]]
    for loss in advice.losses:
        spread = "" if loss.target_range is None else f"{loss.target_range[0]:.4g} to {loss.target_range[1]:.4g}"
        rows.append(
            [
                shorten(loss.task, 20),
                loss.kind or ("no label seen" if loss.unlabelled else "computed elsewhere"),
                shorten(loss.shape or "", 28),
                sized(loss.mean),
                sized(loss.sd),
                spread,
                _units(loss),
                str(loss.absent) if loss.absent else "",
                str(loss.not_finite) if loss.not_finite else "",
            ]
        )
    return table(rows, indent="  ", left=(0, 1, 2, 5))


def _units(loss: TaskLoss) -> str:
    return "" if loss.exponent is None else f"loss x c^{loss.exponent:.2f}"


def _gradients(advice: Advice) -> str:
    if not advice.norms:
        return ""
    rows = [["task", "norm", "sd over batches", "signal/noise", "batches"]]
    for norm in advice.norms:
        known = sum(value is not None for value in norm.values)
        zeros = f", {norm.zeros} of them 0" if norm.zeros else ""
        noise = norm.signal_to_noise
        rows.append(
            [
                shorten(norm.task, 30),
                sized(norm.mean),
                sized(norm.sd),
                "" if noise is None else f"{noise:.1f}",
                f"{known}{zeros}",
            ]
        )
    lines = [table(rows, indent="  ", left=(0,))]
    ratio = advice.ratio
    if ratio is not None:
        spread = f" ({sized(ratio.low)} to {sized(ratio.high)} over the batches)" if len(ratio.values) > 1 else ""
        told = f"ratio  {ratio.largest} / {ratio.smallest}: {sized(ratio.median)}{spread}"
        lines.append(fill(told + _over(ratio), "  ", " " * 9))
    pairs = [cosine for cosine in advice.cosines if cosine.mean is not None]
    # Of many pairs, those that conflict most.
    pairs.sort(key=lambda cosine: cosine.mean or 0.0)
    for cosine in pairs[:6]:
        sd = "" if cosine.sd is None else f" (sd {cosine.sd:.2f})"
        lines.append(
            fill(
                f"cosine {cosine.first}, {cosine.second}: {signed(cosine.mean or 0.0)}{sd}, negative in "
                f"{cosine.conflicts or 0:.0%} of the batches",
                "  ",
                " " * 9,
            )
        )
    if len(pairs) > 6:
        lines.append(f"  and {len(pairs) - 6} pairs with larger cosines")
    return "\n".join(lines)


def _over(ratio: Ratio) -> str:
    """Return what the ratio is to GABA's floor: nothing without one, and below 1 no number that reads like a deficit."""
    if ratio.floor == 0:
        return ""
    makes_up = f"GABA's floor of {ratio.floor:g} can make up for"
    if ratio.over <= 1:
        return f", within the {sized(ratio.limit)} that {makes_up}"
    return f", which is {sized(ratio.over)} times what {makes_up} ({sized(ratio.limit)})"


def _shown(advice: Advice) -> list[str]:
    """Return the tasks whose weights are shown: all, or those with the largest and the smallest norm."""
    if len(advice.tasks) <= _BESIDE:
        return list(advice.tasks)
    if advice.ratio is None:
        return list(advice.tasks[:_BESIDE])
    picked = [advice.ratio.largest, advice.ratio.smallest]
    if advice.primary is not None and advice.primary not in picked:
        picked.append(advice.primary)
    return [task for task in advice.tasks if task in picked]


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
        note = f"at the floor: {', '.join(one.at_floor)}" if one.at_floor else one.note
        if note:
            notes.setdefault(note, []).append(one.label)
    lines = [fill(f"of {' / '.join(shown)}", "  ", "    "), table(rows, indent="  ", left=(0, 1, 2, 3))]
    lines += [fill(f"{', '.join(labels)}: {note}", "  ", "    ") for note, labels in notes.items()]
    return "\n".join(lines)


def _settles(one: Candidate) -> str:
    if not one.weights or one.note.startswith("learned"):
        return "-"
    return "not yet" if one.windows is None else "at once" if one.windows == 0 else f"{one.windows} steps"


def _costs(advice: Advice) -> str:
    if advice.plain is None:
        return "  nothing was timed" if not advice.costs else _problems(advice.costs)
    rows = [["", "ratio", "ms", "rounds"], ["plain weighted sum", "1.00", f"{1e3 * advice.plain:.3g}", ""]]
    for cost in advice.costs:
        if cost.problem is not None:
            continue
        if cost.ratio is None or cost.seconds is None:
            rows.append([shorten(cost.label, 44), "no time", "", ""])
        else:
            rows.append([shorten(cost.label, 44), f"{cost.ratio:.2f}", f"{1e3 * cost.seconds:.3g}", str(cost.rounds)])
    problems = _problems(advice.costs)
    return table(rows, indent="  ", left=(0,)) + ("\n" + problems if problems else "")


def _problems(costs: Sequence[Cost]) -> str:
    reasons: dict[str, list[str]] = {}
    for cost in costs:
        if cost.problem is not None:
            reasons.setdefault(cost.problem, []).append(cost.label)
    return "\n".join(fill(f"{', '.join(labels)}: not here. {why}", "  ", "    ") for why, labels in reasons.items())


def _section(head: str, body: str) -> str:
    return f"{head}\n{body}" if body else ""


def _weight(value: float) -> str:
    return f"{value:.4f}" if 1e-3 <= abs(value) < 10 else f"{value:.3g}"
