"""Text for people: aligned tables, filled paragraphs, shortened values, lists of names, near matches."""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Collection, Iterable, Sequence

__all__ = [
    "WIDTH",
    "did_you_mean",
    "fill",
    "first_of",
    "join",
    "names_or_count",
    "plural",
    "shorten",
    "table",
    "without_math",
]

WIDTH = 100
"""Columns of printed text, unless a terminal is narrower."""


def table(rows: Sequence[Sequence[str]], *, left: Collection[int], indent: str = "") -> str:
    """Return rows as aligned columns, the first row being the heads; a column with nothing below its head is left out.

    Args:
        rows: of equal length.
        left: numbers of the columns that are aligned to the left.
        indent: put before each line.
    """
    columns = [index for index in range(len(rows[0])) if any(row[index] for row in rows[1:])]
    widths = {index: max(len(row[index]) for row in rows) for index in columns}
    lines = (
        "  ".join(row[index].ljust(widths[index]) if index in left else row[index].rjust(widths[index]) for index in columns)
        for row in rows
    )
    return "\n".join(f"{indent}{line}".rstrip() for line in lines)


def fill(text: str, first: str = "", later: str = "", *, width: int = WIDTH) -> str:
    """Return a paragraph filled to a width, with indents of its first line and of the later ones."""
    return textwrap.fill(text, width, initial_indent=first, subsequent_indent=later, break_on_hyphens=False)


def shorten(text: str, length: int) -> str:
    """Return a text without its middle if it is longer than ``length``: names of tasks often differ in their ends."""
    half = (length - 3) // 2
    return text if len(text) <= length else f"{text[: length - 3 - half]}...{text[-half:]}"


def join(names: Sequence[str], last: str = "and") -> str:
    """Return ``"a"``, ``"a and b"`` or ``"a, b and c"``."""
    return f"{', '.join(names[:-1])} {last} {names[-1]}" if len(names) > 1 else "".join(names)


def first_of(names: Sequence[str], most: int) -> str:
    """Return the first ``most`` names and the number of the others: ``"a, b and 4 more"``."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def names_or_count(names: Sequence[str], most: int, word: str) -> str:
    """Return the names if there are at most ``most``, else their number: ``"12 cells"``."""
    return ", ".join(names) if len(names) <= most else plural(len(names), word)


def plural(count: int, word: str, ending: str = "s") -> str:
    """Return ``"1 run"`` or ``"3 runs"``."""
    return f"{count} {word}" if count == 1 else f"{count} {word}{ending}"


def did_you_mean(name: str, names: Iterable[str], most: int = 3) -> str:
    """Return " Did you mean 'upgrad'?", also for a name as papers write it (UPGrad, DB-MTL); "" if no name is near."""
    near = difflib.get_close_matches(name.lower().replace("-", "_"), list(names), n=most)
    return f" Did you mean {join([repr(match) for match in near], 'or')}?" if near else ""


def without_math(text: str) -> str:
    """Return a text in which matplotlib sees no formula between dollars."""
    return text.replace("$", r"\$")
