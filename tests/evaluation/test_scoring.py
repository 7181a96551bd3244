import pytest
import torch
from tiny import random_tokens, tiny_adapted, tiny_backbone
from tiny_chat import chat_tokenizer
from tokenizers.processors import TemplateProcessing

from deltamem.evaluation.scoring import Text, score
from deltamem.evaluation.subject import Subject

TEXTS = [Text(random_tokens(1, length, seed=length)[0], scored) for length, scored in ((9, 3), (5, 1), (12, 4))]
# Positions that are turned, learnt and none at all; recurrence, which padding must not reach.
MODEL_TYPES = ("llama", "gpt2", "gemma3_text", "falcon_h1")


@torch.no_grad()
def alone(model, text):
    """The oracle: one row, no padding, all logits."""
    logits = model(input_ids=text.ids[None]).logits[0, -text.scored - 1 : -1].float().log_softmax(-1)
    targets = text.ids[-text.scored :]
    return logits.gather(1, targets[:, None]).sum().item(), bool((logits.argmax(1) == targets).all())


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_batch_is_scored_as_one_by_one(model_type):
    model = tiny_backbone(model_type, initializer_range=0.3)
    scores = score(Subject(model, chat_tokenizer()), TEXTS)
    for text, found in zip(TEXTS, scores, strict=True):
        likelihood, greedy = alone(model, text)
        assert found.log_likelihood == pytest.approx(likelihood, abs=1e-4)
        assert found.greedy == greedy


def test_tokens_that_do_not_count():
    model = tiny_backbone(initializer_range=0.3)
    text = TEXTS[2]
    masks = torch.eye(4, dtype=torch.bool)
    texts = [Text(text.ids, 4, mask) for mask in masks]
    scores = score(Subject(model, chat_tokenizer()), [TEXTS[0], *texts, Text(text.ids, 4, ~masks[0])])
    every = [found.log_likelihood for found in scores[1:5]]
    assert sum(every) == pytest.approx(alone(model, text)[0], abs=1e-4)
    assert scores[5].log_likelihood == pytest.approx(sum(every[1:]), abs=1e-4)
    assert scores[0].log_likelihood == pytest.approx(alone(model, TEXTS[0])[0], abs=1e-4)


def test_a_batch_writes_and_reads_as_one_by_one():
    model = tiny_adapted()
    with model.memory(model.new_memory(len(TEXTS))):
        scores = score(Subject(model, chat_tokenizer()), TEXTS)
    for text, found in zip(TEXTS, scores, strict=True):
        assert found.log_likelihood == pytest.approx(alone(model, text)[0], abs=1e-4)  # a plain call starts empty, and writes
    with model.disable_adapter():
        assert alone(model, TEXTS[0])[0] != pytest.approx(scores[0].log_likelihood, abs=1e-4)


def test_what_the_model_would_say_is_greedy():
    model = tiny_backbone(initializer_range=0.3)
    ids = model.generate(TEXTS[0].ids[None], max_new_tokens=2, min_new_tokens=2, do_sample=False)[0]
    other = ids.clone()
    other[-2] = (other[-2] + 1) % 60 + 1
    texts = [Text(ids, 2), Text(other, 2), TEXTS[1]]
    assert [found.greedy for found in score(Subject(model, chat_tokenizer()), texts)] == [True, False, False]


def test_only_the_continuation_is_scored():
    tokenizer = chat_tokenizer()
    text = Text.from_text(tokenizer, "Anna likes", " teal.")
    assert tokenizer.convert_ids_to_tokens(text.ids.tolist()) == ["Anna", "likes", "teal", "."]
    assert text.scored == 2


def test_a_text_starts_as_the_tokenizer_starts_it():
    tokenizer = chat_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "Hello"})
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="Hello $A <|im_end|>", special_tokens=[("Hello", tokenizer.bos_token_id), ("<|im_end|>", tokenizer.eos_token_id)]
    )
    text = Text.from_text(tokenizer, "Anna likes", " teal")
    assert tokenizer.convert_ids_to_tokens(text.ids.tolist()) == ["Hello", "Anna", "likes", "teal"]  # and no end
    assert text.scored == 1
