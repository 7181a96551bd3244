"""Says in sentences what the figures of an evaluation show, and what they are too few to show."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from deltamem.evaluation.off_task import BARE, FILLED
from deltamem.evaluation.summary import MEMORY, SHUFFLED, SMALLER_IS_BETTER
from deltamem.evaluation.summary_table import shown

FEW = 100  # questions; with fewer, the interval of a share is some 20 points wide
Entry = Mapping[str, Any]


def findings(entries: Sequence[Entry]) -> list[str]:
    """The findings of each task, by its first metric.

    Args:
        entries: the entries of `summarise_seeds`.
    """
    first: dict[str, dict[str, Entry]] = {}  # by task and setting
    for entry in entries:
        settings = first.setdefault(entry["task"], {})
        if entry["group"] is None:
            settings.setdefault(entry["setting"], entry)
    return [sentence for settings in first.values() for sentence in _of_task(settings)]


def _of_task(settings: Mapping[str, Entry]) -> Iterator[str]:
    if MEMORY in settings:
        yield from _compared(settings[MEMORY], "shuffled_difference", "the memory", f"another history's ({SHUFFLED})")
        yield from _compared(settings[MEMORY], "difference", "the memory", f"the bare backbone ({BARE})")
    if FILLED in settings:
        yield from _compared(
            settings[FILLED], "difference", "with an unrelated memory, the model", f"the bare backbone ({BARE})"
        )
    entry = next(iter(settings.values()))
    if entry["questions"] < FEW:
        yield f"{entry['task']}: {entry['questions']} questions are few, so the intervals are wide; ask {FEW} or more."


def _compared(entry: Entry, name: str, who: str, other: str) -> Iterator[str]:
    if name not in entry:
        return
    low, high = entry[f"{name}_low"], entry[f"{name}_high"]
    if low <= 0 <= high:
        found = f"no difference from {other} can be seen for {who}"
    else:
        found = f"{who} is {'better' if (low > 0) != (entry['metric'] in SMALLER_IS_BETTER) else 'worse'} than {other}"
    yield f"{entry['task']}, {entry['metric']}: {found}: {shown(entry, name)}."
