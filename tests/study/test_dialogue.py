"""The programs of docs/studies/dialogue: the upper layers alone are the whole model, and what a step trains on."""

import argparse
import random
import sys
from pathlib import Path

import pytest
import torch
from tiny import tiny_backbone, tiny_config

from deltamem.chat.tokens import render
from deltamem.memory.snapshot import Snapshot
from deltamem.memory.state import DeltaMemState
from deltamem.study.words import word_tokenizer

STUDY = Path(__file__).parents[2] / "docs" / "studies" / "dialogue"
TOLD = [{"role": "user", "content": "Anna lives in Oslo."}, {"role": "assistant", "content": "Okay, noted."}]
LONGER = [*TOLD, {"role": "user", "content": "She likes teal more than red."}]
ASKED = [{"role": "user", "content": "Where does Anna live?"}, {"role": "assistant", "content": "Oslo"}]


@pytest.fixture
def study(monkeypatch):
    """The study's modules, which import each other by name, with backbones in full precision."""
    monkeypatch.syspath_prepend(STUDY)
    before = set(sys.modules)
    import episodes
    import layers
    import pools
    import train

    load = layers.load_backbone
    monkeypatch.setattr(layers, "load_backbone", lambda name, dtype: load(name))
    yield argparse.Namespace(episodes=episodes, layers=layers, pools=pools, train=train)
    for name in set(sys.modules) - before:
        if str(STUDY) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def frozen(study, folder, model_type="llama"):
    """A tiny backbone of four layers, the upper two of which will have memories."""
    tokenizer, options = word_tokenizer(), {}
    tokenizer.chat_template = "<|system|>Okay.<|end|>" + tokenizer.chat_template
    if model_type == "gemma3_text":
        options = {"layer_types": ["sliding_attention", "full_attention"] * 2}
    model = tiny_backbone(model_type, num_hidden_layers=4, vocab_size=len(tokenizer), initializer_range=0.2, **options)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return study.layers.FrozenBackbone(str(folder), 2)


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text"])
def test_the_upper_layers_read_as_the_whole_model_does(study, tmp_path, model_type):
    backbone = frozen(study, tmp_path, model_type)
    upper = study.layers.UpperLayers(backbone, tiny_config(num_states=2))
    upper.pull()
    chats = [backbone.ids(render(backbone.tokenizer, chat)) for chat in (TOLD, LONGER)]
    with torch.no_grad():
        memory = upper.write([backbone([chat], torch.arange(1)).attended[:, 0] for chat in chats])
        asked = backbone.ids(render(backbone.tokenizer, ASKED))
        below = backbone.below([asked, asked])
        read, empty = (upper.logits(upper.read([*below], rows, headed=True)) for rows in (memory, None))
        names = [layer.replace(".0.", ".2.").replace(".1.", ".3.") for layer in memory.layers]
        moved = Snapshot.from_layers(
            {name: memory.state(layer) for name, layer in zip(names, memory.layers, strict=True)}, memory.tokens
        )
        with upper.whole.disable_adapter():
            head = upper.whole(input_ids=backbone.head.expand(2, -1), use_cache=True).past_key_values
        with upper.whole.memory(DeltaMemState(moved), write=False):
            whole = upper.whole(input_ids=asked.expand(2, -1), past_key_values=head).logits
    torch.testing.assert_close(read, whole, atol=1e-4, rtol=1e-4)
    assert (read - empty).abs().max() > 0.2  # what the memory holds shows


def fresh(study, backbone, phase):
    """New items without end, made of a few words."""
    maker = study.episodes.Maker(backbone, random.Random(0))
    facts = study.episodes.draw_questions(random.Random(0), 2, "train", ["teal"], 0.0)
    answered = study.episodes.Answered(*(render(backbone.tokenizer, ASKED[:count]) for count in (1, 2)))
    while True:
        talk = maker.talk({"messages": LONGER, "talk": True}, 96, 48, 2)
        unrelated = maker.unrelated([render(backbone.tokenizer, ASKED)] * 6, headed=True)
        if phase == study.pools.Phase.TALK:
            yield study.pools.Fresh(talk, unrelated, True)
        else:
            asking = [maker.questions(facts, "train", 2) for _ in range(2)]
            yield study.pools.Fresh(talk, unrelated, True, asking, [maker.in_context(answered)])


@pytest.fixture
def trainer(study, tmp_path):
    backbone = frozen(study, tmp_path)
    upper = study.layers.UpperLayers(backbone, tiny_config(num_states=2))
    options = argparse.Namespace(seed=0, minutes=100.0, learning_rate=1e-2, adapter=None)
    phase = torch.tensor(0)
    return study.train.Trainer(upper, study.pools.Pools(fresh(study, backbone, phase), phase), options)


