"""Kosmos 2.5's text decoder: plain attention without rotary embeddings, which computes its keys first."""

from deltamem.hook import AttentionHook

HOOKS = {"kosmos_2_5_text_model": AttentionHook(o="out_proj", reads="k_proj")}
