"""Prints what `.ci/gpu` measured as a table like those of docs/performance.md."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

NAMES = ("decode", "sessions", "train", "compiled")
PHASES = ("prefill", "decode", "decode_static", "decode_compiled", "train")
TITLES = ("prefill", "decoding", "decoding, static cache", "decoding, compiled", "training step")


def main(folder: Path) -> None:
    """Print one row for each measurement; those that failed are "not measured"."""
    print(row(["measured", "machine", "backbone", "prompt", "batch", *TITLES]))
    print(row(["---"] * (5 + len(TITLES))))
    for name in NAMES:
        path = folder / f"{name}.json"
        if not path.exists():
            print(row([name, *["not measured"] * 4, *[""] * len(TITLES)]))
            continue
        figures = json.loads(path.read_text(encoding="utf-8"))
        for prompt in figures["prompts"]:
            about = [name, figures["machine"], figures["model"]["name"], f"{prompt['tokens']:,}", str(figures["batch"])]
            print(row([*about, *(ratio(prompt.get(phase)) for phase in PHASES)]))


def ratio(measured: dict[str, Any] | None) -> str:
    """The ratio to the bare backbone with its interval, and the bare time."""
    if measured is None:
        return ""
    low, high = measured["ratio_interval"]
    return f"{measured['ratio']:.3f} ({low:.3f}–{high:.3f}), {measured['base_ms']:.1f} ms bare"


def row(cells: list[str]) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
