"""Baidu's Ernie 4.5 and PaddleOCR: Llama's attention; those that see have rotary embeddings with three positions a token."""

from deltamem.hook import AttentionHook

HOOKS = dict.fromkeys(("ernie4_5", "ernie4_5_moe", "ernie4_5_vl_moe_text", "paddleocr_vl_text"), AttentionHook())
