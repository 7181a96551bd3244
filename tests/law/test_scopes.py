"""Whose memory is it? Blocks that interleave, end in any order, are interrupted, or are found from copied contexts."""

import asyncio
import contextlib
import contextvars
import copy
import os
import random
import signal
import threading
import warnings

import pytest
import torch
from examples import examples
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from oracle import TOLERANCE, adapted, error, logits_of, told
from tiny import random_tokens

from deltamem.forward import scope as blocks
from deltamem.forward.scope import MemoryScope

USERS = ("anna", "bob")
QUESTION = random_tokens(1, 5, seed=9)


def say(model, *tokens):
    with torch.no_grad():
        return model(input_ids=torch.tensor([tokens]), use_cache=False).logits


def listens(model, state):
    """A generator with a block: writes each token that it is sent; hands out a copy of its context."""
    with model.memory(state):
        token = yield contextvars.copy_context()
        while token is not None:
            say(model, token)
            token = yield None


class Interleaved(RuleBasedStateMachine):
    """Generators of two users, each with a block, pulled in any order, and what else can meet an open block.

    The oracle is a second model that each user has alone: one plain block for the tokens of a generator that ended well.
    """

    @initialize()
    def start(self):
        self.model, self.alone = adapted(), adapted()
        self.clean = logits_of(self.model, QUESTION[0])
        self.states = {user: self.model.new_memory() for user in USERS}
        self.expected = {user: self.alone.new_memory() for user in USERS}
        self.open, self.said, self.contexts = {}, {}, []

    @rule(user=st.sampled_from(USERS))
    def opens(self, user):
        if user not in self.open:
            self.open[user], self.said[user] = listens(self.model, self.states[user]), []
            self.contexts.append(next(self.open[user]))

    @precondition(lambda self: self.open)
    @rule(data=st.data(), token=st.integers(3, 60), copied=st.booleans())
    def says(self, data, token, copied):
        user = data.draw(st.sampled_from(sorted(self.open)))
        run = contextvars.copy_context().run if copied else lambda send, token: send(token)
        run(self.open[user].send, token)
        self.said[user].append(token)

    @precondition(lambda self: self.open)
    @rule(data=st.data(), how=st.sampled_from(["ends", "throws", "closes", "ends elsewhere"]))
    def ends(self, data, how):
        user = data.draw(st.sampled_from(sorted(self.open)))
        stream, said = self.open.pop(user), self.said.pop(user)
        if how == "closes":
            stream.close()
        elif how == "throws":
            with pytest.raises(KeyError):
                stream.throw(KeyError("from outside"))
        else:
            run = contextvars.copy_context().run if how == "ends elsewhere" else lambda send, token: send(token)
            with warnings.catch_warnings(), pytest.raises(StopIteration):
                warnings.simplefilter("ignore")  # of a block that nothing was said in
                run(stream.send, None)
            if said:
                with self.alone.memory(self.expected[user]):
                    for token in said:
                        say(self.alone, token)

    @rule()
    def a_call_outside_is_on_its_own(self):
        assert torch.equal(say(self.model, *QUESTION[0].tolist())[0], self.clean)

    @precondition(lambda self: self.contexts)
    @rule(data=st.data())
    def so_is_one_in_a_context_that_was_copied_inside(self, data):
        run = data.draw(st.sampled_from(self.contexts)).run
        assert torch.equal(run(say, self.model, *QUESTION[0].tolist())[0], self.clean)

    @rule()
    def and_a_copy_of_the_model_holds_no_block(self):
        twin = copy.deepcopy(self.model)
        assert not twin.base_model.open_scopes
        assert torch.equal(say(twin, *QUESTION[0].tolist())[0], self.clean)

    @invariant()
    def every_memory_is_its_users(self):
        for user in USERS:
            if user not in self.open:
                assert self.states[user].tokens == self.expected[user].tokens
                assert error(self.states[user], self.expected[user]) <= TOLERANCE

    def teardown(self):
        for stream in self.open.values():
            stream.close()


