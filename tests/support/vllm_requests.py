"""Random requests to an engine, in batches that change with every step, and what is expected of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from peft import PeftModel
from vllm_engine import Engine, Request, difference, random_prompt
from vllm_oracle import answered

from deltamem import DeltaMemState

# How many random requests are sent to an engine.
REQUESTS = int(os.environ.get("DELTAMEM_VLLM_REQUESTS", "24"))
TOLERANCE = 1e-4


def random_requests(number: int, seed: int) -> list[Request]:
    """Requests of all kinds, of which those of one memory come one after another."""
    generator = torch.Generator().manual_seed(seed)

    def pick(*choices: Any) -> Any:
        return choices[int(torch.randint(len(choices), (), generator=generator))]

    def request() -> Request:
        prompt = random_prompt(pick(1, 2, 7, 40, 130, int(torch.randint(1, 800, (), generator=generator))), generator)
        return Request(
            prompt,
            length=pick(1, 2, 9, 25),
            memory=pick(None, "anna", "anna", "bob", "bob"),
            write=pick("after", "during", "prompt", False),
            known=pick(0, 0, int(torch.randint(len(prompt), (), generator=generator))),
            stop=pick(None, None, 5),
        )

    return [request() for _ in range(number)]


def expected(model: PeftModel, memories: dict[str, DeltaMemState | None], request: Request) -> list[int]:
    """The tokens of a request; its memory is changed in the dictionary."""
    before = None if request.memory is None else memories.get(request.memory)
    write = request.write if request.memory is not None else False
    result = answered(model, before, request.prompt, request.length, write, request.stop, request.known)
    if request.memory is not None and write:
        memories[request.memory] = result.memory
    return result.tokens


def run_in_changing_batches(engine: Engine, requests: Sequence[Request], seed: int) -> list[Any]:
    """Send requests one by one between steps, and return their answers.

    A request that only reads may come before or after a writer that is under way. So of the requests on one memory, one is
    under way at a time, and they run in their order.
    """
    waiting, ids, ended = [*range(len(requests))], dict[str, int](), dict[int, Any]()
    busy: set[str | None] = set()
    generator = torch.Generator().manual_seed(seed)
    while waiting or engine.busy:
        for number in waiting[: int(torch.randint(3, (), generator=generator))]:
            memory = requests[number].memory
            if memory not in busy:
                waiting.remove(number)
                ids[engine.begin(requests[number])] = number
                busy |= {memory} - {None}
        for name, output in engine.step().items():
            ended[ids[name]] = output
            busy -= {requests[ids[name]].memory}
    return [ended[number] for number in range(len(requests))]


def check_random_requests(model: PeftModel, engine: Engine) -> None:
    """Send random requests in changing batches: tokens and memories are those that transformers gives."""
    requests = random_requests(REQUESTS, seed=0)
    outputs = run_in_changing_batches(engine, requests, seed=1)
    memories: dict[str, DeltaMemState | None] = {}
    for request, output in zip(requests, outputs, strict=True):
        assert output.token_ids == expected(model, memories, request)
        assert output.finish_reason == ("stop" if request.stop in output.token_ids else "length")
    assert {*memories} == {"anna", "bob"}
    for name, memory in memories.items():
        assert difference(engine.memory(name), memory) < TOLERANCE
