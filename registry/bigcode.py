"""StarCoder: one projection, head by head, or with one key and one value for all queries."""

from deltamem.hook import AttentionHook

HOOKS = {
    "gpt_bigcode": AttentionHook(
        "attn", q="c_attn", k="c_attn", v="c_attn", o="c_proj", packing={"c_attn": "kv_heads x (q k v)"}
    )
}
