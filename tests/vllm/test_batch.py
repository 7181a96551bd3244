"""A step's flat batch equals each request on its own; no engine is needed."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from deltamem import DeltaMemConfig
from deltamem.vllm.adapter import LayerWeights
from deltamem.vllm.batch import Entrance, SlotUse, Use, grouped, read_and_write
from deltamem.vllm.token_step import MOST_REQUESTS, TokenStep

WIDTH, SLOTS = 12, 9
CPU = torch.device("cpu")
KINDS = [
    DeltaMemConfig(r=4).memory_kind,
    DeltaMemConfig(r=4, num_states=3, decay="learned", rowwise_gates=False).memory_kind,
    DeltaMemConfig(r=2, decay="none").memory_kind,
]


def weights(kind, seed):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(kind.read_rows + kind.write_rows, WIDTH, generator=generator),
        torch.randn(kind.bias_rows, generator=generator),
    )


@given(
    st.sampled_from(KINDS),
    st.lists(
        st.tuples(st.sampled_from([1, 1, 1, 2, 5, 40]), st.sampled_from([*Use]), st.integers(0, 9), st.integers(0, 9)),
        min_size=1,
        max_size=SLOTS - 1,
    ),
    st.randoms(use_true_random=False),
)
def test_a_step_equals_each_request_on_its_own(kind, requests, random):
    weight, bias = weights(kind, random.randrange(1000))
    slots = random.sample(range(SLOTS), len(requests))
    bounds = [0]
    for length, *_ in requests:
        bounds.append(bounds[-1] + length)
    hidden = torch.randn(bounds[-1] + 3, WIDTH)  # three tokens of padding
    states = {part: torch.randn(SLOTS, *shape) for part, shape in kind.state_parts.items()}
    before = {part: tensor.clone() for part, tensor in states.items()}
    uses = {slot: SlotUse(use, known) for slot, (_, use, known, _) in zip(slots, requests, strict=True)}
    passed = [number for *_, number in requests]

    reads = read_and_write(Entrance(kind, weight, bias), hidden, states, grouped(bounds, passed, slots, uses, CPU))

    expected_reads = torch.zeros_like(reads)
    expected = {part: tensor.clone() for part, tensor in before.items()}
    for start, (length, use, known, number), slot in zip(bounds[:-1], requests, slots, strict=True):
        own = {part: tensor[slot][None] for part, tensor in before.items()}
        only_read = {Use.NONE: 0, Use.READ: length, Use.WRITE: min(max(known - number, 0), length)}[use]
        written = start + only_read
        if only_read:
            projected = (hidden[start:written] @ weight[: kind.read_rows].T)[None]
            expected_reads[start:written] = kind.read(projected, own, None)[0]
        if use is Use.WRITE and only_read < length:
            outcome = kind.read_and_write((hidden[written : start + length] @ weight.T)[None], bias, own, None)
            expected_reads[written : start + length] = outcome.reads[0]
            for part, tensor in expected.items():
                tensor[slot] = outcome.state[part][0]
    torch.testing.assert_close(reads, expected_reads, atol=1e-5, rtol=1e-5)
    for part, tensor in states.items():
        torch.testing.assert_close(tensor, expected[part], atol=1e-5, rtol=1e-5)


def test_swapped_slots_are_seen():
    kind = KINDS[0]
    weight, bias = weights(kind, 0)
    hidden, states = torch.randn(2, WIDTH), torch.randn(SLOTS, *kind.state_parts["state"])
    uses = dict.fromkeys((1, 2), SlotUse(Use.READ))
    there, swapped = (
        read_and_write(Entrance(kind, weight, bias), hidden, {"state": states}, grouped([0, 1, 2], [0, 0], slots, uses, CPU))
        for slots in ([1, 2], [2, 1])
    )
    assert not torch.allclose(there, swapped, atol=1e-2)


@given(st.sampled_from(KINDS), st.integers(1, MOST_REQUESTS), st.sampled_from([Use.READ, Use.WRITE]), st.integers(0, 99))
def test_one_token_of_each_request_in_one_call(kind, requests, use, seed):
    weight, bias = weights(kind, seed)
    generator = torch.Generator().manual_seed(seed)
    maps = {role: torch.randn(features, kind.read_width, generator=generator) for role, features in (("q", 6), ("o", WIDTH))}
    slots = torch.randperm(MOST_REQUESTS + 2, generator=generator)[:requests].tolist()
    # A slot is padded, as in vLLM's cache.
    whole = torch.randn(MOST_REQUESTS + 2, 3 + kind.num_states * kind.r**2, generator=generator)
    states = whole[:, 3:].unflatten(1, kind.state_parts["state"])
    expected = states.clone()
    hidden = torch.randn(requests, WIDTH, generator=generator)
    groups = grouped(range(requests + 1), [0] * requests, slots, dict.fromkeys(slots, SlotUse(use)), CPU)
    reads = read_and_write(Entrance(kind, weight, bias), hidden, {"state": expected}, groups)

    step = TokenStep.of(kind, LayerWeights(weight, bias, maps), CPU)
    assert step.takes(requests, groups)
    corrections = step(hidden, states, groups[0])

    torch.testing.assert_close(states, expected, atol=1e-5, rtol=1e-5)
    assert [*corrections] == ["q", "o"]
    for role, correction in corrections.items():
        torch.testing.assert_close(correction, reads @ maps[role].T, atol=1e-5, rtol=1e-5)


def test_a_token_step_is_for_one_token_of_each_request():
    kind = KINDS[0]
    step = TokenStep.of(kind, LayerWeights(*weights(kind, 0), {}), CPU)
    read, write = SlotUse(Use.READ), SlotUse(Use.WRITE)
    for bounds, uses in (([0, 1, 3], [read, read]), ([0, 1, 2], [read, write]), ([0, 1, 2], [read, SlotUse(Use.NONE)])):
        assert not step.takes(bounds[-1], grouped(bounds, [0, 0], [0, 1], dict(enumerate(uses)), CPU))
    assert step.takes(2, grouped([0, 1, 2], [0, 0], [0, 1], dict(enumerate([write, write])), CPU))
