"""HTML pages: their elements, and what a real browser makes of them."""

import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
# Whatever would reach out of the page.
OUTSIDE = re.compile(r"https?:|//[a-z]|url\(|@import|\bfetch\(|XMLHttpRequest|\bimport\b")


class Elements(HTMLParser):
    """All elements of a page, and those that are not closed where they should be."""

    VOID = ("meta", "link", "input", "br", "img")

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.unclosed = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if self.open.pop() != tag:
            self.unclosed.append(tag)


def check_whole_and_alone(text):
    """A page closes what it opens, names nothing twice, and needs nothing else. `text` without what people said."""
    found = Elements(text)
    assert not found.unclosed
    assert not found.open
    loaded = [attributes.get(name) for _, attributes in found.elements for name in ("src", "srcset", "action")]
    assert {*loaded} == {None}
    linked = {attributes["href"] for _, attributes in found.elements if "href" in attributes}
    ids = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    assert linked <= {"data:,", *(f"#{name}" for name in ids)}
    assert not OUTSIDE.search(text)
    assert len(ids) == len({*ids})


needs_browser = pytest.mark.skipif(BROWSER is None, reason=f"none of {', '.join(BROWSERS)} is installed")


def opened(text, tmp_path, then=""):
    """What a browser makes of a page after a script did something to it; it must have nothing to complain of."""
    path = tmp_path / "opened.html"
    path.write_text(text.replace("</body>", f"<script>{then}</script></body>"))
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--enable-logging=stderr",
    ]
    run = subprocess.run([BROWSER, *options, "--dump-dom", path.as_uri()], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert "CONSOLE" not in run.stderr, run.stderr
    return run.stdout


def cells_of(table, text):
    """The text of a table's cells, row by row."""
    rows = re.findall(
        r"<tr[^>]*>(.*?)</tr>", re.search(rf'<table[^>]*\bid="{table}".*?</table>', text, re.DOTALL)[0], re.DOTALL
    )
    return [[re.sub("<.*?>", "", cell).strip() for cell in re.findall(r"<t[dh].*?</t[dh]>", row, re.DOTALL)] for row in rows]
