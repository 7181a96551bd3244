"""Falcon: one projection, for each head of the keys its queries, key and value; in the first ones all queries share one key."""

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
