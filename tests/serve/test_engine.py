"""The engine gives every user the answer and the memory that they would have had alone."""

import random
import time

import pytest
from stored_states import same_state as same
from tiny import FAMILIES, tiny_adapted, tiny_backbone, tiny_config
from tiny_chat import WORDS, chat_model, chat_tokenizer
from turns import Watched, assistant, user

import deltamem.model
from deltamem import ChatSession
from deltamem.serve.engine import Engine
from deltamem.serve.turn import CancelledTurnError, Failed, Piece, Sampling
from deltamem.serve.turn_queue import BusyError

WORD = [word for word in WORDS if word.isalnum()]


@pytest.fixture
def engine():
    engine = Engine(chat_model(spread=0.5), chat_tokenizer(), rows=8)
    yield engine
    engine.close()


def chat(random_: random.Random, turns: int) -> list[dict[str, str]]:
    texts = [" ".join(random_.choices(WORD, k=random_.randrange(1, 30))) for _ in range(2 * turns + 1)]
    return [(assistant if number % 2 else user)(text) for number, text in enumerate(texts)]


def test_a_first_turn_is_that_of_a_session(engine):
    session = ChatSession(engine.model, engine.tokenizer)
    watched = Watched([user("Anna likes teal.")], engine.model.new_memory())
    engine.submit(watched.turn)
    end = watched.finished()
    assert end.text == session.reply("Anna likes teal.", max_new_tokens=8, do_sample=False)
    assert end.text
    assert same(end.memory, session.memory)
    assert "".join(piece.text for piece in watched.pieces) == end.text


@pytest.mark.parametrize("model_type", FAMILIES)
@pytest.mark.parametrize("write", ["token", "message"])
def test_turns_in_one_batch_are_as_alone(model_type, write):
    backbone = tiny_backbone(model_type, eos_token_id=3, initializer_range=0.1 if "gemma" in model_type else 0.5)
    backbone.generation_config.eos_token_id = 3
    model = tiny_adapted(tiny_config(write=write), backbone=backbone)
    engine, alone = Engine(model, chat_tokenizer(), rows=4), []
    random_ = random.Random(0)
    try:
        given = []
        for number in range(10):
            messages = chat(random_, random_.randrange(3))
            memory = model.new_memory()
            if number % 3:
                told = Watched([user("Bob lives in Oslo."), assistant("Noted.")], memory, sampling=None)
                engine.submit(told.turn)
                memory = told.finished().memory
            known = random_.randrange(0, len(messages), 2)
            kind = random_.choice(["after", "during", False])
            sampling = Sampling(max_tokens=random_.randrange(1, 20), temperature=0, logprobs=0)
            given.append(({"known": known, "write": kind, "sampling": sampling}, messages, memory))
        for options, messages, memory in given:
            watched = Watched(messages, memory, **options)
            engine.submit(watched.turn)
            alone.append((watched.finished(), watched.tokens))
        together = [Watched(messages, memory, **options) for options, messages, memory in given]
        for watched in together:
            engine.submit(watched.turn)
        for watched, before, (options, _, memory) in zip(together, alone, given, strict=True):
            end, (solo, tokens) = watched.finished(), before
            assert (end.text, end.reason, watched.tokens) == (solo.text, solo.reason, tokens)
            assert same(end.memory, solo.memory)
            assert same(end.memory, memory, 0) == (options["write"] is False)
        assert len({tokens for _, tokens in alone}) > 3  # the answers differ
    finally:
        engine.close()


@pytest.mark.parametrize("write", ["after", "during"])
def test_a_replay_without_an_answer_gives_the_same_memory(engine, write):
    messages = chat(random.Random(1), 2)
    watched = Watched(messages, engine.model.new_memory(), known=2, write=write)
    engine.submit(watched.turn)
    end = watched.finished()
    replay = Watched([*messages, assistant(end.text)], engine.model.new_memory(), known=2, sampling=None)
    engine.submit(replay.turn)
    assert same(replay.finished().memory, end.memory)
    other = Watched([*messages, assistant(end.text)], engine.model.new_memory(), known=1, sampling=None)
    engine.submit(other.turn)
    assert not same(other.finished().memory, end.memory)


def test_a_stop_text_ends_the_answer(engine):
    whole = Watched([user("Hello there")], engine.model.new_memory())
    engine.submit(whole.turn)
    text = whole.finished().text
    stop = text.split()[3]
    sampling = Sampling(max_tokens=8, temperature=0, stop=(stop,))
    watched = Watched([user("Hello there")], engine.model.new_memory(), sampling=sampling)
    engine.submit(watched.turn)
    end = watched.finished()
    assert end.text == text[: text.index(stop)].strip()
    assert "".join(piece.text for piece in watched.pieces) == end.text
    assert end.reason == "stop"


def test_draws_depend_on_the_seed_and_not_on_the_company(engine):
    def ask(seed):
        sampling = Sampling(max_tokens=8, temperature=1.0, top_p=0.9, seed=seed, logprobs=2)
        watched = Watched([user("Hello there")], engine.model.new_memory(), write=False, sampling=sampling)
        engine.submit(watched.turn)
        return watched

    alone = ask(5).finished().text
    company = [ask(seed) for seed in range(8)]
    texts = [watched.finished().text for watched in company]
    assert texts[5] == alone
    assert len({*texts}) > 1
    choices = [choice for piece in company[0].pieces for choice in piece.tokens]
    assert all(choice.logprob <= choice.top[0][1] <= 0 and len(choice.top) == 2 for choice in choices)


