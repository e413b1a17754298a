"""Takes pictures of pages in a real browser, for which playwright and Chromium are needed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium")


def photograph(page: Path, target: Path, size: tuple[int, int], prepare: Callable[[Any], None] = lambda view: None) -> None:
    """Take a picture of the upper part of a page, as wide and high as ``size``, after ``prepare`` has clicked on it."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        # Without motion: a picture in the middle of a transition would be another one each time.
        view = browser.new_page(viewport={"width": size[0], "height": size[1]}, reduced_motion="reduce")
        view.goto(page.as_uri())
        prepare(view)
        view.screenshot(path=target)
        browser.close()
