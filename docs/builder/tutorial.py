"""Draws the pictures of docs/tutorial.md by running its blocks: ``python docs/builder/tutorial.py``.

The picture of the report takes playwright and Chromium, and stays as it is without them.
"""

from __future__ import annotations

import os
import re
import runpy
import shutil
import tempfile
from pathlib import Path

DOCS = Path(__file__).parents[1]
CHROMIUM = "/usr/bin/chromium"


def photograph(page: Path, target: Path) -> None:
    """Take a picture of the upper part of a page, in a real browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        view = browser.new_page(viewport={"width": 1000, "height": 1400})
        view.goto(page.as_uri())
        view.screenshot(path=target)
        browser.close()


def main() -> None:
    """Run the page, and keep what it drew."""
    program = "\n".join(re.findall(r"```python\n(.*?)```", (DOCS / "tutorial.md").read_text(), re.DOTALL))
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        Path("page.py").write_text(program)
        runpy.run_path("page.py", run_name="__main__")
        shutil.copy("history.png", DOCS / "images" / "tutorial_history.png")
        if Path(CHROMIUM).exists():
            photograph(Path("report.html").resolve(), DOCS / "images" / "tutorial_report.png")
        os.chdir(DOCS)


if __name__ == "__main__":
    main()
