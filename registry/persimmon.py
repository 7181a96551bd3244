"""Persimmon, and Fuyu, whose text decoder it is: one packed projection, grouped by head, then norms on queries and keys."""

from deltamem.hook import AttentionHook

HOOKS = dict.fromkeys(
    ("fuyu", "persimmon"),
    AttentionHook(
        q="query_key_value",
        k="query_key_value",
        v="query_key_value",
        o="dense",
        packing={"query_key_value": "heads x (q k v)"},
    ),
)
