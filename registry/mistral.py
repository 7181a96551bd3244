"""Mistral: Llama's attention, with a sliding window in some models."""

from deltamem.hook import AttentionHook

HOOKS = {"mistral": AttentionHook()}
