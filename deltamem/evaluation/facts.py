"""The task "facts": recall of generated facts after they have left the context."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, cast, get_args

from deltamem.evaluation.answer_scores import is_said
from deltamem.evaluation.recall import Recall, RecallTest, Setting
from deltamem.evaluation.subject import Subject
from deltamem.evaluation.task import Options, Row, share
from deltamem.training.facts import (
    FactEpisode,
    FactEpisodeConfig,
    Kind,
    Messages,
    Split,
    fact_episodes,
    load_fillers,
    told_long_ago,
)
from deltamem.training.facts.config import ALL_OF_KIND
from deltamem.training.facts.fillers import SMALL_TALK

# The command's names for the settings of a RecallTest.
SETTINGS: dict[str, Setting] = {
    "memory": "memory",
    "none": "no_memory",
    "zero": "zero_memory",
    "shuffled": "shuffled_memory",
    "adapter": "adapter",
    "full": "full_context",
    "tail": "tail",
}
BARE: Setting = "no_memory"
# Whether the answer is ranked first among the candidates; whether it is generated exactly; whether what is generated names it
# and no other candidate. Two more matter under "shuffled", where what is asked was never told: whether the generated answer is
# the bare backbone's, and whether it names a wrong value that was told.
METRICS = {name: share(name) for name in ("recall", "generated", "named", "unchanged", "mixed_up")}


@dataclass
class Facts:
    """Episodes with a given number of facts, told a given time ago.

    Args:
        config: configures the episodes.
        split: their split.
        count: their number.
        tokens_since: minimum tokens of other talk between telling and asking.
        seed: seeds the episodes.
    """

    config: FactEpisodeConfig
    split: Split
    count: int
    tokens_since: int
    seed: int
    metrics = METRICS
    _episodes: list[FactEpisode] = field(default_factory=list)

    @property
    def name(self) -> str:
        """See `Task`."""
        since = f"-{self.tokens_since}_tokens_ago" if self.tokens_since else ""
        return f"facts-{self.config.max_facts}{since}"

    @property
    def identity(self) -> dict[str, Any]:
        """See `Task`."""
        return {
            **vars(self.config),
            "split": self.split,
            "episodes": self.count,
            "tokens_since": self.tokens_since,
        }

    def __len__(self) -> int:
        return self.count

    def settings(self, subject: Subject) -> tuple[str, ...]:
        """See `Task`."""
        known = _test(subject).settings
        return tuple(name for name, setting in SETTINGS.items() if setting in known)

    def prepare(self, subject: Subject, settings: Sequence[str]) -> None:
        """Draw the episodes; see `Task`."""
        drawn = fact_episodes(self.count, self.seed, self.config, self.split)
        self._episodes = [self._told_long_ago(subject, episode, place) for place, episode in enumerate(drawn)]

    def answer(self, subject: Subject, settings: Sequence[str], places: Sequence[int]) -> dict[str, list[Row]]:
        """See `Task`."""
        episodes = [self._episodes[place] for place in places]
        asked = [*dict.fromkeys([*(SETTINGS[name] for name in settings), BARE])]
        recalls = dict(zip(asked, _test(subject, len(episodes)).run(episodes, asked), strict=True))
        others = [episodes[-1], *episodes[:-1]]  # whose memory "shuffled" reads
        return {
            name: _rows(places, others if name == "shuffled" else episodes, recalls[SETTINGS[name]], recalls[BARE])
            for name in settings
        }

    def _told_long_ago(self, subject: Subject, episode: FactEpisode, place: int) -> FactEpisode:
        before = len(subject.tokens(episode.history).ids)

        def length(messages: Messages) -> int:
            return len(subject.tokens([*episode.history, *messages]).ids) - before

        rng = random.Random(f"{self.seed}-{place}-since")
        return told_long_ago(episode, self.tokens_since, length, load_fillers(SMALL_TALK, self.split), rng)


def tasks(options: Options) -> list[Facts]:
    """Create a task for every number of facts and every distance.

    Raises:
        ValueError: a split or kind is unknown, or a number is out of range.
    """
    if options.split not in get_args(Split):
        raise ValueError(f"--split {options.split!r} is not accepted; choose one of {', '.join(get_args(Split))}")
    if options.kind is not None and options.kind not in get_args(Kind):
        raise ValueError(f"--kind {options.kind!r} is not accepted; choose one of {', '.join(get_args(Kind))}")
    if options.episodes < 2:
        raise ValueError(f"--episodes {options.episodes} is too few; give 2 or more, so that there is another's memory")
    return [
        Facts(_config(options, facts), cast(Split, options.split), options.episodes, tokens, options.seed)
        for facts in options.facts
        for tokens in options.tokens_since
    ]


def _rows(places: Sequence[int], told: Sequence[FactEpisode], recall: Recall, bare: Recall) -> list[Row]:
    """The results of episodes, given those whose facts the memories were told, and the bare backbone's answers."""
    return [
        {
            "index": place,
            "group": episode.kind,
            "question": episode.question["content"],
            "answer": episode.answer,
            "choice": choice,
            "prediction": said,
            "recall": float(right),
            "generated": float(exact),
            "named": float(named),
            "unchanged": float(said == said_bare),
            "mixed_up": float(_mixed_up(said, episode, told_instead)),
        }
        for place, episode, told_instead, choice, said, said_bare, right, exact, named in zip(
            places,
            recall.episodes,
            told,
            recall.choices,
            recall.said,
            bare.said,
            recall.right,
            recall.exact,
            recall.named,
            strict=True,
        )
    ]


def _mixed_up(said: str, asked: FactEpisode, told: FactEpisode) -> bool:
    """Whether an answer names a value that was told and is wrong."""
    answer, text = asked.answer.casefold(), said.casefold()
    values = (fact.value.casefold() for fact in told.facts)
    return any(is_said(value, text) and not is_said(value, answer) for value in values)


def _config(options: Options, facts: int) -> FactEpisodeConfig:
    of_kind = {} if options.kind is None else ALL_OF_KIND[cast(Kind, options.kind)]
    given = {"updates": options.updates, "first_person": options.first_person}
    return FactEpisodeConfig(min_facts=facts, max_facts=facts, **{**given, **of_kind})


def _test(subject: Subject, batch_size: int = 2) -> RecallTest:
    return RecallTest(**{part.name: getattr(subject, part.name) for part in fields(Subject)}, batch_size=batch_size)
