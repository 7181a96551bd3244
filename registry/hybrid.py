"""Hybrids: Llama's attention in some layers, recurrent layers in between.

Zamba's attention is one of a few blocks shared by several layers. Each of these layers has its own memory, since the blocks
are separate modules with tied weights.
"""

from deltamem.hook import AttentionHook

HOOKS = {
    **dict.fromkeys(("bamba", "granitemoehybrid", "jamba", "olmo_hybrid", "zamba", "zamba2"), AttentionHook()),
    "nemotron_h": AttentionHook("mixer"),
}