TestInterleaved = Interleaved.TestCase
TestInterleaved.settings = settings(examples(15), stateful_step_count=20)


def test_without_a_look_at_the_frames_two_users_would_be_mixed(monkeypatch):
    monkeypatch.setattr(MemoryScope, "_is_suspended", lambda self: False)
    model = adapted()
    anna, bob = model.new_memory(), model.new_memory()
    first, second = listens(model, anna), listens(model, bob)
    next(first), next(second)
    first.send(5)
    assert (anna.tokens, bob.tokens) == ([0], [1])
    second.close(), first.close()


def test_blocks_that_end_in_another_order_are_both_refused():
    model = adapted()
    anna, bob = told(model), told(model, seed=4)
    before = anna.clone(), bob.clone()
    outer, inner = model.memory(anna), model.memory(bob)
    outer.__enter__(), inner.__enter__()
    say(model, 5)
    with pytest.raises(RuntimeError, match="ended before another one"):
        outer.__exit__(None, None, None)
    with pytest.raises(RuntimeError, match="was broken off"):
        say(model, 6)
    with pytest.raises(RuntimeError, match="was broken off"):
        inner.__exit__(None, None, None)
    assert error(anna, before[0]) == error(bob, before[1]) == 0
    assert MemoryScope.find(model.base_model) is None
    assert not model.base_model.open_scopes


def test_a_block_begins_once():
    model = adapted()
    scope = model.memory(model.new_memory())
    with scope:
        say(model, 5)
    with pytest.raises(RuntimeError, match="has begun already"), scope:
        pass


@contextlib.contextmanager
def lent(model, state):
    with model.memory(state):
        yield


@pytest.mark.parametrize("through", ["a context manager of the user's", "an exit stack"])
def test_a_block_may_be_entered_through_helpers(through):
    model, state = adapted(), adapted().new_memory()
    with contextlib.ExitStack() as stack:
        stack.enter_context(lent(model, state) if through.startswith("a context") else model.memory(state))
        say(model, 5, 6)
    assert state.tokens == [2]


def test_an_asynchronous_generator_keeps_its_block_to_itself():
    model, state = adapted(), adapted().new_memory()
    clean = logits_of(model, QUESTION[0])

    async def listens():
        with model.memory(state):
            for token in (5, 6):
                say(model, token)
                await asyncio.to_thread(say, model, token + 10)  # what it waits for is its own
                yield token

    async def consumes():
        async for _ in listens():
            assert torch.equal(say(model, *QUESTION[0].tolist())[0], clean)

    asyncio.run(consumes())
    assert state.tokens == [4]


def test_a_task_reads_the_block_while_it_is_open_and_not_after():
    model, state = adapted(), adapted().new_memory()
    clean = logits_of(model, QUESTION[0])

    async def main():
        ended = asyncio.Event()

        async def late():
            say(model, 5)
            await ended.wait()
            return say(model, *QUESTION[0].tolist())[0]

        with model.memory(state):
            task = asyncio.create_task(late())
            await asyncio.sleep(0)
        ended.set()
        assert torch.equal(await task, clean)

    asyncio.run(main())
    assert state.tokens == [1]


def passes_that_overlap(model, state, monkeypatch):
    """One thread's pass waits in the middle of the model while another thread begins one; what the second came to."""
    inside, go_on, outcome = threading.Event(), threading.Event(), []
    first = next(iter(model.base_model._layers.values()))
    run = type(first).forward

    def waits(layer, *args, **kwargs):
        if layer is first and threading.current_thread().name == "first":
            inside.set()
            go_on.wait(20)
        return run(layer, *args, **kwargs)

    monkeypatch.setattr(type(first), "forward", waits)
    with model.memory(state):
        context = contextvars.copy_context()
        thread = threading.Thread(target=context.run, args=(say, model, 5, 6, 7), name="first")
        thread.start()
        assert inside.wait(20)
        try:
            say(model, 8)
            outcome.append("accepted")
        except RuntimeError as refused:
            outcome.append(str(refused))
        go_on.set()
        thread.join()
        say(model, 9)  # not any more
    return outcome[0]


