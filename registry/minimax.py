"""MiniMax: Llama's attention, among linear-attention layers in some models; norms on queries and keys from M2 on."""

from deltamem.hook import AttentionHook

HOOKS = dict.fromkeys(("minimax", "minimax_m2", "minimax_m3_vl_text"), AttentionHook())
