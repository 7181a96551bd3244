"""Attention in some layers, or beside a recurrent mixer."""

from family import Family

MAMBA_2 = {
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_n_groups": 1,
    "mamba_d_state": 8,
    "mamba_chunk_size": 8,
}
SHARED_BLOCK = {
    "num_hidden_layers": 4,
    "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
    "hybrid_layer_ids": [1, 3],
    "num_key_value_heads": 4,
    "attention_hidden_size": 64,
    "attention_head_dim": 16,
}
EMPTY_SCAN = {"cached decoding": "a later pass of several tokens scans from an empty state"}

FAMILIES = {
    "jamba": Family(
        {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_dt_rank": 4, "mamba_d_state": 4, "use_mamba_kernels": False},
        attention=1,
        lacks=EMPTY_SCAN,
    ),
    "bamba": Family(
        {**MAMBA_2, "attn_layer_indices": [1]},
        attention=1,
        lacks={"cached decoding": "without position_ids it counts from the beginning of the pass, not of the text"},
    ),
    "falcon_h1": Family({**MAMBA_2, "mamba_d_ssm": 64}),
    "granitemoehybrid": Family({**MAMBA_2, "layer_types": ["linear_attention", "full_attention"]}, attention=1),
    "nemotron_h": Family(
        {
            "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"],
            "ssm_state_size": 8,
            "mamba_num_heads": 4,
            "mamba_head_dim": 16,
            "n_groups": 1,
            "chunk_size": 8,
            "time_step_min": 1e-9,  # only a pass of several tokens keeps to it
            "moe_shared_expert_intermediate_size": 16,
        },
        attention=1,
    ),
    "zamba": Family(
        {**SHARED_BLOCK, "mamba_d_state": 4, "mamba_dt_rank": 4, "n_mamba_heads": 2, "use_mamba_kernels": False},
        lacks=EMPTY_SCAN,
    ),
    "zamba2": Family(
        {
            **SHARED_BLOCK,
            "mamba_d_state": 8,
            "mamba_headdim": 16,
            "n_mamba_heads": 4,
            "chunk_size": 8,
            "time_step_min": 1e-9,  # as above
            "use_shared_attention_adapter": True,
            "adapter_rank": 4,
            "use_mem_rope": True,
        }
    ),
    "recurrent_gemma": Family(
        {"block_types": ["recurrent", "attention"], "lru_width": 32, "attention_window_size": 8},
        attention=1,
        lacks={
            "cached decoding": "its output does not hold the cache",
            "left padding": "its recurrent blocks are not told of the padding",
        },
    ),
    "olmo_hybrid": Family(
        {"linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 16},
        attention=1,
    ),
    "lfm2": Family({"layer_types": ["conv", "full_attention"]}, attention=1),
    "lfm2_moe": Family({"layer_types": ["conv", "full_attention"], "num_dense_layers": 1}, attention=1),
}
