"""The command line: ``mtl-axes list``, ``show NAME``, ``plugins``, ``report FOLDER`` and ``advise FUNCTION``."""

from __future__ import annotations

import argparse
import importlib
import os
import shutil
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from mtl_axes.__about__ import version
from mtl_axes.describe import REQUIRED, Description, describe
from mtl_axes.errors import MtlAxesError
from mtl_axes.registry import Axis, available, failures, near_names

__all__ = ["main"]

AXES: tuple[Axis, ...] = get_args(Axis)
_TITLES: dict[Axis, str] = {"outer": "outer weighting", "inner": "inner shape", "weight": "target weight"}
# Lines are filled up to here, or to the edge of a terminal that is narrower.
_WIDTH = 100


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0, 1 when nobody reads on, or 2 when a name is unknown or a report
    cannot be made."""
    try:
        status = _run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        # A reader such as `head` has seen enough. What is still in the buffer must not fail again at the exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status


def _run(arguments: Sequence[str] | None) -> int:
    parser = argparse.ArgumentParser(
        prog="mtl-axes", description="Strategies of multi-task losses by name, and reports of studies."
    )
    parser.add_argument("--version", action="version", version=f"mtl_axes {version}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    listing = commands.add_parser("list", help="names, what they need or serve, and one line on each")
    listing.add_argument("--axis", choices=AXES, help="of one axis alone")
    showing = commands.add_parser("show", help="formula, options, claims, example and papers of a strategy")
    showing.add_argument("name", metavar="NAME", help="a registered name")
    commands.add_parser("plugins", help="plugins that could not be used, and why")
    reporting = commands.add_parser("report", help="what a study found, as one HTML file")
    reporting.add_argument("folder", metavar="FOLDER", help="the folder that Study(out=...) was given")
    reporting.add_argument("-o", "--output", metavar="FILE", help="the file to write; report.html in FOLDER when left out")
    advising = commands.add_parser("advise", help="what a few batches say about weighting your tasks, before training")
    advising.add_argument(
        "function", metavar="MODULE:FUNCTION", help="a function of yours that returns (criterion, model or step, batches)"
    )
    advising.add_argument("--seconds", type=float, default=10.0, help="for the whole of it (10)")
    advising.add_argument("--primary", metavar="TASK", help="the task that matters")
    advising.add_argument("--picture", metavar="FILE", help="also draw it there")
    given = parser.parse_args(arguments)
    if given.command == "list":
        print("\n\n".join(_listed(axis) for axis in AXES if given.axis in (None, axis)))
        _tell_failures(sys.stderr)
        return 0
    if given.command == "plugins":
        _tell_failures(sys.stdout)
        if not failures():
            print("Every plugin that is installed could be used.")
        return 0
    if given.command == "report":
        return _report(Path(given.folder), given.output)
    if given.command == "advise":
        return _advise(given)
    return _show(given.name)


def _report(folder: Path, output: str | None) -> int:
    # Imported here: no other command needs what reads and draws a study.
    from mtl_axes.report import write_report
    from mtl_axes.study.results import Results

    try:
        print(write_report(Results.load(folder), output or folder / "report.html"))
    except (MtlAxesError, ImportError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _advise(given: argparse.Namespace) -> int:
    from mtl_axes.advise import advise

    module, _, name = given.function.partition(":")
    if os.getcwd() not in sys.path:  # where `python -m` looks, too
        sys.path.insert(0, os.getcwd())
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        print(
            f"The function should be given as package.module:function. Found {given.function!r}: {error}.", file=sys.stderr
        )
        return 2
    prepared = function()
    if not isinstance(prepared, (tuple, list)) or len(prepared) != 3:
        print(
            f"{given.function} should return (criterion, model or step, batches). Found {type(prepared).__name__}.",
            file=sys.stderr,
        )
        return 2
    criterion, model_or_step, batches = prepared
    try:
        advice = advise(criterion, model_or_step, batches, seconds=given.seconds, primary=given.primary)
        print(advice)
    except MtlAxesError as error:
        print(error, file=sys.stderr)
        return 2
    if given.picture is not None:
        try:
            advice.plot(given.picture)
        except (MtlAxesError, OSError, ValueError) as error:  # no matplotlib, no such folder, no such format
            print(f"The picture could not be drawn: {error}", file=sys.stderr)
            return 2
    return 0


def _show(name: str) -> int:
    found = [axis for axis in AXES if name in available(axis)]
    if not found:
        names = sorted({known for axis in AXES for known in available(axis)})
        near = near_names(name, names)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        print(f"No strategy is named {name!r}.{hint} `mtl-axes list` shows all names.", file=sys.stderr)
        _tell_failures(sys.stderr)
        return 2
    try:
        print("\n\n".join(_shown(describe(axis, name)) for axis in found))
    except MtlAxesError as error:  # two plugins with one name
        print(error, file=sys.stderr)
        return 2
    return 0


def _tell_failures(stream: Any) -> None:
    for source, why in failures().items():
        print(f"Plugin {source} could not be used: {why}", file=stream)


def _listed(axis: Axis) -> str:
    rows = []
    for name in available(axis):
        try:
            about = describe(axis, name)
        except MtlAxesError as error:  # two plugins with one name: told here, the rest goes on
            rows.append((name, "?", str(error)))
            continue
        serves = about.claims["needs"] if axis == "outer" else ", ".join(sorted(about.claims["kinds"] or ()))
        rows.append((name, serves, about.summary))
    first = max((len(name) for name, _, _ in rows), default=0)
    second = max((len(serves) for _, serves, _ in rows), default=0)
    head = f"{len(rows)} {_TITLES[axis]}{'' if len(rows) == 1 else 's'}"
    lines = [head]
    for name, serves, line in rows:
        start = f"  {name:<{first}}  {serves:<{second}}  "
        if not sys.stdout.isatty():  # a line each, for grep
            lines.append(start + line)
            continue
        beside = _width() - len(start) >= 40
        indent = " " * (len(start) if beside else 6)
        text = textwrap.fill(line, _width(), initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
        lines.append(start + text[len(start) :] if beside else f"{start.rstrip()}\n{text}")
    return "\n".join(lines)


def _shown(about: Description) -> str:
    title = f"{about.name}: {_TITLES[about.axis]} {about.cls.__module__}.{about.cls.__qualname__}"
    blocks = [f"{title}\n{'=' * len(title)}", _wrapped(about.summary)]
    if about.formula and about.formula != about.summary:
        blocks.append(textwrap.indent(about.formula, "    "))
    blocks += [_wrapped(paragraph) for paragraph in about.prose.split("\n\n") if paragraph]
    blocks.append(_section("Options", _options(about)))
    others = {key: text for key, text in about.arguments.items() if not _names(key) <= set(about.options)}
    blocks.append(_section("Arguments", _items(others.items())))
    blocks.append(_section("Returns", _wrapped(about.returns)))
    blocks.append(_section("Raises", _items(about.raises.items())))
    # Those of a strategy around another one follow from that, and are told for the one of its example.
    around = f", with {_call(getattr(about.cls, 'example', {}))}" if "base" in about.options else ""
    blocks.append(_section(f"Claims{around}", _claims(about.claims)))
    blocks.append(_section("Example", about.example))
    blocks.append(_section("References", _wrapped(about.references)))
    return "\n\n".join(block for block in blocks if block)


def _names(key: str) -> set[str]:
    """Return the names that an entry under Args explains: one, or several with commas between them."""
    return {name.strip() for name in key.split(",")}


def _options(about: Description) -> str:
    lines = []
    for name, default in about.options.items():
        text = next((text for key, text in about.arguments.items() if name in _names(key)), "")
        lines.append((name if default is REQUIRED else f"{name}={default!r}", text))
    return _items(lines) if lines else "None."


def _items(items: Iterable[tuple[str, str]]) -> str:
    return "\n".join(
        textwrap.fill(f"{name}: {text}" if text else name, _width() - 4, subsequent_indent="    ", break_on_hyphens=False)
        for name, text in items
    )


def _claims(claims: Mapping[str, Any]) -> str:
    told = {name: ", ".join(sorted(value)) if isinstance(value, frozenset) else value for name, value in claims.items()}
    return _wrapped(", ".join(f"{name}={value!r}" for name, value in told.items()))


def _call(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in options.items())


def _section(head: str, text: str) -> str:
    return f"{head}\n{textwrap.indent(text, '    ')}" if text else ""


def _wrapped(paragraph: str) -> str:
    return textwrap.fill(" ".join(paragraph.split()), _width() - 4, break_on_hyphens=False)


def _width() -> int:
    return max(40, min(_WIDTH, shutil.get_terminal_size().columns)) if sys.stdout.isatty() else _WIDTH
