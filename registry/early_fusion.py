"""Chameleon and Emu 3, whose images are tokens among the text's: Llama's attention, in Chameleon with norms per head."""

from deltamem.hook import AttentionHook

HOOKS = dict.fromkeys(("chameleon", "emu3_text_model"), AttentionHook())
