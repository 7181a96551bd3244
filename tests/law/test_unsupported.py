"""What the memory cannot follow is refused before anything is written, and the refusal names what was found."""

import pytest
import torch
from oracle import TOLERANCE, adapted, error, replay, told
from tiny import FAMILIES, random_tokens, tiny_adapted, tiny_backbone
from transformers import DataCollatorWithFlattening, GenerationConfig


def refuse(model, state, match, **call):
    """The call is refused in a block and outside, and leaves the memory as it was."""
    before = state.snapshot
    with pytest.raises(NotImplementedError, match=match), torch.no_grad(), model.memory(state):
        model(**call)
    assert state.snapshot is before
    with pytest.raises(NotImplementedError, match=match):
        model(**call)


@pytest.mark.parametrize("keyword", ["cu_seq_lens_q", "block_table", "cache"])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_keywords_of_paged_attention_and_packed_rows(model_type, keyword):
    model = adapted(model_type)
    refuse(model, told(model), f"{keyword} .*padded batch", input_ids=random_tokens(1, 5), **{keyword: torch.tensor([0, 2, 5])})


@pytest.mark.parametrize("model_type", FAMILIES)
def test_positions_that_start_anew(model_type):
    model = adapted(model_type)
    positions = torch.tensor([[0, 1, 2, 3, 4], [0, 1, 2, 0, 1]])
    refuse(model, told(model, rows=2), "token 3 of row 1", input_ids=random_tokens(2, 5), position_ids=positions)


def test_text_positions_that_start_anew_beside_those_of_images():
    model = adapted()
    positions = torch.tensor([0, 1, 2, 0, 1]).expand(4, 1, 5)  # text | time | height | width
    refuse(model, told(model), "token 3 of row 0", input_ids=random_tokens(1, 5), position_ids=positions)


def test_a_flattened_batch_of_documents():
    model = adapted()
    batch = DataCollatorWithFlattening(return_tensors="pt")([{"input_ids": [5, 6, 7]}, {"input_ids": [8, 9]}])
    batch.pop("labels")
    refuse(model, told(model), "token 3 of row 0", **batch)


@pytest.mark.parametrize("offset", [0, 3])
def test_positions_of_padded_rows_are_no_new_start(offset):
    model, ids = adapted(), random_tokens(2, 6)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    state = model.new_memory(2)
    for filler in (0, 1, 5):
        positions = (mask.cumsum(1) - 1 + offset).masked_fill(mask == 0, filler)
        with torch.no_grad(), model.memory(state):
            model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False)
    if offset == 0:
        single = model.new_memory()
        for _ in range(3):
            single = replay(model, ids[0, 2:], single)
        assert error(state[0], single) < TOLERANCE


@pytest.mark.parametrize("start", ["generate_batch", "init_continuous_batching"])
def test_continuous_batching(start):
    model = adapted()
    state = told(model)
    before = state.snapshot
    options = GenerationConfig(max_new_tokens=3, do_sample=False, pad_token_id=0, eos_token_id=2)
    with pytest.raises(NotImplementedError, match="continuous batching"), model.memory(state):
        getattr(model, start)([[5, 6, 7], [8, 9]], generation_config=options)
    assert state.snapshot is before


def test_data_parallel_replicas():
    """What nn.DataParallel makes of the modules on each GPU; there need be none to see that they are refused."""
    model = adapted()
    replica = model.get_base_model()._replicate_for_data_parallel()
    with pytest.raises(NotImplementedError, match="DataParallel"):
        replica(input_ids=random_tokens(1, 5))


def test_a_call_without_tokens():
    model = adapted()
    with pytest.raises(ValueError, match="needs input_ids or inputs_embeds"):
        model(attention_mask=torch.ones(1, 5))


@pytest.mark.parametrize(
    ("mask", "match"),
    [
        (torch.ones(1, 3), "covers 3 tokens, but the pass has 5"),
        (torch.ones(5), r"attention mask of type Tensor \(5,\)"),
        ("all", "attention mask of type str"),
    ],
)
def test_masks_of_no_known_kind(mask, match):
    model = adapted()
    state = told(model)
    before = state.snapshot
    with pytest.raises(ValueError, match=match), model.memory(state):
        model(input_ids=random_tokens(1, 5), attention_mask=mask)
    assert state.snapshot is before


def test_a_layer_that_runs_twice_in_one_pass_has_no_memory():
    backbone = tiny_backbone()
    backbone.model.layers[1] = backbone.model.layers[0]
    model = tiny_adapted(backbone=backbone)
    state = model.new_memory()
    with pytest.raises(NotImplementedError, match=r"layers\.0\.self_attn runs more than once in one pass"), model.memory(state):
        model(input_ids=random_tokens(1, 5), use_cache=False)
    assert not any(tensor.any() for tensor in state.tensors.values())
