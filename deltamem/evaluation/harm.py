"""What a memory does to texts that it has nothing to do with: how far the model's expectations move from the backbone's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from peft import PeftModel
from torch import Tensor

from deltamem.evaluation.benchmark_data import identity, sampled_numbers
from deltamem.evaluation.off_task import ADAPTER, conversation
from deltamem.evaluation.scoring import Text
from deltamem.evaluation.subject import Subject
from deltamem.evaluation.task import Metric, Options, Row, mean
from deltamem.evaluation.texts import AnyText, read_texts

NAME = "harm"
MOST_TOKENS = 256  # of each text
# zero: an empty memory. filled: one that holds a conversation, another for each text. adapter: one without a memory.
WITH_MEMORY = ("zero", "filled")
# kl: of the backbone's expectations from the model's, in nats a token. changed: tokens behind which another is the likeliest.
METRICS = {"kl": Metric("kl", mean), "changed": Metric("changed", mean)}


@dataclass
class HarmTask:
    """Texts that the backbone and the model read; see `Task`. A figure of a text is the mean over its tokens.

    Args:
        texts: by their numbers in the data.
        identity: the options that chose them.
        seed: of the conversations that fill memories.
    """

    texts: Mapping[int, AnyText]
    identity: dict[str, Any]
    seed: int
    name: str = NAME
    metrics: dict[str, Metric] = field(default_factory=lambda: METRICS)

    def __len__(self) -> int:
        return len(self.texts)

    def settings(self, subject: Subject) -> tuple[str, ...]:
        """See `Task`.

        Raises:
            ValueError: a model without an adapter.
        """
        if not isinstance(subject.model, PeftModel):
            raise ValueError(f"{self.name} compares a model with its bare backbone; give an adapter with --adapter")
        return WITH_MEMORY if subject.has_memory else (ADAPTER,)

    def prepare(self, subject: Subject, settings: Sequence[str]) -> None:
        """See `Task`."""
        longest = max(len(_ids(subject, text)) for text in self.texts.values())
        subject.check_window(longest, f"the longest text of {self.name}")

    def answer(self, subject: Subject, settings: Sequence[str], places: Sequence[int]) -> dict[str, list[Row]]:
        """See `Task`; text by text, for expectations over a whole vocabulary are large."""
        numbers = [[*self.texts][place] for place in places]
        several = [self._of_text(subject, settings, number) for number in numbers]
        return {setting: [rows[setting] for rows in several] for setting in settings}

    def _of_text(self, subject: Subject, settings: Sequence[str], number: int) -> dict[str, Row]:
        ids = _ids(subject, self.texts[number])
        with subject.bare():
            expected = _expectations(subject, ids)
        rows: dict[str, Row] = {}
        for setting in settings:
            with self._under(subject, setting, number):
                rows[setting] = {"index": number, **compared(expected, _expectations(subject, ids))}
        return rows

    def _under(self, subject: Subject, setting: str, number: int) -> AbstractContextManager[Any]:
        """The context of a setting."""
        if setting == ADAPTER:
            return nullcontext()
        memory = subject.model.new_memory() if setting == "zero" else subject.write([conversation(self.seed, number)])
        return cast(AbstractContextManager[Any], subject.model.memory(memory, write=False))


def compared(expected: Tensor, found: Tensor) -> dict[str, float]:
    """What moved between log-probabilities `[tokens, vocabulary]`: the metrics of a text."""
    kl = (expected.exp() * (expected - found)).sum(-1)  # [tokens]
    changed = expected.argmax(-1) != found.argmax(-1)
    return {"kl": kl.mean().item(), "changed": changed.float().mean().item()}


def tasks(options: Options) -> list[HarmTask]:
    """The task, as one.

    Raises:
        ValueError: no data, or of another format.
    """
    texts = read_texts(NAME, options)
    chosen = {number: texts[number] for number in sampled_numbers(len(texts), options)}
    return [HarmTask(chosen, identity(options), options.seed)]


def _ids(subject: Subject, text: AnyText) -> Tensor:
    """The first tokens of a text, `[tokens]`."""
    ids = Text.of(subject.tokenizer, "", text).ids if isinstance(text, str) else subject.tokens(text).ids
    return ids[:MOST_TOKENS]


@torch.no_grad()
def _expectations(subject: Subject, ids: Tensor) -> Tensor:
    """Log-probabilities behind each token of a text, `[tokens, vocabulary]`, in float32."""
    logits = subject.model(input_ids=ids[None].to(subject.model.device), use_cache=False).logits
    return cast(Tensor, logits[0].float().log_softmax(-1))
