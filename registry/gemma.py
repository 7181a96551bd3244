"""Gemma, text: most layers slide from Gemma 2 on; Gemma 3 and 4 normalise queries and keys per head after the projections.

Gemma 3n and 4 have layers that share the keys and values of another, and 4 also some whose values are their keys. Recurrent
Gemma has attention in every third layer.
"""

from deltamem.hook import AttentionHook, Unsupported

DRAFTS = Unsupported("it drafts for another model from that one's keys and values, and reads no text of its own")

HOOKS = {
    **dict.fromkeys(
        ("gemma", "gemma2", "gemma3_text", "gemma3n_text", "gemma4_text", "gemma4_unified_text", "vaultgemma"), AttentionHook()
    ),
    **dict.fromkeys(("gemma4_assistant", "gemma4_unified_assistant"), DRAFTS),
    "recurrent_gemma": AttentionHook("temporal_block"),
}
