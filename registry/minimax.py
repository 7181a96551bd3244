"""MiniMax: Llama's attention, with linear attention beside it in some layers; norms on queries and keys from M2 on."""

from deltamem.hook import AttentionHook

HOOKS = dict.fromkeys(("minimax", "minimax_m2", "minimax_m3_vl_text"), AttentionHook())
