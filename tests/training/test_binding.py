import numpy as np
import pytest

from deltamem.training.binding import binding
from deltamem.training.views import IN_CONTEXT, SHUFFLED_IN_CONTEXT, SHUFFLED_MEMORY

RNG = np.random.default_rng(1)
HARD = RNG.uniform(1, 4, 200)  # what a chat costs whatever is known of it
NOISE = [RNG.normal(0, 0.01, 200) for _ in range(4)]


def nats(own, another, context, another_context):
    names = ("memory", SHUFFLED_MEMORY, IN_CONTEXT, SHUFFLED_IN_CONTEXT)
    costs = (own, another, context, another_context)
    return {name: HARD + cost + noise for name, cost, noise in zip(names, costs, NOISE, strict=True)}


def test_what_a_memory_knows_of_its_own_chat():
    figures = binding(nats(-0.2, 0.0, -0.5, 0.0))
    assert figures["specific"] == pytest.approx(0.2, abs=0.01)
    assert figures["bound"] == pytest.approx(0.4, abs=0.02)
    assert figures["bound_low"] < figures["bound"] < figures["bound_high"] < 0.5


def test_adaptation_is_not_memory():
    """A memory that helps, and another's as much."""
    figures = binding(nats(-0.3, -0.3, -0.5, 0.0))
    assert figures["specific_low"] < 0.002
    assert abs(figures["bound"]) < 0.01


def test_without_a_ceiling_there_is_no_share():
    figures = binding(nats(-0.2, 0.0, 0.0, 0.0))
    assert {*figures} == {"specific", "specific_low", "specific_high"}
    assert binding({"memory": HARD}) == {}
