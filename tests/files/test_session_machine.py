"""Any sequence of turns, saves, failures and crashes, against sessions that were told the same and went through nothing."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from examples import examples
from failing_disk import AFTER, BEFORE, ERRORS, failing
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule
from tiny_chat import chat_model, chat_tokenizer
from torch import Tensor

from deltamem import ChatSession

KINDS: dict[str, dict[str, Any]] = {"after": {}, "during": {"turn_writes": "during"}, "messages": {"write": "message"}}
SHORT = {"max_new_tokens": 3, "do_sample": False}
TELLING = ["reply", "observe", "observe much"]
MOST_SESSIONS = 3

Told = tuple[tuple[str, str], ...]


@cache
def parts(kind: str) -> tuple[Any, Any]:
    # A backbone that heeds its context and a gate so small that little is forgotten: otherwise a loss would not show.
    return chat_model(spread=0.05, beta_bias=-3.0, **KINDS[kind]), chat_tokenizer()


def new(kind: str) -> ChatSession:
    return ChatSession(*parts(kind), system="Remember everything.")


def tell(chat: ChatSession, what: str, text: str) -> None:
    if what == "reply":
        chat.reply(text, **SHORT)
    elif what == "observe":
        chat.observe(text)
    elif what == "observe much":
        chat.observe(f"{text} " * 80)  # more than the model's context takes at once
    else:
        chat.forget_context()


class Oracle:
    """Sessions that are told everything once, in order, and are never saved, loaded or broken off."""

    def __init__(self) -> None:
        self.sessions: dict[tuple[str, Told], ChatSession] = {}
        self.known: dict[tuple[str, Told], tuple[dict[str, Tensor], list[int], list[Any]]] = {}

    def after(self, kind: str, told: Told) -> tuple[dict[str, Tensor], list[int], list[Any]]:
        """What a new session's memory, its number of tokens and the messages are after all this."""
        if (kind, told) not in self.known:
            chat = self.sessions.pop((kind, told[:-1]), None) if told else new(kind)
            if chat is None:
                chat = new(kind)
                for what, text in told[:-1]:
                    tell(chat, what, text)
            for what, text in told[-1:]:
                tell(chat, what, text)
            self.sessions[kind, told] = chat
            self.known[kind, told] = chat.memory.tensors, chat.memory.tokens, [*chat.messages]
        return self.known[kind, told]

    def compare(self, chat: ChatSession, kind: str, told: Told) -> None:
        """Make sure that a session is what it was told."""
        tensors, tokens, messages = self.after(kind, told)
        assert chat.messages == messages
        assert chat.memory.tokens == tokens
        for name, tensor in chat.memory.tensors.items():
            torch.testing.assert_close(tensor, tensors[name], atol=1e-5, rtol=0)


oracle = Oracle()


@dataclass
class Session:
    """A session under test, the folder it is saved in, and what it was told, and had been told when it was saved last."""

    chat: ChatSession
    folder: Path
    told: Told = ()
    saved: Told | None = None


class Broken(Exception):
    """What goes wrong inside the model."""


@contextmanager
def breaking(model: Any, part: str, at: int, error: type[BaseException]) -> Iterator[None]:
    """The model fails when one of its parts is called for the (`at` + 1)th time."""
    calls = iter(range(at + 1))

    def count(*_: Any) -> None:
        if next(calls, None) == at:
            raise error

    handle = model.get_submodule(part).register_forward_pre_hook(count)
    try:
        yield
    finally:
        handle.remove()


texts = st.sampled_from(["Anna likes teal.", "Where is Bob?", "Hello there"])
# The first is reached before any memory is written, the last when all are.
module_names = st.sampled_from([f"base_model.model.{part}" for part in ("model.embed_tokens", "model.layers.1", "lm_head")])


