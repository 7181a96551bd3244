import pytest
import torch
from tiny import random_tokens, tiny_backbone

from deltamem.benchmark.twins import twins
from deltamem.config import VARIANTS
from deltamem.layer import DeltaMemLayer


def hooks(model):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_the_bare_twin_never_had_an_adapter(variant):
    backbone, ids = tiny_backbone(), random_tokens(2, 9)
    logits, modules = backbone(ids).logits, [type(module) for module in backbone.modules()]
    bare, adapted = twins(backbone, None, variant)
    assert [type(module) for module in bare.model.modules()] == modules
    assert hooks(bare.model) == 0
    assert not hasattr(bare.model, "peft_config")
    assert torch.equal(bare.model(ids).logits, logits)
    assert any(isinstance(module, DeltaMemLayer) for module in adapted.model.modules())
    with adapted.writing(ids):  # the second pass reads what the first one wrote, message by message too
        adapted.model(ids)
        assert not torch.equal(adapted.model(ids).logits, logits)


def test_twins_share_their_weights():
    backbone = tiny_backbone()
    bare, adapted = twins(backbone, None, "tsw")
    theirs = {weight.data_ptr() for weight in adapted.model.parameters()}
    assert {weight.data_ptr() for weight in bare.model.parameters()} < theirs
    added = sum(weight.numel() for name, weight in adapted.model.named_parameters() if "delta_mem_" in name)
    bare_count = sum(weight.numel() for weight in bare.model.parameters())
    assert sum(weight.numel() for weight in adapted.model.parameters()) == bare_count + added
