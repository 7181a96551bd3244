"""Attention whose outcome is gated, or that has other additions of its own to four projections."""

from family import VOCAB, Family


def with_gate(output, config):
    """[b, t, heads, q | gate]."""
    q, _ = output.view(*output.shape[:2], config.num_attention_heads, -1).chunk(2, dim=-1)
    return {"q": q}


NO_SDPA = "transformers refuses sdpa for it"
# Linear attention, in one of the two layers.
LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "shared_expert_intermediate_size": 16,
}
QWEN = Family(LINEAR, attention=1, unpack={"q": with_gate})
VISION = {
    "vision_config": {"depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16, "out_hidden_size": 32},
    "text_config": LINEAR,
}
QWEN_VISION = Family(VISION, attention=1, unpack={"q": with_gate})
INDEXER = {
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 8,
    "indexer_budget": 8,
    "indexer_compress_ratio": 2,
    "hc_count": 2,
    "hc_lowrank": 8,
}
INKLING = {
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 2,
    "swa_head_dim": 16,
    "sliding_window_size": 8,
    "d_rel": 4,
    "rel_extent": 16,
}

FAMILIES = {
    "qwen3_next": QWEN,
    "qwen3_5": QWEN_VISION,
    "qwen3_5_text": QWEN,
    "qwen3_5_moe": QWEN_VISION,
    "qwen3_5_moe_text": QWEN,
    "qwen4_exp": Family({"text_config": LINEAR | INDEXER}, attention=1, unpack={"q": with_gate}),
    "qwen4_exp_text": Family(LINEAR | INDEXER, attention=1, unpack={"q": with_gate}),
    "afmoe": Family(),
    "beam": Family({"n_group": 1, "topk_group": 1}),
    "laguna": Family(
        {
            "num_attention_heads_per_layer": [4, 8],
            "layer_types": ["full_attention", "sliding_attention"],
            "shared_expert_intermediate_size": 16,
        }
    ),
    "lfm3": Family(attention=1),
    "minimax": Family(attention=1, lacks={"beam search": "its cache does not reorder the states of linear attention"}),
    "minimax_m2": Family(),
    "minimax_m3_vl_text": Family({"rotary_dim": 4, "dense_intermediate_size": 48, "shared_intermediate_size": 16}),
    "mimo_v2_flash": Family({"v_head_dim": 6}, lacks={"eager and sdpa": NO_SDPA}),
    "doge": Family(),
    "diffllama": Family(),
    "inkling_text": Family(INKLING),
    "inkling2_text": Family(
        {**INKLING, "unpadded_vocab_size": VOCAB},
        lacks={"eager and sdpa": NO_SDPA, "bfloat16": "its router multiplies float32 inputs by bfloat16 weights"},
    ),
    "zaya": Family({"num_experts_per_tok": 1, "router_hidden_size": 16}, without=("v",)),
}
