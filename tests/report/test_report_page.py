"""The page in a real browser. The fixture also checks that nothing was logged and no request left the page."""

from __future__ import annotations

import itertools
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import limits
import pytest
import simulated

from mtl_axes.report import write_report

pytestmark = pytest.mark.slow

Open = Callable[..., Any]

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

# Contrast as WCAG 2 defines it, of an element's text against the first background behind it that is not transparent.
CONTRAST = """(selector) => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgb = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return canvas.getImageData(0, 0, 1, 1).data;
  };
  const light = (colour) => {
    const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    const [r, g, b] = [...rgb(colour)].slice(0, 3).map((v) => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  return [...document.querySelectorAll(selector)].filter((place) => place.checkVisibility()).map((place) => {
    let behind = place;
    while (rgb(getComputedStyle(behind).backgroundColor)[3] === 0) behind = behind.parentElement;
    const [one, other] = [getComputedStyle(place).color, getComputedStyle(behind).backgroundColor].map(light);
    return (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
  });
}"""

UNNAMED = """() => [...document.querySelectorAll("a[href], button, input, select, summary, [tabindex]")]
  .filter((place) => !(
    place.getAttribute("aria-label")
    || document.getElementById(place.getAttribute("aria-labelledby"))
    || place.labels?.[0]?.textContent.trim()
    || place.textContent.trim()
  ))
  .map((place) => place.outerHTML)"""


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
    messages: list[str] = []
    contexts = []

    def open_(name: str = "usual", *, width: int = 1280, scheme: str = "light", **options: Any) -> Any:
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, reduced_motion="reduce", **options
        )
        contexts.append(context)
        context.set_default_timeout(1000 * limits.PAGE)
        page = context.new_page()
        address = reports[name].as_uri()
        page.on("console", lambda message: messages.append(f"console: {message.type}: {message.text}"))
        page.on("pageerror", lambda error: messages.append(f"error: {error}"))
        page.on("dialog", lambda dialog: messages.append(f"dialog: {dialog.message}"))
        page.on("request", lambda request: None if request.url == address else messages.append(f"request: {request.url}"))
        page.goto(address)
        page.wait_for_selector("#pareto > *")
        page.wait_for_selector("#differences > *")
        return page

    yield open_
    for context in contexts:
        context.close()
    assert messages == []


def cell(page: Any, outer: int, inner: int) -> Any:
    return page.locator(f'[role=gridcell][data-outer="{outer}"][data-inner="{inner}"]')


def until(page: Any, condition: str) -> None:
    """Wait until a condition holds. Playwright's own wait evaluates a text on the page, which its policy forbids."""
    end = time.monotonic() + limits.PAGE
    while not page.evaluate(condition):
        assert time.monotonic() < end, condition
        page.wait_for_timeout(20)


def show_tooltip(page: Any, plot: str) -> None:
    """Hover over the last mark of a plot until its tooltip shows: scrolling, which may still go on, hides it."""
    page.locator(plot).scroll_into_view_if_needed()
    end = time.monotonic() + limits.PAGE
    while True:
        page.mouse.move(0, 0)
        page.locator(f"{plot} svg g.mark-symbol path").last.hover()
        page.wait_for_timeout(100)
        if page.locator("#tooltip").is_visible():
            return
        assert time.monotonic() < end, plot


def overflow(page: Any) -> int:
    return int(page.evaluate("document.documentElement.scrollWidth - window.innerWidth"))


