"""Exaone from 4 on: queries and keys are normalised per head after the projections; most layers use a sliding window."""

from deltamem.hook import AttentionHook

HOOKS = dict.fromkeys(("exaone4", "exaone_moe"), AttentionHook())
