"""Byte Latent Transformer."""

from deltamem.hook import Unsupported

HOOKS = {"blt": Unsupported("its layers run over two sequences, bytes and patches of bytes, and a memory follows one")}
