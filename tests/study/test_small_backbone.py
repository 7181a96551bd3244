import random

import pytest
import torch

from deltamem.backbones import load_backbone
from deltamem.study.small_backbone import SmallBackbone, repeated_words, small_backbone, told_and_asked, untrained
from deltamem.study.words import word_tokenizer
from deltamem.training.facts import FactEpisodeConfig, fact_episodes
from deltamem.training.scripts import IGNORED

TINY = SmallBackbone(layers=1, width=16, heads=2, steps=2)


def test_every_word_of_every_split_is_known():
    tokenizer = word_tokenizer()
    values = FactEpisodeConfig(max_facts=6, max_fillers=3, updates=0.5)
    numbers = FactEpisodeConfig(min_facts=2, max_facts=6, counting=0.4, lists=0.4)
    for split in ("train", "held_out", "unseen_values"):
        for episode in fact_episodes(50, 0, values, split) + fact_episodes(50, 0, numbers, split):
            assert tokenizer.unk_token_id not in tokenizer.apply_chat_template(episode.messages)["input_ids"]


def test_it_is_trained_once_and_the_same_from_its_seed(tmp_path, monkeypatch):
    shares = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "one"))
    model, tokenizer = load_backbone(str(small_backbone(TINY, shares.append)))
    again, _ = load_backbone(str(small_backbone(TINY, shares.append)))
    assert shares == [0.5, 1.0]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    anew, _ = load_backbone(str(small_backbone(TINY)))
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name])
        assert torch.equal(weight, anew.state_dict()[name])
    assert tokenizer.apply_chat_template([{"role": "user", "content": "Okay."}], tokenize=False) == "<|user|>Okay.<|end|>"


def test_what_is_trained_on_was_said_before():
    tokenizer = word_tokenizer()
    for ids, labels in (
        repeated_words(tokenizer, random.Random(0)),
        told_and_asked(tokenizer, SmallBackbone(facts=3), random.Random(0)),
    ):
        for row, labelled in zip(ids, labels != IGNORED, strict=True):
            assert labelled.any()
            assert all(row[place] in row[:place] for place in labelled.nonzero().flatten())
        assert labels[labels != IGNORED].equal(ids[labels != IGNORED])


def test_training_lowers_the_loss(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    settings = SmallBackbone(layers=1, width=16, heads=2, steps=20, learning_rate=1e-2)
    tokenizer = word_tokenizer()
    ids, labels = told_and_asked(tokenizer, settings, random.Random("not of the training"))
    trained, _ = load_backbone(str(small_backbone(settings)))
    before, after = (model(input_ids=ids, labels=labels).loss for model in (untrained(settings, tokenizer), trained))
    assert after < 0.95 * before


def test_a_head_of_odd_width_is_refused():
    with pytest.raises(ValueError, match="width: 30"):
        SmallBackbone(width=30, heads=4)
