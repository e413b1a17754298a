"""The command line: ``mtl-axes list``, ``show NAME``, ``plugins``, ``report FOLDER`` and ``advise FUNCTION``."""

from __future__ import annotations

import argparse
import importlib
import inspect
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO, get_args

from mtl_axes.__about__ import version
from mtl_axes._text import WIDTH, did_you_mean, fill, plural, table
from mtl_axes.describe import describe
from mtl_axes.errors import MtlAxesError
from mtl_axes.registry import Axis, available, failures, lookup

__all__ = ["main"]

AXES: tuple[Axis, ...] = get_args(Axis)
_TITLES: dict[Axis, str] = {"outer": "outer weighting", "inner": "inner shape", "weight": "target weight"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    The status is 0, or 1 if the reader of the output has gone, or 2 if a name is unknown, or a report or advice cannot be
    made.
    """
    try:
        status = _run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        # A reader such as `head` has seen enough. What is still in the buffer must not fail again at the exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status


def _run(arguments: Sequence[str] | None) -> int:
    given = _parser().parse_args(arguments)
    if given.command == "list":
        print("\n\n".join(_listed(axis) for axis in AXES if given.axis in (None, axis)))
        _print_failures(sys.stderr)
        return 0
    if given.command == "plugins":
        _print_failures(sys.stdout)
        if not failures():
            print("Every installed plugin could be loaded.")
        return 0
    if given.command == "show":
        return _show(given.name)
    try:
        return _report(Path(given.folder), given.output) if given.command == "report" else _advise(given)
    except MtlAxesError as error:
        print(error, file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mtl-axes", description="Lists strategies of multi-task losses, reports studies, and gives advice on weighting."
    )
    parser.add_argument("--version", action="version", version=f"mtl_axes {version}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    listing = commands.add_parser("list", help="list the strategies: name, what it reads or serves, and one line on each")
    listing.add_argument("--axis", choices=AXES, help="list one axis only")
    showing = commands.add_parser("show", help="print the signature and docstring of a strategy")
    showing.add_argument("name", metavar="NAME", help="a registered name")
    commands.add_parser("plugins", help="list the plugins that could not be loaded, and why")
    reporting = commands.add_parser("report", help="write the results of a study as one HTML file")
    reporting.add_argument("folder", metavar="FOLDER", help="the folder that was passed as Study(out=...)")
    reporting.add_argument("-o", "--output", metavar="FILE", help="the file to write (default: report.html in FOLDER)")
    advising = commands.add_parser("advise", help="give advice on weighting your tasks from a few batches, before training")
    advising.add_argument(
        "function", metavar="MODULE:FUNCTION", help="your function that returns (criterion, model or step, batches)"
    )
    advising.add_argument("--seconds", type=float, default=10.0, help="time limit for the whole call (default: 10)")
    advising.add_argument("--primary", metavar="TASK", help="the task that matters most")
    advising.add_argument("--picture", metavar="FILE", help="also draw the advice into this file")
    return parser


def _report(folder: Path, output: str | None) -> int:
    # Imported here: no other command needs what reads and draws a study.
    from mtl_axes.report import write_report
    from mtl_axes.study.results import Results

    try:
        print(write_report(Results.load(folder), output or folder / "report.html"))
    except (ImportError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _advise(given: argparse.Namespace) -> int:
    from mtl_axes.advise import advise

    module, _, name = given.function.partition(":")
    if os.getcwd() not in sys.path:  # `python -m` looks there, too
        sys.path.insert(0, os.getcwd())
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise MtlAxesError(
            f"{given.function!r} could not be imported: {error}. Pass a function as package.module:function."
        ) from error
    prepared = function()
    if not isinstance(prepared, (tuple, list)) or len(prepared) != 3:
        raise MtlAxesError(
            f"{given.function} should return (criterion, model or step, batches). Found {type(prepared).__name__}."
        )
    criterion, model_or_step, batches = prepared
    advice = advise(criterion, model_or_step, batches, seconds=given.seconds, primary=given.primary)
    print(advice)
    if given.picture is not None:
        try:
            advice.plot(given.picture)
        except (MtlAxesError, OSError, ValueError) as error:  # no matplotlib, no such folder, no such format
            raise MtlAxesError(f"The picture could not be drawn: {error}") from error
    return 0


def _show(name: str) -> int:
    axes = [axis for axis in AXES if name in available(axis)]
    if not axes:
        hint = did_you_mean(name, {known for axis in AXES for known in available(axis)})
        print(f"No strategy is named {name!r}.{hint} `mtl-axes list` shows all names.", file=sys.stderr)
        _print_failures(sys.stderr)
        return 2
    try:
        print("\n\n".join(_shown(axis, name) for axis in axes))
    except MtlAxesError as error:  # two plugins with one name
        print(error, file=sys.stderr)
        return 2
    return 0


def _shown(axis: Axis, name: str) -> str:
    cls = lookup(axis, name)
    signature = inspect.signature(cls)
    bare = [parameter.replace(annotation=parameter.empty) for parameter in signature.parameters.values()]
    signature = signature.replace(parameters=bare, return_annotation=signature.empty)
    docstring = inspect.cleandoc(vars(cls).get("__doc__") or "It has no docstring.")
    return f"{name}: {_TITLES[axis]} of {cls.__module__}\n\n{cls.__qualname__}{signature}\n\n{docstring}"


def _print_failures(stream: TextIO) -> None:
    for source, why in failures().items():
        print(f"Plugin {source} could not be used: {why}", file=stream)


def _listed(axis: Axis) -> str:
    rows = []
    for name in available(axis):
        try:
            about = describe(axis, name)
        except MtlAxesError as error:  # two plugins with one name do not keep the others from the list
            rows.append((name, "?", str(error)))
            continue
        serves = about.claims["needs"] if axis == "outer" else ", ".join(sorted(about.claims["kinds"] or ()))
        rows.append((name, serves, about.summary))
    lines = table([("", "", ""), *rows], left=(0, 1, 2), indent="  ").splitlines()[1:]
    if sys.stdout.isatty():  # otherwise a line each, for grep
        width = max(40, min(WIDTH, shutil.get_terminal_size().columns))
        lines = [fill(line, later=" " * 6, width=width) for line in lines]
    return "\n".join([plural(len(rows), _TITLES[axis]), *lines])
