"""The site builds without a warning, has every page, and fetches nothing."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

pytestmark = pytest.mark.slow

pytest.importorskip("sphinx", reason="the site needs sphinx")
for name in ("myst_parser", "furo", "sphinx_copybutton", "transformers", "lightning", "accelerate", "torchjd"):
    pytest.importorskip(name, reason=f"the site needs {name}")

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted(page.relative_to(DOCS) for page in DOCS.rglob("*.md"))
# Attributes by which a page makes a browser fetch something. A link (`a href`) fetches nothing until it is followed.
FETCHING = {"src", "srcset", "poster", "data", "background"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; a warning is a failure, and so is a reference that leads nowhere."""
    folder = tmp_path_factory.mktemp("site")
    options = ["-q", "-n", "-W", "--keep-going", "-b", "html", "-d", str(folder / "trees")]
    command = [sys.executable, "-m", "sphinx", *options, str(DOCS), str(folder / "html")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "html"


class Elements(HTMLParser):
    """The elements of a page: each its name and its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {name: value or "" for name, value in attrs}))


def fetched(text: str) -> Iterator[str]:
    """Every address that a browser fetches in order to show a page."""
    for tag, attributes in Elements(text).found:
        yield from (value for name, value in attributes.items() if name in FETCHING)
        if tag == "link" and attributes.get("rel") not in ("index", "search", "next", "prev", "canonical"):
            yield attributes.get("href", "")
        yield from styled(attributes.get("style", ""))
    for style in re.findall(r"<style[^>]*>(.*?)</style>", text, re.DOTALL):
        yield from styled(style)


def styled(text: str) -> Iterator[str]:
    """Every address that a style sheet names."""
    yield from re.findall(r"url\(\s*['\"]?(.*?)['\"]?\s*\)", text)
    yield from re.findall(r"@import\s+['\"](.*?)['\"]", text)


def outside(address: str) -> bool:
    """Whether an address leaves the site."""
    return bool(re.match(r"(?!data:)[a-z][a-z0-9+.-]*:|//", address))


def test_every_page_is_in_the_sidebar(site: Path) -> None:
    """Each Markdown file of docs is a page that the table of contents leads to."""
    start = (site / "index.html").read_text()
    tree = start[start.index('class="sidebar-tree"') : start.index("</aside>")]
    listed = {attributes["href"] for tag, attributes in Elements(tree).found if tag == "a"}
    wanted = {page.with_suffix(".html").as_posix() for page in PAGES} - {"index.html"}
    assert wanted - listed == set()
    assert all((site / page).exists() for page in wanted)


def test_nothing_comes_from_elsewhere(site: Path) -> None:
    """Scripts, styles, fonts and pictures of every page, and of its style sheets, are files of the site."""
    pages, sheets = sorted(site.rglob("*.html")), sorted(site.rglob("*.css"))
    assert len(pages) > 100 and sheets
    needs = {page: set(fetched(page.read_text())) for page in pages}
    foreign = {f"{page.name}: {address}" for page, addresses in needs.items() for address in addresses if outside(address)}
    foreign |= {f"{sheet.name}: {address}" for sheet in sheets for address in styled(sheet.read_text()) if outside(address)}
    assert foreign == set()
    for page, addresses in needs.items():
        for address in addresses:
            path = unquote(re.sub(r"[?#].*", "", address))
            assert not path or path.startswith("data:") or (page.parent / path).exists(), f"{page.name}: {address}"


@pytest.mark.parametrize(
    "text",
    [
        '<script src="https://cdn.example.org/a.js"></script>',
        '<link rel="stylesheet" href="//fonts.example.org/css">',
        '<img alt="" src="http://example.org/a.png">',
        "<style>@import 'https://example.org/a.css';</style>",
        '<p style="background: url(https://example.org/a.png)">',
    ],
)
def test_what_comes_from_elsewhere_is_seen(text: str) -> None:
    """The check above knows a script, a style sheet, a picture, an import and a background."""
    assert any(outside(address) for address in fetched(text))
    assert not any(outside(address) for address in fetched('<a href="https://example.org">x</a><img src="data:image/png,">'))


def test_links_to_files_of_the_repository_have_them(site: Path) -> None:
    """A link out of docs, to a program or to a folder with a README, leads to a copy of the file in the site."""
    for page, file in (("distributed", "ddp_torchrun.py"), ("cmapss", "RECIPE.md"), ("extending", "README.md")):
        links = [attributes for tag, attributes in Elements((site / f"{page}.html").read_text()).found if tag == "a"]
        copies = [link["href"] for link in links if link.get("href", "").endswith(f"/{file}")]
        assert copies and all((site / copy).exists() for copy in copies), page


def test_a_link_that_leads_nowhere_is_an_error(tmp_path: Path) -> None:
    """What the strictness is for: a page, and a heading, that do not exist."""
    (tmp_path / "conf.py").write_text("extensions = ['myst_parser']\nmyst_heading_anchors = 4\n")
    (tmp_path / "index.md").write_text("# Page\n\n[x](gone.md) [y](#gone)\n")
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-q",
        "-W",
        "--keep-going",
        "-b",
        "html",
        str(tmp_path),
        str(tmp_path / "out"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "gone.md" in done.stderr and "'gone'" in done.stderr
