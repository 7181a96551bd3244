"""Held-out measurements of a memory: does it bind, does it recall, does it harm?

`train.py` measures during the training; `python measure.py ADAPTER --data FOLDER` measures a trained adapter.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from episodes import Item, Maker, Read, Sources, draw_questions
from layers import FrozenBackbone, UpperLayers
from torch import Tensor

from deltamem import DeltaMemConfig
from deltamem.chat.tokens import render
from deltamem.memory.snapshot import Snapshot
from deltamem.training.chats import Chat

TALKS = {"chitchat": 32, "sgd": 24, "qmsum": 16}
WRITTEN, READ = 160, 48
FACTS = {"1 fact": (1, "held_out", 40), "4 facts": (4, "held_out", 40), "8 facts": (8, "held_out", 24)}
FACTS["1 fact, unseen word"] = (1, "unseen_values", 40)
SLOTS, SLOTS_WRITTEN = 40, 256
LONG_TALK, PIECE, LONG_CHATS = 4096, 512, 40  # tokens, read in pieces of so many, of at most so many dialogues
ROWS = 8


@dataclass(frozen=True)
class Scores:
    """How well texts are predicted with some memory: by text, or by token.

    Args:
        nats: cross-entropy, or its mean over the asked tokens.
        right: whether the token is the likeliest, or all asked tokens are.
    """

    nats: Tensor
    right: Tensor


class HeldOut:
    """Held-out data, with the bare backbone's scores.

    Args:
        maker: makes the items.
        sources: the data.
    """

    def __init__(self, maker: Maker, sources: Sources) -> None:
        maker.rng = rng = random.Random(7)
        talks = sources.talks(held_out=True)
        self.talks = {name: [*_talks(maker, chats, TALKS[name])] for name, chats in talks.items()}
        self.facts = {
            name: [
                maker.questions(draw_questions(rng, facts, split, maker.words, 0.0), split, 1, value_only=True)
                for _ in range(episodes)
            ]
            for name, (facts, split, episodes) in FACTS.items()
        }
        slots = (_slots(maker, record) for record in rng.sample(talks["sgd"], 200))
        self.facts["slots"] = [*islice(filter(None, slots), SLOTS)]
        prose = [" ".join(text.split(" ")[:80]) for text in rng.sample(sources.prose(held_out=True), 24)]
        chats = [chat["messages"][:2] for chat in rng.sample(talks["chitchat"], 16)]
        self.prose = maker.unrelated(prose, headed=False)
        self.small_talk = maker.unrelated([render(maker.backbone.tokenizer, chat) for chat in chats], headed=True)
        self.ceilings = {name: _in_context(maker, items) for name, items in self.talks.items()}
        self.harm_in_context = _harm_in_context(maker, self.small_talk, self.talks["sgd"])
        head = maker.backbone.head
        self.bare = {
            name: torch.stack([nats(maker, head, item).mean() for item in items]) for name, items in self.talks.items()
        }
        self.long_talk = [long_talk(maker, talks[name]) for name in ("chitchat", "qmsum")]

    @torch.no_grad()
    def measure(self, upper: UpperLayers) -> dict[str, str]:
        """Measure a memory: a line of figures for each kind of data."""
        figures = {}
        for name, items in self.talks.items():
            own, other = (score(upper, items, shift).nats for shift in (0, 1))
            specific, ceiling = other - own, self.ceilings[name].mean()
            error = float(specific.std() / len(items) ** 0.5)
            share = f"bound {specific.mean() / ceiling:.0%} of {ceiling:.3f}"
            found = f"{own.mean():.3f} ({other.mean():.3f}, bare {self.bare[name].mean():.3f})"
            figures[name] = f"{found}, {share} (± {error / ceiling:.0%})"
        for name, items in self.facts.items():
            own, other = (score(upper, items, shift) for shift in (0, 1))
            figures[name] = f"{own.nats.mean():.2f} ({other.nats.mean():.2f}), {own.right.mean():.0%}"
        talk, facts, services = map(written, (self.talks["chitchat"], self.facts["4 facts"], self.talks["sgd"]))
        figures["harm to prose, filled with talk"] = f"{harm(upper, self.prose, talk, False):.4f}"
        figures["harm to prose, filled with facts"] = f"{harm(upper, self.prose, facts, False):.4f}"
        small_talk = harm(upper, self.small_talk, services, headed=True)
        figures["harm to small talk"] = f"{small_talk:.4f} (in the context {self.harm_in_context:.4f})"
        for name, texts, headed in (("prose", self.prose, False), ("small talk", self.small_talk, True)):
            figures[f"harm to {name} after {LONG_TALK:,} tokens"] = f"{harm(upper, texts, self.long_talk, headed):.4f}"
        return figures


def score(upper: UpperLayers, items: Sequence[Item], shift: int) -> Scores:
    """Score each item's first read with the memory of the item `shift` places on."""
    return means(token_scores(upper, items, shift))


