"""Where a model is read and corrected: hooks of architectures, and how a model finds its own."""

from deltamem.hook.attention_hook import AttentionHook, LikeItsDecoder, Unsupported

__all__ = ["AttentionHook", "LikeItsDecoder", "Unsupported"]
