"""Renders HTML pages from templates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from deltamem.io.shareable import shareable


def render(package: str, title: str, facts: Mapping[str, str], notes: Sequence[str], **values: Any) -> str:
    """Render a page; all values are escaped.

    Args:
        package: has the template `page.html`, which extends `base.html`, in its folder `templates`.
        title: the page's title.
        facts: general facts, shown as a list; of an absolute path, the last part.
        notes: caveats for the reader, shown first.
        values: all other values that the template uses.
    """
    loader = ChoiceLoader([PackageLoader(package), PackageLoader("deltamem.html")])
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    shown = {name: shareable(value) for name, value in facts.items()}
    return environment.get_template("page.html").render(title=title, facts=shown, notes=notes, **values)


def spread(count: int, most: int) -> list[int]:
    """At most `most` of the numbers below `count`, evenly spaced, including the first and the last."""
    if count <= most:
        return [*range(count)]
    return [round(place * (count - 1) / (most - 1)) for place in range(most)]
