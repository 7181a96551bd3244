"""MPT and DBRX: queries, keys and values concatenated in one projection, whose output is clipped."""

from dataclasses import replace

from deltamem.hook import AttentionHook

DBRX = AttentionHook("attn", q="Wqkv", k="Wqkv", v="Wqkv", o="out_proj", packing={"Wqkv": "q k v"})

HOOKS = {"dbrx": DBRX, "mpt": replace(DBRX, keywords=False)}
