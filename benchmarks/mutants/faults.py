"""Faults: what mutmut's operators make of a module, drawn at random, and the statements that they are in."""

from __future__ import annotations

import ast
import contextlib
import difflib
import random
import re
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import libcst
from libcst import matchers as m
from libcst.metadata import ByteSpanPositionProvider, MetadataWrapper
from mutmut.mutation.mutators import mutation_operators, operator_string

ROOT = Path(__file__).parents[2]
# A fault in these changes a text or a type, or how a module is imported.
_LEFT_OUT = m.OneOf(
    m.Expr(m.SimpleString()),
    m.Assign([m.AssignTarget(m.Name("__all__"))]),
    m.If(m.Name("TYPE_CHECKING")),
    m.FunctionDef(m.OneOf(*map(m.Name, ("__repr__", "extra_repr", "describe")))),
    m.Call(m.OneOf(m.Name("cast"), m.Attribute(attr=m.Name("warn")))),
)
_LEFT_OUT_WHOLLY = (libcst.Annotation, libcst.Decorator, libcst.Raise, libcst.Import, libcst.ImportFrom)
_SOMETIMES = (libcst.Expr, libcst.Assign, libcst.If, libcst.FunctionDef, libcst.Call)


class Mutant(NamedTuple):
    """A fault: its place, the lines before and after it, and the whole module with it."""

    stratum: str
    path: str
    line: int
    function: str
    before: str
    after: str
    code: str


class _Faults(libcst.CSTVisitor):
    """Collects the faults of a module by operator: the bytes that each replaces, and with what."""

    METADATA_DEPENDENCIES = (ByteSpanPositionProvider,)

    def __init__(self, module: libcst.Module) -> None:
        self.module = module
        self.faults: list[tuple[str, int, int, str]] = []

    def on_visit(self, node: libcst.CSTNode) -> bool:
        if isinstance(node, _LEFT_OUT_WHOLLY) or (isinstance(node, _SOMETIMES) and m.matches(node, _LEFT_OUT)):
            return False
        for kind, operator in mutation_operators:
            if isinstance(node, kind):
                variants = list(operator(node))
                if operator is operator_string:
                    # A string with a space is a text; another case of the same letters is no other fault.
                    variants = [] if " " in getattr(node, "value", "") else variants[:1]
                if variants:
                    span = self.get_metadata(ByteSpanPositionProvider, node)
                    self.faults += [
                        (operator.__name__, span.start, span.start + span.length, self.module.code_for_node(new))
                        for new in variants
                    ]
        return True


def sample(strata: dict[str, list[str]], count: int, seed: int) -> list[Mutant]:
    """Draw ``count`` mutants from the strata in turn; one that has no more is left out from there on."""
    sources = {name: _shuffled(name, paths, seed) for name, paths in strata.items()}
    drawn: dict[tuple[str, ...], Mutant] = {}
    while sources and len(drawn) < count:
        for name in list(sources)[: count - len(drawn)]:
            mutant = next((mutant for mutant in sources[name] if mutant[:2] + mutant[3:6] not in drawn), None)
            if mutant is None:
                del sources[name]
            else:
                drawn[mutant[:2] + mutant[3:6]] = mutant
    return list(drawn.values())


def files_of(paths: list[str], pattern: str = "*.py") -> list[str]:
    """Return the files that are given by path, and those that match in the folders that are given."""
    files = chain.from_iterable(sorted((ROOT / path).rglob(pattern)) or [ROOT / path] for path in paths)
    return [str(file.relative_to(ROOT)) for file in files]


def _shuffled(stratum: str, paths: list[str], seed: int) -> Iterator[Mutant]:
    places = []
    for file in files_of(paths):
        wrapper = MetadataWrapper(libcst.parse_module((ROOT / file).read_bytes()), unsafe_skip_copy=True)
        visitor = _Faults(wrapper.module)
        wrapper.visit(visitor)
        places += [(file, *fault) for fault in visitor.faults]
    random.Random(f"{seed} {stratum}").shuffle(places)
    # One of each operator in turn: most faults are arguments and values that become None, which any test notices.
    drawn: Counter[str] = Counter()
    ranks = [drawn.update([operator]) or drawn[operator] for _, operator, *_ in places]
    for _, (file, _, first, last, new) in sorted(zip(ranks, places, strict=True), key=lambda pair: pair[0]):
        source = (ROOT / file).read_bytes()
        code = (source[:first] + new.encode() + source[last:]).decode()
        line = source[:first].count(b"\n") + 1
        with contextlib.suppress(SyntaxError):
            if ast.parse(code) and code != source.decode():
                function = next((one.name for one in _around(source.decode(), line) if hasattr(one, "name")), "")
                yield Mutant(stratum, file, line, function, *_difference(source.decode(), code), code)


def _difference(old: str, new: str) -> tuple[str, str]:
    lines = list(difflib.unified_diff(old.splitlines(), new.splitlines(), n=0, lineterm=""))[2:]
    before, after = (" ".join(line[1:].strip() for line in lines if line[0] == sign) for sign in "-+")
    return before, after


def _around(source: str, line: int) -> list[Any]:
    """Return the statements that a line is part of, the innermost first."""
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.stmt)]
    return sorted((node for node in nodes if node.lineno <= line <= (node.end_lineno or 0)), key=lambda node: -node.lineno)


def lines_of(source: str, line: int) -> list[int]:
    """Return the lines of a line's statement; if it runs at import, those that use what it defines."""
    count = len(source.splitlines())
    statement, *owners = _around(source, line)
    if isinstance(statement, ast.FunctionDef):
        return list(range(statement.lineno, (statement.end_lineno or count) + 1))
    if any(isinstance(owner, ast.FunctionDef) for owner in owners):
        body = getattr(statement, "body", None)
        return list(range(statement.lineno, body[0].lineno if body else statement.end_lineno + 1))
    names = [node.id for node in ast.walk(statement) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]
    pattern = re.compile("|".join(rf"\b{name}\b" for name in names) or "$^")
    uses = [number for number, text in enumerate(source.splitlines(), 1) if pattern.search(text)]
    return list(range(1, count + 1)) if len(uses) < 2 else uses
