"""GPT-NeoX: queries, keys and values in one projection, head by head."""

from deltamem.hook import AttentionHook

HOOKS = {
    "gpt_neox": AttentionHook(
        "attention",
        q="query_key_value",
        k="query_key_value",
        v="query_key_value",
        o="dense",
        packing={"query_key_value": "heads x (q k v)"},
    )
}
