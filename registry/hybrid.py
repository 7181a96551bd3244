"""Llama's attention in some layers among recurrent ones.

Zamba's attention is one of few blocks that several layers share. Each of these layers has a memory: the blocks are modules of
their own with tied weights.
"""

from deltamem.hook import AttentionHook

HOOKS = {
    **dict.fromkeys(("bamba", "granitemoehybrid", "jamba", "olmo_hybrid", "zamba", "zamba2"), AttentionHook()),
    "nemotron_h": AttentionHook("mixer"),
}