class Sessions(RuleBasedStateMachine):
    sessions = Bundle("sessions")

    def __init__(self) -> None:
        super().__init__()
        self.root = TemporaryDirectory()
        self.all: list[Session] = []

    def teardown(self) -> None:
        self.root.cleanup()

    def keep(self, session: Session) -> Session:
        self.all.append(session)
        return session

    def new_folder(self) -> Path:
        return Path(self.root.name) / str(len(self.all))

    def open(self, session: Session) -> None:
        """Take the session up again from its folder; a new one, if it was never saved."""
        saved = session.saved is not None
        session.chat = ChatSession.load(session.folder, *parts(self.kind)) if saved else new(self.kind)
        session.told = session.saved or ()

    @initialize(target=sessions, kind=st.sampled_from(sorted(KINDS)), text=texts)
    def first(self, kind: str, text: str) -> Session:
        self.kind = kind
        session = self.keep(Session(new(kind), self.new_folder()))
        self.tell(session, "reply", text)
        return session

    @rule(session=sessions, what=st.sampled_from([*TELLING, "forget the context"]), text=texts)
    def tell(self, session: Session, what: str, text: str) -> None:
        tell(session.chat, what, text)
        session.told = (*session.told, (what, text))

    @rule(session=sessions)
    def save(self, session: Session) -> None:
        session.chat.save(session.folder)
        session.saved = session.told

    @rule(session=sessions)
    def lose_the_process_and_load(self, session: Session) -> None:
        self.open(session)

    @rule(target=sessions, session=sessions, text=texts)
    def fork(self, session: Session, text: str) -> Session:
        if session.saved is None or len(self.all) == MOST_SESSIONS:
            return session
        fork = Session(session.chat, self.new_folder(), saved=session.saved)
        shutil.copytree(session.folder, fork.folder)
        self.open(self.keep(fork))
        self.tell(fork, "reply", text)  # the session that it was forked from must not hear it
        self.save(fork)
        return fork

    @rule(
        session=sessions,
        what=st.sampled_from(TELLING),
        text=texts,
        part=module_names,
        at=st.integers(0, 5),
        error=st.sampled_from([Broken, KeyboardInterrupt]),
    )
    def fail_and_try_again(
        self, session: Session, what: str, text: str, part: str, at: int, error: type[BaseException]
    ) -> None:
        with suppress(error), breaking(session.chat.model, part, at, error):
            self.tell(session, what, text)  # which may take fewer calls
        self.every_session_is_what_it_was_told()
        self.tell(session, what, text)

    @rule(session=sessions, step=st.sampled_from([*BEFORE, *AFTER]), error=st.sampled_from(sorted(ERRORS)), crash=st.booleans())
    def fail_to_save(self, session: Session, step: str, error: str, crash: bool) -> None:
        with failing(step, error):
            session.chat.save(session.folder)
        if step in AFTER:
            session.saved = session.told
        if crash:
            self.open(session)

    @invariant()
    def every_session_is_what_it_was_told(self) -> None:
        for session in self.all:
            oracle.compare(session.chat, self.kind, session.told)


Sessions.TestCase.settings = settings(examples(20), stateful_step_count=12)
TestSessions = Sessions.TestCase


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_observed_in_the_middle_of_a_context_is_still_there_after_a_load(kind: str, tmp_path: Path) -> None:
    told = (("reply", "Anna likes teal."), ("observe", "Bob likes red."), ("reply", "Hello there"), ("reply", "Where is Bob?"))
    chat = new(kind)
    for what, text in told[:-1]:
        tell(chat, what, text)
    chat.save(tmp_path)
    loaded = ChatSession.load(tmp_path, *parts(kind))  # it reads its context again, from the memory as it was at the time
    tell(loaded, *told[-1])
    oracle.compare(loaded, kind, told)


def test_the_oracle_tells_what_was_told_and_in_which_order() -> None:
    one, other = ("observe", "Anna likes teal."), ("observe", "Where is Bob?")
    told: list[Told] = [(), (one,), (other,), (one, other), (other, one), (one, one), (("reply", one[1]),)]
    memories = [torch.stack([*oracle.after("after", each)[0].values()]) for each in told]
    for index, memory in enumerate(memories):
        assert all((memory - each).abs().max() > 1e-3 for each in memories[:index])
