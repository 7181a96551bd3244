"""Attention with low-rank queries, and keys and values that are expanded from a cache of latents (DeepSeek's MLA)."""

from family import Family
from transformers import AutoModelForImageTextToText


def with_gate(output, config):
    """[b, t, heads, q | gate]."""
    q = output.view(*output.shape[:2], config.num_attention_heads, -1)[..., : config.qk_head_dim]
    return {"q": q}


LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 12,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 10,
    "qk_head_dim": 18,
    "v_head_dim": 6,
}
DIRECT = {name: size for name, size in LATENT.items() if name != "q_lora_rank"}
# An indexer chooses the tokens to attend to: fewer than the tests' texts have.
INDEXED = {"index_n_heads": 8, "index_head_dim": 16, "index_topk": 5}
SHARED_INDEXER = {"indexer_types": ["full", "shared"]}
RECURRENT = {"linear_num_heads": 2, "linear_head_dim": 8, "layer_types": ["linear_attention", "full_attention"]}
ONE_GROUP = {"n_group": 1, "topk_group": 1, "num_expert_group": 1}
NO_SDPA = "transformers refuses sdpa for it"
KEYS_AND_VALUES = ("k", "v")  # of all of the text, in every pass

FAMILIES = {
    "deepseek_v2": Family(LATENT | {"num_experts_per_tok": 2}, without=KEYS_AND_VALUES),
    "deepseek_v3": Family(LATENT | ONE_GROUP, without=KEYS_AND_VALUES),
    "deepseek_v32": Family(LATENT | ONE_GROUP | INDEXED, without=KEYS_AND_VALUES),
    "deepseek_v4": Family(
        {
            "q_lora_rank": 16,
            "o_lora_rank": 8,
            "o_groups": 2,
            "num_key_value_heads": 1,
            "compress_rates": {"compressed_sparse_attention": 2, "heavily_compressed_attention": 4},
            "index_n_heads": 8,
            "index_head_dim": 16,
            "index_topk": 3,
        },
        without=KEYS_AND_VALUES,
        lacks={
            "left padding": "tokens are compressed in groups by their place in the row, padding included",
            "eager and sdpa": NO_SDPA,
        },
    ),
    "axk1": Family(LATENT | ONE_GROUP, without=KEYS_AND_VALUES),
    "axk2": Family(LATENT | ONE_GROUP | INDEXED, without=KEYS_AND_VALUES, unpack={"q": with_gate}),
    "glm4_moe_lite": Family(LATENT, without=KEYS_AND_VALUES),
    "glm_moe_dsa": Family(LATENT | INDEXED | SHARED_INDEXER, without=KEYS_AND_VALUES),
    "minicpm3": Family(LATENT, without=KEYS_AND_VALUES),
    "youtu": Family(LATENT | {"q_lora_rank": None}, without=KEYS_AND_VALUES),
    "longcat_flash": Family(
        LATENT | {"num_layers": 1, "ffn_hidden_size": 48, "expert_ffn_hidden_size": 16, "moe_topk": 2, "zero_expert_num": 2},
        without=KEYS_AND_VALUES,
    ),
    "hy_v4": Family(LATENT | INDEXED | SHARED_INDEXER, without=KEYS_AND_VALUES, lacks={"eager and sdpa": NO_SDPA}),
    "mistral4": Family(LATENT | {"head_dim": 16}, without=KEYS_AND_VALUES, auto=AutoModelForImageTextToText),
    "mistral_large4": Family(
        {"text_config": DIRECT | INDEXED | SHARED_INDEXER | {"kv_source_layers": [0, 0], "no_rope_layers": [1, 1]}},
        without=KEYS_AND_VALUES,
        auto=AutoModelForImageTextToText,
    ),
    "kimi_linear": Family(LATENT | ONE_GROUP | RECURRENT, attention=1, without=KEYS_AND_VALUES),
    "bailing_hybrid": Family(LATENT | ONE_GROUP | RECURRENT, attention=1, without=KEYS_AND_VALUES),
}
