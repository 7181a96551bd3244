"""What other talk leaves of a fact, and which gates decide it: `python forgetting.py ADAPTER --data FOLDER`.

The rule is linear in the state: what is left of a fact is the state after both, minus the state after the talk alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace

import torch
from episodes import Item, draw_questions
from layers import UpperLayers, projected_writes
from measure import Trained, long_talk, means, read_scores, written
from torch import Tensor

from deltamem.layer import DeltaMemLayer
from deltamem.rule.kind import STATE

FACTS = 16
TALK = (64, 256, 1024)  # tokens


def main() -> None:
    """Print what is left, what the memory still answers, and its gates."""
    trained = Trained.from_command_line(argparse.ArgumentParser(description=__doc__))
    maker = trained.maker
    drawn = [draw_questions(maker.rng, 1, "held_out", maker.words, 0.0) for _ in range(FACTS)]
    facts = [maker.questions(asked, "held_out", 1, value_only=True) for asked in drawn]
    talk = long_talk(maker, trained.sources.talks(held_out=True)["chitchat"])[:, : max(TALK)]
    with torch.no_grad():
        _print_left(trained.upper, facts, talk)
        _print_gates(trained.upper, facts, talk)


def _print_left(upper: UpperLayers, facts: Sequence[Item], talk: Tensor) -> None:
    """Print what talk of some lengths leaves of a fact in the states, and what the memory answers after the longest."""
    told = upper.write(written(facts))
    fact = told.parts[STATE]  # [L, facts, states, r, r]
    for tokens in TALK:
        alone, both = (upper.write([talk[:, :tokens]] * len(facts), before) for before in (None, told))
        left = both.parts[STATE] - alone.parts[STATE]
        shares = (torch.linalg.matrix_norm(left) / torch.linalg.matrix_norm(fact)).mean(1)  # [L, states]
        print(f"after {tokens} tokens of talk, the share of a fact that is left in the slowest state of each layer:")
        print("  " + " ".join(f"{share:.2f}" for share in shares.amax(1)))
    memories = {
        "the fact": told,
        "the fact, then the talk": both,
        "the fact and the talk, as if nothing had been erased": replace(both, parts={STATE: fact + alone.parts[STATE]}),
    }
    for name, memory in memories.items():
        scores = means(read_scores(upper, [item.reads[0] for item in facts], memory))
        print(f"the memory holds {name}: {scores.nats.mean():.2f} nats, likeliest {scores.right.mean():.0%}")


def _print_gates(upper: UpperLayers, facts: Sequence[Item], talk: Tensor) -> None:
    """Print how far each state of each layer opens, and how much it keeps."""
    told = torch.cat([item.attended for item in facts], 1)
    value = torch.cat([item.answers for item in facts])
    print(f"by layer and state: β at a value, at the other tokens of its history, in talk; λ over {max(TALK)} tokens of talk")
    for number, (layer, of_facts, of_talk) in enumerate(zip(upper.memories, told, talk, strict=True), upper.backbone.first):
        (write, _), (in_talk, keep) = _gates(layer, of_facts), _gates(layer, of_talk)
        columns = [write[:, value].mean(1), write[:, ~value].mean(1), in_talk.mean(1), keep.log().sum(1).exp()]
        print(f"  layer {number}: " + "; ".join(" ".join(f"{state:.3f}" for state in column) for column in columns))


def _gates(layer: DeltaMemLayer, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """The gates β and λ of tokens, `[states, T]`, from what a layer's attention reads, `[T, W]`."""
    weights = layer.active_weights
    gates = weights.kind.writes(projected_writes(layer, hidden)[None], weights.gate_bias, None)
    return gates.write[0].mean(-1), gates.keep[0].mean(-1)


if __name__ == "__main__":
    main()
