"""Measurements of a trained memory: recall of a number of facts, told some tokens ago."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, get_args

from deltamem.chat.tokens import ChatTokens
from deltamem.evaluation.recall import RecallTest, Setting
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

# Keeps measured episodes distinct from those of any seed's training.
FIRST_SEED = 1_000_000


@dataclass(frozen=True)
class Measurement:
    """One point of a curve: the share of episodes answered correctly.

    Args:
        facts: number of facts told in each episode.
        tokens_since: minimum tokens of other talk between telling and asking.
        split: which names, sentences and values: "train", "held_out" or "unseen_values".
        kind: the kind of question: "value", "update", "count" or "list".
        episodes: number of episodes, at least two.
        separate_turns, same_attribute, values: see `FactEpisodeConfig`.
        fillers: the source of other talk; see `load_fillers`.

    Raises:
        ValueError: a value is not accepted.
    """

    facts: int = 1
    tokens_since: int = 0
    split: Split = "held_out"
    kind: Kind = "value"
    episodes: int = 100
    separate_turns: float = 0.0
    same_attribute: float = 0.0
    values: int | None = None
    fillers: str = "small_talk"

    def __post_init__(self) -> None:
        for name, given, choices in (("split", self.split, get_args(Split)), ("kind", self.kind, get_args(Kind))):
            if given not in choices:
                raise ValueError(f"measure: {name}={given!r} is not accepted; choose one of {', '.join(choices)}")
        for name, value, least in (("tokens_since", self.tokens_since, 0), ("episodes", self.episodes, 2)):
            if value < least:
                raise ValueError(f"measure: {name}={value!r} is not accepted; give {least} or more")
        _ = self.config
        if self.tokens_since:
            load_fillers(self.fillers, self.split)

    @property
    def config(self) -> FactEpisodeConfig:
        """The configuration of its episodes, without the other talk."""
        return FactEpisodeConfig(
            min_facts=self.facts,
            max_facts=self.facts,
            separate_turns=self.separate_turns,
            same_attribute=self.same_attribute,
            values=self.values,
            **ALL_OF_KIND[self.kind],
        )

    def described(self, leave_out: str = "") -> str:
        """Describe the measurement in words, leaving out one field."""
        parts = {
            "facts": f"{self.facts} fact{'s' if self.facts > 1 else ''}",
            "tokens_since": f"{self.tokens_since} tokens since" if self.tokens_since else "",
            "split": self.split.replace("_", " "),
            "kind": "" if self.kind == "value" else f"asked for the {self.kind}",
        }
        return ", ".join(text for name, text in parts.items() if text and name != leave_out)

    def episodes_for(self, tokenizer: Any, seed: int) -> list[FactEpisode]:
        """Draw the episodes of a seed: the same for every variant, and with a common beginning for every `tokens_since`."""
        episodes = fact_episodes(self.episodes, FIRST_SEED + seed, self.config, self.split)
        if not self.tokens_since:
            return episodes

        def length(messages: Messages) -> int:
            return len(ChatTokens.from_messages(tokenizer, messages).ids)

        fillers = load_fillers(self.fillers, self.split)
        return [
            told_long_ago(episode, self.tokens_since, length, fillers, random.Random(f"{seed}-{index}"))
            for index, episode in enumerate(episodes)
        ]

    def figures(self, test: RecallTest, settings: Sequence[Setting], seed: int) -> dict[str, Any]:
        """Run the measurement; return its fields with `recall` by setting and `chance`."""
        episodes = self.episodes_for(test.tokenizer, seed)
        recalls = test.run(episodes, settings)
        return {
            **asdict(self),
            "recall": {recall.setting: recall.accuracy for recall in recalls},
            "chance": 1 / len(episodes[0].candidates),
        }
