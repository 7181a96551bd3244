"""`deltamem inspect`: detects what it was given, describes it, prints it, and writes the page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel

from deltamem.backbones import Placement, load_adapted
from deltamem.inspection.adapter import inspect_adapter, print_adapter
from deltamem.inspection.backbone import inspect_model, print_inspection
from deltamem.inspection.comparison import check_alike, compare_memories, print_comparison
from deltamem.inspection.conversation import conversation_figures, measure, replay
from deltamem.inspection.kind import Kind, kind_of
from deltamem.inspection.memory import inspect_memory, load_memory, print_memory
from deltamem.inspection.page import write_page
from deltamem.inspection.turns_table import print_turns
from deltamem.io.files import check_regular
from deltamem.io.printable import all_printable
from deltamem.io.shareable import shareable
from deltamem.memory.state import DeltaMemState
from deltamem.training.chats import read_chats
from deltamem.training.records import read_records


@dataclass(frozen=True)
class Options:
    """The options of `deltamem inspect`; the command's help describes them."""

    variant: str | None = None
    r: int | None = None
    corrections: str | None = None
    compare: str | None = None
    chat: Path | None = None
    line: int | None = None
    html: Path | None = None
    dtype: str | None = None
    device: str | None = None


# The options that apply to each kind.
OPTIONS: dict[Kind, tuple[str, ...]] = {
    "backbone": ("variant", "r", "corrections"),
    "adapter": ("chat", "line", "html", "compare", "dtype", "device"),
    "memory": ("compare", "html"),
}


def run(what: str, options: Options) -> dict[str, Any]:
    """Inspect a backbone, an adapter or a memory.

    Args:
        what: a file, a folder or a name on the Hub.
        options: the command's options.

    Returns:
        The figures, with the `kind` of what was inspected.

    Raises:
        ValueError, OSError: it does not exist or is damaged, or an option does not apply to it; the message says what is
            accepted.
    """
    kind = kind_of(what)
    _check_options(what, kind, options)
    if kind == "backbone":
        return {"kind": kind, **inspect_model(what, options.variant or "tsw", options.r, options.corrections)}
    if kind == "adapter":
        figures = inspect_adapter(what)
        conversation = {} if options.chat is None else _conversation(figures, options.chat, options)
        return {"kind": kind, **figures, **conversation}
    return {"kind": kind, **_memory(what, options)}


def print_figures(figures: Mapping[str, Any]) -> None:
    """Print the figures that `run` returned as tables."""
    figures = all_printable(figures)  # names and texts come from files
    {"backbone": print_inspection, "adapter": print_adapter, "memory": print_memory}[figures["kind"]](dict(figures))
    if "conversation" in figures:
        print_turns(figures["conversation"])
    if figures.get("comparison"):
        print_comparison(figures["comparison"])


def _check_options(what: str, kind: Kind, options: Options) -> None:
    given = [name for name, value in vars(options).items() if value is not None]
    others = [name for name in given if name not in OPTIONS[kind]]
    if others:
        accepted = ", ".join(f"--{name}" for name in OPTIONS[kind])
        raise ValueError(f"{what!r} is {_an(kind)}, and --{others[0]} does not go with it; accepted are --json, {accepted}")
    if options.html is not None:
        check_regular(options.html)
    if kind == "adapter" and options.chat is None and given:
        raise ValueError(f"--{given[0]} of an adapter needs a conversation: --chat CHAT.jsonl")


def _an(kind: Kind) -> str:
    return "an adapter" if kind == "adapter" else f"a {kind}"


# ----------------------------------------------------------------------------------------------------------- memories


def _memory(place: str, options: Options) -> dict[str, Any]:
    figures = inspect_memory(place)
    state = load_memory(place)[0]
    other = None if options.compare is None else _other(options.compare)
    comparison = {} if other is None else {"other": options.compare, "comparison": compare_memories(state, other)}
    if options.html is not None:
        facts = {"bytes": f"{state.nbytes:,}", "written by the adapter": state.fingerprint or "unknown"}
        if other is not None:
            facts |= {"compared with": f"{shareable(str(options.compare))}, of the adapter {other.fingerprint or 'unknown'}"}
        memories = _rows("this memory", state) | ({} if other is None else _rows("the other", other))
        write_page(options.html, Path(place).name, facts, memories)
    return {**figures, **comparison}


def _other(place: str) -> DeltaMemState:
    """Load the memory to compare with.

    Raises:
        ValueError: it is something else; the message says what.
    """
    kind = kind_of(place)
    if kind != "memory":
        raise ValueError(f"--compare {place!r} is {_an(kind)}; give the file of a memory or the folder of a session")
    return load_memory(place)[0]


def _rows(name: str, state: DeltaMemState) -> dict[str, DeltaMemState]:
    """The rows of a memory, by name."""
    if len(state) == 1:
        return {name: state}
    return {f"{name}, row {row}": state[row] for row in range(len(state))}


# ------------------------------------------------------------------------------------------------------ conversations


def _conversation(adapter: dict[str, Any], chat: Path, options: Options) -> dict[str, Any]:
    messages = _messages(chat, options.line or 1)
    other = None if options.compare is None else _other(options.compare)
    model, tokenizer = _load(adapter["adapter"], options)
    if other is not None:
        check_alike(model.new_memory(), other)
    turns = replay(model, tokenizer, messages)
    measures = measure(turns)
    if options.html is not None:
        facts = {
            "adapter": f"{Path(adapter['adapter']).name}, {adapter['fingerprint'] or 'without a fingerprint'}",
            "backbone": adapter["backbone"],
            "conversation": f"{chat.name}: {len(turns)} turns, {sum(len(turn.pieces) for turn in turns):,} tokens",
            "what a memory is": " ".join(adapter["in_words"]),
        }
        others = {} if other is None else _rows(str(options.compare), other)
        write_page(options.html, "What a conversation writes to a memory", facts, others, turns, measures)
    comparison = {} if other is None else {"comparison": compare_memories(turns[-1].memory, other)}
    return {"conversation": conversation_figures(turns, measures), **comparison}


def _messages(chat: Path, line: int) -> list[dict[str, str]]:
    if not chat.is_file():
        raise OSError(f'--chat {str(chat)!r} is no file; give one with a chat {{"messages": [...]}} in each line')
    records = read_records(str(chat))
    if not 1 <= line <= len(records):
        raise ValueError(f"--line {line} is not accepted; {str(chat)!r} has {len(records)} chats, give 1 to {len(records)}")
    messages: list[dict[str, str]] = read_chats(records)[line - 1]["messages"]
    return messages


def _load(adapter: str, options: Options) -> tuple[PeftModel, Any]:
    placement = Placement(options.dtype or Placement.dtype, options.device or Placement.device)
    return load_adapted(adapter, placement=placement)
