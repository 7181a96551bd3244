"""What the scheduler's side knows of requests and memories; no engine is needed."""

import time
from types import SimpleNamespace

import pytest
import torch
from tiny import tiny_adapted

from deltamem import DeltaMemConfig, DeltaMemState
from deltamem.store import Key, Store
from deltamem.vllm.adapter import Adapter
from deltamem.vllm.batch import SlotUse, Use
from deltamem.vllm.keeper import open_keeper
from deltamem.vllm.turns import Turns

ROOM = 64


@pytest.fixture(scope="module")
def model():
    return tiny_adapted()


@pytest.fixture
def adapter(model, tmp_path):
    model.save_pretrained(str(tmp_path / "adapter"))
    return Adapter.read(str(tmp_path / "adapter"))


@pytest.fixture(params=["files", "store"])
def keeper(request, tmp_path):
    return open_keeper(f"files:{tmp_path / 'memories'}" if request.param == "files" else str(tmp_path / "memories.db"))


@pytest.fixture
def turns(adapter, keeper):
    return Turns(adapter, keeper, patience=60)


def request(name, tokens=5, resumable=False, **extra_args):
    sampling = SimpleNamespace(extra_args=extra_args, n=1, stop=[], prompt_logprobs=None)
    return SimpleNamespace(
        request_id=name, sampling_params=sampling, resumable=resumable, num_prompt_tokens=tokens, max_tokens=1000
    )


def told(model, tokens):
    memory = model.new_memory()
    with torch.no_grad(), model.memory(memory):
        model(input_ids=torch.tensor([tokens]))
    return memory


def states_of(memory):
    return {part: tensor[:, 0] for part, tensor in memory.snapshot.parts.items()}


def test_the_adapter_is_that_of_the_library(model, adapter):
    assert adapter.fingerprint == told(model, [1, 2]).fingerprint
    assert [*adapter.layers] == [*model.new_memory().tensors]


def test_what_a_turn_wrote_is_what_the_next_one_reads(model, turns, keeper):
    memory = told(model, [3, 4, 5])
    turns.add(request("1", memory="anna"), ROOM)
    assert turns.ready("1")
    assert turns["1"].slot_use.use is Use.NONE  # it is empty
    assert turns.start("1") is None
    turns["1"].writing = True
    assert turns["1"].slot_use.use is Use.WRITE
    turns.keep("1", states_of(memory), tokens=3)
    turns.end("1")
    kept = keeper.load(Key("local", "anna"), True).state
    assert kept.fingerprint == memory.fingerprint
    assert kept.tokens == [3]
    assert all(torch.equal(kept.tensors[name], tensor) for name, tensor in memory.tensors.items())
    turns.add(request("2", memory="anna", write=False), ROOM)
    assert turns.ready("2")
    assert turns["2"].slot_use.use is Use.READ
    assert torch.equal(turns.start("2")["state"], states_of(memory)["state"])


def test_the_second_writer_waits_and_a_reader_does_not(turns):
    for name, write in (("1", "after"), ("2", "during"), ("3", False)):
        turns.add(request(name, memory="anna", write=write), ROOM)
    assert [turns.ready(name) for name in "123"] == [True, False, True]
    turns.end("1")
    assert turns.ready("2")


def test_who_waits_too_long_is_refused(adapter, keeper):
    turns = Turns(adapter, keeper, patience=0.01)
    for name in "12":
        turns.add(request(name, memory="anna"), ROOM)
    assert turns.ready("1")
    time.sleep(0.02)
    assert not turns.ready("2")
    assert turns.refused == {"2"}
    assert "in use for" in turns["2"].error


def test_another_process_holds_the_memory(adapter, tmp_path):
    place = str(tmp_path / "memories.db")
    other = Store(place)
    assert other.lease(Key("local", "anna"), "someone", 20)
    turns = Turns(adapter, open_keeper(place), patience=60)
    turns.add(request("1", memory="anna"), ROOM)
    assert not turns.ready("1")
    other.release(Key("local", "anna"), "someone")
    time.sleep(0.11)
    assert turns.ready("1")
    assert not other.lease(Key("local", "anna"), "someone", 20)
    turns.end("1")
    assert other.lease(Key("local", "anna"), "someone", 20)


def test_a_memory_that_another_changed_is_not_overwritten(model, adapter, tmp_path):
    place = str(tmp_path / "memories.db")
    turns, other, key = Turns(adapter, open_keeper(place), 60), Store(place), Key("local", "anna")
    memory = told(model, [3, 4])
    other.create(key, memory.to_bytes(), tokens=2)
    turns.add(request("1", memory="anna"), ROOM)
    assert turns.ready("1")
    other.save(other.load(key))
    turns.keep("1", states_of(memory), tokens=9)
    assert turns["1"].error
    assert other.load(key).tokens == 2


def test_memories_that_do_not_fit_are_refused(model, turns, keeper):
    for name, wrong in {
        "other": tiny_adapted(DeltaMemConfig(r=4, init="random"), seed=5).new_memory(),
        "wide": tiny_adapted(DeltaMemConfig(r=2)).new_memory(),
    }.items():
        state = DeltaMemState(wrong.snapshot, "another") if name == "other" else wrong
        keeper.save(keeper.load(Key("local", name), True), state)
        turns.add(request(name, memory=name), ROOM)
        assert not turns.ready(name)
    assert "was written by the adapter another" in turns["other"].error
    assert "does not fit" in turns["wide"].error


def test_a_memory_with_a_journal_is_only_read(model, adapter, tmp_path):
    place = str(tmp_path / "memories.db")
    Store(place).create(Key("local", "anna"), told(model, [3]).to_bytes(), journal=True)
    turns = Turns(adapter, open_keeper(place), 60)
    turns.add(request("1", memory="anna"), ROOM)
    turns.add(request("2", memory="anna", write=False), ROOM)
    assert not turns.ready("1")
    assert "journal" in turns["1"].error
    assert turns.ready("2")


def test_the_last_token_has_room(turns):
    short, long, cut = request("1", memory="a"), request("2", ROOM - 1, memory="b"), request("3", resumable=True, memory="c")
    for one in (short, long, cut):
        turns.add(one, ROOM)
    assert short.max_tokens == ROOM - 1 - 5
    assert turns.refused == {"2", "3"}
    assert "at most 62" in turns["2"].error


def test_a_prompt_is_written_without_an_answer(model, turns, keeper):
    memory = told(model, [3, 4, 5])
    for number, (tokens, known) in enumerate(((ROOM - 1, 2), (ROOM, 2), (5, 6))):
        turns.add(request(str(number), tokens, memory=f"m{number}", write="prompt", known=known), ROOM)
    assert turns.refused == {"1", "2"}
    assert "at most 63" in turns["1"].error
    assert "'known': 6" in turns["2"].error
    assert turns.ready("0")
    assert turns["0"].writing
    assert turns["0"].slot_use == SlotUse(Use.WRITE, 2)
    turns.keep("0", states_of(memory), tokens=5)
    assert keeper.load(Key("local", "m0"), True).state.tokens == [3]


def test_a_request_without_a_memory_leaves_nothing(turns):
    turns.add(request("1"), ROOM)
    assert turns.ready("1")
    assert turns["1"].slot_use.use is Use.NONE
    turns.keep("1", {}, 3)
    turns.end("1")
    assert turns.get("1") is None
