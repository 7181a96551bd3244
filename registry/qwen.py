"""Qwen 2 to 4. From Qwen 3 on, queries and keys are normalised per head, after the projections and so after the corrections.

From Qwen3-Next on, most layers have linear attention, and the query projection also contains each head's output gate.
"""

from deltamem.hook import AttentionHook

GATED = AttentionHook(packing={"q_proj": "heads x (q gate)"})

HOOKS = dict.fromkeys(
    (
        "qwen2",
        "qwen2_5_omni_text",
        "qwen2_5_vl_text",
        "qwen2_moe",
        "qwen2_vl_text",
        "qwen3",
        "qwen3_moe",
        "qwen3_omni_moe_text",
        "qwen3_vl_moe_text",
        "qwen3_vl_text",
    ),
    AttentionHook(),
) | dict.fromkeys(("qwen3_5_moe_text", "qwen3_5_text", "qwen3_next", "qwen4_exp_text"), GATED)
