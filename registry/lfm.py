"""LFM: attention in some layers, short convolutions in the others; LFM 3 gates each head's output."""

from deltamem.hook import AttentionHook

HOOKS = {**dict.fromkeys(("lfm2", "lfm2_moe"), AttentionHook(o="out_proj")), "lfm3": AttentionHook()}
