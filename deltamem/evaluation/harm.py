"""How a memory affects unrelated texts: how far the model's predictions move away from the backbone's."""

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
MOST_TOKENS = 256  # per text
# zero: an empty memory. filled: one that holds a conversation, different for each text. adapter: an adapter without a memory.
WITH_MEMORY = ("zero", "filled")
# kl: KL(backbone || model), in nats per token. changed: share of tokens after which the most likely next token differs.
METRICS = {"kl": Metric("kl", mean), "changed": Metric("changed", mean)}


@dataclass
class HarmTask:
    """Texts that the backbone and the model read; see `Task`. A text's figures are means over its tokens.

    Args:
        texts: the texts, by their numbers in the data.
        identity: the options that selected them.
        seed: seeds the conversations that fill memories.
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
            ValueError: the model has no adapter.
        """
        if not isinstance(subject.model, PeftModel):
            raise ValueError(f"{self.name} compares a model with its bare backbone; give an adapter with --adapter")
        return WITH_MEMORY if subject.has_memory else (ADAPTER,)

    def prepare(self, subject: Subject, settings: Sequence[str]) -> None:
        """See `Task`."""
        longest = max(len(_ids(subject, text)) for text in self.texts.values())
        subject.check_window(longest, f"the longest text of {self.name}")

    def answer(self, subject: Subject, settings: Sequence[str], places: Sequence[int]) -> dict[str, list[Row]]:
        """See `Task`; runs one text at a time, since predictions over a whole vocabulary are large."""
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
    """Compute a text's metrics from log-probabilities `[tokens, vocabulary]`."""
    kl = (expected.exp() * (expected - found)).sum(-1)  # [tokens]
    changed = expected.argmax(-1) != found.argmax(-1)
    return {"kl": kl.mean().item(), "changed": changed.float().mean().item()}


def tasks(options: Options) -> list[HarmTask]:
    """Create the task.

    Raises:
        ValueError: the data is missing or malformed.
    """
    texts = read_texts(NAME, options)
    chosen = {number: texts[number] for number in sampled_numbers(len(texts), options)}
    return [HarmTask(chosen, identity(options), options.seed)]


def _ids(subject: Subject, text: AnyText) -> Tensor:
    """Tokenise a text and keep its first tokens, `[tokens]`."""
    ids = Text.from_text(subject.tokenizer, "", text).ids if isinstance(text, str) else subject.tokens(text).ids
    return ids[:MOST_TOKENS]


@torch.no_grad()
def _expectations(subject: Subject, ids: Tensor) -> Tensor:
    """Log-probabilities of the next token after each token of a text, `[tokens, vocabulary]`, in float32."""
    logits = subject.model(input_ids=ids[None].to(subject.model.device), use_cache=False).logits
    return cast(Tensor, logits[0].float().log_softmax(-1))
