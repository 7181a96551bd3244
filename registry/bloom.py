"""BLOOM: queries, keys and values packed into one projection, grouped by head; positions are biases."""

from deltamem.hook import AttentionHook

HOOKS = {
    "bloom": AttentionHook(
        "self_attention",
        q="query_key_value",
        k="query_key_value",
        v="query_key_value",
        o="dense",
        packing={"query_key_value": "heads x (q k v)"},
        keywords=False,
    )
}
