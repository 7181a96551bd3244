"""SmolLM2 with the shipped adapter: the same answers and memories in vLLM as in transformers."""

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed; .ci/vllm installs it")

from vllm_engine import Engine, Request, difference
from vllm_requests import TOLERANCE, check_random_requests, expected

from deltamem.backbones import load_adapted
from deltamem.vllm import engine_options

pytestmark = pytest.mark.real_model
FACTS = ("My favourite colour is teal.", "I live in Oslo.", "My sister's name is Clara.")
QUESTIONS = ("What is my favourite colour?", "Where do I live?", "Who is Clara?")


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    store = f"files:{tmp_path_factory.mktemp('smollm2')}"
    engine = Engine(engine_options(store=store))
    yield load_adapted(), engine
    engine.close()


def chat(tokenizer, text):
    messages = [{"role": "system", "content": ""}, {"role": "user", "content": text}]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]


def test_facts_are_told_and_asked(pair):
    (model, tokenizer), engine = pair
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    told = [
        Request(chat(tokenizer, fact), 12, f"user-{number}", write, end)
        for number, (fact, write) in enumerate(zip(FACTS, ("after", "during", "after"), strict=True))
    ]
    asked = [Request(chat(tokenizer, question), 12, f"user-{number}", False, end) for number, question in enumerate(QUESTIONS)]
    memories = {}
    for requests in (told, asked, asked[:1]):
        outputs = engine.run(requests)
        assert [output.token_ids for output in outputs] == [expected(model, memories, request) for request in requests]
    for name, memory in memories.items():
        assert difference(engine.memory(name), memory) < TOLERANCE
    without = engine.run([Request(request.prompt, 12, None, False, end) for request in asked])
    assert [output.token_ids for output in outputs] != [output.token_ids for output in without[:1]]


def test_random_requests_in_changing_batches(pair):
    (model, _), engine = pair
    check_random_requests(model, engine)
