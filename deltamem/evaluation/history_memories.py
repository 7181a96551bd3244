"""The memories of histories: each is written once, and optionally saved in a folder."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from deltamem.evaluation.history import History
from deltamem.evaluation.subject import Subject
from deltamem.memory.state import DeltaMemState

MOST_OF_A_NAME = 100  # characters of a folder's name


@dataclass
class HistoryMemories:
    """Writes and caches the memories."""

    _memories: dict[str, DeltaMemState] = field(default_factory=dict)
    _folder: Path | None = None
    _grown: str | None = None

    def keep(self, folder: Path, grown: str) -> None:
        """Save the memories to a folder.

        Args:
            folder: holds the memory of each history.
            grown: the key of the history whose memory is also saved after each part, in a subfolder.
        """
        self._folder, self._grown = folder, grown

    def of(self, subject: Subject, key: str, history: History) -> DeltaMemState:
        """The memory of a history, identified by its key."""
        if key not in self._memories:
            self._memories[key] = self._written(subject, key, history)
        return self._memories[key]

    def _written(self, subject: Subject, key: str, history: History) -> DeltaMemState:
        """Load the memory of a history if it was saved; otherwise write it."""
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
            # Whatever the key contains, it must name a folder inside this one.
            named = re.sub(r"[^\w-]", "_", key)[:MOST_OF_A_NAME]
            (self._folder / named).mkdir(parents=True, exist_ok=True)
            for number, state in enumerate(grown, 1):
                state.save(self._folder / named / f"{number:03}.safetensors")
        self._folder.mkdir(parents=True, exist_ok=True)
        memory.save(file)
        return memory