def test_the_grid_shows_every_cell(open_report: Open) -> None:
    """Mean, standard deviation and seeds of each cell; reference and failed runs are marked; better is deeper in colour."""
    page = open_report()
    results = simulated.study()
    for summary in results.summary("rmse"):
        place = cell(page, results.outer.index(summary.outer), results.inner.index(summary.inner))
        assert place.inner_text().split("\n")[:3] == [f"{summary.mean:.2f}", f"± {summary.sd:.2f}", f"n = {summary.n}"]
    assert "reference" in cell(page, 0, 0).inner_text()
    assert "▲ 1 failed" in cell(page, 1, 1).inner_text()
    assert (
        cell(page, 1, 1)
        .get_attribute("aria-label")
        .startswith("uncertainty \N{MULTIPLICATION SIGN} asymmetric, rmse 13.96 plus or minus 0.")
    )
    assert cell(page, 1, 1).get_attribute("aria-label").endswith("4 seeds, 1 failed")
    shares = {
        (summary.outer, summary.inner): cell(
            page, results.outer.index(summary.outer), results.inner.index(summary.inner)
        ).evaluate("place => parseFloat(getComputedStyle(place).getPropertyValue('--share'))")
        for summary in results.summary("rmse")
    }
    means = {(summary.outer, summary.inner): summary.mean for summary in results.summary("rmse")}
    assert shares[min(means, key=means.__getitem__)] == 100
    assert shares[max(means, key=means.__getitem__)] == 0


def test_a_click_opens_a_cell(open_report: Open) -> None:
    """Formulas and options of both axes, each seed, a failed one with its error, the weights, predictions of each task, and
    the difference to the reference."""
    page = open_report()
    cell(page, 2, 2).click()
    assert cell(page, 2, 2).get_attribute("aria-selected") == "true"
    assert page.locator("[role=gridcell][aria-selected=true]").count() == 1
    assert page.locator("#cell-title").inner_text() == "gaba \N{MULTIPLICATION SIGN} failure_biased"
    shown = page.locator("#cell").inner_text()
    assert "raw_i  = (S - g_i) / ((K - 1) S)" in shown
    assert "l = (1 + clip(1 - y / r_max, 0, 1)) e^2" in shown
    assert "beta=0.95" in shown
    assert "Held by the floor of the weighting: rul in 70 %" in shown
    results = simulated.study()
    rows = page.locator("#cell .numbers tbody tr")
    assert rows.count() == 5
    for index, (seed, value) in enumerate(results.values("rmse", "gaba", "failure_biased").items()):
        assert rows.nth(index).inner_text().split()[:2] == [str(seed), f"{value:.2f}"]
    page.wait_for_selector("#series svg")
    assert page.locator("#series svg g.mark-line path").count() == 10
    assert page.locator(".scatters svg").count() == 2
    effect = next(e for e in results.compare("rmse") if e.label == "gaba x failure_biased")
    assert effect.in_words().removeprefix("rmse: ") in page.locator("#reading").inner_text()
    page.get_by_role("radio", name="Gradient norms").check()
    until(page, "document.querySelector('#series svg').textContent.includes('log scale')")
    cell(page, 1, 1).click()
    assert "failed: FloatingPointError" in page.locator("#cell .numbers tbody tr").nth(3).inner_text()
    page.locator(".failures summary").click()
    assert "in train(), line 41" in page.locator(".failures pre").inner_text()


def test_toggles_read_off_one_axis(open_report: Open) -> None:
    """Same outer keeps the row of the chosen cell and shows what the inner shape does, in this row and over all rows."""
    page = open_report()
    results = simulated.study()
    cell(page, 2, 1).click()
    outer, inner = page.get_by_role("button", name="Same outer"), page.get_by_role("button", name="Same inner")
    outer.click()
    assert outer.get_attribute("aria-pressed") == "true"
    kept = page.locator("[role=gridcell]:not(.outside)")
    assert kept.evaluate_all("all => all.map(place => place.dataset.outer)") == ["2", "2", "2"]
    reading = page.locator("#reading").inner_text()
    main = {effect.label: effect for effect in results.main_effect("rmse", "inner")}
    assert main["asymmetric"].in_words().removeprefix("rmse: ") in reading
    row = page.locator("#reading tbody tr", has_text="failure_biased").inner_text()
    here = next(e for e in results.compare("rmse", ("gaba", "mse")) if e.label == "gaba x failure_biased")
    for value in (here.mean, *here.interval, main["failure_biased"].mean, *main["failure_biased"].interval):
        assert f"{value:+.2f}".replace("-", "\N{MINUS SIGN}") in row
    inner.click()
    assert page.locator("[role=gridcell]:not(.outside)").count() == 5
    outer.click()
    assert outer.get_attribute("aria-pressed") == "false"
    assert (
        page.locator("[role=gridcell]:not(.outside)").evaluate_all("all => all.map(place => place.dataset.inner)")
        == ["1"] * 3
    )
    assert "Same inner: asymmetric" in page.locator("#reading").inner_text()


