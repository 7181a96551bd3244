"""Inkling: plain projections; keys and values pass a short convolution after them, and so after the corrections."""

from deltamem.hook import AttentionHook

HOOKS = dict.fromkeys(("inkling2_text", "inkling_text"), AttentionHook())
