"""Mynah: Llama's attention, but for the name of its output."""

from deltamem import AttentionHook

HOOKS = {"mynah": AttentionHook(o="dense")}
