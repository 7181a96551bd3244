"""No call leaves anything behind, and no two users of one model meet."""

import asyncio
import copy
import functools
import gc
import threading
import weakref

import pytest
import torch
from nightly import by_day
from oracle import GREEDY, TOLERANCE, adapted, error, logits_of, replay, told
from tiny import FAMILIES, random_tokens, tiny_config
from tiny_chat import chat_model, chat_tokenizer
from torch import nn
from transformers import DynamicCache

from deltamem import ChatSession


def generate(model, ids, **options):
    return model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **{**GREEDY, **options})


def tensors_held_by(model):
    """Every tensor that can be reached from the model's attributes and is neither a parameter nor a buffer."""
    own = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    found, seen, todo = [], set(), [model]
    while todo:
        thing = todo.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        if isinstance(thing, torch.Tensor):
            found += [thing] if id(thing) not in own else []
        elif isinstance(thing, dict):
            todo += thing.values()
        elif isinstance(thing, list | tuple | set):
            todo += thing
        elif isinstance(thing, functools.partial):
            todo += [thing.func, thing.args, thing.keywords]
        elif hasattr(thing, "__self__"):
            todo.append(thing.__self__)
        elif hasattr(thing, "__dict__") and not isinstance(thing, type):
            todo.append(vars(thing))
    return found


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_call_without_a_memory_starts_empty_and_leaves_nothing(model_type):
    model = adapted(model_type)
    before = len(tensors_held_by(model))
    question, secret = random_tokens(1, 6), random_tokens(1, 20, seed=1)
    clean = logits_of(model, question[0])
    with torch.no_grad():
        model(input_ids=secret)
        generate(model, secret)
        assert torch.equal(model(input_ids=question, use_cache=False).logits[0], clean)
    told(model)
    with torch.no_grad():
        assert torch.equal(model(input_ids=question, use_cache=False).logits[0], clean)
    assert len(tensors_held_by(model)) == before


def test_what_a_model_held_would_be_found():
    model = adapted()
    before = len(tensors_held_by(model))
    block = model.memory(told(model))
    with block:
        assert len(tensors_held_by(model)) > before  # for as long as the block is open, and only then
    assert len(tensors_held_by(model)) == before
    next(module for module in model.modules() if isinstance(module, nn.Linear)).left_behind = {"state": [torch.ones(1)]}
    assert len(tensors_held_by(model)) == before + 1


@pytest.mark.parametrize("model_type", FAMILIES)
def test_two_sessions_interleave(model_type):
    model = adapted(model_type)
    alone, mixed = ([model.new_memory() for _ in range(2)] for _ in range(2))
    turns = [random_tokens(1, 7, seed=seed) for seed in range(6)]

    def turn(states, who, tokens):
        with model.memory(states[who]):
            return generate(model, tokens)

    separate = {index: turn(alone, who, turns[index]) for who in (0, 1) for index in range(who, 6, 2)}
    together = {index: turn(mixed, index % 2, turns[index]) for index in range(6)}
    assert all(torch.equal(separate[index], together[index]) for index in range(6))
    assert all(error(a, m) == 0 for a, m in zip(alone, mixed, strict=True))


def conversations(model, seed, count=15):
    """Generations, each on the memory that those before it left."""
    state = model.new_memory()
    for index in range(count):
        with model.memory(state):
            yield generate(model, random_tokens(1, 6, seed=100 * seed + index), max_new_tokens=4, min_new_tokens=4)
    yield state.snapshot.to_flat()


def equal(first, second):
    return all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else all(torch.equal(a[name], b[name]) for name in a)
        for a, b in zip(first, second, strict=True)
    )


