"""The shipped adapter on the real backbone, SmolLM2-135M-Instruct."""

from importlib.resources import files

import pytest
import torch
from peft import PeftModel

from deltamem import ChatSession
from deltamem.backbones import SHIPPED_ADAPTER, load_backbone
from deltamem.evaluation.recall import RecallTest
from deltamem.training.facts import FactEpisodeConfig, fact_episodes

pytestmark = pytest.mark.real_model


@pytest.fixture(scope="module")
def adapted():
    backbone, tokenizer = load_backbone()
    return PeftModel.from_pretrained(backbone, str(files("deltamem.adapters") / SHIPPED_ADAPTER)).eval(), tokenizer


def test_a_fact_is_recalled_from_its_own_memory_alone(adapted):
    test = RecallTest(*adapted)
    recalls = test.run(fact_episodes(12, 1, FactEpisodeConfig(), "held_out"), ("memory", "zero_memory", "shuffled_memory"))
    named = {recall.setting: recall.said_right for recall in recalls}
    assert named["memory"] >= 0.5
    assert max(named["zero_memory"], named["shuffled_memory"]) <= 0.1


@torch.no_grad()
def test_disabled_it_is_the_backbone(adapted):
    model, tokenizer = adapted
    backbone, _ = load_backbone()
    ids = tokenizer("What is the colour of the sky?", return_tensors="pt")["input_ids"]
    with model.disable_adapter():
        assert torch.equal(model(input_ids=ids).logits, backbone(input_ids=ids).logits)


def test_a_chat_remembers_what_is_out_of_its_context(adapted, tmp_path):
    model, tokenizer = adapted
    chat = ChatSession(model, tokenizer)
    chat.observe([{"role": "user", "content": "Anna's favourite colour is red."}, {"role": "assistant", "content": "Okay."}])
    chat.save(tmp_path)
    loaded = ChatSession.load(tmp_path, model, tokenizer)
    assert "red" in loaded.reply("What is Anna's favourite colour?", max_new_tokens=8, do_sample=False)
