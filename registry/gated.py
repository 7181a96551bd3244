"""Llama's attention with a gate of its outcome in a projection of its own, of vendors without another family."""

from deltamem.hook import AttentionHook

HOOKS = dict.fromkeys(("afmoe", "beam", "laguna"), AttentionHook())
