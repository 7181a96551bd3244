"""GLM 4 and 4.5, including the vision models: Llama's attention with rotary embeddings on part of each head."""

from deltamem.hook import AttentionHook

HOOKS = dict.fromkeys(("glm", "glm4", "glm4_moe", "glm4v_moe_text", "glm4v_text", "glm_ocr_text"), AttentionHook())