def test_baselines_are_marked_and_not_averaged_over(open_report: Open) -> None:
    """The row says what it is, and what an inner shape does is read off without it."""
    page = open_report("baselines")
    heads = page.locator(".grid tbody th").all_inner_texts()
    assert [head.splitlines() for head in heads] == [["equal"], ["uncertainty"], ["gaba", "baseline"]]
    cell(page, 1, 1).click()
    page.get_by_role("button", name="Same outer").click()
    (effect, _) = simulated.studies()["baselines"].main_effect("rmse", "inner")
    assert effect.outer == ("equal", "uncertainty")
    reading = page.locator("#reading").inner_text()
    assert "Over all rows except baselines, " + effect.in_words().removeprefix("rmse: ") in reading
    assert page.locator("#reading thead th").last.inner_text() == "all rows except baselines"


def test_a_label_with_an_x_in_it_stays_one_label(open_report: Open) -> None:
    """Plots name a cell by its two labels, also where one of them looks like two."""
    page = open_report("crossed")
    times = "\N{MULTIPLICATION SIGN}"
    until(page, f"document.querySelector('#differences svg').textContent.includes('a x b {times} mse')")
    assert f"a {times} b" not in page.locator("#differences").text_content()


def test_the_grid_by_keyboard(open_report: Open) -> None:
    """One tab stop; arrows, Home and End move within the edges, Enter and Space choose, and focus stays."""
    page = open_report()
    assert page.locator("[role=gridcell][tabindex='0']").count() == 1
    cell(page, 0, 0).focus()

    def at() -> list[str]:
        return list(page.evaluate("[document.activeElement.dataset.outer, document.activeElement.dataset.inner]"))

    for key, expected in (
        ("ArrowRight", ["0", "1"]),
        ("ArrowDown", ["1", "1"]),
        ("End", ["1", "2"]),
        ("ArrowRight", ["1", "2"]),
        ("Home", ["1", "0"]),
        ("Control+End", ["2", "2"]),
        ("ArrowUp", ["1", "2"]),
    ):
        page.keyboard.press(key)
        assert at() == expected
        assert page.locator("[role=gridcell][tabindex='0']").count() == 1
    assert page.locator("#cell-title").inner_text() == "equal \N{MULTIPLICATION SIGN} mse"
    page.keyboard.press("Enter")
    assert page.locator("#cell-title").inner_text() == "uncertainty \N{MULTIPLICATION SIGN} failure_biased"
    assert at() == ["1", "2"]
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Space")
    assert page.locator("#cell-title").inner_text() == "uncertainty \N{MULTIPLICATION SIGN} asymmetric"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "same-outer"


def test_another_metric_changes_everything_that_shows_one(open_report: Open) -> None:
    """Verdict, grid, table and plots follow the metric; where higher is better, the highest is the deepest in colour."""
    page = open_report()
    page.get_by_role("radio", name="accuracy").check()
    results = simulated.study()
    best = max(results.summary("accuracy"), key=lambda summary: summary.mean)
    place = cell(page, results.outer.index(best.outer), results.inner.index(best.inner))
    assert place.inner_text().startswith(f"{best.mean:.4f}")
    assert place.evaluate("place => getComputedStyle(place).getPropertyValue('--share')") == "100%"
    assert page.locator(".verdict:visible").count() == 1
    assert page.locator(".verdict:visible li").first.inner_text() == results.verdict("accuracy")[0]
    assert "mean accuracy" in page.locator("#table").inner_text()
    for name in ("differences", "interaction"):
        until(page, f"document.querySelector('#{name} svg').textContent.includes('accuracy (higher is better)')")


