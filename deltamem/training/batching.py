"""A Trainer for chats whose batches group chats of similar length, to keep padding low."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Sampler, SequentialSampler
from transformers import EvalPrediction, Trainer, TrainingArguments
from transformers.trainer_utils import has_length

from deltamem.training.checkpoints import SaveByTime
from deltamem.training.refused import refuse_for_trainer

POOL = 50  # batches sorted together; a larger pool pads less but shuffles less


class ByLength(Sampler[int]):
    """Samples indices so that each batch holds items of similar length; the batches come in random order.

    transformers' own sampler goes from long to short within each group of fifty batches.

    Args:
        lengths: the items' lengths, in any unit.
        batch: items per batch; the last batch of an epoch may be smaller.
        seed: seeds the order, together with the epoch.
    """

    def __init__(self, lengths: Sequence[int], batch: int, seed: int) -> None:
        self.lengths, self.batch, self.seed, self.epoch = lengths, batch, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Set the next epoch; called by the data loader."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator("cpu").manual_seed(self.seed + self.epoch)
        drawn = torch.randperm(len(self), generator=generator, device="cpu").tolist()
        whole = len(drawn) - len(drawn) % self.batch
        for first in range(0, whole, POOL * self.batch):
            pool = sorted(drawn[first : min(first + POOL * self.batch, whole)], key=lambda place: self.lengths[place])
            batches = [pool[start : start + self.batch] for start in range(0, len(pool), self.batch)]
            for number in torch.randperm(len(batches), generator=generator, device="cpu").tolist():
                yield from batches[number]
        yield from drawn[whole:]


def by_length(chats: Any, args: TrainingArguments) -> ByLength | None:
    """The sampler for `train_sampling_strategy="group_by_length"`; None for other strategies or unsized data sets.

    Args:
        chats: a data set of `{"messages": [...]}`; length is measured in characters.
        args: set the number of chats per optimizer step on each device.
    """
    if args.train_sampling_strategy != "group_by_length" or not has_length(chats):
        return None
    lengths = [sum(len(message["content"]) for message in chats[place]["messages"]) for place in range(len(chats))]
    seed = args.seed if args.data_seed is None else args.data_seed
    return ByLength(lengths, args.train_batch_size * args.gradient_accumulation_steps, seed)


def episodes_per_step(args: TrainingArguments) -> int:
    """The number of episodes in an optimizer step, over all processes."""
    return int(args.train_batch_size * args.gradient_accumulation_steps * args.world_size)


class ChatTrainer(Trainer):
    """A Trainer for collated chats, with one loss over all batches of an optimizer step.

    Args:
        metrics: the metrics to compute unless the caller passes `compute_metrics`; None for the loss alone.
    """

    def __init__(self, *args: Any, metrics: Callable[[EvalPrediction], dict[str, float]] | None = None, **kwargs: Any) -> None:
        refuse_for_trainer(Trainer, *args, **kwargs)
        super().__init__(*args, **{"compute_metrics": metrics, **kwargs})
        minutes: float | None = getattr(self.args, "save_minutes", None)  # transformers' own arguments have none
        if minutes is not None:
            self.add_callback(SaveByTime(minutes))
        self.model_accepts_loss_kwargs = True  # the loss is already the mean over a step's batches: do not divide it again

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        chats = self.train_dataset if train_dataset is None else train_dataset
        sampler = by_length(chats, self.args)
        return super()._get_train_sampler(train_dataset) if sampler is None else sampler

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        """Keep the chats in order, so that views and controls can be compared chat by chat."""
        sequential = self.args.world_size <= 1 and has_length(eval_dataset)
        return SequentialSampler(eval_dataset) if sequential else None
