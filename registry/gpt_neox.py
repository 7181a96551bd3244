"""GPT-NeoX: queries, keys and values packed into one projection, grouped by head."""

from dataclasses import replace

from deltamem.hook import AttentionHook

GPT_NEOX = AttentionHook(
    "attention",
    q="query_key_value",
    k="query_key_value",
    v="query_key_value",
    o="dense",
    packing={"query_key_value": "heads x (q k v)"},
)

HOOKS = {"gpt_neox": GPT_NEOX, "gpt_neox_japanese": replace(GPT_NEOX, keywords=False)}
