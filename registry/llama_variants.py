"""Llama's projections with different attention after them: differential attention, and a mask computed from the values."""

from deltamem.hook import AttentionHook

HOOKS = dict.fromkeys(("diffllama", "doge"), AttentionHook())
