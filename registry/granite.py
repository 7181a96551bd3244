"""Granite: Llama's attention with its own scale."""

from deltamem.hook import AttentionHook

HOOKS = dict.fromkeys(
    (
        "granite",
        "granite4_vision_text",
        "granite_docling_text",
        "granite_swa",
        "granitemoe",
        "granitemoe_swa",
        "granitemoeshared",
    ),
    AttentionHook(),
)
