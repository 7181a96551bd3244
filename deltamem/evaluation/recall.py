"""Recall of facts after they have left the context, next to controls: no memory, another memory, the full context."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter
from typing import Any, Literal, TypeVar, get_args

import torch
from peft import PeftModel
from torch import Tensor

from deltamem.backbones import tail_tokens
from deltamem.evaluation.answer_scores import is_said
from deltamem.evaluation.reading import Reading
from deltamem.evaluation.sampling import greedy
from deltamem.evaluation.subject import Subject
from deltamem.intervals import Interval, wilson
from deltamem.memory.state import DeltaMemState
from deltamem.training.facts import FactEpisode, Kind

T = TypeVar("T")

# With a δ-mem adapter: its own memory, an empty one, another episode's. With any other adapter: `adapter`, without the history.
# The bare backbone: `no_memory` without the history, `full_context` with all of it in the prompt, `tail` with as many of its
# last tokens as fit into a KV cache of the memory's size (at least one).
Setting = Literal["memory", "no_memory", "zero_memory", "shuffled_memory", "adapter", "full_context", "tail"]
# The default comparison; none of these has the history in context.
SETTINGS: tuple[Setting, ...] = ("memory", "no_memory", "zero_memory", "shuffled_memory")
MOST_SAID = 20  # maximum tokens of an answer
WITH_MEMORY: tuple[Setting, ...] = (*SETTINGS, "full_context", "tail")


@dataclass(frozen=True)
class Recall:
    """A model's answers to episodes under one setting.

    Args:
        setting: the setting.
        episodes: the episodes.
        choices: the top-ranked candidate of each episode.
        said: the greedily generated answer to each episode.
    """

    setting: Setting
    episodes: Sequence[FactEpisode]
    choices: Sequence[str]
    said: Sequence[str]

    @property
    def right(self) -> list[bool]:
        """For each episode, whether the right answer was ranked first."""
        return [choice == episode.answer for choice, episode in zip(self.choices, self.episodes, strict=True)]

    @property
    def exact(self) -> list[bool]:
        """For each episode, whether the generated answer is right, ignoring case and a full stop."""
        return [_plain(said) == _plain(episode.answer) for said, episode in zip(self.said, self.episodes, strict=True)]

    @property
    def named(self) -> list[bool]:
        """For each episode, whether the generated answer names the right candidate and no other."""
        return [_names(said, episode) for said, episode in zip(self.said, self.episodes, strict=True)]

    @property
    def said_right(self) -> float:
        """Share of episodes whose generated answer names the right candidate and no other."""
        return sum(self.named) / len(self.episodes)

    @property
    def accuracy(self) -> float:
        """Share of episodes whose answer was ranked first."""
        return sum(self.right) / len(self.episodes)

    @property
    def interval(self) -> Interval:
        """Wilson's 95% interval for the accuracy."""
        return wilson(sum(self.right), len(self.episodes))

    def by_kind(self) -> dict[Kind, Recall]:
        """The same answers, grouped by kind of question."""
        return {kind: self._of_kind(kind) for kind in dict.fromkeys(episode.kind for episode in self.episodes)}

    def _of_kind(self, kind: Kind) -> Recall:
        answers = zip(self.episodes, self.choices, self.said, strict=True)
        episodes, choices, said = zip(*(answer for answer in answers if answer[0].kind == kind), strict=True)
        return Recall(self.setting, episodes, choices, said)


