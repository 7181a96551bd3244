"""DeepSeek and others with its attention: low-rank queries, and keys and values expanded from a cache of latents (MLA).

Queries are corrected at the output of their last projection. Keys and values cannot be corrected: every pass recomputes them
from the latents of the whole text. DeepSeek 4 has a single key head whose keys are also the values, and a low-rank output.
The linear attention of Kimi and Ling has projections of the same names, but no latents.
"""

from dataclasses import replace

from deltamem.hook import AttentionHook

LATENT = AttentionHook(q=("q_b_proj", "q_proj"), k=None, v=None, marker="kv_b_proj", reads=("q_a_proj", "q_proj"))

HOOKS = {
    **dict.fromkeys(
        (
            "axk1",
            "bailing_hybrid",
            "deepseek_v2",
            "deepseek_v3",
            "deepseek_v32",
            "dots3_note_text",
            "glm4_moe_lite",
            "glm_moe_dsa",
            "hy_v4",
            "kimi_linear",
            "minicpm3",
            "mistral4",
            "mistral_large4_text",
            "youtu",
        ),
        LATENT,
    ),
    "deepseek_v4": AttentionHook(q="q_b_proj", k=None, v=None, o="o_b_proj", reads="q_a_proj"),
    "axk2": AttentionHook(
        q="q_gate_proj",
        k=None,
        v=None,
        reads="q_a_proj",
        packing={"q_gate_proj": "heads x (q:qk_head_dim gate:v_head_dim)"},
    ),
    "longcat_flash": replace(LATENT, attention="self_attn.*"),
}
