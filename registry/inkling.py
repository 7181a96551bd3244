"""Inkling: separate projections; keys and values then pass through a short convolution, and so after the corrections."""

from deltamem.hook import AttentionHook

HOOKS = dict.fromkeys(("inkling2_text", "inkling_text"), AttentionHook())
