"""Where a memory reads and corrects a model: one hook per architecture, and how the hook for a model is found."""

from deltamem.hook.attention_hook import AttentionHook, LikeItsDecoder, Unsupported

__all__ = ["AttentionHook", "LikeItsDecoder", "Unsupported"]
