"""Baidu's Ernie 4.5 and PaddleOCR: Llama's attention; the vision models' rotary embeddings have three positions per token."""

from deltamem.hook import AttentionHook

HOOKS = dict.fromkeys(("ernie4_5", "ernie4_5_moe", "ernie4_5_vl_moe_text", "paddleocr_vl_text"), AttentionHook())
