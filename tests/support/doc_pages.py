"""The pages of the documentation, and the code in them.

What a reader does not see stands in HTML comments before a block:

    <!-- setup
    code that runs before the next block, such as a tiny model
    -->
    <!-- raises ValueError -->
    <!-- not run: the reason -->
"""

import re
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LANGUAGES = {"python", "py", "sh", "text", "toml", "yaml", "json"}
PART = re.compile(
    r"^ *<!-- (?:setup\n(?P<setup>.*?)|raises (?P<raises>\w+) ?|not run: (?P<reason>.+?) ?)-->"
    r"|^(?P<indent> *)```(?P<language>\S*)\n(?P<code>.*?)^(?P=indent)```",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Block:
    """A block of code in a page.

    Args:
        page: the file it is in.
        line: the number of its first line in the file.
        language: as it says behind its fence; "setup" for code that the reader does not see.
        code: its text.
        raises: name of the exception that it ends in.
        not_run: why it is not run.
    """

    page: Path
    line: int
    language: str
    code: str
    raises: str | None = None
    not_run: str | None = None


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks_of(page: Path) -> list[Block]:
    """All blocks of a page, in order."""
    text, found = page.read_text(), []
    raises = not_run = None
    for part in PART.finditer(text):
        if part["raises"] or part["reason"]:
            raises, not_run = part["raises"], part["reason"]
            continue
        kind = "code" if part["setup"] is None else "setup"
        line = text.count("\n", 0, part.start(kind)) + 1
        language = part["language"] if kind == "code" else "setup"
        found.append(Block(page, line, language, dedent(part[kind]), raises, not_run))
        raises = not_run = None
    return found


def python_blocks(page: Path) -> list[Block]:
    """What is run of a page."""
    return [block for block in blocks_of(page) if block.language in ("python", "py", "setup") and block.not_run is None]


def without_code(text: str) -> str:
    """The text of a page alone."""
    return re.sub(r"^( *)```.*?^\1```|`[^`\n]+`", "", text, flags=re.DOTALL | re.MULTILINE)
