"""Falcon H1: in every layer an attention like Llama's beside a Mamba 2 mixer, which the memory leaves alone."""

from deltamem.hook import AttentionHook

HOOKS = {"falcon_h1": AttentionHook()}
