"""Where in a text a memory harms, and where it knows what was said: `python positions.py ADAPTER --data FOLDER`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import pairwise

import torch
from episodes import Item, Maker, Read, next_tokens
from held_out_chats import held_out_chats
from measure import Trained, divergences, nats, token_scores, written
from torch import Tensor

from deltamem.chat.tokens import Message, render
from deltamem.evaluation.cut_chat import CutChat, can_be_cut
from deltamem.evaluation.subject import Subject
from deltamem.training.scripts import IGNORED

OPENINGS, SERVICES = 32, 16  # of small talk, and of dialogues to remember meanwhile
DIALOGUES = {"sgd": 30, "chitchat": 30, "qmsum": 20}
OPENING_GROUPS, DEPTHS = (0, 3, 6, 11), (0, 16, 48, 96)  # the first token of each group
FEW = 50  # one token in so many is looked at alone


def main() -> None:
    """Print where an adapter harms, and where it binds."""
    trained = Trained.from_command_line(argparse.ArgumentParser(description=__doc__))
    maker, talks = trained.maker, held_out_chats(trained.sources)
    print("openings of small talk")
    openings = [messages[:2] for messages in maker.rng.sample(talks["chitchat"], OPENINGS)]
    _print_harm(trained, openings, _cut_some(maker, talks["sgd"], SERVICES))
    for name, count in DIALOGUES.items():
        print(f"last messages of dialogues: {name}")
        _print_bound(trained, _cut_some(maker, talks[name], count))


@torch.no_grad()
def _print_harm(trained: Trained, openings: Sequence[Sequence[Message]], services: Sequence[Item]) -> None:
    tokenizer = trained.maker.backbone.tokenizer
    reads = trained.maker.unrelated([render(tokenizer, chat) for chat in openings], headed=True)
    found = divergences(trained.upper, reads, written(services), headed=True)
    harm, place = torch.cat(found), torch.cat([torch.arange(len(each)) for each in found])
    for name, group in _groups(place, OPENING_GROUPS):
        print(f"  {name}: {harm[group].sum() / harm.sum():.0%} of the harm, {harm[group].mean():.3f} nats a token")


@torch.no_grad()
def _print_bound(trained: Trained, items: Sequence[Item]) -> None:
    """Print `bound` of groups of tokens, and their share of its ceiling."""
    maker, upper = trained.maker, trained.upper
    others = [*items[1:], *items[:1]]
    own, another = (torch.cat([each.nats for each in token_scores(upper, items, shift)]) for shift in (0, 1))
    in_context = torch.cat([nats(maker, item.tokens, item) for item in items])
    ceiling = torch.cat([nats(maker, other.tokens, item) for item, other in zip(items, others, strict=True)]) - in_context
    place = torch.cat([item.reads[0].asked for item in items])
    most = ceiling.argsort(descending=True).argsort() < len(ceiling) // FEW
    everywhere = ("all tokens", torch.ones_like(most))
    for name, group in [everywhere, *_groups(place, DEPTHS), (f"the 1 in {FEW} where the history changes most", most)]:
        share = ceiling[group].sum() / ceiling.sum()
        print(f"  {name}: bound {(another - own)[group].sum() / ceiling[group].sum():.0%}, {share:.0%} of the ceiling")


def _groups(place: Tensor, firsts: Sequence[int]) -> list[tuple[str, Tensor]]:
    """The tokens from each place to the next, as masks with their names."""
    between = [(f"tokens {first} to {end - 1}", (first <= place) & (place < end)) for first, end in pairwise(firsts)]
    return [*between, (f"tokens from {firsts[-1]} on", place >= firsts[-1])]


def _cut_some(maker: Maker, chats: Sequence[Sequence[Message]], count: int) -> list[Item]:
    """Some dialogues, cut as `deltamem eval continuation` cuts them."""
    subject = Subject(maker.backbone.model, maker.backbone.tokenizer)
    long = [messages for messages in chats if can_be_cut({"messages": messages})]
    return [_item(maker, CutChat.from_messages(subject, messages)) for messages in maker.rng.sample(long, count)]


def _item(maker: Maker, chat: CutChat) -> Item:
    """A cut dialogue; what its last messages say is asked for."""
    told, read = chat.written.ids, chat.continuation
    labels = next_tokens(torch.where(chat.said, read, IGNORED))
    attended = maker.backbone([told], torch.arange(1)).attended[:, 0]
    return Item(attended, told, [Read(read, maker.backbone.below([read])[0], labels, len(told))])


if __name__ == "__main__":
    main()
