"""Gemma, text: sliding windows in most layers from Gemma 2 on; Gemma 3 and 4 normalise projected queries and keys per head.

Gemma 3n and 4 have layers that share another layer's keys and values, and 4 also has layers whose values are their keys.
Recurrent Gemma has attention in every third layer.
"""

from deltamem.hook import AttentionHook, Unsupported

DRAFTS = Unsupported("it drafts for another model from the keys and values of that model, and does not read text itself")

HOOKS = {
    **dict.fromkeys(
        ("gemma", "gemma2", "gemma3_text", "gemma3n_text", "gemma4_text", "gemma4_unified_text", "vaultgemma"), AttentionHook()
    ),
    **dict.fromkeys(("gemma4_assistant", "gemma4_unified_assistant"), DRAFTS),
    "recurrent_gemma": AttentionHook("temporal_block"),
}
