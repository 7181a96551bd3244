"""docs/compatibility.md says what works, and names the tests that show it."""

import re

import pytest
from doc_pages import ROOT

PAGE = (ROOT / "docs" / "compatibility.md").read_text()
TESTS = sorted({*re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)})
FEATURES, _, _ = PAGE.partition("## Versions")
LINES = [line for line in FEATURES.splitlines() if re.match(r"\| [^|]+\| ", line)]
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in LINES]


@pytest.mark.parametrize(("file", "name"), TESTS, ids="::".join)
def test_what_it_names_is_a_test(file: str, name: str) -> None:
    assert re.search(rf"^def {name}\(", (ROOT / file).read_text(), re.MULTILINE)


def test_every_yes_names_a_test() -> None:
    assert len(ROWS) > 30
    assert [what for what, here, shown, *_ in ROWS if here.startswith("yes") and "::" not in shown] == [
        "a changelog",
    ]


def test_every_no_says_why() -> None:
    assert [what for what, here, *_ in ROWS if here.startswith("no") and not here.startswith("no: ")] == []
