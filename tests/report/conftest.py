"""A real Chromium, and pages that fail the test when they log, fail or ask for anything."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import simulated

from mtl_axes.report import write_report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="session")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Reports of the simulated studies by their names."""
    folder = tmp_path_factory.mktemp("reports")
    return {name: write_report(results, folder / f"{name}.html") for name, results in simulated.studies().items()}


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Headless Chromium of the system."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install 'mtl_axes[test]'")
    if CHROMIUM is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with playwright.sync_playwright() as running:
        started = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def open_report(browser: Any, reports: dict[str, Path]) -> Iterator[Callable[..., Any]]:
    """Opens a report by its name; when the test ends, nothing was logged, nothing failed and nothing else was asked for."""
    told: list[str] = []
    contexts = []

    def open_(name: str = "usual", *, width: int = 1280, scheme: str = "light", **options: Any) -> Any:
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, reduced_motion="reduce", **options
        )
        contexts.append(context)
        page = context.new_page()
        address = reports[name].as_uri()
        page.on("console", lambda message: told.append(f"console: {message.type}: {message.text}"))
        page.on("pageerror", lambda error: told.append(f"error: {error}"))
        page.on("dialog", lambda dialog: told.append(f"dialog: {dialog.message}"))
        page.on("request", lambda request: None if request.url == address else told.append(f"request: {request.url}"))
        page.goto(address)
        page.wait_for_selector("#pareto > *")
        page.wait_for_selector("#differences > *")
        return page

    yield open_
    for context in contexts:
        context.close()
    assert told == []