def test_plots_are_of_what_they_say(open_report: Open) -> None:
    """A mark per cell, per level and per point of the front, and each plot says in words what it shows."""
    page = open_report()
    page.wait_for_selector("#differences svg")
    points = "#differences svg g.mark-symbol path"
    assert page.locator(points).count() == 8
    assert page.locator("#interaction svg g.mark-line path").count() == 3
    for name in ("Outer axis", "Inner axis"):
        page.get_by_role("radio", name=name).check()
        until(page, f"document.querySelectorAll('{points}').length === 2")
    page.get_by_role("radio", name="Interactions").check()
    until(page, f"document.querySelectorAll('{points}').length === 4")
    said = page.locator("[role=graphics-document]").evaluate_all("all => all.map(place => place.getAttribute('aria-label'))")
    assert len(said) == page.locator(".chart svg").count() == 6
    assert all(len(text) > 40 for text in said)
    assert any("gaba \N{MULTIPLICATION SIGN} failure_biased +0.34" in text for text in said)
    page.locator("select[name=upwards]").select_option(label="accuracy")
    results = simulated.study()
    front = [f"{outer} \N{MULTIPLICATION SIGN} {inner}" for outer, inner in results.pareto("rmse", "accuracy")]
    assert page.locator("#front").inner_text() == f"Not dominated in the means: {', '.join(front)}."


def test_sorting(open_report: Open) -> None:
    """A head sorts upwards, then downwards; aria-sort says which; what has no value stays last; focus stays on the head."""
    page = open_report()
    head = page.locator("#table th", has_text="mean rmse")
    column = "#table tbody tr td:nth-child(4)"
    head.get_by_role("button").click()
    values = [float(text) for text in page.locator(column).all_inner_texts()]
    assert values == sorted(values)
    assert head.get_attribute("aria-sort") == "ascending"
    page.keyboard.press("Enter")
    assert [float(text) for text in page.locator(column).all_inner_texts()] == sorted(values, reverse=True)
    assert head.get_attribute("aria-sort") == "descending"
    assert page.locator("#table [aria-sort]").count() == 1
    for _ in range(2):
        page.locator("#table th", has_text="difference").get_by_role("button").click()
        assert page.locator("#table tbody tr td:nth-child(6)").last.inner_text() == "\N{EN DASH}"
    page.locator("#table th", has_text="inner").get_by_role("button").click()
    assert [row.split("\t")[1] for row in page.locator("#table tbody tr").all_inner_texts()][::3] == list(simulated.INNER)


def test_the_configuration_builds_the_criterion(open_report: Open) -> None:
    """What is shown for a cell is its whole configuration, and can be copied."""
    page = open_report(permissions=["clipboard-read", "clipboard-write"])
    cell(page, 2, 0).click()
    page.locator("#cell-details summary").click()
    shown = json.loads(page.locator("#cell-config").inner_text())
    run = next(run for run in simulated.study().runs if run.cell == ("gaba", "mse"))
    assert shown == run.config
    page.locator("[data-copies=cell-config]").click()
    until(page, "document.querySelector('#copied').textContent !== ''")
    assert json.loads(page.evaluate("navigator.clipboard.readText()")) == run.config
    page.locator("#study-details summary").click()
    study = json.loads(page.locator("#study-config").inner_text())
    assert study["versions"]["torch"] == "2.13.0"
    assert study["reference"] == ["equal", "mse"]


def test_names_stay_text(open_report: Open) -> None:
    """Titles, labels, tasks and metrics that are HTML are shown as they were written: in tables, plots and tooltips."""
    page = open_report("hostile")
    name = simulated.HOSTILE
    assert page.locator("h1").inner_text() == page.title() == name
    assert page.locator("script").count() == 3
    assert page.locator("main b, main img").count() == 0
    assert page.locator("thead th").first.inner_text() == name
    assert page.locator(".scatters .kind").first.inner_text() == name
    page.wait_for_selector("#differences svg")
    assert name in page.locator("#differences svg").text_content()
    show_tooltip(page, "#differences")
    assert name in page.locator("#tooltip").inner_text() or "</script><b>" in page.locator("#tooltip").inner_text()
    cell(page, 0, 1).click()
    page.get_by_role("button", name="Same outer").click()
    page.get_by_role("button", name="Same inner").click()
    assert page.locator("main b, main img, #tooltip b").count() == 0
    assert overflow(page) <= 0


