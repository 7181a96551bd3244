"""Many requests on many memories, some given up, in a cache so small that vLLM preempts: each memory equals its replay."""

import os

import pytest
import torch
from nightly import by_day

pytest.importorskip("vllm", reason="vLLM is not installed; .ci/vllm installs it")

from vllm_engine import Engine, Request, difference, random_prompt, strong
from vllm_oracle import written

REQUESTS = int(os.environ.get("DELTAMEM_VLLM_REQUESTS", by_day("120", "1000")))
MEMORIES = 50
# Blocks of the cache: each holds 128 tokens or a state, and one request of the longest needs 5.
BLOCKS = 16


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    model = strong("llama")
    folder = tmp_path_factory.mktemp("many")
    store = f"sqlite:///{folder / 'memories.db'}"
    engine = Engine.of(folder, model, store, num_gpu_blocks_override=BLOCKS, max_num_seqs=16)
    engine.model = model
    yield engine
    engine.close()


def random_request(pick):
    return Request(
        random_prompt(pick([3, 20, 125, 126, 250, 380]), pick.generator),
        length=pick([1, 5, 30]),
        memory=f"memory-{pick(range(MEMORIES))}" if pick(range(10)) else None,
        write=pick(["after", "during", "after", "during", False]),
    )


class Pick:
    """Picks one of several, at random."""

    def __init__(self, seed):
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, choices):
        return choices[int(torch.randint(len(choices), (), generator=self.generator))]


def test_each_memory_equals_its_replay(engine):
    pick, under_way, replayed = Pick(0), {}, {}
    preempted, sent, given_up = set(), 0, 0
    while sent < REQUESTS or engine.busy:
        while sent < REQUESTS and len(under_way) < 24:
            request = random_request(pick)
            under_way[engine.begin(request)] = request
            sent += 1
        if under_way and not pick(range(12)):
            name = pick([*under_way])
            engine.abort(name)
            del under_way[name]
            given_up += 1
        for name, output in engine.step().items():
            request = under_way.pop(name)
            assert output.finish_reason == "length", output.stop_reason
            assert len(output.token_ids) == request.length
            if request.memory is not None and request.write:
                replayed.setdefault(request.memory, []).append([*request.prompt, *output.token_ids])
        preempted |= {name for name, request in engine.scheduler.requests.items() if request.num_preemptions > 1}
    assert preempted
    assert given_up
    assert len(replayed) > min(REQUESTS // 4, MEMORIES - 5)
    for memory, turns in replayed.items():
        expected = None
        for tokens in turns:
            expected = written(engine.model, expected, tokens)
        assert difference(engine.memory(memory), expected) < 1e-4


def test_nothing_is_left_over(engine):
    """All slots are free, all memories released, and no turn is remembered."""
    assert engine.scheduler.connector.turns._turns == {}
    assert engine.scheduler.connector.turns._held == {}
    assert engine.scheduler.connector._slots == {}
    assert engine.scheduler.kv_cache_manager.block_pool.get_num_free_blocks() == BLOCKS - 1  # one is vLLM's null block
