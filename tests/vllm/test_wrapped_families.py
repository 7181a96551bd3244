"""Families that vLLM runs in its wrapper of transformers' own code have the right tokens and memories too."""

import pytest
from nightly import by_day

pytest.importorskip("vllm", reason="vLLM is not installed; .ci/vllm installs it")

from vllm_engine import Engine, difference, strong
from vllm_requests import expected, random_requests, run_in_changing_batches


@pytest.mark.parametrize("model_type", by_day(["smollm3"], ["smollm3", "olmo2"]))
def test_random_requests_in_changing_batches(model_type, tmp_path):
    model = strong(model_type)
    requests, memories = random_requests(24, seed=0), {}
    tokens = [expected(model, memories, request) for request in requests]  # before vLLM changes transformers' classes
    engine = Engine.of(tmp_path, model)
    try:
        outputs = run_in_changing_batches(engine, requests, seed=1)
        assert [output.token_ids for output in outputs] == tokens
        for name, memory in memories.items():
            assert difference(engine.memory(name), memory) < 1e-4
    finally:
        engine.close()