def means(tokens: Sequence[Scores]) -> Scores:
    """The scores of texts from those of their tokens."""
    nats = torch.stack([each.nats.mean() for each in tokens])
    return Scores(nats, torch.stack([each.right.all() for each in tokens]).float())


def token_scores(upper: UpperLayers, items: Sequence[Item], shift: int) -> list[Scores]:
    """Score each token of each item's first read, as `score` does."""
    scores = []
    for rows in batches(len(items)):
        memory = upper.write(written([items[(row + shift) % len(items)] for row in rows]))
        scores += read_scores(upper, [items[row].reads[0] for row in rows], memory)
    return scores


def read_scores(upper: UpperLayers, reads: Sequence[Read], memory: Snapshot | None) -> list[Scores]:
    """Score each token of texts that follow the head, each with its row of a memory."""
    hidden = upper.read([read.below for read in reads], memory, headed=True)
    scores = []
    for row, read in enumerate(reads):
        logits, labels = upper.logits(hidden[row, read.asked]), read.labels[read.asked]
        scores.append(Scores(F.cross_entropy(logits, labels, reduction="none"), logits.argmax(-1) == labels))
    return scores


def harm(upper: UpperLayers, reads: Sequence[Read], histories: Sequence[Tensor], headed: bool) -> float:
    """KL(bare backbone || model) of unrelated texts with the memories of histories, `[L, T, W]` each, in nats per token."""
    return float(torch.stack([each.mean() for each in divergences(upper, reads, histories, headed)]).mean())


def divergences(upper: UpperLayers, reads: Sequence[Read], histories: Sequence[Tensor], headed: bool) -> list[Tensor]:
    """What `harm` measures, at each token of each text, `[T]`."""
    found = []
    for rows in batches(len(reads)):
        texts = [reads[row] for row in rows]
        memory = upper.write([histories[row % len(histories)] for row in rows])
        below = [read.below for read in texts]
        said, bare = upper.read(below, memory, headed), upper.read(below, None, headed, bare=True)
        for row, read in enumerate(texts):
            logits = [upper.logits(hidden[row, : len(read.below)]).log_softmax(-1) for hidden in (said, bare)]
            found.append(_divergence(*logits))
    return found


def written(items: Sequence[Item]) -> list[Tensor]:
    """What comes before each item's first read, `[L, T, W]` each."""
    return [item.before(item.reads[0]) for item in items]


def long_talk(maker: Maker, chats: Sequence[Chat]) -> Tensor:
    """Dialogues, one after another, as the attentions read them in pieces, `[L, T, W]`."""
    messages = [message for chat in maker.rng.sample([*chats], min(LONG_CHATS, len(chats))) for message in chat["messages"]]
    pieces = maker.backbone.ids(render(maker.backbone.tokenizer, messages))[:LONG_TALK].split(PIECE)
    return torch.cat([maker.backbone([piece], torch.arange(1)).attended[:, 0] for piece in pieces], 1)