def test_passes_of_two_threads_in_one_block_do_not_overlap(monkeypatch):
    model = adapted()
    state = model.new_memory()
    assert "another thread is running a pass" in passes_that_overlap(model, state, monkeypatch)
    assert state.tokens == [4]


def test_without_that_what_one_wrote_would_be_lost(monkeypatch):
    monkeypatch.setattr(MemoryScope, "claim", lambda self: None)
    monkeypatch.setattr(MemoryScope, "release", lambda self: None)
    model = adapted()
    state = model.new_memory()
    assert passes_that_overlap(model, state, monkeypatch) == "accepted"
    assert state.tokens == [4]  # of five


def test_a_pass_that_fails_lets_others_in():
    model, state = adapted(), adapted().new_memory()

    def fails():
        with pytest.raises(ValueError, match="holds 1 rows"):
            model(input_ids=torch.tensor([[5], [6]]))
        with pytest.raises(IndexError):
            say(model, 10**6)

    with model.memory(state):
        context = contextvars.copy_context()
        thread = threading.Thread(target=context.run, args=(fails,))
        thread.start(), thread.join()
        say(model, 7)
    assert state.tokens == [1]


def test_a_block_that_no_pass_reaches_says_so():
    model, state = adapted(), adapted().new_memory()

    def in_a_thread():
        with model.memory(state):
            thread = threading.Thread(target=say, args=(model, 5))
            thread.start(), thread.join()

    with pytest.warns(UserWarning, match="no pass of the model ran in this memory scope"):
        in_a_thread()
    assert state.tokens == [0]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        with model.memory(state, write=False):
            say(model, 5)


class Storm:
    """Interrupts, each at a random moment of a loop that opens and ends blocks."""

    def __init__(self, model, interrupts, seed=0):
        self.model, self.interrupts, self.random = model, interrupts, random.Random(seed)
        self.hits = self.left = 0

    def run(self):
        state, before = self.model.new_memory(), signal.signal(signal.SIGALRM, self._interrupt)
        try:
            for _ in range(self.interrupts):
                self._loop_until_interrupted(state)
                self.left += MemoryScope.find(self.model.base_model) is not None or bool(self.model.base_model.open_scopes)
                self.model.base_model.open_scopes.clear()
                blocks._open_scopes.set(())
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        return self

    def _interrupt(self, *_):
        raise KeyboardInterrupt

    def _loop_until_interrupted(self, state):
        try:
            try:
                signal.setitimer(signal.ITIMER_REAL, self.random.uniform(20e-6, 400e-6))
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    while True:
                        with self.model.memory(state, write=False):
                            pass
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        except KeyboardInterrupt:
            self.hits += 1


INTERRUPTS = 10_000 if os.environ.get("HYPOTHESIS_PROFILE") == "nightly" else 200


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no timers that interrupt")
def test_no_interrupt_leaves_a_block_open():
    storm = Storm(adapted(), INTERRUPTS).run()
    assert (storm.hits, storm.left) == (INTERRUPTS, 0)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no timers that interrupt")
def test_with_a_decorated_generator_some_would(monkeypatch):
    model = adapted()
    tuner = type(model.base_model)
    as_scope = tuner.memory

    @contextlib.contextmanager
    def as_generator(self, state, **options):
        block = as_scope(self, state, **options)._scope
        block.begin(as_generator, None)
        try:
            yield block
        finally:
            block.end()

    monkeypatch.setattr(tuner, "memory", as_generator)
    assert Storm(model, 1_500).run().left
