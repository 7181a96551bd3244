"""Falcon: one packed projection, grouped by key head (its queries, key, value); early models have a single shared key."""

from deltamem.hook import AttentionHook

HOOKS = {
    "falcon": AttentionHook(
        "self_attention",
        q="query_key_value",
        k="query_key_value",
        v="query_key_value",
        o="dense",
        packing={"query_key_value": "kv_heads x (q k v)"},
        keywords=False,
    )
}
