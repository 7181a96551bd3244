"""SessionStore: the sessions of many users, each in a folder of its own under one root."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft import PeftModel

from deltamem.session import FILE, ChatSession

# No upper case: there are file systems on which "Anna" and "anna" are one folder, and so would be one memory.
NAME = re.compile(r"[a-z0-9_-]{1,64}")


class SessionStore:
    """Saved sessions by name. A name can only ever mean a folder directly under the root.

    One process at a time should work on a session: of two that save it at the same moment, one save is lost (one that was
    made since the session was loaded is noticed, and refused).

    Args:
        root: the folder that holds the sessions.
        model: a model with a δ-mem adapter.
        tokenizer: its tokenizer, with a chat template.
        system: the system prompt of new sessions.
        template_options: of new sessions, for the chat template.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        model: PeftModel,
        tokenizer: Any,
        system: str | None = None,
        template_options: Mapping[str, Any] | None = None,
    ) -> None:
        self.root = Path(root)
        self.model = model
        self.tokenizer = tokenizer
        self.system = system
        self.template_options = template_options

    def open(self, name: str) -> ChatSession:
        """The saved session of this name, or a new one.

        Raises:
            ValueError: a name that is not accepted, a damaged file, or one of another adapter.
        """
        folder = self._folder(name)
        if not (folder / FILE).exists():
            return ChatSession(self.model, self.tokenizer, self.system, template_options=self.template_options)
        return ChatSession.load(folder, self.model, self.tokenizer)

    def save(self, name: str, session: ChatSession) -> None:
        """Save a session under a name.

        Raises:
            ValueError: a name that is not accepted, or a session that does not go on from the one saved there.
        """
        session.save(self._folder(name))

    def delete(self, name: str) -> None:
        """Forget a session for good; one that does not exist is no error."""
        shutil.rmtree(self._folder(name), ignore_errors=not self._folder(name).exists())

    def names(self) -> list[str]:
        """The names of all saved sessions, sorted."""
        if not self.root.is_dir():
            return []
        return sorted(
            folder.name
            for folder in self.root.iterdir()
            if NAME.fullmatch(folder.name) and (folder / FILE).is_file() and not _link_in(folder)
        )

    def _folder(self, name: str) -> Path:
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise ValueError(
                f"session name {name!r} is not accepted; give 1 to 64 of the characters a to z, 0 to 9, '_' and '-'"
            )
        folder = self.root / name
        link = _link_in(folder)
        if link is not None:
            raise ValueError(f"{os.fspath(link)!r} is a symbolic link; sessions are kept in the store itself. Remove it")
        return folder


def _link_in(folder: Path) -> Path | None:
    """The session's folder or file, whichever is a symbolic link; None if neither is."""
    return next((path for path in (folder, folder / FILE) if path.is_symlink()), None)
