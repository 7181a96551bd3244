"""Mistral, Ministral and Mixtral: Llama's attention, with a sliding window in some models."""

from deltamem.hook import AttentionHook

HOOKS = dict.fromkeys(("ministral", "ministral3", "mistral", "mixtral"), AttentionHook())
