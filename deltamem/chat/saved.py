"""SavedSession: the data of a saved session beside its memories, checked when read."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from deltamem.chat.journal import is_journal
from deltamem.chat.tokens import Message, check_messages
from deltamem.memory.state_file import read_state_file


@dataclass(frozen=True)
class SavedSession:
    """The data of a saved session beside its memories.

    Args:
        saves: how often the session was saved.
        save: the id of this save.
        system: the system prompt.
        messages: the messages in the context.
        written: the tokens of the context.
        passes: for each pass over the tokens, its end, and whether the memory before it is in the file.
        memory_as_left: whether the memory is the one after the last pass.
        first_pass_writes: whether the first pass wrote its tokens; if not, it only read them again, because the template
            renders messages that were written before differently.
        template_options: options for the chat template.
        journal: see `Journal.to_notes`; None if the session keeps none.
    """

    saves: int
    save: str
    system: str | None
    messages: list[Message]
    written: list[int]
    passes: list[tuple[int, bool]]
    memory_as_left: bool
    first_pass_writes: bool = True
    template_options: dict[str, Any] = field(default_factory=dict)
    journal: list[dict[str, Any]] | None = None

    @classmethod
    def read(cls, metadata: Mapping[str, str], path: Path) -> SavedSession:
        """Read the notes from a file's metadata.

        Raises:
            ValueError: the metadata are not what a session writes.
        """
        try:
            given = json.loads(metadata["session"])
            json.dumps(given, ensure_ascii=False).encode()  # tokenizers accept only valid Unicode
            notes = cls(**given)
            if notes.messages:
                check_messages(notes.messages)
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise ValueError(
                f"{os.fspath(path)!r} holds a memory but no session: {type(error).__name__}: {error!s:.200}"
            ) from error
        if not (
            isinstance(notes.written, list)
            and all(type(token) is int for token in notes.written)
            and _are_passes(notes.passes, len(notes.written))
            and isinstance(notes.messages, list)
            and isinstance(notes.system, str | None)
            and isinstance(notes.save, str)
            and type(notes.saves) is int
            and 1 <= notes.saves < 2**62
            and type(notes.memory_as_left) is bool
            and type(notes.first_pass_writes) is bool
            and isinstance(notes.template_options, dict)
            and is_journal(notes.journal)
        ):
            raise ValueError(f"{os.fspath(path)!r} holds a memory but no session: its notes are not what save() writes")
        return notes

    def to_json(self) -> str:
        """Serialise the notes for a file's metadata.

        Raises:
            ValueError: the options of the chat template are not JSON.
        """
        try:
            return json.dumps(asdict(self))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"this session cannot be saved: its template_options are not JSON ({error!s:.200}); give tools as JSON "
                "schemas, which transformers.utils.get_json_schema makes from functions"
            ) from error


def _are_passes(passes: Any, tokens: int) -> bool:
    """Whether these are valid passes over this many tokens; the memory before the first pass must be in the file."""
    if not isinstance(passes, list) or not all(isinstance(p, list) and [*map(type, p)] == [int, bool] for p in passes):
        return False
    ends = [0, *(end for end, _ in passes)]
    return ends[-1] == tokens and ends == sorted({*ends}) and (not passes or passes[0][1])


def notes_in(path: Path) -> SavedSession | None:
    """The notes of a saved session; None if the file does not exist.

    Raises:
        ValueError: the file holds no session.
    """
    try:
        return SavedSession.read(read_state_file(path)[2], path)
    except FileNotFoundError:
        return None