def batches(count: int) -> list[range]:
    """The places of so many items, in batches."""
    return [range(first, min(first + ROWS, count)) for first in range(0, count, ROWS)]


def _talks(maker: Maker, chats: Sequence[dict[str, object]], count: int) -> Iterator[Item]:
    """Dialogues in random order, again and again (at other places), without those that are too short."""
    made = 0
    while made < count:
        for chat in maker.rng.sample([*chats], len(chats)):
            try:
                item = maker.talk(chat, WRITTEN, READ, 1)
            except ValueError:  # too short
                continue
            yield item
            made += 1
            if made == count:
                return


def _slots(maker: Maker, record: dict[str, object]) -> Item | None:
    try:
        return maker.slots(record, SLOTS_WRITTEN, 1, value_only=True)
    except ValueError:  # nothing that was agreed on was said so early
        return None


def _in_context(maker: Maker, items: Sequence[Item]) -> Tensor:
    """The bare backbone's cross-entropy with another's history in its context minus with its own, `[items]`."""
    histories = [item.tokens[: item.reads[0].written] for item in items]
    others = [*histories[1:], *histories[:1]]
    return torch.stack(
        [
            (nats(maker, other, item) - nats(maker, own, item)).mean()
            for item, own, other in zip(items, histories, others, strict=True)
        ]
    )


def nats(maker: Maker, before: Tensor, item: Item) -> Tensor:
    """The bare backbone's cross-entropy of the asked tokens of an item's first read after some tokens, `[asked]`."""
    read = item.reads[0]
    return F.nll_loss(_predictions(maker, before, read)[read.asked], read.labels[read.asked], reduction="none")


def _harm_in_context(maker: Maker, reads: Sequence[Read], items: Sequence[Item]) -> float:
    """What `harm` measures, of the bare backbone with the items' histories in its context."""
    head, found = maker.backbone.head, []
    for read, item in zip(reads, items, strict=False):
        said, bare = (_predictions(maker, before, read) for before in (item.tokens[: item.reads[0].written], head))
        found.append(_divergence(said, bare).mean())
    return float(torch.stack(found).mean())


def _divergence(said: Tensor, bare: Tensor) -> Tensor:
    """KL(bare || said) at each token, in nats, `[T]`, from log-probabilities `[T, vocabulary]`."""
    return F.kl_div(said, bare, log_target=True, reduction="none").sum(-1)


def _predictions(maker: Maker, before: Tensor, read: Read) -> Tensor:
    """The bare backbone's log-probabilities at each token of a text after some tokens, `[T, vocabulary]`."""
    positions = len(before) + torch.arange(len(read.tokens))
    return maker.backbone([torch.cat([before, read.tokens])], positions).logits[0].float().log_softmax(-1)


@dataclass(frozen=True)
class Trained:
    """A trained adapter with the held-out data.

    Args:
        upper: the layers with the memory.
        maker: makes items.
        sources: the data.
    """

    upper: UpperLayers
    maker: Maker
    sources: Sources

    @classmethod
    def from_command_line(cls, parser: argparse.ArgumentParser) -> Trained:
        """Load the adapter that the command line names."""
        parser.add_argument("adapter", type=Path, help="folder of an adapter with a memory")
        parser.add_argument("--data", type=Path, required=True, help="folder with the files that README.md names")
        options = parser.parse_args()
        config = DeltaMemConfig.from_pretrained(str(options.adapter))
        backbone = FrozenBackbone(config.base_model_name_or_path, min(config.layers_to_transform))
        upper = UpperLayers(backbone, replace(config, layers_to_transform=None, backbone=None, inference_mode=False))
        upper.load(options.adapter)
        return cls(upper, Maker(backbone, random.Random(7)), Sources(options.data))


def main() -> None:
    """Measure a trained adapter."""
    trained = Trained.from_command_line(argparse.ArgumentParser(description=__doc__))
    for name, figures in HeldOut(trained.maker, trained.sources).measure(trained.upper).items():
        print(f"{name}: {figures}")


if __name__ == "__main__":
    main()
