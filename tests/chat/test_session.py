import json

import pytest
import torch
from tiny_chat import chat_model, chat_tokenizer

from deltamem import ChatSession, DeltaMemState
from deltamem.chat.session import FILE
from deltamem.chat.tokens import ACKNOWLEDGEMENT, ChatTokens

SHORT = {"max_new_tokens": 4, "do_sample": False}
FACTS = "Anna likes teal."


def session(**options):
    return ChatSession(chat_model(**options), chat_tokenizer(), system="Remember everything.")


def same(first, second, tolerance=1e-5):
    return all(torch.allclose(first.tensors[n], second.tensors[n], atol=tolerance, rtol=0) for n in first.tensors)


def written(chat, messages):
    """The memory after one pass over a whole chat, the oracle."""
    system = {"role": "system", "content": chat.system}
    config = chat.model.active_peft_config
    tokens = ChatTokens.from_messages(chat.tokenizer, [system, *messages], config.write)
    state = chat.model.new_memory()
    segment_ids = tokens.segment_ids[None] if config.writes_segments else None
    with torch.no_grad(), chat.model.memory(state, segment_ids=segment_ids):
        chat.model(input_ids=tokens.ids[None])
    return state


@pytest.mark.parametrize("turn_writes", ["after", "during"])
def test_every_token_of_a_conversation_is_written_once(turn_writes):
    chat = session(turn_writes=turn_writes)
    for text in (FACTS, "Bob lives in Rome.", "What does Anna like?"):
        chat.reply(text, **SHORT)
    assert [message["role"] for message in chat.messages] == ["user", "assistant"] * 3
    assert same(chat.memory, written(chat, chat.messages))


def test_when_a_turn_is_written_decides_what_its_answer_reads(monkeypatch):
    seen = {}
    for turn_writes in ("after", "during"):
        chat = session(turn_writes=turn_writes)
        generate = ChatSession._answer

        def spy(self, *args, seen=seen, key=turn_writes, generate=generate):
            seen[key] = self.memory.clone()
            return generate(self, *args)

        monkeypatch.setattr(ChatSession, "_answer", spy)
        chat.reply(FACTS, **SHORT)
        monkeypatch.undo()
    assert same(seen["after"], chat.model.new_memory(), tolerance=0)
    assert same(seen["during"], written(chat, [{"role": "user", "content": FACTS}]))


@pytest.mark.parametrize("turn_writes", ["after", "during"])
def test_a_turn_that_is_not_kept_leaves_the_session_as_it_was(turn_writes):
    asked, other = session(turn_writes=turn_writes, spread=0.5), session(turn_writes=turn_writes, spread=0.5)
    for chat in (asked, other):
        chat.reply(FACTS, **SHORT)
    memory, messages = asked.memory.clone(), asked.messages
    answers = [asked.reply("Who is Bob?", keep=False, **SHORT), "".join(asked.stream("Who is Bob?", keep=False, **SHORT))]
    assert answers[0] == answers[1].strip() != ""
    assert asked.messages == messages
    assert same(asked.memory, memory, tolerance=0)
    assert asked.reply("What does Anna like?", **SHORT) == other.reply("What does Anna like?", **SHORT)
    assert same(asked.memory, other.memory, tolerance=0)


def test_a_message_is_written_when_it_is_complete():
    chat = session(write="message")
    chat.reply(FACTS, **SHORT)
    parts = [chat.messages[:1], chat.messages[:2]]
    assert not same(written(chat, parts[0]), written(chat, parts[1]), tolerance=1e-3)
    assert same(chat.memory, written(chat, chat.messages))  # one turn: both messages in one pass, as in the oracle


def test_observing_writes_and_keeps_no_context():
    chat = session()
    chat.observe(FACTS)
    assert chat.messages == []
    told = [{"role": "user", "content": FACTS}, {"role": "assistant", "content": ACKNOWLEDGEMENT}]
    assert same(chat.memory, written(chat, told))
    assert not same(chat.memory, written(chat, told[:1]))


def test_a_long_text_is_observed_in_pieces():
    chat = session()
    chat.observe(" ".join(["Anna likes teal."] * 120))  # 480 words, the model's context has 256 positions
    assert not same(chat.memory, chat.model.new_memory())


def test_forgetting_the_context_keeps_the_memory():
    chat = session()
    chat.reply(FACTS, **SHORT)
    before = chat.memory.clone()
    chat.forget_context()
    assert chat.messages == []
    assert same(chat.memory, before, tolerance=0)


def test_a_stream_is_the_reply_in_pieces():
    replied, streamed = session(), session()
    text = replied.reply(FACTS, **SHORT)
    pieces = [*streamed.stream(FACTS, **SHORT)]
    assert "".join(pieces).strip() == text
    assert same(streamed.memory, replied.memory, tolerance=0)