@dataclass(frozen=True)
class RecallTest(Subject):
    """Asks a model about facts that it was told before its context was dropped.

    Args:
        model: a model with a δ-mem adapter, with another PEFT adapter, or bare; `settings` lists what each supports.
        tokenizer: its tokenizer.
        system: the system prompt of every pass; None for the chat template's own.
        write_chunk_tokens: write histories in chunks of this many tokens, each in a fresh context; None for all at once.
        batch_size: episodes per batch.
    """

    batch_size: int = 20

    @property
    def settings(self) -> tuple[Setting, ...]:
        """The settings that the model supports."""
        if self.has_memory:
            return WITH_MEMORY
        return ("adapter", "no_memory", "full_context") if isinstance(self.model, PeftModel) else ("no_memory", "full_context")

    @cached_property
    def tail_tokens(self) -> int:
        """How many tokens of the history are in the prompt under the setting "tail"."""
        return tail_tokens(self.model)

    def run(
        self, episodes: Sequence[FactEpisode], settings: Sequence[Setting] = SETTINGS, step: Callable[[int], None] | None = None
    ) -> list[Recall]:
        """Write every history, drop it, then rank the candidates and generate an answer under every setting.

        Args:
            episodes: at least two for "shuffled_memory", which needs another episode's memory.
            settings: the settings to answer under.
            step: called with the number of episodes finished, for a progress bar.

        Raises:
            ValueError: the model does not support a setting; there are too few episodes, or one is too long.
        """
        self._check(episodes, settings)
        if "tail" in settings:
            _ = self.tail_tokens  # cache it while the adapter is on: it depends on the memory's size
        answers: dict[Setting, list[tuple[str, str]]] = {setting: [] for setting in settings}
        for batch in batches(episodes, self.batch_size):
            memory = self._memory(batch, settings)
            for setting in settings:
                answers[setting] += self._answers(batch, setting, memory)
            if step is not None:
                step(len(batch))
        return [Recall(setting, episodes, *zip(*answers[setting], strict=True)) for setting in settings]

    def under(self, setting: Setting, memory: DeltaMemState | None) -> AbstractContextManager[Any]:
        """The context for asking questions under a setting; `memory`, for a δ-mem adapter, has one row per question."""
        if setting in ("no_memory", "full_context", "tail"):
            return self.bare()
        if memory is None:
            return nullcontext()
        if setting == "zero_memory":
            memory = self.model.new_memory(len(memory))
        elif setting == "shuffled_memory":
            memory = DeltaMemState.stack([memory[-1], memory[:-1]])
        return self.model.memory(memory, write=False)

    @torch.no_grad()
    def asked(self, episodes: Sequence[FactEpisode], setting: Setting = "memory") -> list[tuple[str, str]]:
        """For each question, return the most likely candidate (including the end of the turn) and the generated answer.

        Args:
            episodes: the episodes to ask about; all have the same number of candidates.
            setting: the setting that `under` opened; it determines how much of the history is in the prompt.
        """
        model, cache, before = self.start(len(episodes), with_adapter=setting == "adapter")
        ids, mask = self.left_padded([self._prompt(episode, setting) for episode in episodes])
        reading = Reading.from_prompt(model, ids, mask, cache, before)
        scores = reading.log_likelihoods([list(map(self.answer_ids, episode.candidates)) for episode in episodes])
        pairs = [zip(several, episode.candidates, strict=True) for several, episode in zip(scores, episodes, strict=True)]
        said = [str(self.tokenizer.decode(ids, skip_special_tokens=True)) for ids in reading.say(MOST_SAID, self.ends, greedy)]
        return [(max(pair, key=itemgetter(0))[1], text.strip()) for pair, text in zip(pairs, said, strict=True)]

    @torch.no_grad()
    def answer(self, question: str, max_new_tokens: int = MOST_SAID) -> str:
        """Generate an answer to a question greedily."""
        ids, mask = self.left_padded([self.tokens([{"role": "user", "content": question}], add_generation_prompt=True).ids])
        output = self.model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        return str(self.tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)).strip()

    def history_tokens(self, episode: FactEpisode) -> int:
        """The length in tokens of an episode's history as it is written."""
        return len(self.tokens(episode.history).ids)

    def _check(self, episodes: Sequence[FactEpisode], settings: Sequence[Setting]) -> None:
        refused = [setting for setting in settings if setting not in self.settings]
        if refused:
            raise ValueError(
                f"this model cannot be asked under the setting {refused[0]!r}; choose among {', '.join(self.settings)} (of "
                f"{', '.join(get_args(Setting))} in all)"
            )
        if "shuffled_memory" in settings and len(episodes) < 2:
            raise ValueError(f"the control with another episode's memory needs at least 2 episodes, got {len(episodes)}")
        writes = self.write_chunk_tokens is None and {*settings} & {"memory", "shuffled_memory"}
        if writes or "full_context" in settings:
            longest = max((self.history_tokens(episode) for episode in episodes), default=0)
            self.check_window(longest, "the longest history")

    def _memory(self, episodes: Sequence[FactEpisode], settings: Sequence[Setting]) -> DeltaMemState | None:
        """The memories of episodes (empty if no setting reads them); None without a δ-mem adapter."""
        if not self.has_memory:
            return None
        if not {*settings} & {"memory", "shuffled_memory"}:
            empty: DeltaMemState = self.model.new_memory(len(episodes))
            return empty
        return self.write([episode.history for episode in episodes])

    def _answers(
        self, episodes: Sequence[FactEpisode], setting: Setting, memory: DeltaMemState | None
    ) -> list[tuple[str, str]]:
        # Ten candidates each follow the whole history: hold the KV caches of one episode at a time.
        parts = [[episode] for episode in episodes] if setting == "full_context" else [episodes]
        with self.under(setting, memory):
            return [answer for part in parts for answer in self.asked(part, setting)]

    def _prompt(self, episode: FactEpisode, setting: Setting) -> Tensor:
        """Tokenise the prompt, `[tokens]`."""
        if setting == "full_context":
            return self.tokens([*episode.history, episode.question], add_generation_prompt=True).ids
        question = self.tokens([episode.question], add_generation_prompt=True).ids
        if setting != "tail":
            return question
        return torch.cat([self.tokens(episode.history).last(self.tail_tokens).ids, question])


def _names(said: str, episode: FactEpisode) -> bool:
    """Whether a text has the right answer as words of it, and no other candidate."""
    return [value for value in episode.candidates if is_said(value.casefold(), said.casefold())] == [episode.answer]


def _plain(answer: str) -> str:
    return answer.strip().removesuffix(".").casefold()


def batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Split items into batches of at least two (if there are two), for the control with another's memory."""
    start = 0
    while start < len(items):
        end = start + size if len(items) - start - size != 1 else len(items)
        yield items[start:end]
        start = end
