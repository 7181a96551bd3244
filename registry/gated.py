"""Llama's attention with an output gate computed by a separate projection, from vendors without another family."""

from deltamem.hook import AttentionHook

HOOKS = dict.fromkeys(("afmoe", "beam", "laguna"), AttentionHook())
