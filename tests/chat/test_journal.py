"""What a session wrote can be listed and forgotten."""

import random

import pytest
from nightly import by_day
from stored_states import same_state as same
from tiny_chat import WORDS, chat_model, chat_tokenizer

from deltamem import ChatSession

SHORT = {"max_new_tokens": 4, "do_sample": False}
WORD = [word for word in WORDS if word.isalnum()]


def session(model=None, **options):
    return ChatSession(model or chat_model(spread=0.5, **options), chat_tokenizer(), "Remember everything.", journal=True)


def test_it_lists_what_was_told():
    chat = session()
    chat.observe("Anna likes teal.")
    answer = chat.reply("Hello there", **SHORT)
    chat.reply("Where is Bob ?", keep=False, **SHORT)
    said = ["Anna likes teal.", "Noted.", "Hello there", answer]
    assert [entry.content for entry in chat.journal.entries] == said
    assert chat.journal.entries[-1].tokens == chat.memory.tokens[0]
    assert ChatSession(chat.model, chat.tokenizer).journal is None


def test_a_turn_that_fails_is_not_in_it():
    chat = session()
    with pytest.raises(ValueError, match="not accepted"):
        chat.reply("Hello", attention_mask=1)
    assert chat.journal.entries == []


def acts(rng):
    """Random calls of a session: what is observed, said with a scripted answer, or where the context is dropped."""
    for _ in range(rng.randrange(1, 7)):
        kind = rng.choice(["observe", "turn", "turn", "forget_context"])
        text, answer = (" ".join(rng.choices(WORD, k=rng.randrange(1, 9))) for _ in range(2))
        yield kind, text, answer


def perform(chat, kind, messages):
    """Perform an act with what remains of its messages."""
    if kind == "forget_context":
        chat.forget_context()
    elif kind == "observe" and messages:
        chat.observe(messages)
    elif messages:
        chat.messages = [*chat.messages, *messages]
        chat._write_messages()


@pytest.mark.parametrize("seed", by_day([0, 1, 2, 3, 4, 5, 6, 7], every=range(200)))
def test_a_forgotten_message_was_never_said(seed, monkeypatch):
    rng = random.Random(seed)
    model = chat_model(spread=0.5, write=rng.choice(["token", "message"]), turn_writes=rng.choice(["after", "during"]))
    chat, never = session(model), session(model)
    done = []
    for kind, text, answer in acts(rng):
        before = len(chat.journal.entries)
        monkeypatch.setattr(ChatSession, "_answer", lambda self, *_, answer=answer: answer)
        if kind == "observe":
            chat.observe([{"role": "user", "content": text}])
        elif kind == "turn":
            chat.reply(text)
        else:
            chat.forget_context()
        done.append((kind, chat.journal.entries[before:]))
    ids = [entry.id for entry in chat.journal.entries]
    forgotten = rng.sample(ids, min(len(ids), rng.randrange(1, 3)))
    whole = chat.memory.clone()
    chat.forget(forgotten)
    for kind, entries in done:
        perform(never, kind, [entry.message for entry in entries if entry.id not in forgotten])
    assert same(chat.memory, never.memory)
    assert chat.messages == never.messages
    assert [entry.id for entry in chat.journal.entries] == [id_ for id_ in ids if id_ not in forgotten]
    assert not same(chat.memory, whole) or not forgotten
    monkeypatch.setattr(ChatSession, "_answer", lambda self, *_: "and")
    assert chat.reply("Hello") == never.reply("Hello")
    assert same(chat.memory, never.memory)


def test_it_is_saved_with_the_session(tmp_path):
    chat = session()
    chat.observe("Anna likes teal.")
    chat.reply("Hello there", **SHORT)
    chat.save(tmp_path)
    loaded = ChatSession.load(tmp_path, chat.model, chat.tokenizer)
    assert [vars(entry) for entry in loaded.journal.entries] == [vars(entry) for entry in chat.journal.entries]
    for one in (chat, loaded):
        one.forget([one.journal.entries[0].id])
    assert same(chat.memory, loaded.memory)


def test_what_cannot_be_forgotten():
    with pytest.raises(ValueError, match="keeps no journal"):
        ChatSession(chat_model(), chat_tokenizer()).forget(["x"])
    chat = session()
    chat.reply("Hello", **SHORT)
    before = chat.memory.clone()
    with pytest.raises(ValueError, match="has no message 'x'"):
        chat.forget(["x"])
    assert same(chat.memory, before, 0)
