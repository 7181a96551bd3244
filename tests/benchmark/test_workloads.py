import time
from contextlib import contextmanager

import pytest
import torch
from rich.progress import Progress
from tiny import random_tokens, tiny_backbone

from deltamem.benchmark.after_writing import memories_after
from deltamem.benchmark.interleave import WARM_UP, take_turns
from deltamem.benchmark.twins import twins
from deltamem.benchmark.workloads import Decoding, Prefill, TrainingStep

CPU = torch.device("cpu")


@pytest.fixture(params=["tsw", "ssw", "msw"])
def both(request):
    return twins(tiny_backbone(), None, request.param)


def run(workload):
    with workload() as work:
        work()


def test_greedy_decoding_says_what_generate_says(both):
    ids = random_tokens(2, 9)
    for subject in both:
        decoding = Decoding(subject, ids, new_tokens=6)
        for _ in range(2):  # and the same in every run
            run(decoding)
            with torch.no_grad(), subject.decoding(batch=2):
                options = {"max_new_tokens": 7, "min_new_tokens": 7, "do_sample": False}
                said = subject.model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)
            assert decoding.tokens == said[:, 9:].tolist()


def test_a_static_cache_says_the_same(both):
    ids = random_tokens(2, 9)
    for subject in both:
        decodings = [Decoding(subject, ids, new_tokens=6, static=static) for static in (False, True)]
        for _ in range(2):
            for decoding in decodings:
                run(decoding)
            assert decodings[0].tokens == decodings[1].tokens


def test_a_compiled_model_says_the_same():
    ids = random_tokens(1, 9)
    for subject in twins(tiny_backbone(), None, "tsw"):
        compiled = torch.compile(subject.model, backend="eager")
        decodings = [Decoding(subject, ids, 6), Decoding(subject, ids, 6, static=True, forward=compiled)]
        for _ in range(2):
            for decoding in decodings:
                run(decoding)
            assert decodings[0].tokens == decodings[1].tokens
    torch.compiler.reset()


def test_decoding_starts_from_the_given_memory_and_leaves_it():
    _, adapted = twins(tiny_backbone(), None, "tsw")
    (_, memory), *_ = memories_after(adapted, [50], batch=1, most_tokens=20, progress=Progress(disable=True))
    before, seen = memory.snapshot, []
    forward = adapted.model.forward
    for start in (None, memory):
        run(
            Decoding(
                adapted,
                random_tokens(1, 9),
                new_tokens=2,
                memory=start,
                forward=lambda **kw: seen.append(forward(**kw)) or seen[-1],
            )
        )
    assert memory.snapshot is before
    assert not torch.equal(seen[0].logits, seen[2].logits)


def test_a_training_step_has_gradients_and_leaves_none(both):
    for subject in both:
        with TrainingStep(subject, random_tokens(2, 70))() as work:
            work()
            found = {name for name, weight in subject.model.named_parameters() if weight.grad is not None}
            assert all("delta_mem_" in name for name in found)
            assert bool(found) == hasattr(subject.model, "peft_config")
        assert all(weight.grad is None for weight in subject.model.parameters())
        assert not subject.model.training


def test_a_prefill_leaves_the_model_as_it_was(both):
    for subject in both:
        run(Prefill(subject, random_tokens(2, 70)))
        run(Prefill(subject, random_tokens(1, 9)))


def test_memories_of_rising_length(both):
    _, adapted = both
    seen = [
        (length, memory.tokens, memory.nbytes)
        for length, memory in memories_after(adapted, [50, 10, 45], batch=2, most_tokens=20, progress=Progress(disable=True))
    ]
    assert [(length, tokens) for length, tokens, _ in seen] == [(10, [10] * 2), (45, [45] * 2), (50, [50] * 2)]
    assert len({size for *_, size in seen}) == 1


def test_workloads_take_turns_and_swap_places():
    order = []

    def workload(name, seconds):
        @contextmanager
        def prepared():
            time.sleep(0.02)  # preparing is not timed
            yield lambda: (order.append(name), time.sleep(seconds))

        return prepared

    times = take_turns([workload("a", 0), workload("b", 0.005)], 6, CPU, Progress(disable=True), "test")
    assert len(times) == 6
    assert all(second >= 5 for _, second in times)
    assert min(first for first, _ in times) < 20
    assert "".join(order) == "baab" * ((6 + WARM_UP) // 2)
