"""Prints a conversation's turns as a table in the terminal."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

# The width of the table without the messages.
OTHER_COLUMNS = 56


def print_turns(figures: dict[str, Any]) -> None:
    """Print the turns of `conversation_figures`, for all layers together."""
    console = Console()
    table = Table(
        box=box.SIMPLE,
        pad_edge=False,
        collapse_padding=True,
        caption="All layers together. Left: of what a turn wrote, in the end.",
    )
    table.add_column("turn", no_wrap=True)
    table.add_column("message", max_width=max(console.width - OTHER_COLUMNS, 12), no_wrap=True)
    for header in ("tokens", "β", "error", "change", "left"):
        table.add_column(header, justify="right", no_wrap=True)
    for index, (turn, left) in enumerate(zip(figures["turns"], figures["turns"][-1]["left"], strict=True), 1):
        measured = (f"{turn[key][0]:.3f}" for key in ("write_gate", "error", "change"))
        table.add_row(
            f"{index} {turn['role']}",
            escape(" ".join(turn["content"].split())),
            str(turn["tokens"]),
            *measured,
            f"{left[0]:.0%}",
        )
    console.print(table)
