"""torch.compile with a memory attached: one graph for texts of every length, no break, equal results.

With the backend "eager", which runs the traced graph as it is: what is tested is the tracing, not the code of a compiler.
"""

import threading

import pytest
import torch
from nightly import by_day, every_night
from oracle import TOLERANCE, adapted, error, told
from tiny import FAMILIES, random_tokens
from torch._dynamo.utils import counters
from transformers import DynamicCache, StaticCache

from deltamem.rule.operator import delta_rule_operator

LENGTHS = (6, 12, 33, 70)
SINGLE = {"attn": "sdpa", "num_hidden_layers": 1}  # where a second layer would be traced as the first is


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def compiled(model):
    return torch.compile(model, fullgraph=True, dynamic=True, backend="eager")


def graphs():
    return counters["stats"]["unique_graphs"]


def close(first, second):
    return torch.allclose(first, second, atol=TOLERANCE)


# By day, what differs in our part of a graph: two kinds of masks, and packed projections. The other calls below are Llama's:
# without a memory, with a mask, with a cache, with gradients. A call that only reads is the second one of the training, and
# generation is a loop of calls with a cache.
@pytest.mark.parametrize("model_type", by_day(("gpt_neox",), FAMILIES))
@torch.no_grad()
def test_one_graph_for_all_lengths(model_type):
    model = adapted(model_type, attn="sdpa")
    fast, start = compiled(model), told(model)
    for length in LENGTHS:
        ids = random_tokens(1, length, seed=length)
        results = []
        for run in (model, fast):
            state = start.clone()
            with model.memory(state):
                logits = [run(input_ids=part, use_cache=False).logits for part in (ids, ids.flip(1))]
            results.append((torch.cat(logits), state))
        assert close(results[0][0], results[1][0])
        assert error(results[0][1], results[1][1]) < TOLERANCE
        assert results[1][1].tokens == [12 + 2 * length]
    # The mixer of Falcon H1 has a loop over chunks, and another graph where there is more than one.
    assert graphs() == (2 if model_type == "falcon_h1" else 1)


CALLS = {
    "no memory": lambda model, run, ids: run(input_ids=ids, use_cache=False).logits,
    "read only": lambda model, run, ids: in_block(model, run, ids, write=False),
    "left padding": lambda model, run, ids: in_block(
        model, run, ids, attention_mask=(torch.arange(len(ids[0])) > 2)[None].long()
    ),
}


def in_block(model, run, ids, write=True, **options):
    state = told(model)
    with model.memory(state, write=write):
        logits = run(input_ids=ids, use_cache=False, **options).logits
    return torch.cat([logits[:, 3:].flatten(), *(state.flatten() for state in state.tensors.values())])


@pytest.mark.parametrize("call", by_day(("no memory", "left padding"), [*CALLS]))
@torch.no_grad()
def test_other_calls(call):
    model = adapted(**SINGLE)
    fast = compiled(model)
    for length in LENGTHS:
        ids = random_tokens(1, length, seed=length)
        assert close(CALLS[call](model, fast, ids), CALLS[call](model, model, ids))
    assert graphs() == 1


@pytest.mark.parametrize("kind", by_day([StaticCache], [DynamicCache, StaticCache]))  # the next test's is dynamic
@torch.no_grad()
def test_decoding_with_a_cache(kind):
    model = adapted(**SINGLE)
    fast, results = compiled(model), []
    for run in (model, fast):
        cache = DynamicCache(config=model.config) if kind is DynamicCache else StaticCache(model.config, max_cache_len=64)
        state = told(model)
        with model.memory(state):
            logits = [
                run(input_ids=piece, past_key_values=cache, use_cache=True).logits
                for piece in random_tokens(1, 24).split([12, *[1] * 12], dim=1)
            ]
        results.append((torch.cat(logits, dim=1), state))
    assert close(results[0][0], results[1][0])
    assert error(results[0][1], results[1][1]) < TOLERANCE
    assert graphs() == 2  # the prefill's and the steps', not one for each of 13 passes


@torch.no_grad()
def test_it_goes_on_from_tokens_that_were_not_compiled():
    """Their states lie in one tensor, and the graph is told of those of each layer."""
    model = adapted(attn="sdpa")
    fast, results = compiled(model), []
    for run in (model, fast):
        cache, state = DynamicCache(config=model.config), told(model)
        first, second, *rest = random_tokens(1, 12).split([1, 1, 8, 1, 1], dim=1)
        with model.memory(state):
            for token in (first, second):
                model(input_ids=token, past_key_values=cache, use_cache=True)
            logits = [run(input_ids=piece, past_key_values=cache, use_cache=True).logits for piece in rest]
        results.append((torch.cat(logits, dim=1), state))
    assert close(results[0][0], results[1][0])
    assert error(results[0][1], results[1][1]) < TOLERANCE


def test_training():
    model = adapted(**SINGLE).train()
    fast, gradients = compiled(model), []
    for run in (model, fast):
        model.zero_grad()
        state = model.new_memory()
        with model.memory(state, detach=False):
            run(input_ids=random_tokens(1, 12), use_cache=False)
        with model.memory(state, write=False):
            run(input_ids=random_tokens(1, 7), use_cache=False).logits.pow(2).mean().backward()
        gradients.append({name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None})
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradients[1][name], gradient, rtol=1e-4, atol=1e-7), name


@torch.no_grad()
def test_another_threads_memory_is_never_used():
    """The graph cannot know its thread; an operator in it stops a thread that did not open the block."""
    model = adapted(**SINGLE)
    fast, ids, state, seen = compiled(model), random_tokens(1, 9), told(model), []
    with model.memory(state):
        fast(input_ids=ids, use_cache=False)

    def work():
        try:
            with torch.no_grad():
                seen.append(fast(input_ids=ids, use_cache=False))
        except RuntimeError as problem:
            seen.append(str(problem))

    before = state.snapshot
    with model.memory(state):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert state.snapshot is before
        fast(input_ids=ids, use_cache=False)  # the thread that opened it goes on
    assert "another thread or task had a memory of it open" in seen[0]
    assert state.snapshot is not before


@every_night
@torch.no_grad()
def test_generation_with_a_compiled_forward():
    model = adapted(**SINGLE)
    ids, states, sequences = random_tokens(1, 8), [], []
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    backbone = model.get_base_model()
    for compile_ in (False, True):
        if compile_:
            backbone.forward = torch.compile(backbone.forward, fullgraph=True, dynamic=True, backend="eager")
        state = told(model)
        with model.memory(state):
            sequences.append(model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options))
        states.append(state)
    assert torch.equal(*sequences)
    assert error(*states) < TOLERANCE


def test_the_rule_is_a_sound_operator():
    """PyTorch's own check of shapes, aliasing and gradients of a custom operator."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 1, 5, 3, generator=generator) for _ in range(3))
    keep, erase, write = (torch.rand(2, 1, 5, 3, generator=generator) for _ in range(3))
    state = torch.randn(2, 1, 3, 3, generator=generator)
    inputs = [tensor.requires_grad_() for tensor in (q, k, v, keep, erase, write, state)]
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    more = (*checks, "test_aot_dispatch_dynamic")  # which compiles it, as the training above does
    torch.library.opcheck(delta_rule_operator, (*inputs, "chunked"), test_utils=by_day(checks, more))
