"""Chameleon and Emu 3, whose images are tokens within the text: Llama's attention; Chameleon has norms per head."""

from deltamem.hook import AttentionHook

HOOKS = dict.fromkeys(("chameleon", "emu3_text_model"), AttentionHook())