def test_names_that_no_expression_may_hold(open_report: Open) -> None:
    """Backslashes, quotes and newlines in the names leave every plot and tooltip working."""
    page = open_report("awkward")
    for plot, says in (("#differences", "difference"), ("#pareto", "means")):
        page.wait_for_selector(f"{plot} svg")
        show_tooltip(page, plot)
        assert says in page.locator("#tooltip").inner_text()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("plain", "There is nothing to compare"),
        ("unfinished", "No run has finished"),
        ("unfinished", "not run"),
        ("diverged", "2 not finite"),
        ("many", "metric 8"),
    ],
)
def test_studies_with_little_in_them(name: str, expected: str, open_report: Open) -> None:
    """One cell, one seed, no history, no predictions, no finite value, many metrics: said in words, and nothing fails."""
    page = open_report(name)
    assert expected in page.locator("main").inner_text()
    page.get_by_role("button", name="Same outer").click()
    page.get_by_role("button", name="Same inner").click()
    page.locator("[role=gridcell]").last.click()
    page.locator("#table button").first.click()
    if name == "many":
        page.locator("select[name=metric]").select_option(label="metric 8")
        assert "8.0" in cell(page, 0, 0).inner_text()
    assert "NaN" not in page.locator("body").inner_text()
    assert "undefined" not in page.locator("body").inner_text()


def test_text_is_legible_in_both_themes(open_report: Open) -> None:
    """4.5 to 1 or more, in every cell of the grid whatever its colour, with and without a row that is held. The button
    changes the plots as well, and says what it will do next."""
    page = open_report()
    places = "h1, h2, p, li, td, td span, th, button, legend, label, summary, pre, code, footer, .legend span"
    until(page, "document.querySelector('#interaction svg')?.outerHTML.includes('#0b5fa5')")
    for theme in ("light", "dark"):
        assert page.evaluate("document.documentElement.dataset.theme") == theme
        for _ in range(2):
            assert min(page.evaluate(CONTRAST, places)) >= 4.5
            page.get_by_role("button", name="Same outer").click()
        page.locator("#theme").click()
        dark = "document.documentElement.dataset.theme === 'dark'"
        until(page, f"document.querySelector('#interaction svg').outerHTML.includes('#79b8f3') === ({dark})")
    assert page.locator("#theme").inner_text() == "Dark theme"


@pytest.mark.parametrize(("name", "scheme"), [("usual", "light"), ("hostile", "dark")])
def test_a_narrow_page_does_not_scroll_sideways(name: str, scheme: str, open_report: Open) -> None:
    """At 400 pixels the grid and the table scroll in their own frames, and plots are drawn again as wide as they may be."""
    page = open_report(name, scheme=scheme)
    assert page.evaluate("document.documentElement.dataset.theme") == scheme
    page.wait_for_selector("#differences svg")
    page.set_viewport_size({"width": 400, "height": 900})
    until(page, "Number(document.querySelector('#differences svg').getAttribute('width')) < 400")
    cell(page, 1, 1).click()
    page.get_by_role("button", name="Same outer").click()
    page.locator("#study-details summary").click()
    assert overflow(page) <= 0
    for frame in ("#grid", "#table") if name == "usual" else ("#table",):
        assert page.locator(frame).evaluate("place => place.scrollWidth > place.clientWidth")


@pytest.mark.parametrize("name", ["usual", "plain"])
def test_the_page_can_be_used_without_seeing_it(name: str, open_report: Open) -> None:
    """Landmarks, headings in order, a name on whatever can be focused, and no positive tabindex."""
    page = open_report(name)
    levels = page.locator("h1, h2, h3").evaluate_all("all => all.map(place => Number(place.tagName[1]))")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    for landmark in ("header", "main", "footer"):
        assert page.locator(f"body > {landmark}").count() == 1
    assert page.locator("html").get_attribute("lang") == "en"
    assert page.evaluate(UNNAMED) == []
    assert page.locator("[tabindex]:not([tabindex='0']):not([tabindex='-1'])").count() == 0
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the grid"
    assert page.evaluate("parseFloat(getComputedStyle(document.activeElement).outlineWidth)") >= 2
