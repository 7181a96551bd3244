"""Recurrent models."""

from deltamem.hook import Unsupported

HOOKS = dict.fromkeys(
    ("falcon_mamba", "mamba", "mamba2", "rwkv", "xlstm"), Unsupported("it is recurrent and has no attention to correct")
)