def test_the_adapter_is_hashed_once(engine, monkeypatch):
    counts, hashed = [], deltamem.model.fingerprint_of
    monkeypatch.setattr(deltamem.model, "fingerprint_of", lambda *given: counts.append(1) or hashed(*given))
    memory = engine.model.new_memory()
    for tokens in (2, 12):
        told = Watched([user("Bob lives in Oslo.")], memory, sampling=Sampling(max_tokens=tokens, temperature=0))
        engine.submit(told.turn)
        memory = told.finished().memory
    assert memory.fingerprint is not None
    assert len(counts) <= 1  # none if an earlier turn of this engine has done it
    memory.fingerprint = "another"
    refused = Watched([user("Anna likes teal.")], memory, write=False)
    engine.submit(refused.turn)
    assert "written by the adapter another" in str(refused.end().error)


def test_a_cancelled_turn_changes_nothing_for_others(engine):
    memory = engine.model.new_memory()
    left = Watched([user("Hello there")], memory, max_tokens=200)
    stays = Watched([user("Where is Anna ?")], memory, max_tokens=40)
    engine.submit(stays.turn)
    alone = stays.finished().text
    again = Watched([user("Where is Anna ?")], memory, max_tokens=40)
    engine.submit(left.turn)
    engine.submit(again.turn)
    left.turn.cancel()
    end = left.end()
    assert isinstance(end, Failed)
    assert isinstance(end.error, CancelledTurnError)
    assert again.finished().text == alone
    assert same(memory, engine.model.new_memory(), 0)


def test_a_turn_has_a_deadline(engine):
    late = Watched([user("Hello there")], engine.model.new_memory(), deadline=time.monotonic() - 1)
    engine.submit(late.turn)
    assert isinstance(late.end(), Failed)


def test_a_failure_is_the_turns_own(engine):
    bad = Watched([user("Hello there")], chat_model(r=2).new_memory())
    good = Watched([user("Hello there")], engine.model.new_memory())
    engine.submit(bad.turn)
    engine.submit(good.turn)
    assert isinstance(bad.end(), Failed)
    assert good.finished().text


@pytest.mark.parametrize("failing", [0, 2])  # at the first token, and in the batch
def test_a_row_that_fails_in_the_batch_fails_alone(engine, monkeypatch, failing):
    goes_on = Engine._goes_on

    def fails(self, row, logits):
        if row.running.turn.tenant == "bad" and row.decoding.tokens == failing:
            raise RuntimeError("on purpose")
        return goes_on(self, row, logits)

    monkeypatch.setattr(Engine, "_goes_on", fails)
    turns = [Watched([user("Hello there")], engine.model.new_memory(), tenant=name) for name in ("bad", "good")]
    for one in turns:
        engine.submit(one.turn)
    bad, good = (one.end() for one in turns)
    assert isinstance(bad, Failed)
    assert good.text
    assert engine.running == 0


@pytest.mark.parametrize("name", ["add", "step"])
def test_a_batch_that_fails_is_made_anew(engine, monkeypatch, name):
    alone = Watched([user("Hello there")], engine.model.new_memory())
    engine.submit(alone.turn)
    text = alone.finished().text

    def fail(*given):
        monkeypatch.undo()
        raise RuntimeError("no memory left")

    monkeypatch.setattr(type(engine._batch), name, fail)
    failed, again = (Watched([user("Hello there")], engine.model.new_memory()) for _ in range(2))
    engine.submit(failed.turn)
    assert isinstance(failed.end(), Failed)
    engine.submit(again.turn)
    assert again.finished().text == text


def test_a_turn_that_ends_while_it_waits_keeps_nobody_out():
    engine = Engine(chat_model(spread=0.5), chat_tokenizer(), rows=1, waiting=2)
    long = Watched([user("Hello there")], engine.model.new_memory(), max_tokens=200)
    engine.submit(long.turn)
    first = long.events.get(timeout=60)
    left = Watched([user("Hello there")], engine.model.new_memory())
    late = Watched([user("Hello there")], engine.model.new_memory(), deadline=time.monotonic())
    for waiting in (left, late):
        engine.submit(waiting.turn)
    left.turn.cancel()
    assert isinstance(left.end(), Failed)
    assert isinstance(late.end(), Failed)
    assert engine.waiting == 0
    assert engine.running == 1  # the long one goes on
    long.turn.cancel()
    assert isinstance(first, Piece)
    engine.close()


def test_too_many_turns_are_refused():
    engine = Engine(chat_model(spread=0.5), chat_tokenizer(), rows=1, waiting=2)
    watched = [Watched([user("Hello there")], engine.model.new_memory(), max_tokens=100) for _ in range(20)]
    with pytest.raises(BusyError, match="wait already"):
        for one in watched:
            engine.submit(one.turn)
    engine.close()


def test_tenants_take_turns():
    engine = Engine(chat_model(spread=0.5), chat_tokenizer(), rows=1)
    order = []
    many = [Watched([user("Hello")], engine.model.new_memory(), tenant="many", write=False) for _ in range(6)]
    few = Watched([user("Hello")], engine.model.new_memory(), tenant="few", write=False)
    for watched in (*many, few):
        put = watched.turn.emit
        object.__setattr__(watched.turn, "emit", lambda event, w=watched, put=put: (order.append(w.turn.tenant), put(event)))
        engine.submit(watched.turn)
    for watched in (*many, few):
        watched.finished()
    engine.close()
    assert "few" in [tenant for tenant, _ in zip(order, range(len(order)), strict=True)][: len(order) // 2]
