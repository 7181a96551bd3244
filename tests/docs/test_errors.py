"""docs/errors.md has every error that the library raises, and none that it does not."""

import re

from doc_pages import ROOT
from messages import matches, messages

SOURCES = sorted(path for folder in ("deltamem", "deltamem_cli") for path in (ROOT / folder).rglob("*.py"))
RAISED = {
    text: str(path.relative_to(ROOT)) for path in SOURCES for text in messages(path.read_text()) if re.search(r"\w", text)
}
# The first cell of a table's row: how one message begins, or several.
ROWS = re.findall(r"^\| (`.+?`) \|", (ROOT / "docs" / "errors.md").read_text(), re.MULTILINE)
SHOWN = [text for row in ROWS for text in re.findall(r"`(.+?)`", row)]


def test_every_error_is_in_the_table():
    missing = {text: path for text, path in RAISED.items() if not any(matches(shown, text) for shown in SHOWN)}
    assert missing == {}, "add a row to docs/errors.md: how the message begins, with … for what varies"


def test_every_row_is_an_error():
    assert [shown for shown in SHOWN if not any(matches(shown, text) for text in RAISED)] == []


def test_a_new_error_would_be_found():
    (text,) = messages("def check(x):\n    raise ValueError(f'the frobnicator {x} is out of order')")
    assert text == "the frobnicator … is out of order"
    assert not any(matches(shown, text) for shown in SHOWN)
    assert [*messages("async def check(x):\n    raise ValueError('the frobnicator is late')")] == ["the frobnicator is late"]
