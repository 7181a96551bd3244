"""Links from the documentation to files of the repository, which are no part of the site: shown as the name of the file."""

import re
from typing import Any

# [text](../path#anchor)
LINK = re.compile(r"\[([^\]]+)\]\((?:\.\./)+([^)#\s]+)(?:#[^)\s]*)?\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Called by mkdocs for every page."""
    return markdown if "/" in page.file.src_uri else LINK.sub(_without_link, markdown)


def _without_link(link: re.Match[str]) -> str:
    text, path = link.groups()
    return f"`{path}`" if text.strip("`") == path else f"{text} (`{path}`)"
