"""The configuration of generated episodes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from deltamem.training.facts.episode import Kind
from deltamem.training.facts.fillers import SMALL_TALK, load_fillers

CANDIDATES = 10  # answers to rank; also the limit of values told per attribute, since the candidates hold them all
MOST_FACTS = 64
# A replaced value is told as well: ten attributes of ten values each have room for 50 facts that are all replaced.
MOST_REPLACED_FACTS = 50
# The options that make every question of one kind.
ALL_OF_KIND: dict[Kind, dict[str, Any]] = {
    "value": {},
    "update": {"updates": 1.0},
    "count": {"counting": 1.0},
    "list": {"lists": 1.0},
}
PROBABILITIES = (
    "separate_turns",
    "same_attribute",
    "updates",
    "first_person",
    "sentence_answers",
    "counting",
    "lists",
    "any_word",
)


@dataclass(frozen=True)
class FactEpisodeConfig:
    """Configures generated episodes; every choice is drawn at random.

    Raises:
        ValueError: numbers are out of range, or the fillers cannot be loaded.
    """

    min_facts: int = field(default=1, metadata={"help": "Minimum number of facts."})
    max_facts: int = field(
        default=1,
        metadata={
            "help": f"Maximum number of facts, up to {MOST_FACTS}, or {MOST_REPLACED_FACTS} with updates, which add more."
        },
    )
    separate_turns: float = field(
        default=0.0, metadata={"help": "Probability that each fact gets its own turn, instead of all sharing one message."}
    )
    same_attribute: float = field(
        default=0.0, metadata={"help": "Probability that a further fact reuses an attribute already told about another person."}
    )
    updates: float = field(default=0.0, metadata={"help": "Probability that a fact is replaced later: the newest counts."})
    first_person: float = field(default=0.0, metadata={"help": 'Probability that a fact is about the user, who says "I".'})
    sentence_answers: float = field(
        default=0.0, metadata={"help": "Probability that an answer is a sentence that states the fact, not the value alone."}
    )
    counting: float = field(
        default=0.0, metadata={"help": "Probability that a question asks how many, for attributes with several values."}
    )
    lists: float = field(default=0.0, metadata={"help": "Probability that a question asks for all of a person's values."})
    fillers: str = field(
        default=SMALL_TALK,
        metadata={
            "help": "Other talk: small_talk (built in), chitchat (from the package chitchat-dataset), or trivia "
            '{"question": ..., "answer": ...}: a file, a folder or a Hub name.'
        },
    )
    min_fillers: int = field(default=0, metadata={"help": "Minimum turns of other talk before, between and after the facts."})
    max_fillers: int = field(default=0, metadata={"help": "Maximum turns of other talk before, between and after the facts."})
    filler_words_after: int = field(
        default=0, metadata={"help": "Maximum words of further talk after all of these, for facts told long ago."}
    )
    values: int | None = field(default=None, metadata={"help": "Use only the first values of each attribute."})
    any_word: float = field(
        default=0.0, metadata={"help": "Probability that a value is any word of the tokenizer, not the attribute's own."}
    )

    def __post_init__(self) -> None:
        self._check_facts()
        self._check_probabilities()
        if not 0 <= self.min_fillers <= self.max_fillers:
            raise ValueError(
                f"min_fillers={self.min_fillers} and max_fillers={self.max_fillers} are no valid bounds: "
                "choose 0 <= min_fillers <= max_fillers"
            )
        if self.filler_words_after < 0:
            raise ValueError(f"filler_words_after={self.filler_words_after} is negative: choose 0 or more words")
        if self.values is not None and self.values < CANDIDATES:
            raise ValueError(f"values={self.values} is too few: choose {CANDIDATES} or more, or None for all")
        if self.max_fillers or self.filler_words_after:
            load_fillers(self.fillers, "train")

    def _check_facts(self) -> None:
        most = MOST_REPLACED_FACTS if self.updates else MOST_FACTS
        if not 1 <= self.min_facts <= self.max_facts <= most:
            raise ValueError(
                f"min_facts={self.min_facts} and max_facts={self.max_facts} are no valid bounds: "
                f"choose 1 <= min_facts <= max_facts <= {most}{' with updates' if self.updates else ''}"
            )
        if self.lists and self.min_facts < 2:
            raise ValueError(f"lists={self.lists} needs two facts or more for a list: choose min_facts of at least 2")

    def _check_probabilities(self) -> None:
        for name in PROBABILITIES:
            probability = getattr(self, name)
            if not 0 <= probability <= 1:
                raise ValueError(f"{name}={probability} is no probability: choose a number from 0 to 1")
        if self.counting + self.lists > 1:
            raise ValueError(
                f"counting={self.counting} and lists={self.lists} are probabilities of one choice: their sum must be at most 1"
            )
