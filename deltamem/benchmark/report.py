"""Prints the figures of a benchmark as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

# The timed phases, by key.
PHASES = {
    "prefill": "prefill",
    "decode": "decoding, per token",
    "decode_static": "decoding, static cache",
    "decode_compiled": "decoding, compiled",
    "train": "training step",
}
MOST_OPERATIONS = 15


def print_figures(figures: dict[str, Any]) -> None:
    """Print the figures that `run` returned."""
    console = Console()
    console.print(_heading(figures), highlight=False)
    if "prompts" in figures:
        console.print(_phases(figures["prompts"]))
        console.print(_peaks(figures["prompts"]))
        if any("train" in prompt for prompt in figures["prompts"]):
            console.print(_training(figures["prompts"]))
    if "written" in figures:
        console.print(_written(figures["written"]))
    for prompt in figures.get("prompts", ()):
        for phase, operations in prompt.get("profile", {}).items():
            console.print(_operations(f"{phase}, {prompt['tokens']:,} tokens", operations))
            if figures["device"] != "cpu":
                parts = figures["new_tokens"] if phase == "decode" else 1
                busy = sum(row["adapted_ms"] for row in operations) / (prompt[phase]["adapted_ms"] * parts)
                console.print(f"Adapted, the device is busy for {busy:.0%} of the time.")
    if "serve" in figures:
        console.print(_serving(figures["serve"]))
    if "rule" in figures:
        console.print(_rule(figures["rule"]))
    if "start" in figures:
        console.print(_start(figures["start"]))
    console.print(
        f"Medians of {figures['runs']} runs in turns; ± is half the width of the middle half of the runs. Ratios: medians of "
        "the turns' ratios, with the 95% interval of that median."
    )


def _heading(figures: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in figures["versions"].items())
    adapter = figures["adapter"]
    lines = [
        f"[bold]{figures['machine']}[/] ({figures['device']}, {figures['threads']} threads), {figures['date']}",
        versions,
        f"adapter {adapter['name']}: {adapter['states']} x {adapter['r']}x{adapter['r']} a layer, writes by "
        f"{adapter['write']}; batch {figures['batch']}",
    ]
    if "model" in figures:
        model = figures["model"]
        lines.append(
            f"backbone {model['name']}: {model['parameters'] / 1e6:,.0f} M parameters, {model['num_hidden_layers']} layers, "
            f"width {model['hidden_size']}, {figures['dtype']}, {model['attention']} attention"
        )
    return "\n".join(lines)


def _phases(prompts: Sequence[dict[str, Any]]) -> Table:
    table = _table("prompt", "time of", "bare, ms", "adapted, ms", "ratio")
    for prompt in prompts:
        for key, name in PHASES.items():
            if key in prompt:
                row = prompt[key]
                name += "" if row.get("same_tokens", True) else " (other tokens!)"
                table.add_row(f"{prompt['tokens']:,}", name, *_compared(row))
    return table


def _peaks(prompts: Sequence[dict[str, Any]]) -> Table:
    table = _table("prompt", "peak memory in", "bare, MiB", "adapted, MiB", "one memory, bytes")
    for prompt in prompts:
        for key, name in PHASES.items():
            row = prompt.get(key, {})
            if "peak_bytes" in row:
                peaks = (f"{row[peak] / 2**20:,.0f}" for peak in ("base_peak_bytes", "peak_bytes"))
                table.add_row(f"{prompt['tokens']:,}", name, *peaks, f"{row['memory_bytes']:,}")
    return table


def _training(prompts: Sequence[dict[str, Any]]) -> Table:
    table = _table("prompt", "training", "bare, tokens a second", "adapted")
    for prompt in prompts:
        speeds = (f"{prompt['train'][f'{side}_tokens_per_second']:,.0f}" for side in ("base", "adapted"))
        table.add_row(f"{prompt['tokens']:,}", "write pass, forward and backward", *speeds)
    return table


def _serving(rows: Sequence[dict[str, Any]]) -> Table:
    columns = ("tokens a second", "of bare", "of one user", "first token, ms: median, 95%", "between tokens")
    table = _table("users at once", "memory", *columns)
    for row in rows:
        speed = _spread(row["tokens_per_second"], *row["tokens_per_second_quartiles"])
        lower, upper = row["of_bare_interval"]
        times = (", ".join(f"{ms:,.1f}" for ms in row[name] or ()) for name in ("first_ms", "between_ms"))
        of_bare = f"{row['of_bare']:.3f} ({lower:.3f}-{upper:.3f})"
        table.add_row(f"{row['users']:,}", row["kind"], speed, of_bare, f"{row['of_one']:.2f}", *times)
    return table


def _written(rows: Sequence[dict[str, Any]]) -> Table:
    table = _table("tokens written", "bare, ms per token", "adapted", "ratio", "one memory, bytes")
    for row in rows:
        table.add_row(f"{row['tokens']:,}", *_compared(row), f"{row['memory_bytes']:,}")
    return table


def _rule(rows: Sequence[dict[str, Any]]) -> Table:
    table = _table("rule, tokens", "backend", "forward, ms", "faster by", "backward, ms", "faster by")
    for row in rows:
        cells = []
        for direction in ("forward", "backward"):
            lower, upper = row[f"{direction}_ms_quartiles"]
            cells += [_spread(row[f"{direction}_ms"], lower, upper), f"{row[f'{direction}_speedup']:.1f}x"]
        table.add_row(f"{row['tokens']:,}", row["backend"], *cells)
    return table


def _start(rows: Sequence[dict[str, Any]]) -> Table:
    table = _table("start of", "ms")
    for row in rows:
        table.add_row(row["name"], _spread(row["ms"], *row["ms_quartiles"]))
    return table


def _operations(title: str, rows: Sequence[dict[str, Any]]) -> Table:
    table = _table(f"{title}: operation", "calls, bare", "adapted", "ms, bare", "adapted", "more")
    base, adapted = (sum(row[key] for row in rows) for key in ("base_ms", "adapted_ms"))
    for row in rows[:MOST_OPERATIONS]:
        more = row["adapted_ms"] - row["base_ms"]
        times = (f"{row['base_ms']:.2f}", f"{row['adapted_ms']:.2f}", f"{more:+.2f}")
        table.add_row(row["operation"], f"{row['base_calls']:,.0f}", f"{row['adapted_calls']:,.0f}", *times)
    table.add_row("all operations", "", "", f"{base:.2f}", f"{adapted:.2f}", f"{adapted - base:+.2f}")
    return table


def _compared(row: dict[str, Any]) -> tuple[str, str, str]:
    lower, upper = row["ratio_interval"]
    return (
        _spread(row["base_ms"], *row["base_ms_quartiles"]),
        _spread(row["adapted_ms"], *row["adapted_ms_quartiles"]),
        f"{row['ratio']:.3f} ({lower:.3f}-{upper:.3f})",
    )


def _spread(median: float, lower: float, upper: float) -> str:
    digits = 3 if median < 10 else 1
    return f"{median:,.{digits}f} ± {(upper - lower) / 2:,.{digits}f}"


def _table(*columns: str) -> Table:
    table = Table()
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index < 2 else "right")
    return table