def test_a_stream_that_is_closed_leaves_the_session_as_it_was():
    chat = session()
    chat.reply(FACTS, **SHORT)
    memory, messages = chat.memory.clone(), [*chat.messages]
    stream = chat.stream("Hello there", min_new_tokens=30, max_new_tokens=200, do_sample=False)
    next(stream)
    stream.close()
    assert chat.messages == messages
    assert same(chat.memory, memory, tolerance=0)


@pytest.mark.parametrize("turn_writes", ["after", "during"])
def test_a_turn_that_fails_leaves_the_session_as_it_was(turn_writes):
    chat, twin = session(turn_writes=turn_writes), session(turn_writes=turn_writes)
    for each in (chat, twin):
        each.reply(FACTS, **SHORT)
    with pytest.raises(ValueError, match="not_an_option"):
        chat.reply("Hello there", not_an_option=1)
    with pytest.raises(ValueError, match="not_an_option"):
        [*chat.stream("Hello there", not_an_option=1)]
    assert chat.messages == twin.messages
    assert same(chat.memory, twin.memory, tolerance=0)
    assert chat.reply("Where is Anna?", **SHORT) == twin.reply("Where is Anna?", **SHORT)
    assert same(chat.memory, twin.memory)


def test_a_saved_session_goes_on_where_it_was(tmp_path):
    chat = session()
    chat.reply(FACTS, **SHORT)
    chat.save(tmp_path / "alice")
    loaded = ChatSession.load(tmp_path / "alice", chat.model, chat.tokenizer)
    assert same(loaded.memory, chat.memory, tolerance=0)
    assert loaded.messages == chat.messages
    assert loaded.reply("What does Anna like?", **SHORT) == chat.reply("What does Anna like?", **SHORT)
    assert same(loaded.memory, chat.memory)


def test_a_saved_session_knows_that_its_memory_was_written_elsewhere(tmp_path):
    """After `observe`, the memory is not the one that the last turn left, so the next turn starts from another."""

    def saved_and_loaded(chat):
        chat.save(tmp_path / "alice")
        return ChatSession.load(tmp_path / "alice", chat.model, chat.tokenizer)

    # With three layers, what the last one writes depends on the keys and values of earlier turns, and these on the memory.
    chat = ChatSession(chat_model(spread=0.5, layers=3), chat_tokenizer(), system="Remember everything.")
    chat.reply(FACTS, **SHORT)
    chat.observe("Bob lives in Rome.")
    loaded = saved_and_loaded(chat)
    for text in ("Hello there", "What does Anna like?"):
        assert loaded.reply(text, **SHORT) == chat.reply(text, **SHORT)
        loaded = saved_and_loaded(loaded)  # its keys and values are recomputed at the next turn
    assert same(loaded.memory, chat.memory)


def test_what_cannot_be_loaded_is_refused(tmp_path):
    chat = session()
    with pytest.raises(FileNotFoundError):
        ChatSession.load(tmp_path, chat.model, chat.tokenizer)
    chat.memory.save(tmp_path / FILE)
    with pytest.raises(ValueError, match="no session"):
        ChatSession.load(tmp_path, chat.model, chat.tokenizer)
    with pytest.raises(ValueError, match="no session"):  # nor is it overwritten
        chat.save(tmp_path)
    (tmp_path / FILE).unlink()
    chat.reply(FACTS, **SHORT)
    chat.save(tmp_path)
    other = chat_model(alpha=4.0)
    with pytest.raises(ValueError, match="written by the adapter"):
        ChatSession.load(tmp_path, other, chat.tokenizer)
    (tmp_path / FILE).write_bytes((tmp_path / FILE).read_bytes()[:100])
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        ChatSession.load(tmp_path, chat.model, chat.tokenizer)


def test_a_session_has_one_memory():
    model = chat_model()
    with pytest.raises(ValueError, match="2 rows"):
        ChatSession(model, chat_tokenizer(), memory=model.new_memory(2))
    chat = ChatSession(model, chat_tokenizer(), memory=DeltaMemState.stack([model.new_memory(), model.new_memory()])[1])
    assert len(chat.memory) == 1


@pytest.mark.parametrize("text", [None, 3, ["Hello"]])
def test_a_message_is_text(text):
    with pytest.raises(TypeError, match="text"):
        session().reply(text)


def test_the_saved_file_is_one_and_holds_the_messages(tmp_path):
    chat = session()
    chat.reply(FACTS, **SHORT)
    chat.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    from safetensors import safe_open

    with safe_open(tmp_path / FILE, framework="pt") as file:
        assert json.loads(file.metadata()["session"])["messages"] == chat.messages
