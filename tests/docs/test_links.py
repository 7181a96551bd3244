"""Links in README, the documentation and the other texts lead somewhere; those to other sites are looked at only."""

import re
from urllib.parse import urlparse

import pytest
from doc_pages import PAGES, ROOT, name_of, without_code
from markdown.extensions.toc import slugify

TEXTS = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
LINK = re.compile(r"\]\(([^)\s]+)(?: \"[^\"]*\")?\)")


def anchors(page):
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {slugify(re.sub(r"[`*]", "", heading), "-") for heading in headings}


def broken(page, target):
    """What is wrong with a link, None if nothing is."""
    url = urlparse(target)
    if url.scheme or url.netloc:
        return None if url.scheme == "https" and "." in url.netloc else "no https address"
    file = (page.parent / url.path).resolve() if url.path else page
    if not file.is_relative_to(ROOT) or not file.exists():
        return "no such file"
    if url.fragment and url.fragment not in anchors(file):
        return "no such heading"
    return None


@pytest.mark.parametrize("page", TEXTS, ids=name_of)
def test_the_links_of_a_page_lead_somewhere(page):
    targets = LINK.findall(without_code(page.read_text()))
    assert {target: why for target in targets if (why := broken(page, target))} == {}


@pytest.mark.parametrize("target", ["docs/no.md", "docs/porting.md#no-such-heading", "../elsewhere", "http:/x", "https://x"])
def test_a_broken_link_would_be_found(target):
    assert broken(ROOT / "README.md", target)
    assert not broken(ROOT / "README.md", "docs/porting.md#is-it-right")
