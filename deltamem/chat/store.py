"""SessionStore: the sessions of many users, each in a folder under one root."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from peft import PeftModel

from deltamem.chat.session import FILE, ChatSession

# No upper case: on some file systems "Anna" and "anna" are the same folder, and would share a memory.
NAME = re.compile(r"[a-z0-9_-]{1,64}")


class SessionStore:
    """Saved sessions by name. A name always refers to a folder directly under the root.

    Only one process at a time should work on a session. If two save it at the same moment, one save is lost. If another process
    saved it after it was loaded here, saving raises an error. A session that is deleted while in use can still be used, but is
    not saved again under its name.

    Args:
        root: the folder that holds the sessions.
        model: a model with a δ-mem adapter.
        tokenizer: its tokenizer, with a chat template.
        system: the system prompt of new sessions.
        template_options: options for the chat template of new sessions.
        journal: whether new sessions keep the messages that they write; see `ChatSession`.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        model: PeftModel,
        tokenizer: Any,
        system: str | None = None,
        template_options: Mapping[str, Any] | None = None,
        journal: bool = False,
    ) -> None:
        self.root = Path(root)
        self.model = model
        self.tokenizer = tokenizer
        self.system = system
        self.template_options = template_options
        self.journal = journal
        # The names under which sessions in use were saved, to detect that one was deleted.
        self._saved_as: WeakKeyDictionary[ChatSession, set[str]] = WeakKeyDictionary()

    def new(self) -> ChatSession:
        """Make a session without a name, with the store's system prompt and template options."""
        return ChatSession(
            self.model, self.tokenizer, self.system, template_options=self.template_options, journal=self.journal
        )

    def open(self, name: str) -> ChatSession:
        """Load the saved session of this name, or make a new one.

        Raises:
            ValueError: the name is not accepted, or the file is damaged or was written with another adapter.
        """
        folder = self._folder(name)
        if not (folder / FILE).exists():
            return self.new()
        session = ChatSession.load(folder, self.model, self.tokenizer)
        self._saved_as[session] = {name}
        return session

    def save(self, name: str, session: ChatSession) -> None:
        """Save a session under a name.

        Raises:
            ValueError: the name is not accepted, the session does not continue the one saved under this name, or the saved one
                was deleted since it was opened or saved.
        """
        folder, saved_as = self._folder(name), self._saved_as.setdefault(session, set())
        if name in saved_as and not (folder / FILE).exists():
            raise ValueError(
                f"the session {name!r} was deleted since this one was opened or saved, and a deleted session is not written "
                "again. Open a new one, or save this one under another name to keep it"
            )
        session.save(folder)
        saved_as.add(name)

    def delete(self, name: str) -> None:
        """Delete a session permanently; a missing one is not an error.

        Raises:
            ValueError: the name is not accepted, or belongs to something other than a folder.
        """
        folder = self._folder(name)
        if folder.exists() and not folder.is_dir():  # rmtree would block on a pipe
            raise ValueError(f"{os.fspath(folder)!r} is no session's folder; remove it by hand")
        shutil.rmtree(folder, ignore_errors=not folder.exists())

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
            raise ValueError(f"{os.fspath(link)!r} is a symbolic link; sessions are stored in the root itself. Remove it")
        return folder


def _link_in(folder: Path) -> Path | None:
    """The session's folder or file if it is a symbolic link; None if neither is."""
    return next((path for path in (folder, folder / FILE) if path.is_symlink()), None)
