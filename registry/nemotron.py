"""Nemotron: Llama's attention."""

from deltamem.hook import AttentionHook

HOOKS = {"nemotron": AttentionHook(keywords=False)}
