"""StarCoder: one packed projection, grouped by head, or with a single key and value shared by all queries."""

from deltamem.hook import AttentionHook

HOOKS = {
    "gpt_bigcode": AttentionHook(
        "attn", q="c_attn", k="c_attn", v="c_attn", o="c_proj", packing={"c_attn": "kv_heads x (q k v)"}
    )
}
