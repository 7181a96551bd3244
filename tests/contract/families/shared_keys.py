"""Layers that share the keys and values of another, or whose attention differs in its sizes."""

from family import Family

# Keys and values of the first two layers serve the last two.
SHARED = {
    "num_hidden_layers": 4,
    "num_kv_shared_layers": 2,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "hidden_size_per_layer_input": 4,
    "vocab_size_per_layer_input": 61,
}
GEMMA3N = SHARED | {
    "intermediate_size": [48] * 4,
    "activation_sparsity_pattern": [0.5, 0.0, 0.5, 0.0],
    "laurel_rank": 4,
    "altup_num_inputs": 2,
}
# Its attention does not scale, so larger weights only round more.
GEMMA4 = SHARED | {"initializer_range": 0.1, "per_layer_config": {1: {"head_dim": 16}, 3: {"head_dim": 16}}}
# Latent attention: keys and values are those of all of the text, in every pass.
ROPE = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
DOTS3 = {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 12,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 6,
    "head_dim": 16,
    "index_n_heads": 8,
    "index_head_dim": 16,
    "index_topk": 5,
    "shared_experts_intermediate_size": 16,
    "rope_parameters": {"sliding_attention": ROPE, "indexed_attention": ROPE},
    "layer_types": ["indexed_attention", "sliding_attention"],
    "per_layer_config": {1: {"num_attention_heads": 2, "num_key_value_heads": 2, "kv_lora_rank": 10, "v_head_dim": 5}},
}

FAMILIES = {
    "gemma3n_text": Family(GEMMA3N, attention=4),
    "gemma4": Family({"text_config": GEMMA4, "vision_config": None, "audio_config": None}, attention=4),
    "gemma4_text": Family(GEMMA4, attention=4),
    "gemma4_unified": Family({"text_config": GEMMA4}, attention=4),
    "gemma4_unified_text": Family(GEMMA4, attention=4),
    "dots3_note_text": Family(DOTS3, without=("k", "v")),
    "cohere_compass_text": Family({"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}}),
    "hunyuan_v1_dense": Family({"head_dim": 8}),
    "hunyuan_v1_moe": Family({"head_dim": 8}),
    "ministral": Family({"head_dim": 8}),
    "dots1": Family({"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2}),
}
