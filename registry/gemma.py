"""Gemma 3, text: queries and keys are normalised per head after the projections; most layers slide."""

from deltamem.hook import AttentionHook

HOOKS = {"gemma3_text": AttentionHook()}
