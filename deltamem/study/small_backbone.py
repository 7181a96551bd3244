"""A small language model that answers facts from its context: the frozen backbone for studies on a CPU.

It stands for a pretrained model, so it knows the words of all splits, including those held out from an adapter's training;
it learns them from chats of all splits, with the whole chat in context.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    get_cosine_schedule_with_warmup,
)

from deltamem.study.words import word_tokenizer
from deltamem.training.episodes import EpisodeEncoder
from deltamem.training.facts import FactEpisodeConfig, Split, fact_questions
from deltamem.training.scripts import IGNORED

POSITIONS = 65_536  # more than any chat of a study needs
COPYING = 0.2  # share of the training, at its start, that copies words
WORDS = (6, 24)  # minimum and maximum words to copy
TOKENS = 1536  # per batch of copied words
QUESTIONS = 64  # per batch of facts
OTHERS_SHARE, OTHERS_WEIGHT = 0.1, 0.3  # share drawn of the tokens that are not answers, and their weight in the loss
WARMUP = 0.02  # share of the training over which the learning rate rises
SPLITS: dict[Split, float] = {"train": 0.6, "held_out": 0.2, "unseen_values": 0.2}
RECIPE = 1  # version of the training below; changing it makes a new backbone


@dataclass(frozen=True)
class SmallBackbone:
    """Configures a Llama of a few layers, and its training.

    Args:
        layers, width, heads: the model's size; the feed-forward layers are twice as wide.
        steps: number of training steps.
        learning_rate: the peak; it decays on a cosine.
        facts: maximum facts per chat.
        values: use only the first values of each attribute; see `FactEpisodeConfig`.
        seed: seeds the weights and the chats.

    Raises:
        ValueError: a number is out of range.
    """

    layers: int = 4
    width: int = 128
    heads: int = 4
    steps: int = 2400
    learning_rate: float = 2e-3
    facts: int = 4
    values: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("layers", "width", "heads", "steps", "facts"):
            if getattr(self, name) < 1:
                raise ValueError(f"backbone.small.{name}: {getattr(self, name)} is not accepted; give 1 or more")
        if self.width % (2 * self.heads):
            raise ValueError(
                f"backbone.small.width: {self.width} is not accepted with {self.heads} heads; give a multiple of "
                f"{2 * self.heads}"
            )
        self.episodes(self.facts)

    def episodes(self, facts: int) -> FactEpisodeConfig:
        """Configure chats with this many facts."""
        return FactEpisodeConfig(
            min_facts=facts, max_facts=facts, max_fillers=1, separate_turns=0.5, same_attribute=0.5, values=self.values
        )


def small_backbone(settings: SmallBackbone, step: Callable[[float], None] | None = None) -> Path:
    """Return the cached folder of a backbone and its tokenizer; train it on first use.

    Training runs on the CPU in float32, so that studies have the same backbone everywhere.

    Args:
        settings: the backbone's size and training.
        step: called with the fraction of the training done.
    """
    tokenizer = word_tokenizer()
    folder = _cached_in(settings, tokenizer)
    if not folder.exists():
        model = untrained(settings, tokenizer)
        train(model, tokenizer, settings, step)
        _save(folder, model, tokenizer)
    return folder


def untrained(settings: SmallBackbone, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Create the model before its training."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.width,
        intermediate_size=2 * settings.width,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        max_position_embeddings=POSITIONS,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        return LlamaForCausalLM(config)


def train(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    settings: SmallBackbone,
    step: Callable[[float], None] | None = None,
) -> None:
    """Train a model first to copy, then on chats that tell facts and ask for each of them.

    A model that has learnt to find an earlier word by what preceded it learns to find facts within a few hundred steps; one
    that starts with facts has not learnt it after a thousand (docs/experiments.md).
    """
    optimizer = torch.optim.AdamW(model.parameters(), settings.learning_rate, betas=(0.9, 0.98), weight_decay=0.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, int(settings.steps * WARMUP), settings.steps)
    copying = int(settings.steps * COPYING)
    model.train()
    for number in range(settings.steps):
        rng = random.Random(f"{settings.seed}-{number}")
        if number < copying:
            ids, labels = repeated_words(tokenizer, rng)
            others = torch.zeros_like(ids, dtype=torch.bool)
        else:
            ids, labels = told_and_asked(tokenizer, settings, rng)
            others = _others(ids, labels, tokenizer.pad_token_id, rng)
        optimizer.zero_grad()
        _loss(model, ids, labels, others).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step is not None:
            step((number + 1) / settings.steps)
    model.eval()


def repeated_words(tokenizer: PreTrainedTokenizerFast, rng: random.Random) -> tuple[Tensor, Tensor]:
    """Random words, twice in a row: tokens and labels, `[batch, tokens]`; the repetition is trained on."""
    length = rng.randint(*WORDS)
    words = [[rng.randrange(len(tokenizer)) for _ in range(length)] for _ in range(max(1, TOKENS // (2 * length)))]
    once = torch.tensor(words, dtype=torch.long, device="cpu")
    labels = torch.cat([torch.full_like(once, IGNORED), once], dim=1)
    labels[:, length] = IGNORED  # the start of the repetition cannot be predicted
    return torch.cat([once, once], dim=1), labels


def told_and_asked(tokenizer: PreTrainedTokenizerFast, settings: SmallBackbone, rng: random.Random) -> tuple[Tensor, Tensor]:
    """Chats that tell facts and ask for all of them: tokens and labels, `[batch, tokens]`; the answers are trained on."""
    encoder = EpisodeEncoder(tokenizer, answer_only=True)
    facts = rng.randint(1, settings.facts)
    ids, labels = [], []
    for _ in range(max(1, QUESTIONS // facts)):
        (split,) = rng.choices([*SPLITS], [*SPLITS.values()])
        asked = fact_questions(rng, settings.episodes(facts), split)
        rng.shuffle(asked)
        turns = [message for episode in asked for message in episode.messages[-2:]]
        episode = encoder({"messages": asked[0].history + turns, "read_turns": len(asked)})
        (read,) = episode.reads
        ids.append(torch.cat([episode.chat.ids, read.ids]))
        labels.append(torch.cat([torch.full_like(episode.chat.ids, IGNORED), read.labels]))
    pad = tokenizer.pad_token_id
    return pad_sequence(ids, batch_first=True, padding_value=pad), pad_sequence(labels, batch_first=True, padding_value=IGNORED)


def _loss(model: LlamaForCausalLM, ids: Tensor, labels: Tensor, others: Tensor) -> Tensor:
    """Cross-entropy of the labelled tokens, plus, with less weight, that of some others.

    Args:
        ids, labels: `[batch, tokens]`, padded on the right, so that nothing attends to the padding.
        others: `[batch, tokens]`, True for the others.
    """
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    # Only at trained positions: in a small model, the output projection takes a large share of the compute.
    labelled, rest = (
        F.cross_entropy(model.lm_head(hidden[part]), ids[:, 1:][part], reduction="sum") / max(int(part.sum()), 1)
        for part in ((labels != IGNORED)[:, 1:], others[:, 1:])
    )
    return labelled + OTHERS_WEIGHT * rest


def _others(ids: Tensor, labels: Tensor, pad: int, rng: random.Random) -> Tensor:
    """Mark a random share of the tokens that are not answers, `[batch, tokens]`."""
    generator = torch.Generator().manual_seed(rng.getrandbits(32))
    drawn = torch.rand(ids.shape, generator=generator, dtype=torch.float32, device="cpu") < OTHERS_SHARE
    return drawn & (labels == IGNORED) & (ids != pad)


def _cached_in(settings: SmallBackbone, tokenizer: PreTrainedTokenizerFast) -> Path:
    """The cache folder of a backbone, named after everything that determines its weights."""
    decides = json.dumps([asdict(settings), sorted(tokenizer.get_vocab()), RECIPE])
    name = hashlib.sha256(decides.encode()).hexdigest()[:12]
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "deltamem" / f"small-backbone-{name}"


def _save(folder: Path, model: PreTrainedModel, tokenizer: Any) -> None:
    """Save to a folder that appears only once complete; another process may have been faster."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = tempfile.mkdtemp(dir=folder.parent)
    model.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    try:
        os.rename(unfinished, folder)
    except OSError:
        shutil.rmtree(unfinished)
