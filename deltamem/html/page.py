"""Makes pages of templates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined


def render(package: str, title: str, facts: Mapping[str, str], notes: Sequence[str], **values: Any) -> str:
    """A page as text; whatever is put into it is escaped.

    Args:
        package: that has the template `page.html`, which extends `base.html`, in its folder `templates`.
        title: of the page.
        facts: what is known of it all, shown as a list.
        notes: what a reader must know before.
        values: what else the template shows.
    """
    loader = ChoiceLoader([PackageLoader(package), PackageLoader("deltamem.html")])
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template("page.html").render(title=title, facts=facts, notes=notes, **values)


def spread(count: int, most: int) -> list[int]:
    """At most so many of the first `count` numbers, evenly spaced, the first and the last among them."""
    if count <= most:
        return [*range(count)]
    return [round(place * (count - 1) / (most - 1)) for place in range(most)]
