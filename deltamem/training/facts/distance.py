"""Controls how long ago something was told: filler turns of a given length between telling and asking."""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice

from deltamem.training.facts.episode import FactEpisode, Messages, Turn, as_messages
from deltamem.training.facts.fillers import Conversation, filler_turns


def told_long_ago(
    episode: FactEpisode,
    tokens: int,
    length: Callable[[Messages], int],
    fillers: Sequence[Conversation],
    rng: random.Random,
) -> FactEpisode:
    """Insert filler turns between an episode's history and its question.

    Args:
        episode: the facts and the question.
        tokens: minimum length of the insertion; the last turn is cut, so that it is hardly longer.
        length: counts the tokens of messages; must not decrease when messages or words are added.
        fillers: from `load_fillers`, with the episode's split.
        rng: draws the turns; with the same generator, a longer distance starts with the same turns.

    Raises:
        ValueError: `tokens` is negative, or there are no fillers.
    """
    if tokens < 0:
        raise ValueError(f"tokens={tokens} is negative: choose 0 or more")
    if not fillers:
        raise ValueError("there are no fillers to tell; take some from load_fillers")
    added = fill(filler_turns(fillers, rng), tokens, length)
    return replace(episode, messages=[*episode.history, *added, *episode.messages[-2:]])


def fill(turns: Iterator[Turn], least: int, length: Callable[[Messages], int]) -> Messages:
    """Take turns until they have at least the given length, cutting the last one to fit; none for 0.

    Measures O(log n) lengths for n turns, since each measurement may tokenise them all.
    """
    if least == 0:
        return []
    drawn = [next(turns)]
    while length(as_messages(drawn)) < least:
        drawn += islice(turns, len(drawn))
    needed = 1 + bisect_left(range(1, len(drawn)), least, key=lambda count: length(as_messages(drawn[:count])))
    *whole, last = drawn[:needed]
    longest = max(len(text.split()) for text in last)
    words = 1 + bisect_left(range(1, longest), least, key=lambda words: length(as_messages([*whole, _cut(last, words)])))
    return as_messages([*whole, _cut(last, words)])


def words_in(messages: Messages) -> int:
    """Count the words of messages."""
    return sum(len(message["content"].split()) for message in messages)


def _cut(turn: Turn, words: int) -> Turn:
    """Cut each message of a turn to at most `words` words."""
    user, assistant = (" ".join(text.split()[:words]) for text in turn)
    return user, assistant
