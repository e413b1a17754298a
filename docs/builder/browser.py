"""Takes screenshots of pages in a browser; needs playwright and Chromium."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium")


def photograph(page: Path, target: Path, size: tuple[int, int], prepare: Callable[[Any], None] = lambda view: None) -> None:
    """Take a screenshot of the top of a page, of this width and height, after ``prepare`` has clicked on it."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        # Without motion: a screenshot during a transition would differ each time.
        view = browser.new_page(viewport={"width": size[0], "height": size[1]}, reduced_motion="reduce")
        view.goto(page.as_uri())
        prepare(view)
        view.screenshot(path=target)
        browser.close()
