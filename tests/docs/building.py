"""The programs of docs/builder, as modules."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

DOCS = Path(__file__).parents[2] / "docs"


def program(name: str, file: str) -> ModuleType:
    """Load a file of docs/builder, which imports its neighbours."""
    sys.path.insert(0, str(DOCS / "builder"))
    try:
        spec = importlib.util.spec_from_file_location(name, DOCS / "builder" / file)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(DOCS / "builder"))
