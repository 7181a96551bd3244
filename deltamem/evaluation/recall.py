"""How many facts a memory recalls: episodes answered from the memory alone, next to controls that have none, or another's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from einops import rearrange
from peft import PeftModel
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache

from deltamem.chat_tokens import ChatTokens, Message, with_system
from deltamem.state import DeltaMemState
from deltamem.training.facts import FactEpisode

# memory: the episode's own. no_memory: the bare backbone. zero_memory: the adapter, with an empty memory. shuffled_memory: the
# adapter, with the memory of another episode. None of them has the history in its context.
Setting = Literal["memory", "no_memory", "zero_memory", "shuffled_memory"]
SETTINGS: tuple[Setting, ...] = get_args(Setting)


@dataclass(frozen=True)
class Recall:
    """Answers to episodes under one setting.

    Args:
        setting: the memory there was.
        episodes: the episodes.
        choices: the candidate ranked first, for each.
    """

    setting: Setting
    episodes: Sequence[FactEpisode]
    choices: Sequence[str]

    @property
    def accuracy(self) -> float:
        """Share of episodes whose answer was ranked first among the candidates."""
        right = sum(choice == episode.answer for choice, episode in zip(self.choices, self.episodes, strict=True))
        return right / len(self.episodes)


@dataclass(frozen=True)
class RecallTest:
    """Asks a model for facts that it was told before its context was dropped.

    Args:
        model: a model with a δ-mem adapter.
        tokenizer: its tokenizer.
        system: the system prompt of every pass; the chat template's own if None.
        batch_size: episodes at a time.
    """

    model: PeftModel
    tokenizer: Any
    system: str | None = None
    batch_size: int = 20

    def run(
        self, episodes: Sequence[FactEpisode], settings: Sequence[Setting] = SETTINGS, step: Callable[[int], None] | None = None
    ) -> list[Recall]:
        """Write every history, drop it, and rank the candidates under every setting.

        Args:
            episodes: at least two, so that there is another's memory.
            settings: which memories to answer from.
            step: called with the number of episodes done, for a progress bar.
        """
        if len(episodes) < 2:
            raise ValueError(f"the control with another episode's memory needs at least 2 episodes, got {len(episodes)}")
        choices: dict[Setting, list[str]] = {setting: [] for setting in settings}
        for batch in _batches(episodes, self.batch_size):
            memory = self.write([episode.history for episode in batch])
            for setting in settings:
                with self.under(setting, memory):
                    choices[setting] += self.rank(batch)
            if step is not None:
                step(len(batch))
        return [Recall(setting, episodes, choices[setting]) for setting in settings]

    @torch.no_grad()
    def write(self, histories: Sequence[Sequence[Message]]) -> DeltaMemState:
        """Write one history per row to an empty memory."""
        write = self.model.active_peft_config.write
        tokens = [self._tokens(history, write) for history in histories]
        ids, mask = self._left_padded([row.ids for row in tokens])
        memory = self.model.new_memory(len(histories))
        segment_ids = None if write == "token" else self._left_padded([row.segment_ids for row in tokens], fill=-1)[0]
        with self.model.memory(memory, segment_ids=segment_ids):
            self.model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=1)
        return memory

    def under(self, setting: Setting, memory: DeltaMemState) -> AbstractContextManager[Any]:
        """The context in which questions are asked under a setting; `memory` has one row per question."""
        if setting == "no_memory":
            return self.model.disable_adapter()
        if setting == "zero_memory":
            memory = self.model.new_memory(len(memory))
        elif setting == "shuffled_memory":
            memory = DeltaMemState.stack([memory[-1], memory[:-1]])
        return self.model.memory(memory, write=False)

    @torch.no_grad()
    def rank(self, episodes: Sequence[FactEpisode]) -> list[str]:
        """The candidate whose tokens, end of turn included, are likeliest as the answer to each question."""
        cache = DynamicCache(config=self.model.config)
        ids, mask = self._left_padded(
            [self._tokens([episode.question], add_generation_prompt=True).ids for episode in episodes]
        )
        predicted = self._log_probs(ids, mask, mask.cumsum(1).sub(1).clamp(min=0), cache)  # [b, vocabulary]

        candidates = len(episodes[0].candidates)
        answers = [self._answer_ids(value) for episode in episodes for value in episode.candidates]
        lengths = torch.tensor([len(answer) for answer in answers], device=ids.device)
        targets = pad_sequence(answers, batch_first=True).to(ids.device)  # [b * candidates, tokens]
        cache.batch_repeat_interleave(candidates)
        mask, predicted = (tensor.repeat_interleave(candidates, dim=0) for tensor in (mask, predicted))
        scores = predicted.gather(1, targets[:, :1]).squeeze(1)
        rows = torch.arange(len(answers), device=ids.device)  # the answers that are not at their end yet
        for position in range(1, targets.shape[1]):
            longer = (lengths[rows] > position).nonzero().squeeze(1)
            cache.batch_select_indices(longer)
            rows, mask = rows[longer], F.pad(mask[longer], (0, 1), value=1)
            predicted = self._log_probs(targets[rows, position - 1, None], mask, mask.sum(1, keepdim=True) - 1, cache)
            scores[rows] += predicted.gather(1, targets[rows, position, None]).squeeze(1)
        best = rearrange(scores, "(b c) -> b c", c=candidates).argmax(1).tolist()
        return [episode.candidates[index] for episode, index in zip(episodes, best, strict=True)]

    @torch.no_grad()
    def answer(self, episode: FactEpisode, max_new_tokens: int = 12) -> str:
        """What the model says, greedily, when asked the question."""
        ids, mask = self._left_padded([self._tokens([episode.question], add_generation_prompt=True).ids])
        output = self.model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        return str(self.tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)).strip()

    def history_tokens(self, episode: FactEpisode) -> int:
        """Length of an episode's history as it is written."""
        return len(self._tokens(episode.history).ids)

    def _log_probs(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: DynamicCache) -> Tensor:
        """Of the token after the last one: `[rows, tokens]` to `[rows, vocabulary]`."""
        last = torch.tensor([ids.shape[1] - 1], device=ids.device)
        output = self.model(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, logits_to_keep=last
        )
        return output.logits[:, -1].float().log_softmax(-1)

    def _tokens(self, messages: Sequence[Message], write: Any = "token", add_generation_prompt: bool = False) -> ChatTokens:
        return ChatTokens.of(self.tokenizer, with_system(self.system, messages), write, add_generation_prompt)

    def _answer_ids(self, value: str) -> Tensor:
        ids = self.tokenizer(value, add_special_tokens=False)["input_ids"]
        return torch.tensor([*ids, self.tokenizer.eos_token_id])

    def _left_padded(self, rows: Sequence[Tensor], fill: int | None = None) -> tuple[Tensor, Tensor]:
        device = self.model.device
        fill = (self.tokenizer.pad_token_id or 0) if fill is None else fill
        ids = pad_sequence(list(rows), batch_first=True, padding_value=fill, padding_side="left")
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True, padding_side="left")
        return ids.to(device), mask.to(device)


def _batches(episodes: Sequence[FactEpisode], size: int) -> Iterator[Sequence[FactEpisode]]:
    """Batches of at least two, for the control with another's memory."""
    start = 0
    while start < len(episodes):
        end = start + size if len(episodes) - start - size != 1 else len(episodes)
        yield episodes[start:end]
        start = end
