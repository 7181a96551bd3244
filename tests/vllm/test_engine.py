"""What vLLM answers to requests of all kinds, with an adapter that has several states and corrects every projection."""

import pytest
import torch

pytest.importorskip("vllm", reason="vLLM is not installed; .ci/vllm installs it")

from tiny import tiny_config
from vllm import SamplingParams
from vllm.exceptions import VLLMValidationError
from vllm_engine import LONGEST, Engine, Request, difference, random_prompt, strong
from vllm_oracle import written
from vllm_requests import check_random_requests

from deltamem import DeltaMemState


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    config = tiny_config(num_states=3, corrections=("q", "k", "v", "o"), decay="learned", rowwise_gates=False)
    model = strong("llama", config=config)
    folder = tmp_path_factory.mktemp("engine")
    engine = Engine.of(folder, model, store=str(folder / "memories.db"))
    yield model, engine
    engine.close()


def prompt(length, seed=0):
    return random_prompt(length, torch.Generator().manual_seed(seed))


def generate(engine, tokens, **params):
    params = SamplingParams(**{"temperature": 0, "max_tokens": 6, "ignore_eos": True, "detokenize": False, **params})
    (output,) = engine.llm.generate([{"prompt_token_ids": tokens}], params, use_tqdm=False)
    return output


def test_random_requests_in_changing_batches(pair):
    check_random_requests(*pair)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"extra_args": {"memory": "no spaces"}}, "memory 'no spaces' is not accepted"),
        ({"extra_args": {"memory": "anna", "write": "always"}}, "'write': 'always' is not accepted"),
        ({"extra_args": {"memory": "anna"}, "n": 2, "temperature": 1}, "only one answer"),
        ({"extra_args": {"memory": "anna"}, "prompt_logprobs": 1}, "prompt_logprobs"),
        ({"extra_args": {"memory": "anna"}, "stop": ["."], "detokenize": True}, "stop"),
    ],
)
def test_a_request_that_is_not_accepted_is_refused_on_arrival(pair, params, message):
    _, engine = pair
    with pytest.raises(VLLMValidationError, match=message):
        generate(engine, prompt(4), **params)
    assert not engine.busy


def test_a_memory_that_does_not_fit_ends_the_request_with_the_reason(pair):
    model, engine = pair
    other = DeltaMemState(written(model, None, prompt(4)).snapshot, "another")
    engine.keep("other", other)
    output = generate(engine, prompt(4), extra_args={"memory": "other"}).outputs[0]
    assert output.finish_reason == "error"
    assert "was written by the adapter another" in output.stop_reason
    assert engine.run([Request(prompt(4), 3)])[0].finish_reason == "length"  # the engine goes on


def test_log_probabilities_do_not_depend_on_when_the_memory_is_written(pair):
    _, engine = pair
    engine.run([Request(prompt(30), 2, name, "after") for name in ("read", "after")])
    read, after = (
        generate(engine, prompt(9, seed=1), logprobs=3, extra_args={"memory": name, "write": write}).outputs[0]
        for name, write in (("read", False), ("after", "after"))
    )
    assert read.token_ids == after.token_ids
    assert read.logprobs == after.logprobs
    assert len(after.logprobs) == len(after.token_ids)


def test_several_answers_may_read_a_memory(pair):
    _, engine = pair
    engine.run([Request(prompt(30), 2, "choices", "after")])
    before = engine.memory("choices")
    output = generate(engine, prompt(5), n=2, temperature=1, seed=1, extra_args={"memory": "choices", "write": False})
    assert len(output.outputs) == 2
    assert difference(engine.memory("choices"), before) == 0


@pytest.mark.parametrize("write", ["after", "during"])
def test_an_answer_may_fill_the_context_but_for_one_token(pair, write):
    model, engine = pair
    name, tokens = f"long-{write}", prompt(LONGEST - 10)
    output = generate(engine, tokens, max_tokens=None, extra_args={"memory": name, "write": write}).outputs[0]
    assert len(output.token_ids) == 9
    assert output.finish_reason == "length"
    assert difference(engine.memory(name), written(model, None, [*tokens, *output.token_ids])) < 1e-4


def test_a_prompt_that_fills_the_context_is_refused(pair):
    _, engine = pair
    output = generate(engine, prompt(LONGEST - 1), max_tokens=1, extra_args={"memory": "full"}).outputs[0]
    assert output.finish_reason == "error"
    assert f"at most {LONGEST - 2}" in output.stop_reason
    assert engine.memory("full") is None
