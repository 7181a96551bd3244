"""Requests to vLLM have the tokens and leave the memories that transformers with this library gives them, in every family."""

import os

import pytest
import torch
from nightly import by_day

pytest.importorskip("vllm", reason="vLLM is not installed; .ci/vllm installs it")

from vllm_engine import Engine, Request, difference, random_prompt, strong
from vllm_requests import TOLERANCE, check_random_requests, expected

from deltamem.vllm import step
from deltamem.vllm.batch import Use

# Qwen 3 has norms of queries and keys; Qwen 2 has biases; Mistral and Gemma 3 have sliding windows; Phi 3 packs its
# projections. By day, three stand for the others. SmolLM 3 and OLMo 2 run in vLLM's wrapper of transformers: see
# test_wrapped_families.py.
EVERY = ("llama", "qwen3", "mistral", "qwen2", "phi3", "gemma3_text", "granite")
FAMILIES = os.environ.get("DELTAMEM_VLLM_FAMILIES", " ".join(by_day(EVERY[:3], EVERY))).split()
OPTIONS = {"mistral": {"sliding_window": 64}, "qwen2": {"hidden_size": 128}}


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request, tmp_path_factory):
    """A model, and an engine of it."""
    model = strong(request.param, **OPTIONS.get(request.param, {}))
    engine = Engine.of(tmp_path_factory.mktemp(request.param), model)
    yield model, engine
    engine.close()


def test_random_requests_in_changing_batches(pair):
    check_random_requests(*pair)


def test_requests_on_one_memory_wait_for_each_other(pair):
    model, engine = pair
    generator = torch.Generator().manual_seed(2)
    requests = [Request(random_prompt(9, generator), 4, "dora", write) for write in ("after", "during", "after", "during")]
    outputs = engine.run(requests)
    memories = {}
    assert [output.token_ids for output in outputs] == [expected(model, memories, request) for request in requests]
    assert difference(engine.memory("dora"), memories["dora"]) < TOLERANCE


def test_a_request_that_is_given_up_leaves_nothing(pair):
    _, engine = pair
    generator = torch.Generator().manual_seed(3)
    engine.run([Request(random_prompt(9, generator), 4, "emil", "after")])
    before = engine.memory("emil")
    for write in ("after", "during"):
        for steps in (1, 3):
            name = engine.begin(Request(random_prompt(200, generator), 9, "emil", write))
            for _ in range(steps):
                engine.step()
            engine.abort(name)
            engine.step()
    assert not engine.busy
    assert difference(engine.memory("emil"), before) == 0


@pytest.fixture
def filled(pair):
    """A memory that answers differ with."""
    _, engine = pair
    generator = torch.Generator().manual_seed(4)
    for name in ("frida", "gustav"):
        engine.run([Request(random_prompt(40, generator), 4, name, "after")])
    return {name: engine.memory(name) for name in ("frida", "gustav")}


def test_the_memory_is_felt(pair, filled):
    _, engine = pair
    prompt = random_prompt(12, torch.Generator().manual_seed(5))
    answers = [engine.run([Request(prompt, 12, name)])[0].token_ids for name in (None, "frida", "gustav")]
    assert len({*map(tuple, answers)}) == 3


def test_swapped_slots_are_seen(pair, filled, monkeypatch):
    """The control of what the other tests show: with the slots of two requests swapped, their memories differ."""
    model, engine = pair
    requests = [Request(random_prompt(12, torch.Generator().manual_seed(5)), 12, name) for name in filled]
    apart = step.grouped
    monkeypatch.setattr(step, "grouped", lambda bounds, passed, slots, *rest: apart(bounds, passed, slots[::-1], *rest))
    outputs = engine.run(requests)
    memories = dict(filled)
    assert [output.token_ids for output in outputs] != [expected(model, memories, request) for request in requests]


def test_a_slot_that_is_not_reset_is_seen(pair, monkeypatch):
    model, engine = pair

    def used_only(connector, start):
        for name, layer in connector._layers():
            layer.uses[start.slots[connector._group_of[name]]] = start.use

    monkeypatch.setattr(type(engine.worker), "_put", used_only)
    for layer in engine.layers:
        for states in layer.states.values():
            states.fill_(0.5)
    request = Request(random_prompt(1, torch.Generator().manual_seed(7)), 1, "hanna", "during")
    engine.run([request])
    memories = {}
    expected(model, memories, request)
    assert difference(engine.memory("hanna"), memories["hanna"]) > 0.01
    assert Use.WRITE in [use.use for use in engine.layers[0].uses.values()]
