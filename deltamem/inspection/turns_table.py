"""A conversation's turns as a table in the terminal."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

LONGEST_TEXT = 60


def print_turns(figures: dict[str, Any]) -> None:
    """Print the turns of `conversation_figures`, all layers together."""
    table = Table(box=box.SIMPLE, pad_edge=False, caption="All layers together. Left: of what a turn wrote, in the end.")
    table.add_column("turn", no_wrap=True)
    table.add_column("message")
    for header in ("tokens", "write gate", "error", "change", "left"):
        table.add_column(header, justify="right")
    for index, (turn, left) in enumerate(zip(figures["turns"], figures["turns"][-1]["left"], strict=True), 1):
        text = " ".join(turn["content"].split())
        text = text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}…"
        measured = (f"{turn[key][0]:.3f}" for key in ("write_gate", "error", "change"))
        table.add_row(f"{index} {turn['role']}", escape(text), str(turn["tokens"]), *measured, f"{left[0]:.0%}")
    Console().print(table)
