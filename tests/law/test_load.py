"""Many users on one model, for long: every answer is that of the session alone, and nothing piles up.

A few users in CI; 200 sessions and 10,000 turns with HYPOTHESIS_PROFILE=nightly.
"""

import gc
import os
import random
import shutil
from dataclasses import dataclass, field

import psutil
import pytest
import torch
from nightly import by_day
from oracle import TOLERANCE, error
from tiny_chat import chat_model, chat_tokenizer

from deltamem import ChatSession, SessionStore

SESSIONS, TURNS = (200, 10_000) if os.environ.get("HYPOTHESIS_PROFILE") == "nightly" else (12, 150)
SYSTEM = "Remember everything."
OPTIONS = {"max_new_tokens": 3, "do_sample": False}
SENTENCES = [
    f"{who} {does} {what}."
    for who in ("Anna", "Bob", "a friend")
    for does in ("likes", "lives in")
    for what in ("teal", "Rome", "Oslo", "red")
]


@dataclass
class User:
    """A session in use, where it is not only in the store, and all that was done with it."""

    name: str
    session: ChatSession | None = None
    history: list[tuple[str, str]] = field(default_factory=list)  # (operation, text)
    answers: list[str] = field(default_factory=list)


def act(session, operation, text):
    """One operation on a session; returns its answer."""
    if operation == "reply":
        return session.reply(text, **OPTIONS)
    if operation == "observe":
        session.observe(text)
    else:
        session.forget_context()
    return ""


def memory_in_use():
    gc.collect()
    # By their types: to ask a weak reference that outlived its object would raise.
    tensors = sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())
    return tensors, psutil.Process().memory_info().rss


def crowd(model, folder, sessions, turns, seed=0):
    """Random turns of random users; yields after every hundredth."""
    rng, store = random.Random(seed), SessionStore(folder, model, chat_tokenizer(), SYSTEM)
    users = [User(f"user-{index}") for index in range(sessions // 2)]
    for turn in range(turns):
        user = rng.choice(users)
        if user.session is None:
            user.session = store.open(user.name)
        operation = rng.choices(["reply", "observe", "forget"], [6, 2, 2])[0]
        text = rng.choice(SENTENCES)
        user.answers.append(act(user.session, operation, text))
        user.history.append((operation, text))
        if rng.random() < 0.3:  # the server lets go of the session
            store.save(user.name, user.session)
            user.session = None
            if len(users) < sessions and rng.random() < 0.5:
                fork = User(f"user-{len(users)}", None, [*user.history], [*user.answers])
                shutil.copytree(folder / user.name, folder / fork.name)
                users.append(fork)
        if turn % 100 == 99:
            yield users


@pytest.mark.parametrize("write", by_day(["token"], ["token", "message"]))
def test_many_users_on_one_model(tmp_path, write):
    torch.manual_seed(0)
    model = chat_model(spread=0.3, write=write)
    start = None
    users: list[User] = []
    for users in crowd(model, tmp_path, SESSIONS, TURNS):  # noqa: B007 (looked at below)
        start = start or memory_in_use()
    tensors, used = memory_in_use()
    # A session that is open holds its memory and its context; the sessions that were opened since the start are all there is.
    assert tensors - start[0] < 60 * SESSIONS
    assert used - start[1] < 300 * 2**20
    assert len(users) == SESSIONS or TURNS < 1000

    store = SessionStore(tmp_path, model, chat_tokenizer(), SYSTEM)
    different = set()
    for user in users:
        alone = ChatSession(model, chat_tokenizer(), SYSTEM)
        assert [act(alone, *step) for step in user.history] == user.answers
        last = user.session or store.open(user.name)
        assert error(last.memory, alone.memory) < TOLERANCE
        assert last.memory.tokens == alone.memory.tokens
        assert last.messages == alone.messages
        different |= {answer for answer in user.answers if answer}
    assert len(different) > 10  # the control: the answers are not all alike