def test_a_new_adapter_begins_with_dialogues_alone_and_then_few_facts(trainer):
    alone, then = {"talk", "other talk", "unrelated"}, {"questions", "other questions", "in context"}
    assert set(trainer.train_step()) == alone
    assert trainer.before is None
    assert not trainer.pools.asking  # none are made in vain
    trainer.seconds = 0.3 * 100 * 60
    assert [set(trainer.train_step()) for _ in range(2)] == [alone | then] * 2  # few facts: no row holds anything from before
    trainer.seconds = 0.7 * 100 * 60
    assert set(trainer.train_step()) == alone | then
    assert set(trainer.train_step()) == alone | then | {"earlier questions"}


def test_one_that_goes_on_from_an_adapter_begins_with_everything(trainer, tmp_path):
    trainer.options.adapter = tmp_path
    assert "questions" in trainer.train_step()
    assert trainer.before is not None  # with few facts, no row keeps what it holds
    assert trainer._weights()["unrelated"] == 7.0


def test_the_weights_move_to_the_last_ones_and_stay(trainer, study):
    weights = []
    for minutes in (0, 60, 67.5, 75, 100):
        trainer.seconds = minutes * 60.0
        weights.append(trainer._weights())
    assert weights[:2] == [study.train.FIRST_WEIGHTS] * 2
    assert weights[2]["unrelated"] == pytest.approx((1.5 + 7.0) / 2)
    assert weights[3] == weights[4] == pytest.approx(study.train.LAST_WEIGHTS)


def test_steps_lower_the_loss(trainer):
    losses = [trainer.train_step()["talk"] for _ in range(30)]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


def test_a_row_that_is_kept_moves_with_its_questions(trainer):
    memory = trainer.upper.write([torch.randn(2, 8, 32) for _ in range(12)])
    questions = {row: [object()] for row in range(12)}
    trainer._keep(memory, questions)
    source = {place: next(row for row in questions if questions[row] == asked) for place, asked in trainer.earlier.items()}
    assert len(source) == 12 // 3
    for layer in memory.layers:
        held, given = trainer.before.state(layer)["state"], memory.state(layer)["state"]
        for place in range(12):
            expected = given[source[place]] if place in source else torch.zeros_like(given[0])
            assert torch.equal(held[place], expected)


def test_a_saved_run_goes_on_where_it_was(trainer, tmp_path):
    trainer.train_step()
    trainer.save(tmp_path / "run.pt")
    weights = {name: weight.detach().clone() for name, weight in trainer.upper.weights.items()}
    trainer.train_step()
    seconds = trainer.seconds
    trainer.load(tmp_path / "run.pt")
    assert (trainer.step, trainer.seconds < seconds) == (1, True)
    assert all(torch.equal(weight, weights[name]) for name, weight in trainer.upper.weights.items())


def test_read_gates_start_open_and_are_all_that_is_trained(study, tmp_path, monkeypatch):
    """docs/studies/structure/read_gate.py: an adapter with new gates is that adapter, until a step moves its gates alone."""
    monkeypatch.syspath_prepend(STUDY.parent / "structure")
    import read_gate

    backbone = frozen(study, tmp_path / "backbone")
    upper = study.layers.UpperLayers(backbone, tiny_config(num_states=2))
    upper.pull()
    upper.save(tmp_path / "adapter")
    gated = read_gate.gated_layers(backbone, argparse.Namespace(adapter=tmp_path / "adapter"))
    gated.load(tmp_path / "adapter")
    told, asked = (backbone.ids(render(backbone.tokenizer, chat)) for chat in (LONGER, ASKED))
    history, below = backbone([told], torch.arange(1)).attended[:, 0], backbone.below([asked])
    read = gated.read([*below], gated.write([history]), headed=True)
    assert torch.equal(read, upper.read([*below], upper.write([history]), headed=True))
    before = {name: weight.detach().clone() for name, weight in gated.model.named_parameters()}
    optimizer = torch.optim.AdamW(gated.weights.values(), lr=0.1, weight_decay=0.0)
    read.square().mean().backward()
    optimizer.step()
    for name, weight in gated.model.named_parameters():
        rows = 2 if name in gated.weights else 0  # one gate for each state
        assert torch.equal(weight[rows:], before[name][rows:])
        assert not rows or (weight[:rows] != before[name][:rows]).any()
