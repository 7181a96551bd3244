"""Phi: separate projections in the first models; from Phi 3 on, queries, keys and values concatenated in one."""

from deltamem.hook import AttentionHook

PHI3 = AttentionHook(q="qkv_proj", k="qkv_proj", v="qkv_proj", packing={"qkv_proj": "q k v"})

HOOKS = {"phi": AttentionHook(o="dense"), "phi3": PHI3, "phi4_multimodal": PHI3, "phimoe": AttentionHook()}
