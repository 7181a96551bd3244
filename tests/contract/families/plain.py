"""Attention with four projections of the usual names."""

from family import Family

SINKS = {"eager and sdpa": "transformers refuses SDPA for it, which knows no attention sinks"}
SOFT_CAP = {"eager and sdpa": "transformers refuses SDPA for it, which cannot cap the attention's logits"}
BOTH = ["sliding_attention", "full_attention"]
ROPE_IN_ONE = [1, 0]

FAMILIES = {
    "apertus": Family(),
    "arcee": Family(),
    "cohere": Family(),
    "cohere2": Family(),
    "cohere2_moe": Family(),
    "cwm": Family(),
    "ernie4_5": Family(),
    "ernie4_5_moe": Family(),
    "exaone4": Family(),
    "exaone_moe": Family(),
    "flex_olmo": Family(),
    "flint": Family({"mlp_only_layers": [0]}, lacks=SINKS),
    "gemma": Family(),
    "gemma2": Family(lacks=SOFT_CAP),
    "gemma3_text": Family(),
    "glm": Family(),
    "glm4": Family(),
    "glm4_moe": Family(),
    "gpt_oss": Family(lacks=SINKS),
    "granite": Family(),
    "granite_swa": Family({"layer_rope_theta": [10000.0, 0.0]}, lacks=SINKS),
    "granitemoe": Family(),
    "granitemoe_swa": Family({"layer_rope_theta": [10000.0, 0.0]}, lacks=SINKS),
    "granitemoeshared": Family(),
    "helium": Family(),
    "hy_v3": Family(),
    "hyperclovax": Family(),
    "internlm3": Family(),
    "iquestcoder": Family(),
    "jais2": Family(),
    "kolibri1": Family({"shared_expert_intermediate_size": 16}),
    "llama": Family(),
    "llama4_text": Family(
        {"no_rope_layers": ROPE_IN_ONE, "moe_layers": [1], "attention_chunk_size": 8, "intermediate_size_mlp": 48}
    ),
    "mellum": Family({"layer_types": BOTH}),
    "ministral3": Family(),
    "mistral": Family(),
    "mixtral": Family(),
    "nanochat": Family(),
    "olmo": Family(),
    "olmo2": Family(),
    "olmo3": Family(),
    "olmoe": Family(),
    "phi": Family(),
    "phimoe": Family(),
    "qwen2": Family(),
    "qwen2_moe": Family({"shared_expert_intermediate_size": 16}),
    "qwen3": Family(),
    "qwen3_moe": Family(),
    "seed_oss": Family(),
    "smollm3": Family({"no_rope_layers": ROPE_IN_ONE}),
    "solar_open": Family(),
    "starcoder2": Family(),
    "vaultgemma": Family(lacks=SOFT_CAP),
}
