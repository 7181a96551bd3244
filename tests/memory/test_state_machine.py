"""Any sequence of operations on memories, against plain lists of what each memory was told."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import torch
from examples import examples
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule
from peft import PeftModel
from tiny import PAD, VOCAB, tiny_adapted
from torch import Tensor

from deltamem import DeltaMemState

Sequence = tuple[int, ...]
MOST_ROWS = 4


@dataclass
class Memory:
    """A memory under test, and for each of its rows the sequences it was told."""

    state: DeltaMemState
    told: list[tuple[Sequence, ...]]


@cache
def model() -> PeftModel:
    return tiny_adapted()


@cache
def replay(told: tuple[Sequence, ...]) -> dict[str, Tensor]:
    """The oracle: a new memory of one row is told the same sequences, unpadded, one call each."""
    state = model().new_memory(1)
    for sequence in told:
        with torch.no_grad(), model().memory(state):
            model()(torch.tensor([sequence]))
    return state.tensors


def differences(memory: Memory) -> Iterable[float]:
    for row, told in enumerate(memory.told):
        for name, expected in replay(told).items():
            yield (memory.state.tensors[name][row] - expected[0]).abs().max().item()


def padded(sequences: list[Sequence], left: bool) -> dict[str, Tensor]:
    longest = max(map(len, sequences))
    ids, mask = [], []
    for sequence in sequences:
        padding, real = (longest - len(sequence)) * (PAD,), len(sequence) * (1,)
        ids.append(padding + sequence if left else sequence + padding)
        mask.append(padding + real if left else real + padding)
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


# How much each row is told in a call; some are told nothing, and are all padding.
lengths = st.tuples(*[st.sampled_from((3, 1, 5, 0))] * MOST_ROWS)


class Memories(RuleBasedStateMachine):
    memories = Bundle("memories")
    snapshots = Bundle("snapshots")

    def __init__(self) -> None:
        super().__init__()
        self.all: list[Memory] = []
        self.random = Random(0)

    def texts(self, memory: Memory, lengths: Sequence) -> list[Sequence]:
        """Something new for every row, so that no two rows can be mistaken for each other."""
        texts = [tuple(self.random.randrange(1, VOCAB) for _ in range(length)) for length in lengths[: len(memory.told)]]
        return texts if any(texts) else [(1,)] * len(texts)

    def keep(self, state: DeltaMemState, told: list[tuple[Sequence, ...]]) -> Memory:
        self.all.append(Memory(state, list(told)))
        return self.all[-1]

    # Most rules need a memory that was told something and a snapshot to work on.
    @initialize(target=memories, lengths=lengths)
    def first(self, lengths: Sequence) -> Memory:
        memory = self.new(2)
        self.write(memory, lengths, left=False)
        return memory

    @initialize(target=snapshots)
    def empty(self) -> Memory:
        return self.new(1)

    @rule(target=memories, rows=st.integers(1, 2))
    def new(self, rows: int) -> Memory:
        return self.keep(model().new_memory(rows), [()] * rows)

    @rule(memory=memories, lengths=lengths, left=st.booleans())
    def write(self, memory: Memory, lengths: Sequence, left: bool) -> None:
        texts = self.texts(memory, lengths)
        with torch.no_grad(), model().memory(memory.state):
            model()(**padded(texts, left))
        memory.told = [(*told, text) if text else told for told, text in zip(memory.told, texts, strict=True)]

    @rule(memory=memories, lengths=lengths)
    def read_only(self, memory: Memory, lengths: Sequence) -> None:
        before = memory.state.clone()
        with torch.no_grad(), model().memory(memory.state, write=False):
            model()(**padded(self.texts(memory, lengths), left=True))
        assert all(torch.equal(tensor, before.tensors[name]) for name, tensor in memory.state.tensors.items())
        assert memory.state.fingerprint == before.fingerprint

    @rule(target=snapshots, memory=memories)
    def snapshot(self, memory: Memory) -> Memory:
        return self.keep(memory.state.clone(), memory.told)

    @rule(memory=memories)
    def reset(self, memory: Memory) -> None:
        self.keep(memory.state[:], memory.told)  # a view of what is forgotten must not forget
        memory.state.reset()
        memory.told = [()] * len(memory.told)

    # What the following rules return is told more at once: where it came from must not hear it.

    @rule(memory=memories, snapshot=snapshots, lengths=lengths)
    def restore(self, memory: Memory, snapshot: Memory, lengths: Sequence) -> None:
        memory.state, memory.told = snapshot.state.clone(), list(snapshot.told)
        self.write(memory, lengths, left=True)

    @rule(target=memories, memory=memories, by_slice=st.booleans(), lengths=lengths)
    def fork(self, memory: Memory, by_slice: bool, lengths: Sequence) -> Memory:
        fork = self.keep(memory.state[:] if by_slice else memory.state.clone(), memory.told)
        self.write(fork, lengths, left=True)
        return fork

    @rule(target=memories, one=memories, other=memories, lengths=lengths)
    def stack(self, one: Memory, other: Memory, lengths: Sequence) -> Memory:
        if len(one.told) + len(other.told) > MOST_ROWS:
            return one
        stacked = self.keep(DeltaMemState.stack([one.state, other.state]), one.told + other.told)
        self.write(stacked, lengths, left=False)
        return stacked

    @rule(target=memories, memory=memories, lengths=lengths)
    def split(self, memory: Memory, lengths: Sequence) -> object:
        rows = [self.keep(memory.state[row], [told]) for row, told in enumerate(memory.told)]
        self.write(rows[-1], lengths, left=False)
        return multiple(*rows)

    @rule(memory=memories, lengths=lengths)
    def save_and_load(self, memory: Memory, lengths: Sequence) -> None:
        with TemporaryDirectory() as folder:
            path = Path(folder) / "memory.safetensors"
            memory.state.save(path)
            memory.state = DeltaMemState.load(path)
        self.write(memory, lengths, left=False)

    @invariant()
    def every_memory_holds_what_it_was_told_and_nothing_else(self) -> None:
        for memory in self.all:
            assert len(memory.state) == len(memory.told)
            assert max(differences(memory)) <= 1e-5


Memories.TestCase.settings = settings(examples(25), stateful_step_count=12)
TestMemories = Memories.TestCase


def test_the_oracle_tells_contents_order_and_cuts_apart() -> None:
    state = model().new_memory(1)
    with torch.no_grad(), model().memory(state):
        model()(torch.tensor([[5, 6, 7]]))
    assert max(differences(Memory(state, [((5, 6, 7),)]))) <= 1e-5
    for other in (((5, 6, 8),), ((7, 6, 5),), ((5, 6), (7,)), ((5, 6, 7), (5,)), ()):
        assert max(differences(Memory(state, [other]))) > 1e-3
