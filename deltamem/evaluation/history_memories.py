"""The memories of histories: each is written once, and perhaps kept in a folder."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from deltamem.evaluation.history import History
from deltamem.evaluation.subject import Subject
from deltamem.memory.state import DeltaMemState

MOST_OF_A_NAME = 100  # characters of a folder


@dataclass
class HistoryMemories:
    """Writes the memories."""

    _memories: dict[str, DeltaMemState] = field(default_factory=dict)
    _folder: Path | None = None
    _grown: str | None = None

    def keep(self, folder: Path, grown: str) -> None:
        """Keep what is written in a folder.

        Args:
            folder: for the memory of each history.
            grown: the key of the history whose memory is also kept as it grew, in a folder of its own.
        """
        self._folder, self._grown = folder, grown

    def of(self, subject: Subject, key: str, history: History) -> DeltaMemState:
        """The memory of a history, known by its key."""
        if key not in self._memories:
            self._memories[key] = self._written(subject, key, history)
        return self._memories[key]

    def _written(self, subject: Subject, key: str, history: History) -> DeltaMemState:
        """The memory of a history: one that was kept, or written now."""
        messages = history.messages
        if self._folder is None:
            return subject.write([messages])
        text = json.dumps([subject.system, subject.write_chunk_tokens, messages])
        file = self._folder / f"{sha256(text.encode()).hexdigest()[:32]}.safetensors"
        if file.exists():
            return DeltaMemState.load(file).to(subject.model.device)
        if key != self._grown:
            memory = subject.write([messages])
        else:
            *_, memory = grown = subject.write_in_parts(history.parts)
            # Whatever the data have for a key, it names a folder in this one.
            named = re.sub(r"[^\w-]", "_", key)[:MOST_OF_A_NAME]
            (self._folder / named).mkdir(parents=True, exist_ok=True)
            for number, state in enumerate(grown, 1):
                state.save(self._folder / named / f"{number:03}.safetensors")
        self._folder.mkdir(parents=True, exist_ok=True)
        memory.save(file)
        return memory
