"""MiniMax: Llama's attention, in some layers beside linear attention; from M2 on with norms on queries and keys."""

from deltamem.hook import AttentionHook

HOOKS = dict.fromkeys(("minimax", "minimax_m2", "minimax_m3_vl_text"), AttentionHook())
