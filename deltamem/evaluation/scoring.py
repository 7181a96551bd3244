"""Scores the likelihood of continuations of texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from deltamem.chat.tokens import left_padded
from deltamem.evaluation.subject import Subject
from deltamem.versions import CACHE


@dataclass(frozen=True)
class Text:
    """A text whose end is scored.

    Args:
        ids: the context and its continuation, `[tokens]`.
        scored: how many tokens at the end are the continuation.
        counted: which of these count, `[scored]`; None for all.
    """

    ids: Tensor
    scored: int
    counted: Tensor | None = None

    @property
    def counts(self) -> Tensor:
        """Which tokens of the continuation count, `[scored]`."""
        return torch.ones(self.scored, dtype=torch.bool, device="cpu") if self.counted is None else self.counted

    @classmethod
    def from_text(cls, tokenizer: Any, context: str, continuation: str) -> Text:
        """Tokenise both together, as lm-evaluation-harness does, starting with the BOS token if the tokenizer adds it."""
        start = [token for token in tokenizer("")["input_ids"] if token == tokenizer.bos_token_id]
        before, whole = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (context, context + continuation))
        return cls(torch.tensor(start + whole, dtype=torch.long, device="cpu"), len(whole) - len(before))


@dataclass(frozen=True)
class Score:
    """The likelihood of a continuation.

    Args:
        log_likelihood: summed over its tokens that count, in nats.
        greedy: whether each of them is the most likely token at its position.
    """

    log_likelihood: float
    greedy: bool


@torch.no_grad()
def score(subject: Subject, texts: Sequence[Text], with_adapter: bool = False) -> list[Score]:
    """Score texts in one pass; an open memory has one row per text.

    Args:
        subject: the model.
        texts: the texts to score.
        with_adapter: whether an adapter without a memory is on; see `Subject.start`.
    """
    ids, mask = subject.left_padded([text.ids for text in texts])
    most = max(text.scored for text in texts)
    tokens = ids.shape[1]
    model, cache, before = subject.start(len(texts), with_adapter)
    mask = F.pad(mask, (before, 0), value=1)
    output = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=mask.cumsum(1).sub(1).clamp(min=0)[:, before:],
        **({CACHE: cache} if before else {"use_cache": False}),
        logits_to_keep=torch.arange(tokens - most - 1, tokens - 1, device=ids.device),
    )
    predicted = output.logits.float().log_softmax(-1)  # [texts, most, vocabulary]
    targets = ids[:, -most:]
    counted = left_padded([text.counts for text in texts], fill=False).to(ids.device)  # [texts, most]
    likelihoods = predicted.gather(2, targets[..., None]).squeeze(2).where(counted, 0.0).sum(1)
    greedy = ((predicted.argmax(2) == targets) | ~counted).all(1)
    return [Score(*pair) for pair in zip(likelihoods.tolist(), greedy.tolist(), strict=True)]
