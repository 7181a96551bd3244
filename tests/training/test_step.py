"""A step of the optimizer is one, however its episodes are cut into batches."""

import functools
import itertools

import pytest
import torch
import torch.nn.functional as F
from nightly import by_day
from peft import LoraConfig, get_peft_model
from tiny import tiny_backbone
from tiny_chat import chat_model
from tiny_training import ANSWERS, ENCODER, MEMORY, arguments, chat
from transformers import Trainer

from deltamem.training.baselines import BaselineTrainer, ReadCollator
from deltamem.training.episodes import EpisodeCollator
from deltamem.training.loss import EpisodeLoss
from deltamem.training.scripts import IGNORED
from deltamem.training.trainer import DeltaMemTrainer
from deltamem.training.views import VIEWS

# All but the view whose cost depends on what else is in the batch.
ALONE = [view for view, how in VIEWS.items() if not how.another]
MIXED = [
    {**chat(answer), "reads": [{"view": view}, {"view": other}]}
    for answer, view, other in zip(ANSWERS, itertools.cycle(ALONE), itertools.cycle(ALONE[1:]), strict=False)
]


def memory_trainer(folder, chats, **options):
    return DeltaMemTrainer(
        chat_model(spread=0.5), arguments(folder, **options), train_dataset=chats, data_collator=EpisodeCollator(ENCODER)
    )


def lora_trainer(folder, chats, **options):
    torch.manual_seed(0)
    lora = get_peft_model(tiny_backbone(initializer_range=0.5), LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    return BaselineTrainer(lora, arguments(folder, **options), train_dataset=chats, data_collator=ReadCollator(ENCODER))


def step(make, folder, chats, size, accumulate, **options):
    """What the weights that are trained have become, and the loss that is logged."""
    run = make(folder, chats, size=size, accumulate=accumulate, logging_steps=1, **options)
    before = {name: weight.detach().clone() for name, weight in run.model.named_parameters() if weight.requires_grad}
    run.train()
    moved = torch.cat([(weight - before[name]).flatten() for name, weight in run.model.named_parameters() if name in before])
    return moved.detach(), run.state.log_history[0]["loss"]


def off(found, expected):
    return float((found - expected).norm() / expected.norm())


CASES = {"memory": (memory_trainer, MEMORY), "all views": (memory_trainer, MIXED), "lora": (lora_trainer, MEMORY)}


@pytest.fixture(scope="module")
def in_one(tmp_path_factory):
    """The step of a case that is not cut."""
    return functools.cache(lambda case: step(CASES[case][0], tmp_path_factory.mktemp("in_one"), CASES[case][1], 6, 1))


# By day, batches of one, and of different sizes.
@pytest.mark.parametrize(("size", "accumulate"), by_day([(1, 6), (4, 2)], [(3, 2), (2, 3), (1, 6), (4, 2)]))
@pytest.mark.parametrize("case", CASES)
def test_batches_of_a_step_are_one_batch(tmp_path, in_one, case, size, accumulate):
    whole, loss = in_one(case)
    cut, cut_loss = step(CASES[case][0], tmp_path, CASES[case][1], size, accumulate)
    assert off(cut, whole) < 1e-4
    assert cut_loss == pytest.approx(loss, rel=1e-3)  # logged with few digits


@pytest.mark.parametrize("case", CASES)
def test_a_mean_of_means_is_another_step(tmp_path, monkeypatch, in_one, case):
    """The control: without the counts of the whole step."""
    make, chats = CASES[case]
    whole, _ = in_one(case)
    for trainer in (DeltaMemTrainer, Trainer):
        found = trainer.get_batch_samples
        monkeypatch.setattr(trainer, "get_batch_samples", lambda *given, found=found: (found(*given)[0], None))
    assert off(step(make, tmp_path, chats, 1, 6)[0], whole) > 0.01


def test_an_epochs_last_step_may_be_shorter(tmp_path):
    """Five episodes in steps of four: the last step is a mean over one episode, as if it were a batch."""
    whole, _ = step(memory_trainer, tmp_path, MEMORY[:5], 4, 1, max_steps=2)
    cut, _ = step(memory_trainer, tmp_path, MEMORY[:5], 1, 4, max_steps=2)
    assert off(cut, whole) < 1e-4


def test_the_write_penalty_of_a_step_is_the_mean_over_its_episodes(tmp_path):
    batches = [EpisodeCollator(ENCODER)(part) for part in (MEMORY[:1], MEMORY[1:3], MEMORY[3:])]
    with_penalty = memory_trainer(tmp_path, MEMORY, write_penalty=3.0, write_target=0.0)
    without = memory_trainer(tmp_path, MEMORY)
    for run in (with_penalty, without):
        run.create_accelerator_and_postprocess()
    _, counts = with_penalty.get_batch_samples(iter(batches), 3, torch.device("cpu"))
    of_step = {"num_items_in_batch": counts}
    high, low = (sum(run.compute_loss(run.model, batch, **of_step) for batch in batches) for run in (with_penalty, without))
    gates = [mean_gate(with_penalty.model, batch) for batch in batches]
    torch.testing.assert_close(high - low, sum(n / 6 * 3.0 * gate**2 for n, gate in zip((1, 2, 3), gates, strict=True)))


def mean_gate(model, batch):
    costs = EpisodeLoss(model)
    costs(model, batch)
    return torch.stack(costs.write_gates).mean()


@pytest.mark.parametrize("make", [memory_trainer, lora_trainer])
def test_label_smoothing_spreads_the_targets(tmp_path, make):
    smooth, sharp = make(tmp_path, MEMORY, label_smoothing_factor=0.4), make(tmp_path, MEMORY)
    batch = smooth.data_collator(MEMORY)
    found, plain = (run.compute_loss(run.model.eval(), batch).detach() for run in (smooth, sharp))
    read = batch.get("memory", batch)
    logits = logits_of(sharp.model, read, batch.get("chats"))
    targets = read["labels"][:, 1:]
    asked = targets != IGNORED
    spread = -F.log_softmax(logits[:, :-1][asked], dim=-1).mean()  # over the vocabulary and the answers' tokens
    torch.testing.assert_close(found, 0.6 * plain + 0.4 * spread)
    assert abs(found - plain) > 0.01


@torch.no_grad()
def logits_of(model, batch, chats):
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    if chats is None:
        return model(**inputs).logits
    state = model.new_memory(len(batch["input_ids"]))
    with model.memory(state):
        model(**chats)
    with model.memory(state, write=False):
        return model(**inputs).logits
