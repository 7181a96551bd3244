"""Phi 3: queries, keys and values in one projection, one after the other."""

from deltamem.hook import AttentionHook

HOOKS = {"phi3": AttentionHook(q="qkv_proj", k="qkv_proj", v="qkv_proj", packing="contiguous")}