@pytest.mark.parametrize("model_type", FAMILIES)
def test_threads(model_type):
    model, results = adapted(model_type), {}

    def work(seed):
        results[seed] = [*conversations(model, seed)]

    threads = [threading.Thread(target=work, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in (1, 2):
        assert equal(results[seed], [*conversations(model, seed)])
    assert not equal(results[1], results[2])  # the control


def test_tasks_of_an_event_loop():
    model = adapted()

    async def work(seed):
        state = model.new_memory()
        with model.memory(state):
            for index in range(5):
                generate(model, random_tokens(1, 6, seed=100 * seed + index))
                await asyncio.sleep(0)  # the other task runs while this one's block is open
        return state

    async def both():
        return await asyncio.gather(work(1), work(2))

    together = asyncio.run(both())
    alone = [asyncio.run(work(seed)) for seed in (1, 2)]
    assert all(error(t, a) == 0 for t, a in zip(together, alone, strict=True))
    assert error(*alone) > 0.01  # the control


def test_a_thread_does_not_inherit_the_block_it_was_started_in():
    model, seen = adapted(), []
    ids = random_tokens(1, 6)

    def work():
        with torch.no_grad():
            seen.append(model(input_ids=ids, use_cache=False).logits[0])

    with model.memory(told(model), write=False):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        with torch.no_grad():
            inside = model(input_ids=ids, use_cache=False).logits[0]
    assert torch.equal(seen[0], logits_of(model, ids[0]))
    assert not torch.allclose(seen[0], inside, atol=1e-3)  # the control


def test_the_innermost_block_counts():
    model = adapted()
    outer, inner = told(model, seed=1), told(model, seed=2)
    outer_before, ids = outer.clone(), random_tokens(1, 5)
    with torch.no_grad(), model.memory(outer), model.memory(inner):
        model(input_ids=ids)
    assert error(outer, outer_before) == 0
    assert error(inner, replay(model, ids[0], told(model, seed=2))) < TOLERANCE


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_copy_of_a_used_model_is_a_model_of_its_own(model_type):
    model = adapted(model_type)
    state, ids = told(model), random_tokens(1, 6)
    with model.memory(state):
        generate(model, ids)
    twin = copy.deepcopy(model)
    assert torch.equal(logits_of(twin, ids[0], state), logits_of(model, ids[0], state))
    before = logits_of(model, ids[0], state)
    with torch.no_grad():
        for weight in (weight for name, weight in twin.named_parameters() if "delta_mem_in" in name):
            weight.add_(1.0)
    fresh = twin.new_memory()
    with torch.no_grad(), twin.memory(fresh):
        twin(input_ids=ids)
    assert torch.equal(logits_of(model, ids[0], state), before)
    assert model.fingerprint() == adapted(model_type).fingerprint() != twin.fingerprint()


def test_a_cache_outside_any_block_carries_the_memory_of_its_tokens_alone():
    """Two users' caches, used in turn: each goes on from what its own tokens wrote."""
    model = adapted()
    caches, texts = [DynamicCache(), DynamicCache()], [random_tokens(1, 10, seed=seed) for seed in (1, 2)]
    logits = {0: [], 1: []}
    with torch.no_grad():
        for piece in range(2):
            for who in (0, 1):
                new = texts[who][:, 5 * piece : 5 * piece + 5]
                logits[who].append(model(input_ids=new, past_key_values=caches[who], use_cache=True).logits[0])
    for who in (0, 1):
        assert torch.allclose(torch.cat(logits[who]), logits_of(model, texts[who][0]), atol=TOLERANCE)


def test_two_threads_cannot_write_to_one_memory_at_a_time():
    model, problems = adapted(), []
    state = told(model)

    def work():
        try:
            with model.memory(state):
                pass
        except RuntimeError as problem:
            problems.append(str(problem))
        with model.memory(state, write=False):  # to read it is no harm
            pass

    with torch.no_grad(), model.memory(state):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        with model.memory(state):  # in the same thread it is the same writer
            model(input_ids=random_tokens(1, 4))
    assert "another thread or task is writing" in problems[0]
    work()
    assert len(problems) == 1


def test_adapters_are_not_switched_under_an_open_memory():
    model = adapted()
    model.add_adapter("other", tiny_config())
    state = told(model)
    before = state.snapshot
    with pytest.raises(RuntimeError, match=r"opened for the adapter 'default', but \['other'\] is active"), torch.no_grad():
        with model.memory(state):
            model(input_ids=random_tokens(1, 4))
            model.set_adapter("other")
            model(input_ids=random_tokens(1, 4))
    assert state.snapshot is before
    model.set_adapter("default")
    with pytest.raises(RuntimeError, match="opened for the adapter"), torch.no_grad(), model.memory(state):
        model(input_ids=random_tokens(1, 4))
        model.set_adapter("other")
    assert state.snapshot is before


def test_a_session_does_not_write_to_the_memory_it_was_given():
    model = chat_model()
    given = model.new_memory()
    first, second = (ChatSession(model, chat_tokenizer(), memory=given) for _ in range(2))
    first.observe("Anna likes teal.")
    assert error(given, model.new_memory()) == 0
    assert error(second.memory, given) == 0
    assert error(first.memory, given) > 0.01


@torch.no_grad()
def test_what_a_call_used_is_freed():
    """No cache of ours keeps a memory alive, nor, every night, one of torch.compile."""
    model = adapted()
    fast = torch.compile(model, fullgraph=True, dynamic=True, backend="eager")
    for run in by_day([model], [model, fast]):
        state = told(model)
        with model.memory(state):
            run(input_ids=random_tokens(1, 6), use_cache=False)
        alive = [weakref.ref(tensor) for tensor in state.snapshot.to_flat().values()]
        del state
        gc.collect()
        assert not any(reference() is not None for reference in alive)
    torch._dynamo.reset()
