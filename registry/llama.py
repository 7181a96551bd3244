"""Llama and others with its attention: separate projections, mostly without norms on queries and keys.

In Llama 3.2 (mllama), the layers that attend to an image have no memory: their attention is called cross_attn. Llama 4
normalises queries and keys after the rotary embedding, and uses chunked attention in most layers.
"""

from deltamem.hook import AttentionHook

HOOKS = dict.fromkeys(
    (
        "arcee",
        "cwm",
        "helium",
        "hyperclovax",
        "internlm3",
        "iquestcoder",
        "jais2",
        "llama",
        "llama4_text",
        "mllama_text_model",
        "seed_oss",
        "solar_open",
        "starcoder2",
    ),
    AttentionHook(),
)
