"""Batches of chats of about the same length."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_chat import chat_model, chat_tokenizer
from tiny_training import ENCODER, arguments, chat

from deltamem.training.batching import ByLength
from deltamem.training.episodes import EpisodeCollator
from deltamem.training.trainer import DeltaMemTrainer


@given(st.lists(st.integers(0, 100), max_size=60), st.integers(1, 7), st.integers(0, 3))
def test_an_epoch_has_every_place_once(lengths, batch, seed):
    sampler = ByLength(lengths, batch, seed)
    assert sorted(sampler) == [*range(len(lengths))]
    assert [*sampler] == [*ByLength(lengths, batch, seed)]


@given(st.permutations(range(12)))
def test_no_two_batches_of_a_pool_overlap_in_length(lengths):
    drawn = [lengths[place] for place in ByLength(lengths, 3, 0)]
    batches = sorted((min(drawn[start : start + 3]), max(drawn[start : start + 3])) for start in range(0, 12, 3))
    assert batches == [(0, 2), (3, 5), (6, 8), (9, 11)]


def test_epochs_have_orders_of_their_own():
    sampler = ByLength(range(30), 3, 0)
    first = [*sampler]
    sampler.set_epoch(1)
    assert [*sampler] != first != sorted(first)


@pytest.mark.parametrize(("strategy", "little"), [("group_by_length", True), ("random", False)])
def test_little_of_what_is_computed_is_padding(tmp_path, strategy, little):
    """The control: a random order pads more than a fifth."""
    chats = [chat(" ".join(["red"] * words)) for words in range(1, 41)]
    trainer = DeltaMemTrainer(
        chat_model(),
        arguments(tmp_path, size=4, train_sampling_strategy=strategy),
        train_dataset=chats,
        data_collator=EpisodeCollator(ENCODER),
    )
    masks = [batch["memory"]["attention_mask"] for batch in trainer.get_train_dataloader()]
    padding = 1 - sum(mask.sum() for mask in masks) / sum(mask.numel() for mask in masks)
    assert padding < 0.1 if little else padding > 0.2


def test_evaluation_keeps_the_order_of_the_chats(tmp_path):
    """Views and controls are compared chat by chat."""
    chats = [chat(answer) for answer in ("1 2 3 4 5 6 7", "teal", "a friend of Anna")]
    trainer = DeltaMemTrainer(
        chat_model(), arguments(tmp_path, size=1), eval_dataset=chats, data_collator=EpisodeCollator(ENCODER)
    )
    trainer.args.per_device_eval_batch_size = 1
    labels = [batch["memory"]["labels"][0] for batch in trainer.get_eval_dataloader()]
    texts = [chat_tokenizer().decode(row[row >= 0]) for row in labels]
    assert all(text.startswith(start) for text, start in zip(texts, ("1 2", "teal", "a friend"), strict=True))


def test_speed_and_padding_are_logged(tmp_path):
    chats = [chat("teal"), chat("1 2 3 4 5 6 7")]
    trainer = DeltaMemTrainer(
        chat_model(),
        arguments(tmp_path, size=2, logging_steps=1, max_steps=2),
        train_dataset=chats,
        data_collator=EpisodeCollator(ENCODER),
    )
    trainer.train()
    batch = EpisodeCollator(ENCODER)(chats)
    masks = [batch["chats"]["attention_mask"], batch["memory"]["attention_mask"]]
    padding = 1 - sum(mask.sum() for mask in masks) / sum(mask.numel() for mask in masks)
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["padding"] for entry in logged] == [pytest.approx(padding.item())] * 2
    assert all(entry["tokens_per_second"] > 0 for entry in logged)
    assert trainer._throughput.figures() == {}
