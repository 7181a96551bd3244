"""Falcon H1: every layer has attention like Llama's beside a Mamba 2 mixer, which the memory does not touch."""

from deltamem.hook import AttentionHook

HOOKS = {"falcon_h1": AttentionHook()}
