"""Draws the pictures of docs/tutorial.md by running its blocks: ``python docs/builder/tutorial.py``.

The picture of the report needs playwright and Chromium; it is left unchanged without them.
"""

from __future__ import annotations

import os
import re
import runpy
import shutil
import tempfile
from pathlib import Path

from browser import CHROMIUM, photograph

DOCS = Path(__file__).parents[1]


def main() -> None:
    """Run the page, and copy its pictures."""
    program = "\n".join(re.findall(r"```python\n(.*?)```", (DOCS / "tutorial.md").read_text(), re.DOTALL))
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        Path("page.py").write_text(program)
        runpy.run_path("page.py", run_name="__main__")
        shutil.copy("history.png", DOCS / "images" / "tutorial_history.png")
        if CHROMIUM is not None:
            photograph(Path("report.html").resolve(), DOCS / "images" / "tutorial_report.png", (1000, 1400))
        os.chdir(DOCS)


if __name__ == "__main__":
    main()
