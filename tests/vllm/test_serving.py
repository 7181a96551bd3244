"""The turns of a server have the answers in vLLM, and leave the memories, that they have with a model of transformers."""

import random
import time

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed; .ci/vllm installs it")

from tiny_chat import WORDS, chat_tokenizer
from turns import Watched, assistant, user
from vllm_engine import ENGINE, difference, save, strong

from deltamem.serve.engine import Engine
from deltamem.serve.turn import CancelledTurnError, Failed, Sampling
from deltamem.vllm.serving import VllmEngine

WORD = [word for word in WORDS if word.isalnum()]
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def engines(tmp_path_factory):
    """One of transformers, and one of vLLM."""
    model = strong("llama", initializer_range=0.5)
    model.generation_config.eos_token_id = 3
    backbone, adapter = save(tmp_path_factory.mktemp("llama"), model)
    chat_tokenizer().save_pretrained(str(backbone))
    engines = Engine(model, chat_tokenizer(), rows=1), VllmEngine(str(adapter), str(backbone), **{**ENGINE, "max_num_seqs": 4})
    yield engines
    for engine in engines:
        engine.close()


def chat(random_, turns):
    texts = [" ".join(random_.choices(WORD, k=random_.randrange(1, 30))) for _ in range(2 * turns + 1)]
    return [(assistant if number % 2 else user)(text) for number, text in enumerate(texts)]


def ran(engine, turns):
    """Let turns run at once; returns them, complete."""
    for turn in turns:
        engine.submit(turn.turn)
    return [(turn.finished(), turn) for turn in turns]


def random_turns(memories, count=24):
    random_ = random.Random(0)
    turns = []
    for _ in range(count):
        messages = chat(random_, random_.randrange(3))
        sampling = random_.choice([None, Sampling(max_tokens=random_.randrange(1, 20), temperature=0, logprobs=2)])
        write = "after" if sampling is None else random_.choice(["after", False])
        known = random_.randrange(0, len(messages), 2)
        turns.append(Watched(messages, random_.choice(memories), known=known, write=write, sampling=sampling))
    return turns


def test_random_turns_are_those_of_transformers(engines):
    native, vllm = engines
    ((told, _),) = ran(native, [Watched([user("Bob lives in Oslo .")], native.new_memory(), sampling=None)])
    memories = [native.new_memory(), told.memory]
    pairs = zip(ran(native, random_turns(memories)), ran(vllm, random_turns(memories)), strict=True)
    for (expected, own), (end, watched) in pairs:
        assert (end.text, end.reason, watched.tokens) == (expected.text, expected.reason, own.tokens)
        assert (end.written, end.prompt_tokens, end.completion_tokens) == (
            expected.written,
            expected.prompt_tokens,
            expected.completion_tokens,
        )
        assert end.memory.fingerprint == expected.memory.fingerprint
        assert difference(end.memory, expected.memory) < TOLERANCE
        choices = ([choice for piece in one.pieces for choice in piece.tokens] for one in (watched, own))
        for choice, other in zip(*choices, strict=True):
            assert choice.logprob == pytest.approx(other.logprob, abs=1e-3)
            assert [value for _, value in choice.top] == pytest.approx([value for _, value in other.top], abs=1e-3)


def test_a_stop_text_ends_the_answer_and_it_is_written(engines):
    _, vllm = engines
    ((whole, _),) = ran(vllm, [Watched([user("Hello there")], vllm.new_memory())])
    sampling = Sampling(max_tokens=8, temperature=0, stop=(whole.text.split()[3],))
    ends = [ran(engine, [Watched([user("Hello there")], engine.new_memory(), sampling=sampling)])[0][0] for engine in engines]
    assert ends[0].text == ends[1].text != whole.text
    assert ends[1].reason == "stop"
    assert difference(ends[0].memory, ends[1].memory) < TOLERANCE


def test_writing_during_the_answer_is_refused(engines):
    _, vllm = engines
    watched = Watched([user("Hello there")], vllm.new_memory(), write="during")
    vllm.submit(watched.turn)
    assert 'give "after"' in str(watched.end().error)


def test_draws_depend_on_the_seed(engines):
    _, vllm = engines
    sampling = [Sampling(max_tokens=8, temperature=1.0, top_p=0.9, seed=seed) for seed in (1, 1, 2, 3)]
    turns = [Watched([user("Hello there")], vllm.new_memory(), write=False, sampling=one) for one in sampling]
    first, again, *others = [end.text for end, _ in ran(vllm, turns)]
    assert first == again
    assert {*others} != {first}


def test_a_turn_that_is_cancelled_or_late_leaves_the_others_alone(engines):
    _, vllm = engines
    stays = Watched([user("Where is Anna ?")], vllm.new_memory(), max_tokens=40)
    alone = ran(vllm, [Watched([user("Where is Anna ?")], vllm.new_memory(), max_tokens=40)])[0][0]
    left = Watched([user("Hello there")], vllm.new_memory(), max_tokens=500, sampling=Sampling(max_tokens=500, temperature=1.0))
    late = Watched([user("Hello there")], vllm.new_memory(), deadline=time.monotonic())
    for watched in (left, late, stays):
        vllm.submit(watched.turn)
    left.turn.cancel()
    for watched in (left, late):
        end = watched.end()
        assert isinstance(end, Failed)
        assert isinstance(end.error, CancelledTurnError)
    assert stays.finished().text == alone.text
    assert vllm.running == 0


def test_a_memory_of_another_adapter_is_refused(engines):
    native, vllm = engines
    ((told, _),) = ran(native, [Watched([user("Bob lives in Oslo .")], native.new_memory(), sampling=None)])
    assert difference(vllm.accepted(told.memory), told.memory) == 0
    told.memory.fingerprint = "another"
    with pytest.raises(ValueError, match="written by the adapter another"):
        vllm.accepted(told.memory)
